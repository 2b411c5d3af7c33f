//! Log-in with an identity provider (OIDC): authorization code with PKCE. It is off unless `OIDC_ISSUER` is set.
//!
//! A new password ends every identity of the account, because a thief may have linked one.

mod linked_identity;
mod log_in;
mod my_identities;
mod provider;

use axum::Router;
use axum::http::Method;
use axum::routing::get;
use futures_util::FutureExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::{App, Feature, LogInPage};
use crate::auth::rules::{Rate, Rule, Who};
use crate::config::{self, Oidc};

pub const FEATURE: Feature = Feature {
    name: "identity",
    api,
    pages,
    section: include_str!("section.html"),
    log_in: |app| app.provider.as_ref().map(|provider| LogInPage { path: START, with: provider.issuer.host() }),
    is_on: |env| config::read::<Oidc>(env).is_ok_and(|oidc| oidc.0.is_some()),
    access: ACCESS,
    jobs: |registry| registry.with::<my_identities::SendLinked>(),
    export: |connection, account_id| linked_identity::export(connection, account_id).boxed(),
    password_changed: |connection, account_id| linked_identity::unlink_all(connection, account_id).boxed(),
    ..Feature::EMPTY
};

const START: &str = "/log-in/oidc";
const CALLBACK: &str = "/log-in/oidc/callback";

const ACCESS: &[Rule] = &[
    Rule::new(Method::GET, START, Who::Anyone, Rate::LogIn),
    // The state, which only one browser has, authorizes the request.
    Rule::new(Method::GET, CALLBACK, Who::Anyone, Rate::LogIn),
    Rule::new(Method::GET, "/api/v1/identities", Who::SignedIn, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/identities/{id}", Who::Confirmed, Rate::Requests),
];

fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(my_identities::list_identities)).routes(routes!(my_identities::unlink_identity))
}

fn pages() -> Router<App> {
    Router::new().route(START, get(log_in::start)).route(CALLBACK, get(log_in::finish))
}
