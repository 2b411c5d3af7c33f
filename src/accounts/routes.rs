//! The routes of accounts: sign up, verify the address, log in and out, who am I.

use askama::Template;
use axum::extract::{FromRef, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use garde::Validate;
use jiff_sqlx::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::account::{self, Account, Role};
use super::jobs::{SendAccountExists, SendVerification};
use super::password::Passwords;
use super::verification;
use crate::http::problem::{Problem, Result};
use crate::http::session::Sessions;
use crate::http::{App, Json, Session, page};
use crate::jobs;

#[derive(Clone)]
struct Context {
    app: App,
    passwords: Passwords,
}

impl FromRef<Context> for App {
    fn from_ref(context: &Context) -> Self {
        context.app.clone()
    }
}

impl FromRef<Context> for Sessions {
    fn from_ref(context: &Context) -> Self {
        context.app.sessions.clone()
    }
}

/// The routes below `/api/v1`, and the pages that mailed links open.
pub fn routes(app: App, passwords: Passwords) -> (Router, Router) {
    let context = Context { app, passwords };
    let api = Router::new()
        .route("/accounts", post(sign_up))
        .route("/session", post(log_in).get(who_am_i).delete(log_out))
        .route("/email-verifications", post(mail_again))
        .route("/email-verifications/redeem", post(redeem))
        .with_state(context.clone());
    let pages = Router::new().route("/verify", get(verify_page).post(verify)).with_state(context);
    (api, pages)
}

#[derive(Deserialize, Validate)]
struct SignUp {
    #[garde(email, length(bytes, max = 254), custom(crate::http::extract::no_nul))]
    email: String,
    #[garde(custom(password_rule))]
    password: SecretString,
}

/// NIST SP 800-63B, 3.1.1: length is what counts; the upper bound keeps hashing cheap.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is garde's")]
fn password_rule(password: &SecretString, (): &()) -> garde::Result {
    let characters = password.expose_secret().chars().count();
    if (12..=256).contains(&characters) { Ok(()) } else { Err(garde::Error::new("must have 12 to 256 characters")) }
}

/// Always 202: the answer tells nobody whether the address has an account; a mail tells its owner.
async fn sign_up(State(Context { app, passwords }): State<Context>, Json(input): Json<SignUp>) -> Result<StatusCode> {
    let password_hash = passwords.hash(input.password).await?;
    let mut transaction = app.postgres.begin().await?;
    let id = Uuid::now_v7();
    let enqueued = if account::create(&mut transaction, id, &input.email, &password_hash).await? {
        jobs::enqueue(&mut transaction, &SendVerification { account_id: id }).await?
    } else {
        // Deleted in this very moment, perhaps; then there is nobody to tell.
        let Some(there) = account::find_by_email(&mut *transaction, &input.email).await? else { return Ok(StatusCode::ACCEPTED) };
        jobs::enqueue(&mut transaction, &SendAccountExists { account_id: there.account.id }).await?
    };
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate)]
struct LogIn {
    #[garde(custom(crate::http::extract::no_nul))]
    email: String,
    #[garde(skip)]
    password: SecretString,
}

#[derive(Serialize)]
struct Me {
    id: Uuid,
    email: String,
    role: Role,
    verified: bool,
    created_at: jiff::Timestamp,
}

impl From<Account> for Me {
    fn from(account: Account) -> Self {
        let Account { id, email, role, verified_at, created_at, .. } = account;
        Self { id, email, role, verified: verified_at.is_some(), created_at: Timestamp::to_jiff(created_at) }
    }
}

async fn log_in(State(Context { app, passwords }): State<Context>, Json(input): Json<LogIn>) -> Result<Response> {
    let refused = || Problem::new(StatusCode::UNAUTHORIZED, "wrong-credentials", "no account has this address and this password");
    let found = account::find_by_email(&app.postgres, &input.email).await?;
    let hash = found.as_ref().map(|credentials| credentials.password_hash.clone());
    if !passwords.verify(input.password, hash).await? {
        return Err(refused());
    }
    let account = found.ok_or_else(refused)?.account;
    let (id, session) = app.sessions.start(account.id, account.session_epoch).await?;
    // Whoever ended the sessions in the meantime has not seen this one: it withdraws itself.
    if account::session_epoch(&app.postgres, account.id).await? != Some(account.session_epoch) {
        app.sessions.end(&session).await?;
        return Err(refused());
    }
    tracing::Span::current().record("account_id", tracing::field::display(account.id));
    let cookie = app.sessions.cookie(&id)?;
    Ok((private([(header::SET_COOKIE, cookie)]), axum::Json(Me::from(account))).into_response())
}

async fn who_am_i(State(app): State<App>, session: Session) -> Result<Response> {
    let account = account::find(&app.postgres, session.account_id).await?.ok_or_else(Problem::unauthenticated)?;
    Ok((private([]), axum::Json(Me::from(account))).into_response())
}

/// 204 with or without a session: who is logged out wanted to be.
async fn log_out(State(app): State<App>, session: Option<Session>) -> Result<Response> {
    if let Some(session) = session {
        app.sessions.end(&session).await?;
    }
    Ok((StatusCode::NO_CONTENT, private([(header::SET_COOKIE, app.sessions.no_cookie()?)])).into_response())
}

async fn mail_again(State(app): State<App>, session: Session) -> Result<StatusCode> {
    let mut connection = app.postgres.acquire().await?;
    let enqueued = jobs::enqueue(&mut connection, &SendVerification { account_id: session.account_id }).await;
    enqueued?.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate)]
struct Redeem {
    #[garde(skip)]
    token: SecretString,
}

async fn redeem(State(app): State<App>, Json(input): Json<Redeem>) -> Result<StatusCode> {
    if verification::redeem(&app.postgres, &input.token).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-token", "the link is unknown, was used already, or is too old"))
    }
}

/// What the mailed link opens. Opening it changes nothing, because mail scanners open links too; its button does.
#[derive(Template)]
#[template(path = "verify.html")]
struct VerifyPage<'a> {
    token: Option<&'a str>,
    text: &'a str,
}

async fn verify_page(RawQuery(query): RawQuery) -> Result<Response> {
    let query = query.unwrap_or_default();
    let token = url::form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == "token").then_some(value));
    match token {
        Some(token) => page::page(StatusCode::OK, &VerifyPage { token: Some(&token), text: "Is this address yours?" }),
        None if query == "done" => page::page(StatusCode::OK, &VerifyPage { token: None, text: "Thank you, the address is verified." }),
        None => page::page(StatusCode::NOT_FOUND, &VerifyPage { token: None, text: "This link is not complete." }),
    }
}

/// The button's POST; then another address, so that a reload does not post again.
async fn verify(State(app): State<App>, Form(input): Form<Redeem>) -> Result<Response> {
    if verification::redeem(&app.postgres, &input.token).await? {
        return Ok(Redirect::to("/verify?done").into_response());
    }
    let text = "This link was used already, or is too old. Log in and ask for another.";
    page::page(StatusCode::UNPROCESSABLE_ENTITY, &VerifyPage { token: None, text })
}

/// No cache may keep what is one person's.
fn private<const N: usize>(headers: [(header::HeaderName, HeaderValue); N]) -> axum::http::HeaderMap {
    let cache = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.into_iter().chain([cache]).collect()
}
