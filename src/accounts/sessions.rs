//! My sessions: where I am logged in, and ending that.

use axum::extract::{MatchedPath, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Postgres, Transaction};
use tracing::warn;
use utoipa::ToSchema;
use uuid::Uuid;

use super::account;
use super::audit::{self, Action};
use super::jobs::EndSessions;
use crate::http::{App, ClientAddress, List, Page, Problem, Query, Result, Session, session};
use crate::jobs;

#[derive(Serialize, ToSchema)]
pub struct MySession {
    id: String,
    created_at: Timestamp,
    last_used_at: Timestamp,
    /// The program that logged in, as it calls itself.
    user_agent: Option<String>,
    /// Whether it is the one that asks.
    current: bool,
}

/// List my sessions, the oldest first
#[utoipa::path(get, path = "/account/sessions", tag = "Account", params(Page), responses((status = 200, description = "A page of sessions", body = List<MySession>)))]
pub async fn list_sessions(State(app): State<App>, session: Session, path: MatchedPath, Query(page): Query<Page>) -> Result<Response> {
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
    page.answer(&path, behind, key)
}

/// End one of my sessions
#[utoipa::path(delete, path = "/account/sessions/{id}", tag = "Account", params(("id" = String, Path)),
    responses((status = 204, description = "It has ended")))]
pub async fn end_session(State(app): State<App>, session: Session, Path(id): Path<String>) -> Result<StatusCode> {
    if app.sessions.end(session.account_id, &id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::not_found()) }
}

/// End all of my sessions, this one too
#[utoipa::path(delete, path = "/account/sessions", tag = "Account", responses((status = 204, description = "They have ended")))]
pub async fn end_sessions(State(app): State<App>, session: Session, address: ClientAddress) -> Result<Response> {
    let mut transaction = app.postgres.begin().await?;
    let epoch = account::raise_epoch(&mut transaction, session.account_id).await?.ok_or_else(Problem::unauthenticated)?;
    audit::record(&mut *transaction, Action::SessionsEnded, Some(session.account_id), Some(address)).await?;
    end_before(&app, transaction, session.account_id, epoch).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, app.sessions.no_cookie()?)]).into_response())
}

/// Commits what raised the epoch, and ends the sessions from before: at once if Redis answers, and in any case by a job,
/// which makes it certain after a crash.
pub async fn end_before(app: &App, mut transaction: Transaction<'_, Postgres>, account_id: Uuid, epoch: i32) -> Result<()> {
    let enqueued = jobs::enqueue(&mut transaction, &EndSessions { account_id, epoch }).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    if let Err(e) = session::end_before(&app.sessions.redis, account_id, epoch).await {
        warn!(error = %e, "sessions of {account_id} end when Redis is back, by a job: {e}");
    }
    Ok(())
}
