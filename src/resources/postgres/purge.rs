//! Deletes old rows in batches.

/// Defines a function that deletes at most `limit` rows whose column is before a time, and returns how many it found.
/// Without a limit it only counts them. Rows that another transaction changes meanwhile stay.
macro_rules! purge {
    ($name:ident, $table:literal, $column:literal) => {
        #[doc = concat!("Deletes old rows of `", $table, "`, as described at [`crate::resources::postgres::purge`].")]
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
                        + " WHERE $2 IS NOT NULL AND ctid = ANY (ARRAY(SELECT ctid FROM old)) AND "
                        + $column
                        + " < $1) "
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
