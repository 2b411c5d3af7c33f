//! Whose request it is.

use axum::Extension;
use axum::extract::FromRequestParts;
use uuid::Uuid;

use super::audit::By;

/// Whose request it is; the guard adds it where a rule asks for more than anyone.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(Extension))]
pub struct Caller {
    pub account_id: Uuid,
    /// The account's epoch as it was let in. A write to accounts, sessions, tokens or mailed links holds only if it still is.
    pub epoch: i32,
    /// For the audit trail.
    pub by: By,
}
