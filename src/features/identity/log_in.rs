//! The two requests of a log-in: to the provider, and back.

use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use deadpool_redis::redis::pipe;
use garde::Validate;
use serde::Deserialize;
use uuid::Uuid;

use super::linked_identity::{self, Owner};
use super::my_identities::SendLinked;
use super::provider::{self, Attempt, Person};
use super::{CALLBACK, START};
use crate::app::App;
use crate::auth::audit::{self, Action, Actor};
use crate::auth::cookie::Cookie;
use crate::auth::provider::Provider;
use crate::auth::session::hash;
use crate::auth::{By, Role, secret};
use crate::features::accounts::account;
use crate::features::accounts::log_in::{SIGNED_UP, start_session};
use crate::http::{ClientAddress, Problem, Query, Result, html, mail_address};
use crate::jobs;

/// How long a person may take at the provider.
const ATTEMPT_LIFETIME: Duration = Duration::from_mins(10);

const LINKED: Action = Action("identity_linked");

const SUSPENDED: &str = "This account is suspended. Ask the people who run this service.";
const JUST_CREATED: &str = "Another log-in of yours was just faster. Log in again.";

/// A page that says what to do.
#[derive(Template)]
#[template(path = "../src/features/identity/page.html")]
struct Page<'a> {
    text: &'a str,
    again: &'a str,
}

/// The outcome of a log-in that did not succeed.
fn refusal(status: StatusCode, text: &str) -> Result<Response> {
    html::page(status, &Page { text, again: START })
}

/// The cookie that binds a log-in to a browser. It goes to the callback when the provider redirects there.
fn browser_cookie(app: &App) -> Cookie {
    Cookie::new(&app.site, "__Host-oidc", "oidc")
}

fn provider(app: &App) -> Result<&Provider> {
    app.provider.as_ref().ok_or_else(Problem::not_found)
}

fn key(state: &str) -> String {
    format!("oidc:{}", hash(state))
}

/// Sends the browser to the provider.
pub async fn start(State(app): State<App>) -> Result<Response> {
    let (state, browser) = (secret::mint().map_err(Problem::internal)?, secret::mint().map_err(Problem::internal)?);
    let attempt = Attempt::new(hash(&browser)).map_err(Problem::internal)?;
    let page = match provider::log_in_page(provider(&app)?, &attempt, &state, &app.site.link(CALLBACK)).await {
        Ok(page) => page,
        Err(problem) => return explain(&problem),
    };
    let data = serde_json::to_string(&attempt).map_err(Problem::internal)?;
    let mut commands = pipe();
    commands.cmd("SET").arg(key(&state)).arg(data).arg("EX").arg(ATTEMPT_LIFETIME.as_secs()).ignore();
    app.sessions.redis.run::<()>(&commands).await?;
    let cookie = browser_cookie(&app).set(&browser, ATTEMPT_LIFETIME)?;
    Ok(([(header::SET_COOKIE, cookie), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Redirect::to(page.as_str()))
        .into_response())
}

/// What the provider sends back in the query.
#[derive(Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Answer {
    #[serde(default)]
    state: String,
    code: Option<String>,
    /// Why it has no code.
    error: Option<String>,
    /// RFC 9207: which provider answers.
    iss: Option<String>,
}

/// Takes the browser back from the provider, and starts a session.
pub async fn finish(State(app): State<App>, address: ClientAddress, headers: HeaderMap, Query(answer): Query<Answer>) -> Result<Response> {
    let provider = provider(&app)?;
    let mut commands = pipe();
    commands.cmd("GETDEL").arg(key(&answer.state));
    let (found,): (Option<String>,) = app.sessions.redis.run(&commands).await?;
    let attempt = found.and_then(|data| serde_json::from_str::<Attempt>(&data).ok());
    let attempt = attempt.filter(|attempt| browser_cookie(&app).find(&headers).is_some_and(|browser| hash(browser) == attempt.browser));
    let Some(attempt) = attempt else {
        return refusal(StatusCode::BAD_REQUEST, "This log-in was used already, has expired, or began in another browser.");
    };
    let ours = answer.iss.is_none_or(|issuer| issuer == provider.issuer.url());
    let Some(code) = answer.code.filter(|_| answer.error.is_none() && ours) else {
        return refusal(StatusCode::FORBIDDEN, "The provider did not log you in.");
    };
    let person = match provider::redeem(provider, &attempt, &code, &app.site.link(CALLBACK), (app.now)()).await {
        Ok(person) => person,
        Err(problem) => return explain(&problem),
    };
    let owner = match resolve(&app, provider, &person, address).await? {
        Ok(owner) => owner,
        Err(text) => return refusal(StatusCode::FORBIDDEN, text),
    };
    // None also for an account that was suspended just now.
    let Some(session) = start_session(&app, owner.id, owner.role, owner.epoch, &headers).await? else {
        return refusal(StatusCode::FORBIDDEN, "This account is suspended, or its sessions were just ended.");
    };
    let by = By { actor: Actor::Account(owner.id), address: Some(address) };
    audit::record(&mut *app.postgres.acquire().await?, Action::LOG_IN, Some(owner.id), by).await?;
    tracing::Span::current().record("account_id", tracing::field::display(owner.id));
    let mut response = Redirect::to("/").into_response();
    response.headers_mut().append(header::SET_COOKIE, session);
    response.headers_mut().append(header::SET_COOKIE, browser_cookie(&app).remove()?);
    Ok(response)
}

/// Turns a failure at the provider into a page.
fn explain(problem: &Problem) -> Result<Response> {
    if problem.status == StatusCode::UNAUTHORIZED {
        // The detail is a text of this program.
        let detail = problem.detail.as_deref().unwrap_or_default();
        tracing::warn!(error = detail, "the identity provider's answer was refused: {detail}");
        return refusal(StatusCode::FORBIDDEN, "The provider's answer is not valid for this log-in.");
    }
    if let Some(cause) = &problem.source {
        tracing::warn!(error = format!("{cause:#}"), "cannot log a person in with the identity provider: {cause:#}");
    }
    let text = "The provider does not answer as it should. Try again in a minute, or log in with your password.";
    refusal(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// Finds the account of a person: by the identity, or else by an address that both sides have verified. Creates one if
/// the address is free. Otherwise returns what to tell the person.
async fn resolve(
    app: &App,
    provider: &Provider,
    person: &Person,
    address: ClientAddress,
) -> Result<std::result::Result<Owner, &'static str>> {
    let (issuer, subject) = (provider.issuer.url(), &person.subject);
    let mut transaction = app.postgres.begin().await?;
    if let Some(owner) = linked_identity::find(&mut *transaction, issuer, subject).await? {
        return Ok(if owner.suspended { Err(SUSPENDED) } else { Ok(owner) });
    }
    // A service's address is one that no provider can have verified.
    let email =
        person.email.as_deref().filter(|email| mail_address(email, &()).is_ok() && !email.to_ascii_lowercase().ends_with(".invalid"));
    let Some(email) = email else {
        return Ok(Err("The provider did not say what your email address is. Allow it to, or sign up with a password."));
    };
    // Before the lookup: a person who may not own the address must not learn whether it has an account.
    if !person.verified {
        return Ok(Err("The provider has not verified your email address. Verify it there, or use a password here."));
    }
    let (owner, known) = match linked_identity::find_by_email(&mut *transaction, email).await? {
        // Postgres may fold other letters, such as the Kelvin sign to a k.
        Some(owner) if !owner.email.eq_ignore_ascii_case(email) => {
            return Ok(Err("The provider's address is not exactly that of the account here. Log in with your password."));
        }
        Some(owner) if owner.verified && owner.suspended => return Ok(Err(SUSPENDED)),
        Some(owner) if owner.verified => (owner, true),
        Some(_) => {
            return Ok(Err(
                "Your email address has an account here that nobody has verified. Ask for a link to set a password, and log in again then.",
            ));
        }
        None if !app.flags.feature_sign_up => {
            return Ok(Err("You have no account here, and nobody may sign up. Ask for an invitation."));
        }
        None => {
            let (id, unusable) = (Uuid::now_v7(), app.passwords.unusable().map_err(Problem::internal)?);
            if !account::create(&mut transaction, id, email, &unusable).await? {
                return Ok(Err(JUST_CREATED));
            }
            account::verify(&mut transaction, id, email, None).await?;
            (Owner { id, email: email.to_owned(), role: Role::User, epoch: 0, verified: true, suspended: false }, false)
        }
    };
    // Another request with the same identity may have been faster.
    if !linked_identity::link(&mut transaction, issuer, subject, owner.id).await? {
        return Ok(Err(JUST_CREATED));
    }
    let by = By { actor: Actor::Account(owner.id), address: Some(address) };
    if !known {
        audit::record(&mut *transaction, Action::SIGN_UP, Some(owner.id), by).await?;
    }
    audit::record(&mut *transaction, LINKED, Some(owner.id), by).await?;
    let mail = SendLinked { account_id: owner.id, address: owner.email.clone(), provider: provider.issuer.host() };
    let enqueued = if known { Some(jobs::enqueue(&mut transaction, &mail).await?) } else { None };
    transaction.commit().await?;
    if !known {
        app.counters.increment(&SIGNED_UP);
    }
    if let Some(enqueued) = enqueued {
        enqueued.fire(&app.notifier);
    }
    Ok(Ok(owner))
}
