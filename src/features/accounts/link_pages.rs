//! The pages that mailed links open. Opening one changes nothing, because mail scanners open links too; its button does.

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
    let verify = get(|RawQuery(query): RawQuery| async { open(VERIFY, query) }).post(verify);
    let reset = get(|RawQuery(query): RawQuery| async { open(RESET, query) }).post(reset);
    let undo = get(|RawQuery(query): RawQuery| async { open(UNDO, query) }).post(undo);
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
    /// What it asks for beside the token, if anything.
    asks: Option<Asks>,
    /// Without one there is no button.
    token: Option<&'a str>,
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
    done: "Thank you, the address is verified.",
    button: "Yes, this account is mine",
    asks: Some(Asks::Password),
    token: None,
};

const RESET: LinkPage<'_> = LinkPage {
    path: "/reset",
    title: "Your password",
    text: "Choose another password, of 12 characters or more.",
    done: "Thank you, log in with the new password.",
    button: "Set it",
    asks: Some(Asks::NewPassword),
    token: None,
};

const UNDO: LinkPage<'_> = LinkPage {
    path: "/undo",
    title: "Keep this address",
    text: "This keeps the address of before. It ends every session, every API token and the password; a link to set another is mailed.",
    done: "The address is as it was. A link to set another password is on its way.",
    button: "Keep this address",
    asks: None,
    token: None,
};

fn open(link: LinkPage<'_>, query: Option<String>) -> Result<Response> {
    let query = query.unwrap_or_default();
    let token = url::form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == "token").then_some(value));
    match token {
        Some(token) => html::page(StatusCode::OK, &LinkPage { token: Some(&token), ..link }),
        None if query == "done" => html::page(StatusCode::OK, &LinkPage { text: link.done, asks: None, ..link }),
        None => html::page(StatusCode::NOT_FOUND, &LinkPage { text: "This link is not complete.", ..link }),
    }
}

/// The button's POST; then another address, so that a reload does not post again.
async fn verify(app: State<App>, address: ClientAddress, Form(input): Form<Verification>) -> Result<Response> {
    let token = input.token.clone();
    answer(VERIFY, &token, redeem_verification(app, address, Json(input)).await)
}

async fn reset(app: State<App>, address: ClientAddress, Form(input): Form<Reset>) -> Result<Response> {
    let token = input.token.clone();
    if input.validate().is_err() {
        return again(RESET, &token, StatusCode::UNPROCESSABLE_ENTITY, "That password is too short or too long. Choose another.");
    }
    answer(RESET, &token, redeem_reset(app, address, Json(input)).await)
}

async fn undo(app: State<App>, address: ClientAddress, Form(input): Form<Undo>) -> Result<Response> {
    let token = input.token.clone();
    answer(UNDO, &token, undo_change(app, address, Json(input)).await)
}

/// The page once more, with its button.
fn again(link: LinkPage<'_>, token: &SecretString, status: StatusCode, text: &str) -> Result<Response> {
    html::page(status, &LinkPage { text, token: Some(token.expose_secret()), ..link })
}

/// The page for what the operation answers to programs.
fn answer(link: LinkPage<'_>, token: &SecretString, result: Result<StatusCode>) -> Result<Response> {
    let Err(problem) = result else { return Ok(Redirect::to(&format!("{}?done", link.path)).into_response()) };
    match problem.slug {
        "invalid-token" => {
            let text = "This link was used already, or is too old. Ask for another.";
            html::page(problem.status, &LinkPage { text, ..link })
        }
        "wrong-password" => {
            let text = "That is not the account's password. If you have forgotten it, ask for a link to set another: that verifies the address too.";
            again(link, token, problem.status, text)
        }
        "invalid-input" => again(link, token, problem.status, "That password is easy to guess. Choose another, of several words."),
        _ => Err(problem),
    }
}
