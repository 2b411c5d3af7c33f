//! The numbers of the whole service: accounts and jobs by state, and what each feature counts.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use tracing::instrument;
use utoipa::ToSchema;

use crate::app::{App, Feature};
use crate::http::Result;
use crate::jobs::operator;
use crate::resources::postgres::{Pool, Timestamp};

/// How old the numbers may be. Counting reads whole tables.
const LIFETIME: Duration = Duration::from_secs(30);

/// How many there are of what, at one moment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    pub counted_at: Timestamp,
    pub accounts: AccountsByState,
    pub jobs: JobsByState,
    /// What each feature counts, under its name.
    #[schema(value_type = HashMap<String, HashMap<String, i64>>)]
    pub features: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AccountsByState {
    pub verified: i64,
    pub unverified: i64,
    pub suspended: i64,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct JobsByState {
    pub ready: i64,
    pub scheduled: i64,
    pub running: i64,
    pub dead: i64,
}

/// Count accounts and jobs by state
///
/// All processes share the numbers, which are about half a minute old, and a minute at most.
#[utoipa::path(get, path = "/admin/statistics", tag = "Administration", responses((status = 200, description = "The numbers", body = Statistics)))]
pub async fn show_statistics(State(app): State<App>) -> Result<axum::Json<Statistics>> {
    let counted = app.cache.get_or("statistics", LIFETIME, async || Ok(count(&app.postgres, app.features).await?));
    counted.await.map(axum::Json)
}

/// Counts everything in one snapshot, within the time limits of the pool.
///
/// # Errors
/// Postgres is unavailable, or too slow.
pub async fn count(pool: &Pool, features: &[Feature]) -> sqlx::Result<Statistics> {
    let mut snapshot = pool.snapshot().await?;
    let counted_at = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *snapshot).await?;
    let (accounts, jobs) = (accounts(&mut snapshot).await?, jobs(&mut snapshot).await?);
    let mut of_features = BTreeMap::new();
    for feature in features {
        let own = (feature.statistics)(&mut snapshot).await?;
        if !own.is_null() {
            of_features.insert(feature.name.to_owned(), own);
        }
    }
    Ok(Statistics { counted_at, accounts, jobs, features: of_features })
}

#[instrument(name = "postgres accounts count", level = "debug", skip_all)]
async fn accounts(snapshot: &mut PgConnection) -> sqlx::Result<AccountsByState> {
    let counted = sqlx::query_as!(
        AccountsByState,
        r#"SELECT count(*) FILTER (WHERE suspended_at IS NOT NULL) AS "suspended!",
               count(*) FILTER (WHERE suspended_at IS NULL AND verified_at IS NOT NULL) AS "verified!",
               count(*) FILTER (WHERE suspended_at IS NULL AND verified_at IS NULL) AS "unverified!"
           FROM accounts"#
    );
    counted.fetch_one(snapshot).await
}

async fn jobs(snapshot: &mut PgConnection) -> sqlx::Result<JobsByState> {
    let counts = operator::count(snapshot).await?;
    let of = |state| counts.iter().filter(|count| count.state == state).map(|count| count.jobs).sum();
    Ok(JobsByState { ready: of("ready"), scheduled: of("scheduled"), running: of("running"), dead: of("dead") })
}
