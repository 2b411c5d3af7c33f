//! The pages that mailed links open. Only the button on the page changes anything, because mail scanners open links too.

use askama::Template;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Form, Router};
use garde::Validate;
use secrecy::{ExposeSecret, SecretString};

use super::recovery::{Reset, Undo, Verification, redeem_reset, redeem_verification, undo_change};
use crate::app::App;
use crate::http::{ClientAddress, Json, Result, html};

pub fn pages() -> Router<App> {
    let verify = get(async |State(app): State<App>, RawQuery(query): RawQuery| open(VERIFY.of(&app), query)).post(verify);
    let reset = get(async |State(app): State<App>, RawQuery(query): RawQuery| open(RESET.of(&app), query)).post(reset);
    let undo = get(async |State(app): State<App>, RawQuery(query): RawQuery| open(UNDO.of(&app), query)).post(undo);
    Router::new().route("/verify", verify).route("/reset", reset).route("/undo", undo)
}

#[derive(Template, Clone, Copy)]
#[template(path = "link.html")]
struct LinkPage<'a> {
    path: &'a str,
    title: &'a str,
    text: &'a str,
    done: &'a str,
    button: &'a str,
    /// The input that it asks for in addition to the token.
    asks: Option<Asks>,
    /// The page has a button only if it has a token.
    token: Option<&'a str>,
    /// Whether this deploy has a page at `/`.
    has_home: bool,
}

impl LinkPage<'_> {
    fn of(self, app: &App) -> Self {
        Self { has_home: app.on.iter().flat_map(|feature| feature.access).any(|rule| rule.path == "/"), ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Password,
    NewPassword,
}

const VERIFY: LinkPage<'_> = LinkPage {
    path: "/verify",
    title: "Did you sign up?",
    text: "If you created this account, enter the password that you chose. If you did not, close this page.",
    done: "Thank you. Your email address is verified.",
    button: "Yes, this account is mine",
    asks: Some(Asks::Password),
    token: None,
    has_home: false,
};

const RESET: LinkPage<'_> = LinkPage {
    path: "/reset",
    title: "Set a new password",
    text: "Choose a new password of at least 12 characters.",
    done: "Thank you. Log in with your new password.",
    button: "Set password",
    asks: Some(Asks::NewPassword),
    token: None,
    has_home: false,
};

const UNDO: LinkPage<'_> = LinkPage {
    path: "/undo",
    title: "Keep this address",
    text: "This keeps your previous email address and ends every session, every API token and the password. We then send you a link to set a new password.",
    done: "Your previous email address is back. We sent you a link to set a new password.",
    button: "Keep this address",
    asks: None,
    token: None,
    has_home: false,
};

fn open(link: LinkPage<'_>, query: Option<String>) -> Result<Response> {
    let query = query.unwrap_or_default();
    let token = url::form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == "token").then_some(value));
    match token {
        Some(token) => html::page(StatusCode::OK, &LinkPage { token: Some(&token), ..link }),
        None if query == "done" => html::page(StatusCode::OK, &LinkPage { title: "Done", text: link.done, asks: None, ..link }),
        None => html::page(StatusCode::NOT_FOUND, &LinkPage { text: "This link is incomplete. Copy all of it from the mail.", ..link }),
    }
}

/// Handles the button's POST. It redirects, so that a reload does not post again.
async fn verify(app: State<App>, address: ClientAddress, Form(input): Form<Verification>) -> Result<Response> {
    let (link, token) = (VERIFY.of(&app), input.token.clone());
    answer(link, &token, redeem_verification(app, address, Json(input)).await)
}

async fn reset(app: State<App>, address: ClientAddress, Form(input): Form<Reset>) -> Result<Response> {
    let (link, token) = (RESET.of(&app), input.token.clone());
    if input.validate().is_err() {
        return again(link, &token, StatusCode::UNPROCESSABLE_ENTITY, "That password is too short or too long. Choose another one.");
    }
    answer(link, &token, redeem_reset(app, address, Json(input)).await)
}

async fn undo(app: State<App>, address: ClientAddress, Form(input): Form<Undo>) -> Result<Response> {
    let (link, token) = (UNDO.of(&app), input.token.clone());
    answer(link, &token, undo_change(app, address, Json(input)).await)
}

/// Shows the page again, with its button.
fn again(link: LinkPage<'_>, token: &SecretString, status: StatusCode, text: &str) -> Result<Response> {
    html::page(status, &LinkPage { text, token: Some(token.expose_secret()), ..link })
}

/// The page for the result of the API's operation.
fn answer(link: LinkPage<'_>, token: &SecretString, result: Result<StatusCode>) -> Result<Response> {
    let Err(problem) = result else { return Ok(Redirect::to(&format!("{}?done", link.path)).into_response()) };
    match problem.slug {
        "invalid-token" => {
            let text = "This link was used already or has expired. Ask for a new one.";
            html::page(problem.status, &LinkPage { text, ..link })
        }
        "wrong-password" => {
            let text = "That is not the account's password. If you have forgotten it, ask for a link to set a new one, which verifies the address too.";
            again(link, token, problem.status, text)
        }
        "invalid-input" => again(link, token, problem.status, "That password is easy to guess. Choose several unrelated words."),
        _ => Err(problem),
    }
}
