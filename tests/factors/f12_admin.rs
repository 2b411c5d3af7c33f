//! XII. Admin processes: one-off tasks run from the same release and with the same config as the service.
//!
//! Violated by a server that migrates when it starts, a migration that stops the service, or a script with its own access to
//! the database.

use std::cell::Cell;
use std::process::Output;

use serde_json::{Value, json};

use crate::support::person::Person;
use crate::support::{Deploy, eventually};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn migrations_can_be_checked_and_rerun() {
    let deploy = Deploy::unmigrated().await;
    let check = deploy.admin(&["migrate", "--check"]).await;
    assert_eq!(check.status.code(), Some(1));
    assert!(stdout(&check).contains("pending: 0001 jobs"), "{check:?}");

    // Of two concurrent migrations one waits for the other, and both succeed.
    let (one, other) = tokio::join!(deploy.admin(&["migrate"]), deploy.admin(&["migrate"]));
    assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
    let mut said = [stdout(&one), stdout(&other)];
    let all = std::fs::read_dir("migrations")
        .unwrap()
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "sql"))
        .count();
    said.sort();
    assert!(said[0].starts_with("0 migration(s) applied") && said[1].starts_with(&format!("{all} migration(s) applied")), "{said:?}");
    assert_eq!(deploy.admin(&["migrate", "--check"]).await.status.code(), Some(0));
    assert!(deploy.admin(&["migrate"]).await.status.success(), "a third migration succeeds");
}

#[tokio::test]
async fn web_stays_unready_until_admin_migrates() {
    let deploy = Deploy::unmigrated().await;
    let (web, worker, clock) = (deploy.web_unready().await, deploy.start("worker"), deploy.start("clock"));
    for process in [&web.process, &worker, &clock] {
        let look = |line: &Value| line["message"] == "ready" || line["message"].as_str().is_some_and(|m| m.contains("run `admin migrate`"));
        process.logged("a look at the schema", look).await;
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let tables = sqlx::query_scalar::<_, i64>(tables).fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(tables, 0, "a process other than admin has migrated");
    let answer = web.get("/readyz").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json::<Value>().await.unwrap()["failed"], json!({ "postgres": "migrations pending" }));

    assert!(deploy.admin(&["migrate"]).await.status.success());
    eventually("ready", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
}

#[tokio::test]
async fn migration_under_load_fails_no_request() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000);
    // The schema of a release without idempotency keys.
    for statement in ["DROP TABLE idempotency_keys", "DELETE FROM _sqlx_migrations WHERE description = 'idempotency keys'"] {
        sqlx::query(statement).execute(&mut deploy.database().await).await.unwrap();
    }
    let web = deploy.web_unready().await;
    let ada = Person::unverified(&web).await;
    let migrated = Cell::new(false);
    let ask = async || {
        let mut answers = 0;
        while !migrated.get() {
            assert_eq!(ada.get("/session").await.status(), 200);
            assert_eq!(Person::stranger(&web).sign_up().await.status(), 202);
            answers += 1;
        }
        answers
    };
    let migrate = async {
        let (one, other) = tokio::join!(deploy.admin(&["migrate"]), deploy.admin(&["migrate"]));
        assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
        migrated.set(true);
    };
    let (one, other, ()) = tokio::join!(ask(), ask(), migrate);
    assert!(one > 0 && other > 0, "no request was sent during the migration");
    assert_eq!(deploy.admin(&["migrate", "--check"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn admin_belongs_to_the_running_release() {
    let deploy = Deploy::new().await.with("RELEASE_VERSION", "v17").with("LOG_LEVEL", "debug");
    let web = deploy.web().await;
    let running: Value = web.get("/version").await.json().await.unwrap();
    let version = stdout(&deploy.admin(&["--version"]).await);
    assert_eq!(version.trim(), format!("admin {}", running["commit"].as_str().unwrap()));
    let log = String::from_utf8(deploy.admin(&["migrate", "--check"]).await.stderr).unwrap();
    let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((&line["commit"], &line["release"]), (&running["commit"], &running["release"]));
}

#[tokio::test]
async fn migration_of_newer_release_is_accepted() {
    let deploy = Deploy::new().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'newer', true, '', 0)",
    )
    .execute(&mut deploy.database().await)
    .await
    .unwrap();
    assert_eq!(deploy.admin(&["migrate", "--check"]).await.status.code(), Some(0));
    assert!(deploy.admin(&["migrate"]).await.status.success());
    deploy.web().await;
}

#[tokio::test]
async fn seed_creates_demo_accounts_unless_https() {
    let deploy = Deploy::new().await;
    let seeded = stdout(&deploy.admin(&["seed"]).await);
    let web = deploy.web().await;
    assert_eq!(seeded.lines().count(), 2, "{seeded}");
    for line in seeded.lines() {
        let (email, password) = line.split_once("  ").unwrap();
        let answer = Person::stranger(&web).post("/session", json!({ "email": email, "password": password })).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.json::<Value>().await.unwrap()["verified"], true);
    }
    assert!(stdout(&deploy.admin(&["seed"]).await).lines().all(|line| line.contains("already exists")), "a second seed changes nothing");

    let deploy = Deploy::new().await.with("PUBLIC_URL", "https://example.com");
    assert_eq!(deploy.admin(&["seed"]).await.status.code(), Some(1));
    let accounts = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM accounts").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(accounts, 0);
}

#[tokio::test]
async fn doctor_names_the_fault_and_the_remedy() {
    let deploy = Deploy::new().await.after_a_clock().await;
    let well = deploy.admin(&["doctor"]).await;
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    assert_eq!(stdout(&well).lines().filter(|line| line.starts_with("ok ")).count(), 10, "{}", stdout(&well));

    for (deploy, check) in [
        (Deploy::unmigrated().await, "schema"),
        (Deploy::new().await, "schedule"),
        (deploy.clone_with("SMTP_URL", "smtp://127.0.0.1:1"), "smtp"),
        (deploy.clone_with("REDIS_URL", "redis://127.0.0.1:1"), "redis"),
        (deploy.clone_with("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"), "postgres"),
        (deploy.without("MAIL_FROM"), "config"),
    ] {
        let ill = deploy.admin(&["doctor"]).await;
        assert_eq!(ill.status.code(), Some(1));
        let failures: Vec<_> = stdout(&ill).lines().filter(|line| line.starts_with("FAIL")).map(str::to_owned).collect();
        assert_eq!(failures.len(), 1, "{}", stdout(&ill));
        assert!(failures[0].starts_with(&format!("FAIL  {check}")), "{failures:?}");
        assert!(stdout(&ill).contains("do: "));
    }
}

#[tokio::test]
async fn results_go_to_stdout_logs_to_stderr() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "debug");
    let output = deploy.admin(&["migrate"]).await;
    assert_eq!(stdout(&output), "0 migration(s) applied; the schema is current\n");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.is_empty());
    for line in log.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["process"], "admin");
    }
}
