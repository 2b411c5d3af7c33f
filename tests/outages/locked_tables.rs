//! A locked table: requests that need it time out, and all others are answered.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::support::person::Person;
use crate::support::{Deploy, eventually};

/// The requests' timeout. `admin migrate` derives the limits of statements from it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

#[tokio::test]
async fn locked_table_exhausts_no_connection_pool() {
    let deploy = Deploy::new().await.with("REQUEST_TIMEOUT", format!("{}s", REQUEST_TIMEOUT.as_secs()));
    assert!(deploy.admin(&["migrate"]).await.status.success());
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let mut database = deploy.database().await;
    let mut lock = database.begin().await.unwrap();
    lock.execute("SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE audit_events").await.unwrap();
    let started = Instant::now();
    // More requests than connections.
    let guesses = join_all((0..12).map(|_| async {
        let guess = json!({ "email": ada.email, "password": "a guess at a password" });
        // The last requests have waited for a connection, and have no time left to wait for the lock.
        assert_eq!(Person::stranger(&web).post("/session", guess).await.status(), 503);
    }));
    let others = async {
        deploy.waits_for_a_lock().await;
        web.process.logged("the first timeout", |line| line["status"] == 503).await;
        // The lock is still held, and requests that do not need the table are answered.
        eventually("an answer", async || (ada.get("/session").await.status() == 200).then_some(())).await;
    };
    tokio::join!(guesses, others);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // Some statements began late in their requests. Their limit is shorter than a request.
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *lock).await.unwrap() > 0 {
        assert!(started.elapsed() < REQUEST_TIMEOUT * 3, "a connection waits longer than its request");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(started.elapsed() < REQUEST_TIMEOUT * 3, "{:?}", started.elapsed());
    assert_eq!(ada.get("/session").await.status(), 200);
    lock.rollback().await.unwrap();
    assert_eq!(ada.log_in().await.status(), 200);
}

#[tokio::test]
async fn transactions_set_their_own_time_limits() {
    let deploy = Deploy::new().await.with("REQUEST_TIMEOUT", format!("{}s", REQUEST_TIMEOUT.as_secs()));
    // As behind a pooler, whose sessions lack the role's settings.
    let mut database = deploy.database().await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut database).await.unwrap();
    database.execute(AssertSqlSafe(format!("ALTER ROLE CURRENT_USER IN DATABASE {name} RESET ALL"))).await.unwrap();
    let web = deploy.web().await;
    let mut database = deploy.database().await;
    let mut lock = database.begin().await.unwrap();
    lock.execute("LOCK TABLE accounts IN SHARE MODE").await.unwrap();
    // A sign-up writes two tables, so it is a transaction. Its reads do not conflict with the lock.
    let signing_up = Person::stranger(&web);
    let (answer, ()) = tokio::join!(signing_up.sign_up(), deploy.waits_for_a_lock());
    assert_eq!(answer.status(), 503);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut *lock).await.unwrap();
    assert_eq!(waiting, 0, "a connection waits longer than its request");
}

#[tokio::test]
async fn migration_times_out_on_a_locked_table() {
    let deploy = Deploy::unmigrated().await;
    assert!(deploy.admin(&["migrate"]).await.status.success());
    let mut database = deploy.database().await;
    // As if this migration were new, and a client locked the table that it changes.
    let forget = "DELETE FROM _sqlx_migrations WHERE version >= (SELECT version FROM _sqlx_migrations WHERE description = 'job progress')";
    assert!(sqlx::query(forget).execute(&mut database).await.unwrap().rows_affected() > 0);
    let mut lock = database.begin().await.unwrap();
    lock.execute("LOCK TABLE accounts, jobs, audit_events, mailed_tokens, api_tokens, schedules").await.unwrap();
    let started = Instant::now();
    let output = deploy.admin(&["migrate"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("lock timeout") && printed.contains("run it again"), "{printed}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}
