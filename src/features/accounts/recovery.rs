//! What a mailed link does: shows that an address is one's own, or sets another password. As operations of the API, and
//! as pages for the person who opened the link.

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Form, Router};
use garde::Validate;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account;
use super::mailed_token::{self, Purpose};
use super::mails::{Notice, SendNotice, SendPasswordReset, SendVerification};
use super::my_sessions::end_before;
use crate::app::App;
use crate::auth::audit::{self, Action};
use crate::auth::{Session, password};
use crate::http::{ClientAddress, Json, Problem, Result, html, no_nul};
use crate::jobs;

const USED: &str = "the link is unknown, was used already, or is too old";

fn invalid_token() -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-token", USED)
}

/// Mail the verification once more
#[utoipa::path(post, path = "/email-verifications", tag = "Accounts",
    responses((status = 202, description = "A mail is on its way, if there is anything to verify")))]
pub async fn mail_again(State(app): State<App>, session: Session) -> Result<StatusCode> {
    let mut connection = app.postgres.acquire().await?;
    let enqueued = jobs::enqueue(&mut connection, &SendVerification { account_id: session.account_id }).await;
    enqueued?.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// From the mailed link.
    #[garde(skip)]
    #[schema(value_type = String)]
    token: SecretString,
}

/// Show that an address is mine
///
/// A new address takes the place of the one before with this.
#[utoipa::path(post, path = "/email-verifications/redeem", tag = "Accounts", responses(
    (status = 204, description = "The address is verified"),
    (status = 422, description = "invalid-token: The token is unknown, was used already, or is too old"),
))]
pub async fn redeem_verification(State(app): State<App>, address: ClientAddress, Json(input): Json<Verification>) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    let found = mailed_token::redeem(&mut transaction, Purpose::Verify, &input.token).await?;
    let (account_id, email) = found.ok_or_else(invalid_token)?;
    if !account::verify(&mut transaction, account_id, &email).await? {
        return Err(invalid_token());
    }
    audit::record(&mut *transaction, Action::ADDRESS_VERIFIED, Some(account_id), Some(address)).await?;
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

/// Ask for a link that sets another password
///
/// The answer tells nobody whether the address has an account.
#[utoipa::path(post, path = "/password-resets", tag = "Accounts",
    responses((status = 202, description = "A mail is on its way, if the address has an account")))]
pub async fn ask_for_reset(State(app): State<App>, Json(input): Json<AskForReset>) -> Result<StatusCode> {
    let found = account::credentials(&mut *app.postgres.acquire().await?, &input.email).await?;
    // As much is done for an unknown address: the time it takes tells nothing either.
    let account_id = found.map_or_else(Uuid::now_v7, |credentials| credentials.id);
    let mut connection = app.postgres.acquire().await?;
    jobs::enqueue(&mut connection, &SendPasswordReset { account_id }).await?.fire(&app.notifier);
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// From the mailed link.
    #[garde(skip)]
    #[schema(value_type = String)]
    token: SecretString,
    #[garde(custom(password::rule))]
    #[schema(value_type = String, format = "password", min_length = 12, max_length = 256)]
    password: SecretString,
}

/// Set another password
///
/// Every session of the account ends, and every token.
#[utoipa::path(post, path = "/password-resets/redeem", tag = "Accounts", responses(
    (status = 204, description = "The password is set"),
    (status = 422, description = "invalid-token: The token is unknown, was used already, or is too old"),
))]
pub async fn redeem_reset(State(app): State<App>, address: ClientAddress, Json(input): Json<Reset>) -> Result<StatusCode> {
    let password_hash = app.passwords.hash(input.password).await?;
    let mut transaction = app.postgres.begin().await?;
    let found = mailed_token::redeem(&mut transaction, Purpose::Reset, &input.token).await?;
    let (account_id, email) = found.ok_or_else(invalid_token)?;
    // Who has the token has the mailbox.
    account::verify(&mut transaction, account_id, &email).await?;
    let epoch = account::set_password(&mut transaction, account_id, &password_hash).await?.ok_or_else(invalid_token)?;
    // Nor does what somebody else may have made with the old password stay.
    sqlx::query!("DELETE FROM api_tokens WHERE account_id = $1", account_id).execute(&mut *transaction).await?;
    audit::record(&mut *transaction, Action::PASSWORD_RESET, Some(account_id), Some(address)).await?;
    let _ = jobs::enqueue(&mut transaction, &SendNotice { account_id, notice: Notice::PasswordChanged }).await?;
    end_before(&app, transaction, account_id, epoch).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub fn pages() -> Router<App> {
    let verify = get(|RawQuery(query): RawQuery| async { open(VERIFY, query) }).post(verify);
    let reset = get(|RawQuery(query): RawQuery| async { open(RESET, query) }).post(reset);
    Router::new().route("/verify", verify).route("/reset", reset)
}

/// A page that a mailed link opens. Opening it changes nothing, because mail scanners open links too; its button does.
#[derive(Template, Clone, Copy)]
#[template(path = "link.html")]
struct LinkPage<'a> {
    path: &'a str,
    title: &'a str,
    text: &'a str,
    done: &'a str,
    button: &'a str,
    /// Whether it asks for a password.
    password: bool,
    /// Without one there is no button.
    token: Option<&'a str>,
}

const VERIFY: LinkPage<'_> = LinkPage {
    path: "/verify",
    title: "Your address",
    text: "Is this address yours?",
    done: "Thank you, the address is verified.",
    button: "Yes, it is mine",
    password: false,
    token: None,
};

const RESET: LinkPage<'_> = LinkPage {
    path: "/reset",
    title: "Your password",
    text: "Choose another password, of 12 characters or more.",
    done: "Thank you, log in with the new password.",
    button: "Set it",
    password: true,
    token: None,
};

fn open(link: LinkPage<'_>, query: Option<String>) -> Result<Response> {
    let query = query.unwrap_or_default();
    let token = url::form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == "token").then_some(value));
    match token {
        Some(token) => html::page(StatusCode::OK, &LinkPage { token: Some(&token), ..link }),
        None if query == "done" => html::page(StatusCode::OK, &LinkPage { text: link.done, ..link }),
        None => html::page(StatusCode::NOT_FOUND, &LinkPage { text: "This link is not complete.", ..link }),
    }
}

/// The button's POST; then another address, so that a reload does not post again.
async fn verify(app: State<App>, address: ClientAddress, Form(input): Form<Verification>) -> Result<Response> {
    answer(VERIFY, redeem_verification(app, address, Json(input)).await)
}

async fn reset(app: State<App>, address: ClientAddress, Form(input): Form<Reset>) -> Result<Response> {
    if input.validate().is_err() {
        let text = "That password is too short, too long, or among the most common. Choose another.";
        return html::page(StatusCode::UNPROCESSABLE_ENTITY, &LinkPage { text, token: Some(input.token.expose_secret()), ..RESET });
    }
    answer(RESET, redeem_reset(app, address, Json(input)).await)
}

/// The page for what the operation answers to programs.
fn answer(link: LinkPage<'_>, result: Result<StatusCode>) -> Result<Response> {
    match result {
        Ok(_) => Ok(Redirect::to(&format!("{}?done", link.path)).into_response()),
        Err(problem) if problem.status == StatusCode::UNPROCESSABLE_ENTITY => {
            let text = "This link was used already, or is too old. Ask for another.";
            html::page(problem.status, &LinkPage { text, ..link })
        }
        Err(problem) => Err(problem),
    }
}
