//! Deleting old rows, in batches.

/// Makes a function that deletes the rows whose column lies before a time, at most so many of them, and says how many there
/// were; without a limit it only counts them. What is changed by others meanwhile stays.
macro_rules! purge {
    ($name:ident, $table:literal, $column:literal) => {
        #[doc = concat!("Deletes old rows of `", $table, "`, as [`crate::resources::postgres::purge`] says.")]
        pub fn $name(
            connection: &mut sqlx::PgConnection,
            before: $crate::resources::postgres::Timestamp,
            limit: Option<i64>,
        ) -> futures_util::future::BoxFuture<'_, sqlx::Result<i64>> {
            Box::pin(
                sqlx::query_scalar!(
                    "WITH old AS MATERIALIZED (SELECT ctid FROM "
                        + $table
                        + " WHERE "
                        + $column
                        + " < $1 LIMIT $2::bigint), "
                        + "gone AS (DELETE FROM "
                        + $table
                        + " WHERE $2 IS NOT NULL AND ctid = ANY (ARRAY(SELECT ctid FROM old))) "
                        + "SELECT count(*) AS \"count!\" FROM old",
                    before as _,
                    limit
                )
                .fetch_one(connection),
            )
        }
    };
}
pub(crate) use purge;
