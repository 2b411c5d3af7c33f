//! My account: another address, the digest, another password, and its end.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use secrecy::SecretString;
use serde::Deserialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account::{self, Account};
use super::log_in::start_session;
use super::mails::{Notice, SendNotice, SendVerification};
use super::my_sessions::end_before;
use crate::app::App;
use crate::auth::audit::{self, Action};
use crate::auth::{Session, password};
use crate::http::{ClientAddress, Json, Problem, Result, no_nul, not_null};
use crate::jobs::{self, EnqueueError};

/// RFC 7396: what is absent stays. Nothing here can be removed, so null is not allowed.
#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Another address: it takes the place of the one before when a link that is mailed there is opened.
    #[garde(inner(email, length(bytes, max = 254), custom(no_nul)))]
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = String, required = false, format = "email", max_length = 254, example = "ada@example.org")]
    email: Option<String>,
    /// Whether the daily digest is wanted.
    #[garde(skip)]
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = bool, required = false)]
    digest: Option<bool>,
}

/// Change my account
#[utoipa::path(patch, path = "/account", tag = "Account", responses((status = 200, description = "My account", body = Account)))]
pub async fn change_account(
    State(app): State<App>,
    session: Session,
    address: ClientAddress,
    Json(input): Json<Change>,
) -> Result<Response> {
    let account_id = session.account_id;
    let mut transaction = app.postgres.begin().await?;
    let changed = account::change(&mut transaction, account_id, input.email.as_deref(), input.digest).await?;
    let account = changed.ok_or_else(Problem::unauthenticated)?;
    let mut enqueued = Vec::new();
    if input.email.is_some() {
        enqueued.push(jobs::enqueue(&mut transaction, &SendVerification { account_id }).await?);
        enqueued.push(jobs::enqueue(&mut transaction, &SendNotice { account_id, notice: Notice::AddressChange }).await?);
        audit::record(&mut *transaction, Action::ADDRESS_CHANGE_ASKED, Some(account_id), Some(address)).await?;
    }
    transaction.commit().await?;
    for job in enqueued {
        job.fire(&app.notifier);
    }
    Ok(axum::Json(account).into_response())
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    #[garde(skip)]
    #[schema(value_type = String, format = "password")]
    old: SecretString,
    #[garde(custom(password::rule))]
    #[schema(value_type = String, format = "password", min_length = 12, max_length = 256)]
    new: SecretString,
}

/// Change my password
///
/// Every other session ends; this one goes on under a new cookie.
#[utoipa::path(post, path = "/account/password", tag = "Account", responses(
    (status = 204, description = "Changed", headers(("Set-Cookie" = String))),
    (status = 403, description = "wrong-password: The old password is not the account's"),
))]
pub async fn change_password(
    State(app): State<App>,
    session: Session,
    address: ClientAddress,
    headers: HeaderMap,
    Json(input): Json<ChangePassword>,
) -> Result<Response> {
    let account_id = session.account_id;
    let found = account::credentials_of(&mut *app.postgres.acquire().await?, account_id).await?;
    let credentials = found.ok_or_else(Problem::unauthenticated)?;
    if !app.passwords.verify(input.old, Some(credentials.password_hash.clone())).await? {
        return Err(Problem::forbidden("wrong-password", "the old password is not the account's"));
    }
    let password_hash = app.passwords.hash(input.new).await?;
    let mut transaction = app.postgres.begin().await?;
    let epoch = account::set_password(&mut transaction, account_id, &password_hash).await?.ok_or_else(Problem::unauthenticated)?;
    audit::record(&mut *transaction, Action::PASSWORD_CHANGED, Some(account_id), Some(address)).await?;
    let _ = jobs::enqueue(&mut transaction, &SendNotice { account_id, notice: Notice::PasswordChanged }).await?;
    end_before(&app, transaction, account_id, epoch).await?;
    let cookie = start_session(&app, &credentials, epoch, &headers).await?.ok_or_else(Problem::unauthenticated)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Delete my account, and all that is its own
#[utoipa::path(delete, path = "/account", tag = "Account", responses((status = 204, description = "It is gone")))]
pub async fn delete_account(State(app): State<App>, session: Session, address: ClientAddress) -> Result<Response> {
    let mut transaction = app.postgres.begin().await?;
    let epoch = delete(&app, &mut transaction, session.account_id).await?;
    audit::record(&mut *transaction, Action::ACCOUNT_DELETED, Some(session.account_id), Some(address)).await?;
    end_before(&app, transaction, session.account_id, epoch).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, app.sessions.no_cookie()?)]).into_response())
}

/// Deletes an account in the caller's transaction, once each feature has enqueued what must follow. Returns the epoch
/// whose earlier sessions are to end.
///
/// # Errors
/// As of a query or of `enqueue`. The caller rolls back.
pub async fn delete(app: &App, connection: &mut PgConnection, account_id: Uuid) -> std::result::Result<i32, EnqueueError> {
    for feature in app.features {
        (feature.deleted)(connection, account_id).await?;
    }
    Ok(account::delete(connection, account_id).await?)
}
