//! The yardstick of `bin/bench web`: the smallest program that does the same read the obvious way. A session in Redis, twenty
//! rows from Postgres, default pools, and nothing else: no limits, no log, no request ids, no errors worth reading.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a yardstick, which nobody runs in production")]

use app::resources::postgres::Timestamp;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use deadpool_redis::redis::AsyncCommands;
use serde::Serialize;
use uuid::Uuid;

#[derive(Serialize, sqlx::FromRow)]
struct Reminder {
    id: Uuid,
    message: String,
    due_at: Timestamp,
    version: i32,
    sent_at: Option<Timestamp>,
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
    let router = Router::new().route("/livez", get(async || "live\n")).route("/api/v1/reminders", get(reminders)).with_state(app);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", variable("PORT").parse().unwrap())).await.unwrap();
    axum::serve(listener, router).await.unwrap();
}

async fn reminders(State(app): State<App>, headers: HeaderMap) -> Result<Json<Vec<Reminder>>, StatusCode> {
    let cookie = headers.get("cookie").and_then(|cookie| cookie.to_str().ok()?.strip_prefix("id=")).ok_or(StatusCode::UNAUTHORIZED)?;
    let mut redis = app.redis.get().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let account: Option<String> = redis.get(format!("floor:{cookie}")).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let account: Uuid = account.and_then(|id| id.parse().ok()).ok_or(StatusCode::UNAUTHORIZED)?;
    let query =
        "SELECT id, message, due_at, version, sent_at, created_at FROM reminders WHERE account_id = $1 ORDER BY due_at, id LIMIT 20";
    let rows = sqlx::query_as(query).bind(account).fetch_all(&app.postgres).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(rows))
}
