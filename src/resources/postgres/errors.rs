//! Classifies the errors of Postgres.

use std::borrow::Cow;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

/// The code for a write to a read-only server.
const READ_ONLY: &str = "25006";

/// Whether the error means that Postgres is unavailable, too slow or not the primary, so that a retry can help.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Classes: 08 connection exception, 28 invalid authorization, 3D no such database, 53 insufficient resources,
        // 57 operator intervention, which includes a statement's time limit. Codes: the time limits of a transaction
        // and a lock, a deadlock, a serialization failure.
        _ => {
            let code = code(error).unwrap_or_default();
            ["08", "28", "3D", "53", "57"].contains(&code.get(..2).unwrap_or_default())
                || [READ_ONLY, "25P03", "55P03", "40P01", "40001"].contains(&&*code)
                || is_stale(error)
        }
    }
}

/// Whether a migration has changed a type under a prepared statement. On a new connection the same statement works.
pub fn is_stale(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    // The code alone is ambiguous, and the message may be translated.
    error.is_some_and(|error| error.code() == "0A000" && error.routine() == Some("RevalidateCachedQuery"))
}

/// Whether the error means that the server is read-only.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code == READ_ONLY)
}

fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(DatabaseError::code)
}
