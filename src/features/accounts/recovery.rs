//! The operations behind mailed links: verify an address, set a new password, and undo a change of address.
//! `link_pages` has the pages for people who open such a link.

use axum::extract::State;
use axum::http::StatusCode;
use garde::Validate;
use secrecy::SecretString;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account;
use super::mail_limit;
use super::mailed_token::{self, Good, Purpose};
use super::mails::{Notice, SendNotice, SendPasswordReset, SendVerification};
use super::my_sessions::end_before;
use super::settings::tell_password_changed;
use crate::app::App;
use crate::auth::audit::{self, Action};
use crate::auth::{By, Caller, password};
use crate::http::{ClientAddress, Json, Problem, Result, no_nul};
use crate::jobs::{self, Job};

fn invalid_token() -> Problem {
    let detail = "The link is unknown, was used already or has expired.";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-token", detail)
}

/// Looks a token up before a password is hashed, which is expensive.
async fn look_up(app: &App, purpose: Purpose, token: &SecretString) -> Result<Good> {
    let found = mailed_token::look_up(&mut *app.postgres.acquire().await?, purpose, token).await?;
    found.ok_or_else(invalid_token)
}

/// Send the verification mail again
#[utoipa::path(post, path = "/email-verifications", tag = "Accounts",
    responses((status = 202, description = "A mail is on its way, if there is anything to verify")))]
pub async fn mail_again(State(app): State<App>, caller: Caller) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    caller.hold(&mut transaction).await?;
    let account = account::find(&mut *transaction, caller.account_id).await?.ok_or_else(Problem::unauthenticated)?;
    let address = account.new_email.unwrap_or(account.email);
    if mail_limit::is_reached(&mut *transaction, SendVerification::KIND, &address).await? {
        let detail = "This address received three such mails in the last hour. Look there, or try again later.";
        return Err(Problem::too_many(detail, 600));
    }
    let enqueued = jobs::enqueue(&mut transaction, &SendVerification { account_id: account.id }).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// From the mailed link.
    #[garde(skip)]
    #[schema(value_type = String)]
    pub token: SecretString,
    /// The account's password. It shows that the owner of the address also signed up.
    #[garde(skip)]
    #[schema(value_type = String, format = "password")]
    pub password: SecretString,
}

/// Verify my address
///
/// A new address replaces the previous one when it is verified.
#[utoipa::path(post, path = "/email-verifications/redeem", tag = "Accounts", responses(
    (status = 204, description = "The address is verified"),
    (status = 403, description = "wrong-password: The password is wrong. The link stays valid"),
    (status = 422, description = "invalid-token: The token is unknown, was used already or has expired"),
))]
pub async fn redeem_verification(State(app): State<App>, address: ClientAddress, Json(input): Json<Verification>) -> Result<StatusCode> {
    let Good { account_id, .. } = look_up(&app, Purpose::Verify, &input.token).await?;
    let found = account::credentials_of(&mut *app.postgres.acquire().await?, account_id).await?;
    let credentials = found.ok_or_else(invalid_token)?;
    if !app.passwords.verify(&input.password, Some(credentials.password_hash)).await?.same {
        audit::record(&mut *app.postgres.acquire().await?, Action::CONFIRMATION_FAILED, Some(account_id), By::anyone(address)).await?;
        return Err(Problem::forbidden("wrong-password", "The password is wrong."));
    }
    let mut transaction = app.postgres.begin().await?;
    let found = mailed_token::redeem(&mut transaction, Purpose::Verify, &input.token).await?;
    let Good { account_id, email } = found.ok_or_else(invalid_token)?;
    if !account::verify(&mut transaction, account_id, &email, Some(credentials.session_epoch)).await? {
        return Err(invalid_token());
    }
    audit::record(&mut *transaction, Action::ADDRESS_VERIFIED, Some(account_id), By::anyone(address)).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskForReset {
    #[garde(custom(no_nul))]
    #[schema(pattern = r"^[^\x00]*$", example = "ada@example.com")]
    email: String,
}

/// Request a link to set a new password
///
/// The response never reveals whether the address is registered.
#[utoipa::path(post, path = "/password-resets", tag = "Accounts",
    responses((status = 202, description = "A mail is on its way, if the address has an account")))]
pub async fn ask_for_reset(State(app): State<App>, Json(input): Json<AskForReset>) -> Result<StatusCode> {
    let found = account::credentials(&mut *app.postgres.acquire().await?, &input.email).await?;
    // The same work is done for an unknown address, so that the response time reveals nothing either.
    let account_id = found.map_or_else(Uuid::now_v7, |credentials| credentials.id);
    let mut connection = app.postgres.acquire().await?;
    jobs::enqueue(&mut connection, &SendPasswordReset { account_id, address_restored: false }).await?.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// From the mailed link.
    #[garde(skip)]
    #[schema(value_type = String)]
    pub token: SecretString,
    #[garde(custom(password::length))]
    #[schema(value_type = String, format = "password", min_length = 12, max_length = 256)]
    pub password: SecretString,
}

/// Set a new password
///
/// All sessions, tokens and other ways to log in to the account end.
#[utoipa::path(post, path = "/password-resets/redeem", tag = "Accounts", responses(
    (status = 204, description = "The password is set"),
    (status = 422, description = "invalid-token: The token is unknown, was used already or has expired"),
))]
pub async fn redeem_reset(State(app): State<App>, address: ClientAddress, Json(input): Json<Reset>) -> Result<StatusCode> {
    let Good { email, .. } = look_up(&app, Purpose::Reset, &input.token).await?;
    let password_hash = app.passwords.hash_new(input.password, "password", &email).await?;
    let mut transaction = app.postgres.begin().await?;
    let found = mailed_token::redeem(&mut transaction, Purpose::Reset, &input.token).await?;
    let Good { account_id, email } = found.ok_or_else(invalid_token)?;
    // The token proves access to the mailbox. The address must still be the account's.
    if !account::verify(&mut transaction, account_id, &email, None).await? {
        return Err(invalid_token());
    }
    let renewed = account::set_password(&mut transaction, account_id, &password_hash, None).await?.ok_or_else(invalid_token)?;
    tell_password_changed(&app, &mut transaction, account_id).await?;
    audit::record(&mut *transaction, Action::PASSWORD_RESET, Some(account_id), By::anyone(address)).await?;
    let _ = jobs::enqueue(&mut transaction, &SendNotice { account_id, notice: Notice::PasswordChanged }).await?;
    end_before(&app, transaction, account_id, renewed.session_epoch).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    /// From the mailed link.
    #[garde(skip)]
    #[schema(value_type = String)]
    pub token: SecretString,
}

/// Undo a change of my address
///
/// Restores the previous address. All sessions, all tokens and the password end. A link to set a new password is mailed.
#[utoipa::path(post, path = "/email-changes/undo", tag = "Accounts", responses(
    (status = 204, description = "The previous address is restored, and a mail is on its way"),
    (status = 422, description = "invalid-token: The token is unknown, was used already or has expired"),
))]
pub async fn undo_change(State(app): State<App>, address: ClientAddress, Json(input): Json<Undo>) -> Result<StatusCode> {
    let unusable = app.passwords.unusable().map_err(Problem::internal)?;
    let mut transaction = app.postgres.begin().await?;
    let found = mailed_token::redeem(&mut transaction, Purpose::Undo, &input.token).await?;
    let Good { account_id, email } = found.ok_or_else(invalid_token)?;
    let epoch = account::put_back(&mut transaction, account_id, &email, &unusable).await?.ok_or_else(invalid_token)?;
    tell_password_changed(&app, &mut transaction, account_id).await?;
    audit::record(&mut *transaction, Action::ADDRESS_CHANGE_UNDONE, Some(account_id), By::anyone(address)).await?;
    let _ = jobs::enqueue(&mut transaction, &SendPasswordReset { account_id, address_restored: true }).await?;
    end_before(&app, transaction, account_id, epoch).await?;
    Ok(StatusCode::NO_CONTENT)
}
