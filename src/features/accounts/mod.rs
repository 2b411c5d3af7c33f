//! Accounts: signing up, verifying the address, logging in and out, one's own settings, and what an admin does to others.

pub mod account;
mod administration;
pub mod export;
mod log_in;
mod mailed_token;
pub mod mails;
pub mod my_sessions;
mod my_tokens;
mod recovery;
pub mod settings;

use std::time::Duration;

use axum::http::Method;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::{App, Feature, Retention};
use crate::auth::rules::{Rate, Rule, Who};
use crate::jobs::Registry;

pub const FEATURE: Feature =
    Feature { name: "accounts", api, pages: recovery::pages, access: ACCESS, jobs, retention: RETENTION, ..Feature::EMPTY };

const ACCESS: &[Rule] = &[
    // Signing up, in and out.
    Rule::new(Method::POST, "/api/v1/accounts", Who::Anyone, Rate::Mail),
    Rule::new(Method::POST, "/api/v1/session", Who::Anyone, Rate::LogIn),
    Rule::new(Method::GET, "/api/v1/session", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/session", Who::Anyone, Rate::Requests),
    // Mailed links. The token in the body shows who may.
    Rule::new(Method::POST, "/api/v1/email-verifications", Who::SignedIn, Rate::Mail),
    Rule::new(Method::POST, "/api/v1/email-verifications/redeem", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/password-resets", Who::Anyone, Rate::Mail),
    Rule::new(Method::POST, "/api/v1/password-resets/redeem", Who::Anyone, Rate::Mail),
    Rule::new(Method::GET, "/verify", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/verify", Who::Anyone, Rate::Requests),
    Rule::new(Method::GET, "/reset", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/reset", Who::Anyone, Rate::Mail),
    // My account.
    Rule::new(Method::PATCH, "/api/v1/account", Who::SignedIn, Rate::Mail),
    Rule::new(Method::DELETE, "/api/v1/account", Who::SignedIn, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/account/password", Who::SignedIn, Rate::LogIn),
    Rule::new(Method::GET, "/api/v1/account/sessions", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/account/sessions", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/account/sessions/{id}", Who::SignedIn, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/tokens", Who::SignedIn, Rate::Requests),
    Rule::new(Method::GET, "/api/v1/tokens", Who::Scope("tokens:read"), Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/tokens/{id}", Who::Scope("tokens:write"), Rate::Requests),
    // Everybody's accounts.
    Rule::new(Method::GET, "/api/v1/admin/accounts", Who::Admin, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/admin/accounts/{id}/suspend", Who::Admin, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/admin/accounts/{id}/restore", Who::Admin, Rate::Requests),
];

const RETENTION: &[Retention] = &[
    // The column is the time at which they expire.
    Retention { what: "expired mailed tokens", age: Some(Duration::ZERO), floor: Duration::ZERO, purge: mailed_token::purge },
];

fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(log_in::sign_up))
        .routes(routes!(log_in::log_in, log_in::who_am_i, log_in::log_out))
        .routes(routes!(recovery::mail_again))
        .routes(routes!(recovery::redeem_verification))
        .routes(routes!(recovery::ask_for_reset))
        .routes(routes!(recovery::redeem_reset))
        .routes(routes!(settings::change_account, settings::delete_account))
        .routes(routes!(settings::change_password))
        .routes(routes!(my_sessions::list_sessions, my_sessions::end_sessions))
        .routes(routes!(my_sessions::end_session))
        .routes(routes!(my_tokens::create_token, my_tokens::list_tokens))
        .routes(routes!(my_tokens::delete_token))
        .routes(routes!(administration::list_accounts))
        .routes(routes!(administration::suspend_account))
        .routes(routes!(administration::restore_account))
}

fn jobs(registry: Registry) -> Registry {
    registry
        .with::<mails::SendVerification>()
        .with::<mails::SendPasswordReset>()
        .with::<mails::SendNotice>()
        .with::<my_sessions::EndSessions>()
}
