//! The audit trail: who did what to which account, when and from where.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgExecutor;
use tracing::instrument;
use uuid::Uuid;

use crate::http::ClientAddress;
use crate::resources::postgres::{Timestamp, purge};
use crate::telemetry;

/// How long an event is kept at least. No purge deletes younger ones.
pub const MIN_RETENTION: Duration = Duration::from_hours(365 * 24);

/// An action, as the trail stores it. A feature defines its own actions as constants of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action(pub &'static str);

impl Action {
    pub const SIGN_UP: Self = Self("sign_up");
    pub const LOG_IN: Self = Self("log_in");
    pub const LOG_IN_FAILED: Self = Self("log_in_failed");
    pub const ADDRESS_VERIFIED: Self = Self("address_verified");
    pub const ADDRESS_CHANGE_ASKED: Self = Self("address_change_asked");
    pub const ADDRESS_CHANGE_UNDONE: Self = Self("address_change_undone");
    pub const CONFIRMED: Self = Self("confirmed");
    pub const CONFIRMATION_FAILED: Self = Self("confirmation_failed");
    pub const PASSWORD_RESET: Self = Self("password_reset");
    pub const PASSWORD_CHANGED: Self = Self("password_changed");
    pub const SESSIONS_ENDED: Self = Self("sessions_ended");
    pub const TOKEN_CREATED: Self = Self("token_created");
    pub const TOKEN_DELETED: Self = Self("token_deleted");
    pub const ROLE_CHANGED: Self = Self("role_changed");
    pub const SUSPENDED: Self = Self("suspended");
    pub const RESTORED: Self = Self("restored");
    pub const ACCOUNT_DELETED: Self = Self("account_deleted");
    pub const JOB_RETRIED: Self = Self("job_retried");
    pub const JOB_DISCARDED: Self = Self("job_discarded");
    // Only operators do these, in one-off tasks.
    pub const ACCOUNT_CREATED: Self = Self("account_created");
    pub const ACCOUNT_INVITED: Self = Self("account_invited");
    pub const DATA_EXPORTED: Self = Self("data_exported");
    pub const DATA_PURGED: Self = Self("data_purged");
    pub const JOB_ENQUEUED: Self = Self("job_enqueued");
    pub const SCOPES_CHANGED: Self = Self("scopes_changed");
    pub const SCRIPT_RAN: Self = Self("script_ran");
    pub const CONSOLE_OPENED: Self = Self("console_opened");
}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A client without a session, such as one that uses a mailed link or tries a password.
    Anyone,
    Account(Uuid),
    /// A program that uses the API token with this id.
    Token(Uuid),
    /// A program that uses an access token of an issuer, by its account.
    Service(Uuid),
    /// A person who runs a one-off task.
    Operator,
}

/// Who did it, and from where.
#[derive(Debug, Clone, Copy)]
pub struct By {
    pub actor: Actor,
    /// None if an operator did it.
    pub address: Option<ClientAddress>,
}

impl By {
    pub const OPERATOR: Self = Self { actor: Actor::Operator, address: None };

    pub fn anyone(address: ClientAddress) -> Self {
        Self { actor: Actor::Anyone, address: Some(address) }
    }
}

/// Records an event, in the transaction of the change if there is one. `account_id` is the affected account. It is None
/// if a log-in named an unknown address. The request's id and the caller's own id for it are separate columns, and so is
/// an operator's reason (`admin --reason`).
#[instrument(name = "postgres audit record", level = "debug", skip_all)]
pub async fn record(executor: impl PgExecutor<'_>, action: Action, account_id: Option<Uuid>, by: By) -> sqlx::Result<()> {
    let (actor, actor_id) = match by.actor {
        Actor::Anyone => ("anyone", None),
        Actor::Account(id) => ("account", Some(id)),
        Actor::Token(id) => ("token", Some(id)),
        Actor::Service(id) => ("service", Some(id)),
        Actor::Operator => ("operator", None),
    };
    sqlx::query!(
        r#"INSERT INTO audit_events (action, account_id, actor, actor_id, request_id, caller_request_id, address, reason)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"#,
        action.0,
        account_id,
        actor,
        actor_id,
        telemetry::current_field("request_id"),
        telemetry::current_field("caller_request_id"),
        by.address.map(|address| address.0.to_string()),
        telemetry::current_field("reason")
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// An event as the owner of the account sees it.
#[derive(Debug, Serialize)]
pub struct Event {
    pub at: Timestamp,
    pub action: String,
    /// `anyone`, `account`, `token`, `service` or `operator`. Null in events of version 0.1.0.
    pub actor: Option<String>,
    pub address: Option<String>,
}

/// An account's events, the oldest first.
pub async fn of(executor: impl PgExecutor<'_>, account_id: Uuid) -> sqlx::Result<Vec<Event>> {
    let events =
        sqlx::query_as!(Event, "SELECT at, action, actor, address FROM audit_events WHERE account_id = $1 ORDER BY at, id", account_id);
    events.fetch_all(executor).await
}

purge!(purge, "audit_events", "at");
