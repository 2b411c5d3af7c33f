//! The account that a request belongs to.

use axum::Extension;
use axum::extract::FromRequestParts;
use sqlx::PgConnection;
use tracing::instrument;
use uuid::Uuid;

use super::audit::By;
use super::rules::Role;
use crate::http::problem::{Problem, Result};

/// The account that a request belongs to. The guard adds it if the rule is not for anyone.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(Extension))]
pub struct Caller {
    pub account_id: Uuid,
    /// The account's epoch when the guard admitted the request. Writes check that it has not changed: those of accounts,
    /// sessions, tokens and mailed links in their `WHERE`, the others with [`Self::hold`].
    pub epoch: i32,
    /// For the audit trail.
    pub by: By,
}

impl Caller {
    /// Locks the caller's account, so that until the end of the transaction nobody ends its sessions, suspends it or changes
    /// its role. Returns the role.
    ///
    /// # Errors
    /// 401: that has happened since the guard admitted the request. 503: Postgres is unavailable.
    #[instrument(name = "postgres accounts hold", level = "debug", skip_all)]
    pub async fn hold(&self, connection: &mut PgConnection) -> Result<Role> {
        let held = sqlx::query_scalar!(
            r#"SELECT role AS "role: Role" FROM accounts WHERE id = $1 AND session_epoch = $2 AND suspended_at IS NULL FOR SHARE"#,
            self.account_id,
            self.epoch
        );
        held.fetch_optional(connection).await?.ok_or_else(Problem::unauthenticated)
    }
}
