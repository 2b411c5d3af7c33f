//! A migration changes a column's type while the previous release serves.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor};
use tokio::time::sleep;

use crate::support::load::Load;
use crate::support::person::Person;
use crate::support::{Deploy, eventually};

#[tokio::test]
async fn column_type_change_fails_no_request() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000);
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let cookie = Person::stranger(&web).cookie().await;
    let load = Load::start(20, &web.url, &cookie);
    let mut database = deploy.database().await;
    let mut signed_up = Vec::new();
    for kind in ["varchar(300)", "text", "varchar(300)", "text"] {
        // Every connection prepares its statements.
        for _ in 0..8 {
            let grace = Person::stranger(&web);
            assert_eq!(grace.sign_up().await.status(), 202);
            signed_up.push(grace.email);
        }
        for (table, column) in [("accounts", "email"), ("accounts", "password_hash"), ("jobs", "kind"), ("mailed_tokens", "purpose")] {
            let change = format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}");
            database.execute(AssertSqlSafe(change)).await.unwrap();
        }
        sleep(Duration::from_millis(700)).await;
    }
    let last = Person::stranger(&web);
    assert_eq!(last.sign_up().await.status(), 202);
    assert_eq!(last.log_in().await.status(), 200);
    let (answered, failures) = load.stop().await;
    assert!(answered > 50, "too little load: {answered}");
    assert!(failures.is_empty(), "{} of {answered} failed: {failures:#?} {:#?}", failures.len(), web.process.lines());
    // A worker's outdated statement costs a job at most one attempt.
    for email in &signed_up {
        deploy.mail.to(email, "Did you sign up?").await;
    }
    eventually("an empty queue", async || {
        let left = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs WHERE dead_at IS NULL");
        (left.fetch_one(&mut deploy.database().await).await.unwrap() == 0).then_some(())
    })
    .await;
    assert!(!worker.lines().iter().any(|line| line.contains("\"outcome\":\"dead\"")), "{:#?}", worker.lines());
}
