//! The audit trail: who did what to which account, when and from where. Kept for a year.
//!
//! Where nothing else is said, an error is Postgres's: it does not answer.

use serde::Serialize;
use sqlx::PgExecutor;
use tracing::instrument;
use uuid::Uuid;

use crate::http::ClientAddress;
use crate::resources::postgres::{Timestamp, purge};
use crate::telemetry;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Action {
    SignUp,
    LogIn,
    LogInFailed,
    AddressVerified,
    AddressChangeAsked,
    PasswordReset,
    PasswordChanged,
    SessionsEnded,
    TokenCreated,
    TokenDeleted,
    RoleChanged,
    Suspended,
    Restored,
    AccountDeleted,
    // What only an operator does, with a one-off task.
    AccountCreated,
    DataExported,
    DataPurged,
    JobEnqueued,
    JobRetried,
    JobDiscarded,
    ConsoleOpened,
}

/// Writes a line of the trail, where there is one in the transaction of what it tells of. The address is none for what
/// an operator did with a one-off task; the account is none where a log-in named an unknown one.
#[instrument(name = "postgres audit record", level = "debug", skip_all)]
pub async fn record(
    executor: impl PgExecutor<'_>,
    action: Action,
    account_id: Option<Uuid>,
    address: Option<ClientAddress>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO audit_events (action, account_id, request_id, address) VALUES ($1, $2, $3, $4)",
        action as Action,
        account_id,
        telemetry::current_field("request_id"),
        address.map(|address| address.0.to_string())
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// A line of the trail, as it is shown to its account.
#[derive(Debug, Serialize)]
pub struct Event {
    pub at: Timestamp,
    pub action: String,
    pub address: Option<String>,
}

/// An account's lines, the oldest first.
pub async fn of(executor: impl PgExecutor<'_>, account_id: Uuid) -> sqlx::Result<Vec<Event>> {
    let events = sqlx::query_as!(Event, "SELECT at, action, address FROM audit_events WHERE account_id = $1 ORDER BY at, id", account_id);
    events.fetch_all(executor).await
}

purge!(purge, "audit_events", "at");
