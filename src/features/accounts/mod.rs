//! Accounts: sign-up, verification of the address, log-in, account settings, and administration.

pub mod account;
mod administration;
mod clear_bounces;
pub mod export;
mod link_pages;
pub mod log_in;
mod mail_limit;
mod mailed_token;
pub mod mails;
pub mod my_sessions;
mod my_tokens;
mod recovery;
pub mod settings;
pub mod statistics;

use std::time::Duration;

use axum::http::Method;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::{App, Feature, Retention};
use crate::auth::rules::{Flag, Rate, Rule, Who};
use crate::jobs::Registry;

pub const FEATURE: Feature = Feature {
    name: "accounts",
    api,
    pages: link_pages::pages,
    admin_section: include_str!("admin_section.html"),
    access: ACCESS,
    jobs,
    retention: RETENTION,
    counters: &[log_in::SIGNED_UP],
    scripts: &[clear_bounces::SCRIPT],
    ..Feature::EMPTY
};

const ACCESS: &[Rule] = &[
    // Signing up, in and out.
    Rule::new(Method::POST, "/api/v1/accounts", Who::Anyone, Rate::LogIn).if_on(Flag::SignUp),
    Rule::new(Method::POST, "/api/v1/session", Who::Anyone, Rate::LogIn),
    Rule::new(Method::GET, "/api/v1/session", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/session", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/session/confirm", Who::SignedIn, Rate::LogIn),
    // Mailed links. The token in the body authorizes the request.
    Rule::new(Method::POST, "/api/v1/email-verifications", Who::SignedIn, Rate::LogIn),
    Rule::new(Method::POST, "/api/v1/email-verifications/redeem", Who::Anyone, Rate::LogIn),
    Rule::new(Method::POST, "/api/v1/password-resets", Who::Anyone, Rate::LogIn),
    Rule::new(Method::POST, "/api/v1/password-resets/redeem", Who::Anyone, Rate::LogIn),
    Rule::new(Method::POST, "/api/v1/email-changes/undo", Who::Anyone, Rate::LogIn),
    Rule::new(Method::GET, "/verify", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/verify", Who::Anyone, Rate::LogIn),
    Rule::new(Method::GET, "/reset", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/reset", Who::Anyone, Rate::LogIn),
    Rule::new(Method::GET, "/undo", Who::Anyone, Rate::Requests),
    Rule::new(Method::POST, "/undo", Who::Anyone, Rate::LogIn),
    // My account.
    Rule::new(Method::PATCH, "/api/v1/account", Who::Confirmed, Rate::LogIn),
    Rule::new(Method::DELETE, "/api/v1/account", Who::Confirmed, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/account/password", Who::SignedIn, Rate::LogIn),
    Rule::new(Method::GET, "/api/v1/account/sessions", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/account/sessions", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/account/sessions/{id}", Who::SignedIn, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/tokens", Who::Confirmed, Rate::Requests),
    Rule::new(Method::GET, "/api/v1/tokens", Who::Scope("tokens:read"), Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/tokens/{id}", Who::Scope("tokens:write"), Rate::Requests),
    // All accounts.
    Rule::new(Method::GET, "/api/v1/admin/accounts", Who::Admin, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/admin/accounts/{id}/suspend", Who::Admin, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/admin/accounts/{id}/restore", Who::Admin, Rate::Requests),
    Rule::new(Method::GET, "/api/v1/admin/statistics", Who::Admin, Rate::Requests),
];

const RETENTION: &[Retention] = &[
    // Their age counts from the time at which they expire.
    Retention { what: "expired mailed tokens", age: Some(Duration::ZERO), floor: Duration::ZERO, purge: mailed_token::purge },
    Retention { what: "mails counted", age: Some(mail_limit::WINDOW), floor: mail_limit::WINDOW, purge: mail_limit::purge },
];

fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(log_in::sign_up))
        .routes(routes!(log_in::log_in, log_in::who_am_i, log_in::log_out))
        .routes(routes!(log_in::confirm))
        .routes(routes!(recovery::mail_again))
        .routes(routes!(recovery::redeem_verification))
        .routes(routes!(recovery::ask_for_reset))
        .routes(routes!(recovery::redeem_reset))
        .routes(routes!(recovery::undo_change))
        .routes(routes!(settings::change_account, settings::delete_account))
        .routes(routes!(settings::change_password))
        .routes(routes!(my_sessions::list_sessions, my_sessions::end_sessions))
        .routes(routes!(my_sessions::end_session))
        .routes(routes!(my_tokens::create_token, my_tokens::list_tokens))
        .routes(routes!(my_tokens::delete_token))
        .routes(routes!(administration::list_accounts))
        .routes(routes!(administration::suspend_account))
        .routes(routes!(administration::restore_account))
        .routes(routes!(statistics::show_statistics))
}

fn jobs(registry: Registry) -> Registry {
    mails::jobs(registry).with::<my_sessions::EndSessions>()
}
