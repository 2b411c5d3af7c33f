//! Sign-up, log-in, log-out, and confirming a session.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use secrecy::SecretString;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account::{self, Account, Credentials};
use super::mails::{Notice, SendNotice, SendVerification};
use crate::app::App;
use crate::auth::audit::{self, Action, Actor};
use crate::auth::{By, Caller, Role, Session, password};
use crate::http::{ClientAddress, Json, Problem, Result, mail_address, no_nul};
use crate::jobs;
use crate::telemetry::feature_counters::FeatureCounter;

pub const SIGNED_UP: FeatureCounter = FeatureCounter { name: "accounts_signed_up", help: "Accounts that people created by signing up" };

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignUp {
    #[garde(custom(mail_address))]
    #[schema(format = "email", max_length = 254, example = "ada@example.com")]
    email: String,
    #[garde(custom(password::length))]
    #[schema(value_type = String, format = "password", min_length = 12, max_length = 256, example = "seven purple lanterns drift")]
    password: SecretString,
}

/// Sign up
///
/// The response never reveals whether the address is registered. The details are sent by email.
#[utoipa::path(post, path = "/accounts", tag = "Accounts", responses((status = 202, description = "A mail is on its way")))]
pub async fn sign_up(State(app): State<App>, address: ClientAddress, Json(input): Json<SignUp>) -> Result<StatusCode> {
    let password_hash = app.passwords.hash_new(input.password, "password", &input.email).await?;
    let mut transaction = app.postgres.begin().await?;
    let id = Uuid::now_v7();
    let created = account::create(&mut transaction, id, &input.email, &password_hash).await?;
    let enqueued = if created {
        audit::record(&mut *transaction, Action::SIGN_UP, Some(id), By::anyone(address)).await?;
        jobs::enqueue(&mut transaction, &SendVerification { account_id: id }).await?
    } else {
        let there = account::find_by_email(&mut *transaction, &input.email).await?;
        let there = there.ok_or_else(|| Problem::internal(anyhow::anyhow!("the account was deleted just now")))?;
        let account_id = there.id;
        // A person who lost the first mail signs up again. An address that is not verified gets only the verification.
        if there.verified {
            jobs::enqueue(&mut transaction, &SendNotice { account_id, notice: Notice::AccountExists }).await?
        } else {
            jobs::enqueue(&mut transaction, &SendVerification { account_id }).await?
        }
    };
    transaction.commit().await?;
    if created {
        app.counters.increment(&SIGNED_UP);
    }
    enqueued.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    #[garde(custom(no_nul))]
    #[schema(pattern = r"^[^\x00]*$", example = "ada@example.com")]
    email: String,
    #[garde(skip)]
    #[schema(value_type = String, format = "password", example = "seven purple lanterns drift")]
    password: SecretString,
}

/// Log in
///
/// Sets a cookie with the session: `id`, or `__Host-id` over https.
#[utoipa::path(post, path = "/session", tag = "Session", responses(
    (status = 200, description = "Logged in", body = Account, headers(("Set-Cookie" = String))),
    (status = 401, description = "wrong-credentials: The address or the password is wrong, or the account is suspended"),
))]
pub async fn log_in(State(app): State<App>, address: ClientAddress, headers: HeaderMap, Json(input): Json<LogIn>) -> Result<Response> {
    let refused = || Problem::new(StatusCode::UNAUTHORIZED, "wrong-credentials", "The email address or the password is wrong.");
    let found = account::credentials(&mut *app.postgres.acquire().await?, &input.email).await?;
    let hash = found.as_ref().map(|credentials| credentials.password_hash.clone());
    let compared = app.passwords.verify(&input.password, hash).await?;
    let Some(credentials) = found.as_ref().filter(|credentials| compared.same && !credentials.suspended) else {
        let account_id = found.map(|credentials| credentials.id);
        audit::record(&mut *app.postgres.acquire().await?, Action::LOG_IN_FAILED, account_id, By::anyone(address)).await?;
        return Err(refused());
    };
    if compared.outdated {
        let hash = app.passwords.hash(&input.password).await?;
        account::rehash(&mut *app.postgres.acquire().await?, credentials.id, &credentials.password_hash, &hash).await?;
    }
    let Credentials { id, role, session_epoch, .. } = *credentials;
    let cookie = start_session(&app, id, role, session_epoch, &headers).await?.ok_or_else(refused)?;
    let mut connection = app.postgres.acquire().await?;
    audit::record(&mut *connection, Action::LOG_IN, Some(id), By { actor: Actor::Account(id), address: Some(address) }).await?;
    tracing::Span::current().record("account_id", tracing::field::display(id));
    let account = account::find(&mut *connection, id).await?.ok_or_else(refused)?;
    Ok(([(header::SET_COOKIE, cookie)], axum::Json(account)).into_response())
}

/// Starts a confirmed session of the given epoch. None if the sessions of that epoch have been ended in the meantime.
pub async fn start_session(app: &App, account_id: Uuid, role: Role, epoch: i32, headers: &HeaderMap) -> Result<Option<HeaderValue>> {
    let user_agent = headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()).chars().take(200).collect());
    let now = (app.now)();
    let session = Session { account_id, epoch, role, created_at: now, confirmed_at: Some(now), user_agent, hash: String::new() };
    let (id, session) = app.sessions.start(session).await?;
    // A request that ended the sessions in the meantime may have missed this one, so it is ended here.
    if account::session_epoch(&mut *app.postgres.acquire().await?, account_id).await? != Some(epoch) {
        app.sessions.end(account_id, &session.hash).await?;
        return Ok(None);
    }
    app.sessions.cookie(&id).map(Some)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    #[garde(skip)]
    #[schema(value_type = String, format = "password", example = "seven purple lanterns drift")]
    password: SecretString,
}

/// Confirm my session
///
/// For ten minutes the session may change the address, create tokens and delete the account. A log-in confirms too.
#[utoipa::path(post, path = "/session/confirm", tag = "Session", responses(
    (status = 204, description = "Confirmed"),
    (status = 403, description = "wrong-password: The password is wrong"),
))]
pub async fn confirm(State(app): State<App>, session: Session, caller: Caller, Json(input): Json<Confirmation>) -> Result<StatusCode> {
    let found = account::credentials_of(&mut *app.postgres.acquire().await?, caller.account_id).await?;
    let credentials = found.ok_or_else(Problem::unauthenticated)?;
    let same = app.passwords.verify(&input.password, Some(credentials.password_hash)).await?.same;
    let action = if same { Action::CONFIRMED } else { Action::CONFIRMATION_FAILED };
    audit::record(&mut *app.postgres.acquire().await?, action, Some(caller.account_id), caller.by).await?;
    if !same {
        return Err(Problem::forbidden("wrong-password", "The password is wrong."));
    }
    app.sessions.confirm(session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Get my account
#[utoipa::path(get, path = "/session", tag = "Session", responses((status = 200, description = "My account", body = Account)))]
pub async fn who_am_i(State(app): State<App>, session: Session) -> Result<Response> {
    let account = account::find(&mut *app.postgres.acquire().await?, session.account_id).await?.ok_or_else(Problem::unauthenticated)?;
    Ok(axum::Json(account).into_response())
}

/// Log out
///
/// Responds 204 with or without a session.
#[utoipa::path(delete, path = "/session", tag = "Session", responses((status = 204, description = "Logged out")))]
pub async fn log_out(State(app): State<App>, headers: HeaderMap) -> Result<Response> {
    app.sessions.end_of(&headers).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, app.sessions.no_cookie()?)]).into_response())
}
