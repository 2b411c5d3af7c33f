//! Who may do what: the one table, which decides. A route that is not in it is served to nobody.
//!
//! Whose data it is, no table can say: each query asks for the caller's own, and what is another's is 404.

use axum::http::Method;

use crate::http::access::{Rate, Rule, Who};

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PATCH: Method = Method::PATCH;
const DELETE: Method = Method::DELETE;

pub const ACCESS: &[Rule] = &[
    // Signing up, in and out.
    (POST, "/api/v1/accounts", Who::Anyone, Rate::Mail),
    (POST, "/api/v1/session", Who::Anyone, Rate::LogIn),
    (GET, "/api/v1/session", Who::SignedIn, Rate::Requests),
    (DELETE, "/api/v1/session", Who::Anyone, Rate::Requests),
    // Mailed links; whoever holds the token may.
    (POST, "/api/v1/email-verifications", Who::SignedIn, Rate::Mail),
    (POST, "/api/v1/email-verifications/redeem", Who::Anyone, Rate::Requests),
    (POST, "/api/v1/password-resets", Who::Anyone, Rate::Mail),
    (POST, "/api/v1/password-resets/redeem", Who::Anyone, Rate::Mail),
    (GET, "/verify", Who::Anyone, Rate::Requests),
    (POST, "/verify", Who::Anyone, Rate::Requests),
    (GET, "/reset", Who::Anyone, Rate::Requests),
    (POST, "/reset", Who::Anyone, Rate::Mail),
    // My account.
    (PATCH, "/api/v1/account", Who::SignedIn, Rate::Mail),
    (DELETE, "/api/v1/account", Who::SignedIn, Rate::Requests),
    (POST, "/api/v1/account/password", Who::SignedIn, Rate::LogIn),
    (GET, "/api/v1/account/sessions", Who::SignedIn, Rate::Requests),
    (DELETE, "/api/v1/account/sessions", Who::SignedIn, Rate::Requests),
    (DELETE, "/api/v1/account/sessions/{id}", Who::SignedIn, Rate::Requests),
    (POST, "/api/v1/tokens", Who::SignedIn, Rate::Requests),
    (GET, "/api/v1/tokens", Who::Scope("tokens:read"), Rate::Requests),
    (DELETE, "/api/v1/tokens/{id}", Who::Scope("tokens:write"), Rate::Requests),
    // Everybody's accounts.
    (GET, "/api/v1/admin/accounts", Who::Admin, Rate::Requests),
    (POST, "/api/v1/admin/accounts/{id}/suspend", Who::Admin, Rate::Requests),
    (POST, "/api/v1/admin/accounts/{id}/restore", Who::Admin, Rate::Requests),
    // Reminders.
    (GET, "/api/v1/reminders", Who::Scope("reminders:read"), Rate::Requests),
    (POST, "/api/v1/reminders", Who::Scope("reminders:write"), Rate::Requests),
    (GET, "/api/v1/reminders/{id}", Who::Scope("reminders:read"), Rate::Requests),
    (PATCH, "/api/v1/reminders/{id}", Who::Scope("reminders:write"), Rate::Requests),
    (DELETE, "/api/v1/reminders/{id}", Who::Scope("reminders:write"), Rate::Requests),
];
