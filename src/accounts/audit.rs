//! The audit trail: who did what to which account, when and from where. Kept for a year.
//!
//! Where nothing else is said, an error is Postgres's: it does not answer.

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::http::ClientAddress;
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
}

/// Writes a line of the trail, where there is one in the transaction of what it tells of. The address is none for what
/// an operator did with a one-off task; the account is none where a log-in named an unknown one.
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
