//! The yardstick of `bin/bench web`: the smallest program that does the same read the obvious way. It reads a session from
//! Redis and a row from Postgres, with default pools. It has no limits, no log, no request ids and no error messages.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a yardstick, which never runs in production")]

use app::resources::postgres::Timestamp;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use deadpool_redis::redis::AsyncCommands;
use serde::Serialize;
use uuid::Uuid;

#[derive(Serialize, sqlx::FromRow)]
struct Account {
    id: Uuid,
    email: String,
    new_email: Option<String>,
    role: String,
    verified: bool,
    digest: bool,
    suspended: bool,
    created_at: Timestamp,
}

#[derive(Clone)]
struct App {
    postgres: sqlx::PgPool,
    redis: deadpool_redis::Pool,
}

#[tokio::main]
async fn main() {
    let variable = |name| std::env::var(name).unwrap();
    let app = App {
        postgres: sqlx::PgPool::connect(&variable("DATABASE_URL")).await.unwrap(),
        redis: deadpool_redis::Config::from_url(variable("REDIS_URL")).create_pool(Some(deadpool_redis::Runtime::Tokio1)).unwrap(),
    };
    let router = Router::new().route("/livez", get(async || "live\n")).route("/api/v1/session", get(who_am_i)).with_state(app);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", variable("PORT").parse().unwrap())).await.unwrap();
    axum::serve(listener, router).await.unwrap();
}

async fn who_am_i(State(app): State<App>, headers: HeaderMap) -> Result<Json<Account>, StatusCode> {
    let cookie = headers.get("cookie").and_then(|cookie| cookie.to_str().ok()?.strip_prefix("id=")).ok_or(StatusCode::UNAUTHORIZED)?;
    let mut redis = app.redis.get().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let account: Option<String> = redis.get(format!("floor:{cookie}")).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let account: Uuid = account.and_then(|id| id.parse().ok()).ok_or(StatusCode::UNAUTHORIZED)?;
    let query = "SELECT id, email, new_email, role, verified_at IS NOT NULL AS verified, digest, suspended_at IS NOT NULL AS suspended, created_at \
                 FROM accounts WHERE id = $1";
    let found = sqlx::query_as(query).bind(account).fetch_optional(&app.postgres).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    found.map(Json).ok_or(StatusCode::UNAUTHORIZED)
}
