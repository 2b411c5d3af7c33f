//! Limits the mails that strangers can trigger to three of each kind an hour for each recipient, so that nobody can flood an
//! address. Each kind has a limit of its own, so that mails of one kind hold back no link to set a new password.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;

use crate::resources::postgres::purge;

/// How long a mail counts toward the limit.
pub const WINDOW: Duration = Duration::from_hours(1);

/// How many mails of a kind a recipient gets in that time.
const MAX_PER_WINDOW: i64 = 3;

/// Counts a job's mail of a kind to a recipient. Returns false if the limit is reached. Retries of the job count once.
///
/// Call it in a transaction. It blocks the count of other such mails to this recipient until the transaction ends.
#[instrument(name = "postgres mails take", level = "debug", skip_all)]
pub async fn take(transaction: &mut PgConnection, kind: &str, address: &str, job_id: i64) -> sqlx::Result<bool> {
    let recipient = recipient(kind, address);
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 0))", &recipient).execute(&mut *transaction).await?;
    let taken = sqlx::query_scalar!(
        r#"INSERT INTO mails (recipient, job_id)
           SELECT $1, $2 WHERE (SELECT count(*) FROM mails WHERE recipient = $1 AND at > now() - interval '1 hour' AND job_id <> $2) < $3
           ON CONFLICT (recipient, job_id) DO UPDATE SET at = mails.at RETURNING true AS "taken!""#,
        &recipient,
        job_id,
        MAX_PER_WINDOW
    );
    Ok(taken.fetch_optional(transaction).await?.is_some())
}

/// Whether a recipient has reached the limit of a kind.
#[instrument(name = "postgres mails is_reached", level = "debug", skip_all)]
pub async fn is_reached(executor: impl PgExecutor<'_>, kind: &str, address: &str) -> sqlx::Result<bool> {
    let mails = sqlx::query_scalar!(
        r#"SELECT count(*) AS "mails!" FROM mails WHERE recipient = $1 AND at > now() - interval '1 hour'"#,
        recipient(kind, address)
    );
    Ok(mails.fetch_one(executor).await? >= MAX_PER_WINDOW)
}

fn recipient(kind: &str, address: &str) -> Vec<u8> {
    Sha256::digest(format!("{kind} {}", address.to_lowercase())).to_vec()
}

purge!(purge, "mails", "at");
