//! The account that a request belongs to.

use axum::Extension;
use axum::extract::FromRequestParts;
use uuid::Uuid;

use super::audit::By;

/// The account that a request belongs to. The guard adds it if the rule is not for anyone.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(Extension))]
pub struct Caller {
    pub account_id: Uuid,
    /// The account's epoch when the guard admitted the request. Writes to accounts, sessions, tokens or mailed links
    /// check that it has not changed.
    pub epoch: i32,
    /// For the audit trail.
    pub by: By,
}
