//! The routes: count, list, retry and discard jobs, and list the schedule.

use std::time::Duration;

use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::response::Response;
use garde::Validate;
use serde::Deserialize;
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::audit::{self, Action};
use crate::auth::{Caller, Role};
use crate::http::{Id, List, Page, Problem, Query, Result};
use crate::jobs::operator::{self, JobCount, ListedJob, Refused};
use crate::jobs::schedule::{ScheduleTicks, ticks};

/// How old the counts may be. Counting reads the whole queue.
const COUNTS_LIFETIME: Duration = Duration::from_secs(5);

/// The operations of the API.
pub fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs))
        .routes(routes!(count_jobs))
        .routes(routes!(discard_job))
        .routes(routes!(retry_job))
        .routes(routes!(list_schedules))
}

/// Which jobs to list.
#[derive(Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only jobs in this state. Leave it out to list all jobs.
    #[garde(skip)]
    #[param(inline)]
    state: Option<ListedState>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ListedState {
    Dead,
}

/// List jobs, the oldest first
///
/// A payload may be private, so it is not shown.
#[utoipa::path(get, path = "/admin/jobs", tag = "Operations", params(Filter, Page), responses((status = 200, description = "A page of jobs", body = List<ListedJob>)))]
async fn list_jobs(State(app): State<App>, uri: OriginalUri, Query(filter): Query<Filter>, Query(page): Query<Page>) -> Result<Response> {
    let only_dead = matches!(filter.state, Some(ListedState::Dead));
    let jobs = operator::list(&*app.postgres, only_dead, page.after()?.unwrap_or_default(), page.fetch()).await?;
    page.answer(&uri, jobs, |job| job.id)
}

/// Count jobs by kind and state
///
/// All processes share the counts, which are about five seconds old, and ten at most.
#[utoipa::path(get, path = "/admin/jobs/counts", tag = "Operations", responses((status = 200, description = "The counts", body = List<JobCount>)))]
async fn count_jobs(State(app): State<App>) -> Result<axum::Json<List<JobCount>>> {
    let items = app.cache.get_or("job-counts", COUNTS_LIFETIME, async || Ok::<_, Problem>(operator::count(&*app.postgres).await?)).await?;
    Ok(axum::Json(List { items, next: None }))
}

/// Retry a dead job with all of its attempts
#[utoipa::path(post, path = "/admin/jobs/{id}/retry", tag = "Operations", params(("id" = i64, Path)),
    responses(
        (status = 204, description = "It is due now"),
        (status = 409, description = "not-dead: The job is not dead\nunique-key-taken: Another job with its unique key is waiting or running"),
    ))]
async fn retry_job(State(app): State<App>, caller: Caller, Id(id): Id<i64>) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    hold_admin(&mut transaction, caller).await?;
    operator::retry(&mut transaction, id).await.map_err(refused)?;
    audit::record(&mut *transaction, Action::JOB_RETRIED, None, caller.by).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Discard a job that is not running
#[utoipa::path(delete, path = "/admin/jobs/{id}", tag = "Operations", params(("id" = i64, Path)),
    responses((status = 204, description = "Deleted"), (status = 409, description = "job-running: A worker is running the job")))]
async fn discard_job(State(app): State<App>, caller: Caller, Id(id): Id<i64>) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    hold_admin(&mut transaction, caller).await?;
    operator::discard(&mut transaction, id).await.map_err(refused)?;
    audit::record(&mut *transaction, Action::JOB_DISCARDED, None, caller.by).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the schedule with the last and the next tick of each line
#[utoipa::path(get, path = "/admin/schedules", tag = "Operations", responses((status = 200, description = "Every line, in UTC", body = List<ScheduleTicks>)))]
async fn list_schedules(State(app): State<App>) -> Result<axum::Json<List<ScheduleTicks>>> {
    let schedules = (app.schedule)().map_err(Problem::internal)?;
    Ok(axum::Json(List { items: ticks(&*app.postgres, &schedules).await?, next: None }))
}

/// Checks that the caller is still an admin, and stays one until the end of the transaction.
async fn hold_admin(transaction: &mut PgConnection, caller: Caller) -> Result<()> {
    match caller.hold(transaction).await? {
        Role::Admin => Ok(()),
        Role::User => Err(Problem::forbidden("insufficient-role", "This requires the role admin.")),
    }
}

fn refused(why: Refused) -> Problem {
    let slug = match why {
        Refused::Database(e) => return e.into(),
        Refused::Missing => return Problem::not_found(),
        Refused::NotDead => "not-dead",
        Refused::Running => "job-running",
        Refused::KeyTaken => "unique-key-taken",
    };
    Problem::new(StatusCode::CONFLICT, slug, format!("The job is unchanged: {why}."))
}
