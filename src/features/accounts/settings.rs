//! The operations on the caller's own account: change the address, the digest or the password, and delete the account.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use secrecy::SecretString;
use serde::Deserialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account::{self, Account, Renewed};
use super::log_in::start_session;
use super::mails::{Notice, SecurityNotice, SendNotice, SendSecurityNotice, SendVerification};
use super::my_sessions::end_before;
use crate::app::App;
use crate::auth::audit::{self, Action};
use crate::auth::{Caller, password};
use crate::http::{Json, Problem, Result, mail_address, not_null};
use crate::jobs::{self, EnqueueError, Enqueued};

/// A merge patch (RFC 7396): absent fields stay as they are. No field can be removed, so null is not allowed.
#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// A new address. It replaces the previous one when the link that is mailed there is opened.
    #[garde(inner(custom(mail_address)))]
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = String, required = false, format = "email", max_length = 254, example = "ada@example.org")]
    email: Option<String>,
    /// Whether the account gets the daily digest.
    #[garde(skip)]
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = bool, required = false)]
    digest: Option<bool>,
}

/// Change my account
///
/// A change of address is announced to the previous address, with a link that undoes it for three days.
#[utoipa::path(patch, path = "/account", tag = "Account", responses((status = 200, description = "My account", body = Account)))]
pub async fn change_account(State(app): State<App>, caller: Caller, Json(input): Json<Change>) -> Result<Response> {
    let account_id = caller.account_id;
    let mut transaction = app.postgres.begin().await?;
    let changed = account::change(&mut transaction, &caller, input.email.as_deref(), input.digest).await?;
    let account = changed.ok_or_else(Problem::unauthenticated)?;
    let mut enqueued = Vec::new();
    if input.email.is_some() {
        enqueued.push(jobs::enqueue(&mut transaction, &SendVerification { account_id }).await?);
        enqueued.extend(notify(&mut transaction, &account, SecurityNotice::AddressChangeAsked { epoch: caller.epoch }).await?);
        audit::record(&mut *transaction, Action::ADDRESS_CHANGE_ASKED, Some(account_id), caller.by).await?;
    }
    transaction.commit().await?;
    for job in enqueued {
        job.fire(&app.notifier);
    }
    Ok(axum::Json(account).into_response())
}

/// Enqueues a notice to the address of an account if it is verified. An unverified address may belong to a stranger.
///
/// # Errors
/// As [`jobs::enqueue`].
pub async fn notify(
    connection: &mut PgConnection,
    account: &Account,
    notice: SecurityNotice,
) -> std::result::Result<Option<Enqueued>, EnqueueError> {
    if !account.verified {
        return Ok(None);
    }
    let job = SendSecurityNotice { account_id: account.id, address: account.email.clone(), notice };
    jobs::enqueue(connection, &job).await.map(Some)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    #[garde(skip)]
    #[schema(value_type = String, format = "password")]
    old: SecretString,
    #[garde(custom(password::length))]
    #[schema(value_type = String, format = "password", min_length = 12, max_length = 256)]
    new: SecretString,
}

/// Change my password
///
/// All other sessions, all tokens and all other ways to log in end. This session continues with a new cookie.
#[utoipa::path(post, path = "/account/password", tag = "Account", responses(
    (status = 204, description = "Changed", headers(("Set-Cookie" = String))),
    (status = 403, description = "wrong-password: The old password is wrong"),
))]
pub async fn change_password(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Json(input): Json<ChangePassword>,
) -> Result<Response> {
    let account_id = caller.account_id;
    let found = account::credentials_of(&mut *app.postgres.acquire().await?, account_id).await?;
    let credentials = found.ok_or_else(Problem::unauthenticated)?;
    if !app.passwords.verify(&input.old, Some(credentials.password_hash)).await?.same {
        audit::record(&mut *app.postgres.acquire().await?, Action::CONFIRMATION_FAILED, Some(account_id), caller.by).await?;
        return Err(Problem::forbidden("wrong-password", "The old password is wrong."));
    }
    let password_hash = app.passwords.hash_new(input.new, "new", &credentials.email).await?;
    let mut transaction = app.postgres.begin().await?;
    // Hashing twice takes a while. Meanwhile the session may have ended or the role may have changed.
    let renewed = account::set_password(&mut transaction, account_id, &password_hash, Some(caller.epoch)).await?;
    let Renewed { session_epoch, role } = renewed.ok_or_else(Problem::unauthenticated)?;
    tell_password_changed(&app, &mut transaction, account_id).await?;
    audit::record(&mut *transaction, Action::PASSWORD_CHANGED, Some(account_id), caller.by).await?;
    let _ = jobs::enqueue(&mut transaction, &SendNotice { account_id, notice: Notice::PasswordChanged }).await?;
    end_before(&app, transaction, account_id, session_epoch).await?;
    let cookie = start_session(&app, account_id, role, session_epoch, &headers).await?.ok_or_else(Problem::unauthenticated)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Tells each feature, in the caller's transaction, that the password was changed or ended.
///
/// # Errors
/// As a query. The caller rolls back.
pub async fn tell_password_changed(app: &App, connection: &mut PgConnection, account_id: Uuid) -> sqlx::Result<()> {
    for feature in app.features {
        (feature.password_changed)(connection, account_id).await?;
    }
    Ok(())
}

/// Delete my account and all of its data
#[utoipa::path(delete, path = "/account", tag = "Account", responses((status = 204, description = "Deleted")))]
pub async fn delete_account(State(app): State<App>, caller: Caller) -> Result<Response> {
    let mut transaction = app.postgres.begin().await?;
    let epoch = delete(&app, &mut transaction, caller.account_id, Some(caller.epoch)).await?.ok_or_else(Problem::unauthenticated)?;
    audit::record(&mut *transaction, Action::ACCOUNT_DELETED, Some(caller.account_id), caller.by).await?;
    end_before(&app, transaction, caller.account_id, epoch).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, app.sessions.no_cookie()?)]).into_response())
}

/// Deletes an account in the caller's transaction, after each feature has enqueued the jobs that must follow. Returns
/// the epoch below which the caller ends the sessions. None if the account is gone or the session has ended, and then
/// the caller rolls back. `held` is the epoch of the session that requests it, if a session does.
///
/// # Errors
/// As a query or [`jobs::enqueue`]. The caller rolls back.
pub async fn delete(
    app: &App,
    connection: &mut PgConnection,
    account_id: Uuid,
    held: Option<i32>,
) -> std::result::Result<Option<i32>, EnqueueError> {
    // Locked first, because other requests lock the account before what belongs to it.
    account::lock(&mut *connection, account_id).await?;
    let Some(account) = account::find(&mut *connection, account_id).await? else { return Ok(None) };
    for feature in app.features {
        (feature.deleted)(connection, account_id).await?;
    }
    // The workers find the job at their next poll.
    let _ = notify(connection, &account, SecurityNotice::AccountDeleted).await?;
    Ok(account::delete(connection, account_id, held).await?)
}
