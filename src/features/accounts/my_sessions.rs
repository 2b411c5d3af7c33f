//! The operations on the caller's own sessions, and the job that ends sessions.

use axum::extract::{OriginalUri, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{Postgres, Transaction};
use tracing::warn;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account;
use crate::app::App;
use crate::auth::Caller;
use crate::auth::audit::{self, Action};
use crate::auth::session::{self, Session, Sessions};
use crate::http::{List, Page, Problem, Query, Result};
use crate::jobs::{self, Job, JobContext, JobError, Priority};
use crate::resources::redis;

#[derive(Serialize, ToSchema)]
pub struct MySession {
    id: String,
    created_at: Timestamp,
    last_used_at: Timestamp,
    /// The `User-Agent` of the program that logged in.
    user_agent: Option<String>,
    /// Whether it is the session of this request.
    current: bool,
}

/// List my sessions, the oldest first
#[utoipa::path(get, path = "/account/sessions", tag = "Account", params(Page), responses((status = 200, description = "A page of sessions", body = List<MySession>)))]
pub async fn list_sessions(State(app): State<App>, session: Session, uri: OriginalUri, Query(page): Query<Page>) -> Result<Response> {
    let after: Option<(Timestamp, String)> = page.after()?;
    let all = app.sessions.list(session.account_id).await?.into_iter().map(|(mine, last_used_at)| MySession {
        current: mine.hash == session.hash,
        id: mine.hash,
        created_at: mine.created_at,
        last_used_at,
        user_agent: mine.user_agent,
    });
    let key = |mine: &MySession| (mine.created_at, mine.id.clone());
    let behind: Vec<_> = all.filter(|mine| after.as_ref().is_none_or(|after| key(mine) > *after)).collect();
    page.answer(&uri, behind, key)
}

/// End one of my sessions
#[utoipa::path(delete, path = "/account/sessions/{id}", tag = "Account", params(("id" = String, Path)),
    responses((status = 204, description = "The session has ended")))]
pub async fn end_session(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode> {
    let account_id = caller.account_id;
    if !app.sessions.list(account_id).await?.iter().any(|(mine, _)| mine.hash == id) {
        return Err(Problem::not_found());
    }
    let mut transaction = app.postgres.begin().await?;
    caller.hold(&mut transaction).await?;
    audit::record(&mut *transaction, Action::SESSIONS_ENDED, Some(account_id), caller.by).await?;
    transaction.commit().await?;
    app.sessions.end(account_id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End all of my sessions, including this one
#[utoipa::path(delete, path = "/account/sessions", tag = "Account", responses((status = 204, description = "The sessions have ended")))]
pub async fn end_sessions(State(app): State<App>, caller: Caller) -> Result<Response> {
    let mut transaction = app.postgres.begin().await?;
    let epoch =
        account::raise_epoch(&mut transaction, caller.account_id, Some(caller.epoch)).await?.ok_or_else(Problem::unauthenticated)?;
    audit::record(&mut *transaction, Action::SESSIONS_ENDED, Some(caller.account_id), caller.by).await?;
    end_before(&app, transaction, caller.account_id, epoch).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, app.sessions.no_cookie()?)]).into_response())
}

/// Commits the transaction that raised the epoch and ends the sessions of earlier epochs. It ends them at once if Redis
/// answers. A job ends them in any case, even after a crash.
pub async fn end_before(app: &App, mut transaction: Transaction<'_, Postgres>, account_id: Uuid, epoch: i32) -> Result<()> {
    let enqueued = jobs::enqueue(&mut transaction, &EndSessions { account_id, epoch }).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    if let Err(e) = session::end_before(&app.sessions.redis, account_id, epoch).await {
        warn!(error = %e, "cannot end the sessions of {account_id} now, a job will retry: {e}");
    }
    Ok(())
}

/// Ends exactly the sessions that began before the account's epoch was raised. It may run more than once.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndSessions {
    pub account_id: Uuid,
    pub epoch: i32,
}

impl Job for EndSessions {
    const KIND: &'static str = "end_sessions";
    const PRIORITY: Priority = Priority::Awaited;
    // A dead job would leave sessions open, so it retries for as long as Redis is unavailable.
    const MAX_ATTEMPTS: i32 = 10_000;

    fn unique_key(&self) -> Option<String> {
        Some(format!("{}:{}", self.account_id, self.epoch))
    }

    async fn run(&self, context: &mut JobContext) -> std::result::Result<(), JobError> {
        Ok(session::end_before(&context.redis, self.account_id, self.epoch).await?)
    }
}

/// An account's sessions, as operators and exports see them.
///
/// # Errors
/// Redis is unavailable.
pub async fn as_json(sessions: &Sessions, account_id: Uuid) -> std::result::Result<Vec<Value>, redis::Error> {
    let sessions = sessions.list(account_id).await?.into_iter().map(|(session, used)| {
        json!({ "id": session.hash, "created_at": session.created_at, "last_used_at": used, "user_agent": session.user_agent })
    });
    Ok(sessions.collect())
}
