//! The operations on the caller's API tokens. A program uses a token to act for the account, within its scopes and
//! until it expires.

use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use garde::Validate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::account;
use super::mails::SecurityNotice;
use super::settings::notify;
use crate::app::App;
use crate::auth::api_token::{self, Token};
use crate::auth::audit::{self, Action};
use crate::auth::{Caller, rules, secret};
use crate::http::extract::integer;
use crate::http::{Id, Json, List, Page, Problem, Query, Result, no_nul};

#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// A name to recognize the token by.
    #[garde(length(chars, min = 1, max = 100), custom(no_nul))]
    #[schema(min_length = 1, max_length = 100, pattern = r"^[^\x00]*$", example = "backup script")]
    name: String,
    #[garde(custom(some_scope), length(max = 20))]
    #[schema(value_type = Vec<Scope>, min_items = 1, max_items = 20, example = json!(["tokens:read"]))]
    scopes: Vec<String>,
    #[garde(range(min = 1, max = 366))]
    #[serde(deserialize_with = "integer")]
    #[schema(minimum = 1, maximum = 366, example = 90)]
    expires_in_days: i32,
}

fn some_scope<C>(scopes: &[String], _: &C) -> garde::Result {
    if scopes.is_empty() { Err(garde::Error::new("choose at least one")) } else { Ok(()) }
}

/// A permission of a token. An operation names the scope that it requires.
#[derive(ToSchema)]
#[schema(value_type = String)]
#[expect(dead_code, reason = "it only describes a text in the document")]
struct Scope(String);

/// A new token. The secret is shown only once.
#[derive(Serialize, ToSchema)]
pub struct CreatedToken {
    /// The value for the header `Authorization: Bearer`.
    #[schema(example = "pat_…")]
    secret: String,
    #[serde(flatten)]
    token: Token,
}

/// Create a token
#[utoipa::path(post, path = "/tokens", tag = "Tokens", responses(
    (status = 201, description = "The token. Its secret is shown only once", body = CreatedToken),
    (status = 403, description = "email-not-verified: The account's address has not been verified"),
    (status = 409, description = "too-many-tokens: The account has fifty tokens"),
))]
pub async fn create_token(State(app): State<App>, caller: Caller, Json(input): Json<NewToken>) -> Result<Response> {
    let known = rules::scopes(app.features.iter().flat_map(|feature| feature.access));
    if let Some(unknown) = input.scopes.iter().find(|scope| !known.contains(scope.as_str())) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Problem::invalid_field("scopes", &format!("has the unknown scope {unknown}: the scopes are {known}")));
    }
    let secret = format!("{}{}", api_token::PREFIX, secret::mint().map_err(Problem::internal)?);
    let mut transaction = app.postgres.begin().await?;
    let NewToken { name, scopes, expires_in_days } = input;
    let account = account::find(&mut *transaction, caller.account_id).await?.ok_or_else(Problem::unauthenticated)?;
    if !account.verified {
        return Err(Problem::not_verified());
    }
    let token = api_token::create(&mut transaction, &caller, &secret, &name, &scopes, expires_in_days).await?;
    let Some(token) = token else {
        let holds = account::session_epoch(&mut *transaction, caller.account_id).await? == Some(caller.epoch);
        let full = Problem::new(StatusCode::CONFLICT, "too-many-tokens", "You have 50 tokens, which is the limit. Delete one first.");
        return Err(if holds { full } else { Problem::unauthenticated() });
    };
    let enqueued = notify(&mut transaction, &account, SecurityNotice::TokenCreated).await?;
    audit::record(&mut *transaction, Action::TOKEN_CREATED, Some(caller.account_id), caller.by).await?;
    transaction.commit().await?;
    if let Some(enqueued) = enqueued {
        enqueued.fire(&app.notifier);
    }
    Ok((StatusCode::CREATED, axum::Json(CreatedToken { secret, token })).into_response())
}

/// List my tokens, the oldest first
#[utoipa::path(get, path = "/tokens", tag = "Tokens", params(Page), responses((status = 200, description = "A page of tokens", body = List<Token>)))]
pub async fn list_tokens(State(app): State<App>, caller: Caller, uri: OriginalUri, Query(page): Query<Page>) -> Result<Response> {
    let after = page.after()?.unwrap_or_else(Uuid::nil);
    let tokens = api_token::list(&mut *app.postgres.acquire().await?, caller.account_id, after, page.fetch()).await?;
    page.answer(&uri, tokens, |token| token.id)
}

/// Delete a token
#[utoipa::path(delete, path = "/tokens/{id}", tag = "Tokens", params(("id" = Uuid, Path)), responses((status = 204, description = "Deleted")))]
pub async fn delete_token(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    if !api_token::delete(&mut *transaction, &caller, id).await? {
        return Err(Problem::not_found());
    }
    audit::record(&mut *transaction, Action::TOKEN_DELETED, Some(caller.account_id), caller.by).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
