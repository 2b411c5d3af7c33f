//! Accounts: signing up, showing that the address is one's own, logging in and out, and what a person or an admin does
//! to an account later.

pub mod account;
mod administration;
pub mod audit;
pub mod jobs;
mod log_in;
pub mod mailed_token;
pub mod password;
mod recovery;
pub mod sessions;
mod settings;
mod tokens;

use crate::http::App;
use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use account::Account;

/// The operations of the API.
pub fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(log_in::sign_up))
        .routes(routes!(log_in::log_in, log_in::who_am_i, log_in::log_out))
        .routes(routes!(recovery::mail_again))
        .routes(routes!(recovery::redeem_verification))
        .routes(routes!(recovery::ask_for_reset))
        .routes(routes!(recovery::redeem_reset))
        .routes(routes!(settings::change_account, settings::delete_account))
        .routes(routes!(settings::change_password))
        .routes(routes!(sessions::list_sessions, sessions::end_sessions))
        .routes(routes!(sessions::end_session))
        .routes(routes!(tokens::create_token, tokens::list_tokens))
        .routes(routes!(tokens::delete_token))
        .routes(routes!(administration::list_accounts))
        .routes(routes!(administration::suspend_account))
        .routes(routes!(administration::restore_account))
}

/// The pages that mailed links open.
pub fn pages() -> Router<App> {
    recovery::pages()
}
