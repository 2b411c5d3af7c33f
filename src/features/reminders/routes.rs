//! The routes of reminders: create, list, read, change, delete.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::reminder::{self, Reminder};
use super::send::SendReminder;
use crate::app::App;
use crate::auth::Caller;
use crate::features::accounts::account;
use crate::http::idempotency::{Answer, IdempotencyKey};
use crate::http::{Id, Json, List, Page, Problem, Query, Result, no_nul, not_null};
use crate::jobs::{self, Enqueued};

/// The operations of the API.
pub fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_reminder, list_reminders)).routes(routes!(read_reminder, change_reminder, delete_reminder))
}

#[derive(Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewReminder {
    #[garde(length(chars, min = 1, max = 10_000), custom(no_nul))]
    #[schema(min_length = 1, max_length = 10_000, pattern = r"^[^\x00]*$", example = "water the plants")]
    message: String,
    /// When to mail it. It must be in the future.
    #[garde(skip)]
    #[schema(example = "2099-01-01T09:00:00Z")]
    due_at: Timestamp,
}

/// The operation that an `Idempotency-Key` belongs to.
const CREATE: &str = "POST /reminders";

/// Create a reminder
///
/// With an `Idempotency-Key` the request may be repeated. For a day it gets the same response.
#[utoipa::path(post, path = "/reminders", tag = "Reminders",
    params(("Idempotency-Key" = Option<String>, Header, description = "Any text of 1 to 255 visible ASCII characters",
        min_length = 1, max_length = 255, pattern = "^[!-~]+$")),
    responses(
        (status = 201, description = "Created. It is mailed when it is due", body = Reminder, headers(("Location" = String), ("ETag" = String))),
        (status = 403, description = "email-not-verified: The account's address has not been verified\nquota-reached: The account has 1,000 pending reminders"),
        (status = 409, description = "idempotency-key-in-use: A request with this Idempotency-Key is still running"),
        (status = 422, description = "idempotency-key-reused: This Idempotency-Key was used with a different body"),
    ))]
async fn create_reminder(State(app): State<App>, caller: Caller, key: IdempotencyKey, Json(input): Json<NewReminder>) -> Result<Response> {
    let mut transaction = app.postgres.begin().await?;
    caller.hold(&mut transaction).await?;
    let made = create_once(&app, &mut transaction, caller.account_id, key, &input).await;
    // The transaction ends before the response is sent, because the client may then use the key again at once.
    let (answer, enqueued) = match made {
        Ok(made) => transaction.commit().await.map(|()| made)?,
        Err(problem) => {
            transaction.rollback().await?;
            return Err(problem);
        }
    };
    if let Some(enqueued) = enqueued {
        enqueued.fire(&app.notifier);
    }
    Ok(answer.into_response())
}

/// Creates the reminder and its job, which commit together. If the key was used before, returns the earlier response.
async fn create_once(
    app: &App,
    transaction: &mut PgConnection,
    account_id: Uuid,
    mut key: IdempotencyKey,
    input: &NewReminder,
) -> Result<(Answer, Option<Enqueued>)> {
    if let Some(earlier) = key.earlier(transaction, account_id, CREATE, input).await? {
        return Ok((earlier, None));
    }
    in_future(app, input.due_at)?;
    let Some(reminder) = reminder::create(transaction, Uuid::now_v7(), account_id, &input.message, input.due_at.into()).await? else {
        let verified = account::find(transaction, account_id).await?.is_some_and(|account| account.verified);
        return Err(if verified { quota_reached() } else { Problem::not_verified() });
    };
    let enqueued = enqueue(transaction, &reminder).await?;
    let location = format!("/api/v1/reminders/{}", reminder.id);
    let answer = Answer::of((StatusCode::CREATED, [(header::LOCATION, location)], tagged(reminder)?).into_response()).await?;
    key.save(transaction, account_id, CREATE, &answer).await?;
    Ok((answer, Some(enqueued)))
}

fn quota_reached() -> Problem {
    Problem::forbidden("quota-reached", "You have 1,000 pending reminders, which is the limit.")
}

/// A reminder with its `ETag`.
fn tagged(reminder: Reminder) -> Result<Response> {
    let etag = HeaderValue::try_from(reminder.etag()).map_err(Problem::internal)?;
    Ok(([(header::ETAG, etag)], axum::Json(reminder)).into_response())
}

/// List my reminders, the earliest first
#[utoipa::path(get, path = "/reminders", tag = "Reminders", params(Page), responses((status = 200, description = "A page of reminders", body = List<Reminder>)))]
async fn list_reminders(State(app): State<App>, caller: Caller, uri: OriginalUri, Query(page): Query<Page>) -> Result<Response> {
    let reminders = reminder::list(&mut *app.postgres.acquire().await?, caller.account_id, page.after()?, page.fetch()).await?;
    page.answer(&uri, reminders, |last| (last.due_at, last.id))
}

/// Read a reminder
///
/// With `If-None-Match`, the response is 304 if the reminder has not changed since it was read (RFC 9110, 13.1.2).
#[utoipa::path(get, path = "/reminders/{id}", tag = "Reminders",
    params(("id" = Uuid, Path), ("If-None-Match" = Option<String>, Header, description = "The `ETag` that was read")),
    responses(
        (status = 200, description = "The reminder", body = Reminder, headers(("ETag" = String))),
        (status = 304, description = "Not changed since it was read", headers(("ETag" = String))),
    ))]
async fn read_reminder(State(app): State<App>, caller: Caller, Id(id): Id, headers: HeaderMap) -> Result<Response> {
    let found = reminder::find(&mut *app.postgres.acquire().await?, caller.account_id, id).await?;
    let reminder = found.ok_or_else(Problem::not_found)?;
    if headers.get(header::IF_NONE_MATCH).is_some_and(|list| names(list, &reminder.etag())) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, reminder.etag())]).into_response());
    }
    tagged(reminder)
}

/// A merge patch (RFC 7396): absent fields stay as they are. No field can be removed, so null is not allowed.
#[derive(Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeReminder {
    #[garde(length(chars, min = 1, max = 10_000), inner(custom(no_nul)))]
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 10_000, pattern = r"^[^\x00]*$")]
    message: Option<String>,
    /// A new time in the future. The reminder is mailed then, even if it was mailed before.
    #[garde(skip)]
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = Timestamp, required = false)]
    due_at: Option<Timestamp>,
}

/// Change a reminder
///
/// With `If-Match`, only if the reminder has not changed since it was read (RFC 9110, 13.1.1).
#[utoipa::path(patch, path = "/reminders/{id}", tag = "Reminders",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header, description = "The `ETag` that was read")),
    responses(
        (status = 200, description = "The changed reminder", body = Reminder, headers(("ETag" = String))),
        (status = 403, description = "quota-reached: With the new time, the account would have more than 1,000 pending reminders"),
        (status = 412, description = "changed-meanwhile: The reminder has changed since it was read"),
    ))]
async fn change_reminder(
    State(app): State<App>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    Json(input): Json<ChangeReminder>,
) -> Result<Response> {
    if let Some(due_at) = input.due_at {
        in_future(&app, due_at)?;
    }
    let mut transaction = app.postgres.begin().await?;
    caller.hold(&mut transaction).await?;
    let before = reminder::lock(&mut transaction, caller.account_id, id).await?.ok_or_else(Problem::not_found)?;
    unchanged_since(&headers, &before)?;
    if input.message.is_none() && input.due_at.is_none() {
        // Without changes there is no new version and no new job.
        return tagged(before);
    }
    // With a new time, a reminder that was sent is pending again.
    if before.sent_at.is_some() && input.due_at.is_some() && reminder::is_full(&mut *transaction, caller.account_id).await? {
        return Err(quota_reached());
    }
    withdraw(&mut transaction, &before).await?;
    let changed = reminder::change(&mut transaction, caller.account_id, id, input.message.as_deref(), input.due_at.map(Into::into)).await?;
    let reminder = changed.ok_or_else(Problem::not_found)?;
    let enqueued = if reminder.sent_at.is_none() { Some(enqueue(&mut transaction, &reminder).await?) } else { None };
    transaction.commit().await?;
    if let Some(enqueued) = enqueued {
        enqueued.fire(&app.notifier);
    }
    tagged(reminder)
}

/// Delete a reminder
///
/// With `If-Match`, only if the reminder has not changed since it was read.
#[utoipa::path(delete, path = "/reminders/{id}", tag = "Reminders",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header, description = "The `ETag` that was read")),
    responses(
        (status = 204, description = "Deleted. It will not be mailed"),
        (status = 412, description = "changed-meanwhile: The reminder has changed since it was read"),
    ))]
async fn delete_reminder(State(app): State<App>, caller: Caller, Id(id): Id, headers: HeaderMap) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    caller.hold(&mut transaction).await?;
    let before = reminder::lock(&mut transaction, caller.account_id, id).await?.ok_or_else(Problem::not_found)?;
    unchanged_since(&headers, &before)?;
    withdraw(&mut transaction, &before).await?;
    reminder::delete(&mut *transaction, caller.account_id, id).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Checks `If-Match`. 412 if the reminder has changed since it was read, because the change would overwrite another one.
fn unchanged_since(headers: &HeaderMap, reminder: &Reminder) -> Result<()> {
    let Some(expected) = headers.get(header::IF_MATCH) else { return Ok(()) };
    if names(expected, &reminder.etag()) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::PRECONDITION_FAILED, "changed-meanwhile", "The reminder has changed since you read it. Read it again."))
}

/// Whether a list of tags contains the `ETag` or `*`. Proxies that compress a response mark its tag as weak. It still
/// identifies the version.
fn names(list: &HeaderValue, etag: &str) -> bool {
    let mut tags = list.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
}

fn in_future(app: &App, due_at: Timestamp) -> Result<()> {
    if due_at > (app.now)() { Ok(()) } else { Err(Problem::invalid_field("due_at", "must be in the future")) }
}

/// Deletes the job of a version, so that changes leave no jobs behind. If it runs just now, it finds no such version and ends.
async fn withdraw(connection: &mut PgConnection, reminder: &Reminder) -> Result<()> {
    Ok(jobs::withdraw(connection, &SendReminder { id: reminder.id, version: reminder.version }).await?)
}

async fn enqueue(connection: &mut PgConnection, reminder: &Reminder) -> Result<Enqueued> {
    let job = SendReminder { id: reminder.id, version: reminder.version };
    Ok(jobs::enqueue_at(connection, &job, reminder.due_at.into()).await?)
}
