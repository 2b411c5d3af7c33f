//! The routes of reminders: create, list, read, change, delete.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use garde::Validate;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::jobs::SendReminder;
use super::reminder::{self, Reminder};
use crate::http::extract::no_nul;
use crate::http::problem::{Problem, Result};
use crate::http::session::Sessions;
use crate::http::{App, Id, Json, Query, Session};
use crate::jobs;

#[derive(Clone)]
struct Context(App);

impl FromRef<Context> for Sessions {
    fn from_ref(context: &Context) -> Self {
        context.0.sessions.clone()
    }
}

/// The routes below `/api/v1`.
pub fn routes(app: App) -> Router {
    Router::new()
        .route("/reminders", get(list).post(create))
        .route("/reminders/{id}", get(read).patch(change).delete(delete))
        .with_state(Context(app))
}

#[derive(Deserialize, Validate)]
struct New {
    #[garde(length(chars, min = 1, max = 10_000), custom(no_nul))]
    message: String,
    #[garde(skip)]
    due_at: Timestamp,
}

/// The reminder and its job commit together, or neither does.
async fn create(State(Context(app)): State<Context>, session: Session, Json(input): Json<New>) -> Result<Response> {
    in_future(&app, input.due_at)?;
    let mut transaction = app.postgres.begin().await?;
    let created = reminder::create(&mut transaction, Uuid::now_v7(), session.account_id, &input.message, input.due_at).await?;
    let Some(reminder) = created else {
        let detail = "show first that the address is yours: open the link that was mailed to it";
        return Err(Problem::new(StatusCode::FORBIDDEN, "email-not-verified", detail));
    };
    let enqueued = enqueue(&mut transaction, &reminder).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    let location = format!("/api/v1/reminders/{}", reminder.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], axum::Json(reminder)).into_response())
}

#[derive(Deserialize, Validate)]
struct Page {
    #[garde(skip)]
    cursor: Option<String>,
    #[garde(range(min = 1, max = 100))]
    #[serde(default = "default_limit")]
    limit: u8,
}

fn default_limit() -> u8 {
    20
}

#[derive(Serialize)]
struct List {
    items: Vec<Reminder>,
    /// The `cursor` of the next page; none on the last.
    next: Option<String>,
}

async fn list(State(Context(app)): State<Context>, session: Session, Query(page): Query<Page>) -> Result<axum::Json<List>> {
    let after = match &page.cursor {
        Some(cursor) => Some(position(cursor).ok_or_else(|| Problem::invalid_field("cursor", "is none that a page has given"))?),
        None => None,
    };
    let limit = usize::from(page.limit);
    // One more than asked for tells whether there is a next page.
    let mut items = reminder::list(&app.postgres, session.account_id, after, i64::from(page.limit) + 1).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor);
    Ok(axum::Json(List { items, next }))
}

/// Where a page ended: the sort key of its last item, to the microsecond as Postgres keeps it.
fn cursor(last: &Reminder) -> String {
    URL_SAFE_NO_PAD.encode([last.due_at.as_microsecond().to_be_bytes().as_slice(), last.id.as_bytes()].concat())
}

fn position(cursor: &str) -> Option<(Timestamp, Uuid)> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (micros, id) = bytes.split_first_chunk::<8>()?;
    Some((Timestamp::from_microsecond(i64::from_be_bytes(*micros)).ok()?, Uuid::from_slice(id).ok()?))
}

async fn read(State(Context(app)): State<Context>, session: Session, Id(id): Id) -> Result<axum::Json<Reminder>> {
    let found = reminder::find(&app.postgres, session.account_id, id).await?;
    found.map(axum::Json).ok_or_else(Problem::not_found)
}

/// RFC 7396: what is absent stays.
#[derive(Deserialize, Validate)]
struct Change {
    #[garde(length(chars, min = 1, max = 10_000), inner(custom(no_nul)))]
    message: Option<String>,
    #[garde(skip)]
    due_at: Option<Timestamp>,
}

async fn change(
    State(Context(app)): State<Context>,
    session: Session,
    Id(id): Id,
    Json(input): Json<Change>,
) -> Result<axum::Json<Reminder>> {
    if let Some(due_at) = input.due_at {
        in_future(&app, due_at)?;
    }
    if input.message.is_none() && input.due_at.is_none() {
        // Nothing to change is no new version, and no new job.
        return read(State(Context(app)), session, Id(id)).await;
    }
    let mut transaction = app.postgres.begin().await?;
    let changed = reminder::change(&mut transaction, session.account_id, id, input.message.as_deref(), input.due_at).await?;
    let reminder = changed.ok_or_else(Problem::not_found)?;
    let enqueued = if reminder.sent_at.is_none() { Some(enqueue(&mut transaction, &reminder).await?) } else { None };
    transaction.commit().await?;
    if let Some(enqueued) = enqueued {
        enqueued.fire(&app.notifier);
    }
    Ok(axum::Json(reminder))
}

/// Its job finds nothing when it is due, and ends.
async fn delete(State(Context(app)): State<Context>, session: Session, Id(id): Id) -> Result<StatusCode> {
    let deleted = reminder::delete(&app.postgres, session.account_id, id).await?;
    if deleted { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::not_found()) }
}

fn in_future(app: &App, due_at: Timestamp) -> Result<()> {
    if due_at > (app.now)() { Ok(()) } else { Err(Problem::invalid_field("due_at", "must be in the future")) }
}

async fn enqueue(connection: &mut sqlx::PgConnection, reminder: &Reminder) -> Result<jobs::Enqueued> {
    let job = SendReminder { id: reminder.id, version: reminder.version };
    Ok(jobs::enqueue_at(connection, &job, reminder.due_at).await?)
}
