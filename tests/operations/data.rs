//! Purging old data, auditing job commands, and commands without Postgres.

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, Process, eventually};
use crate::{count, done, on_a_terminal, sql, stderr, trail};

/// Inserts old and new rows into each table of the core.
async fn plant(deploy: &Deploy) {
    let web = deploy.web().await;
    Person::known(deploy, &web).await;
    let (old, ancient) = ("now() - interval '100 days'", "now() - interval '400 days'");
    let mut database = deploy.database().await;
    for statement in [
        format!("INSERT INTO audit_events (action, at) SELECT 'log_in', {ancient} FROM generate_series(1, 2500)"),
        format!("INSERT INTO audit_events (action, at) VALUES ('log_in', {old}), ('log_in', now() - interval '364 days')"),
        format!("INSERT INTO mailed_tokens SELECT 'x', id, 'verify', email, {old} FROM accounts"),
        format!(
            "INSERT INTO api_tokens (id, token_hash, account_id, name, scopes, expires_at)
             SELECT gen_random_uuid(), at::text::bytea, id, 'x', '{{}}', at FROM accounts, (VALUES ({old}), (now() + interval '1 day')) AS t (at)"
        ),
        format!(
            "INSERT INTO idempotency_keys (account_id, route, key, body_hash, answer, created_at) SELECT id, 'x', 'x', '', '1', {old} FROM accounts"
        ),
        format!("INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('x', '1', 1, {old}), ('x', '1', 1, now())"),
    ] {
        sql(&mut database, &statement).await;
    }
}

/// The purged tables of the core: the table, how many old rows `plant` inserts, and the name in the output. Each feature
/// tests its own tables.
const PURGED_TABLES: &[(&str, i64, &str)] = &[
    // Events younger than a year are kept.
    ("audit_events", 2500, "audit events"),
    ("mailed_tokens", 1, "expired mailed tokens"),
    ("api_tokens", 1, "expired API tokens"),
    ("idempotency_keys", 1, "idempotency keys"),
    ("jobs", 1, "dead jobs"),
];

async fn counts(deploy: &Deploy) -> Vec<i64> {
    let mut database = deploy.database().await;
    let mut counts = Vec::new();
    for (table, ..) in PURGED_TABLES {
        counts.push(count(&mut database, table).await);
    }
    counts
}

#[tokio::test]
async fn purge_deletes_old_rows_repeatably() {
    let deploy = Deploy::new().await;
    plant(&deploy).await;
    let before = counts(&deploy).await;
    let printed = done(&deploy, &["purge", "--before", "90d", "--dry-run"]).await;
    assert_eq!(counts(&deploy).await, before, "a dry run changes nothing and leaves no audit event");
    for (_, number, what) in PURGED_TABLES {
        assert!(printed.contains(&format!("{number} {what} would be deleted")), "{printed}");
    }
    assert_eq!(done(&deploy, &["purge", "--before", "90d"]).await, printed.replace("would be deleted", "deleted"));
    // The purge itself adds one audit event.
    let left = before.iter().zip(PURGED_TABLES).map(|(count, (table, gone, _))| count - gone + i64::from(*table == "audit_events"));
    assert_eq!(counts(&deploy).await, left.collect::<Vec<_>>());
    assert!(
        done(&deploy, &["purge", "--before", "90d"]).await.lines().all(|line| line.starts_with("0 ")),
        "a second purge deletes nothing"
    );
    assert_eq!(trail(&deploy).await.iter().filter(|action| *action == "data_purged").count(), 2);
    let young = "audit_events WHERE at BETWEEN now() - interval '365 days' AND now() - interval '99 days'";
    assert_eq!(count(&mut deploy.database().await, young).await, 2, "audit events are kept for a year in any case");
    for wrong in ["1h", "ninety", "0s"] {
        assert_ne!(deploy.admin(&["purge", "--before", wrong]).await.status.code(), Some(0), "{wrong}");
    }
    assert_eq!(deploy.admin(&["purge"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn purge_shows_progress_on_a_terminal() {
    let deploy = Deploy::new().await;
    plant(&deploy).await;
    let Some(printed) = on_a_terminal(&deploy, "purge --before 90d", "").await else { return };
    assert!(printed.contains("1000 of 2500 audit events") && printed.contains("2500 audit events deleted"), "{printed:?}");
}

#[tokio::test]
async fn interrupted_purge_deletes_whole_batches() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    sql(&mut database, "INSERT INTO audit_events (action, at) SELECT 'log_in', now() - interval '400 days' FROM generate_series(1, 3500)")
        .await;
    // On a busy machine the purge waits longer than a statement of the service may.
    let patience = "DO $$ BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET lock_timeout = 0', current_database()); END $$";
    sql(&mut database, patience).await;
    // A locked row blocks the purge at one of its batches, mostly the last.
    let mut holder = deploy.database().await;
    sql(&mut holder, "BEGIN; SELECT FROM audit_events WHERE id = (SELECT max(id) FROM audit_events) FOR UPDATE").await;
    // Background jobs ignore SIGINT, and so would the program.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal=INT").arg(programs().join("admin"));
    command.args(["purge", "--before", "90d"]).env_clear().envs(&deploy.environment);
    let mut purge = Process::spawn(command);
    deploy.waits_for_a_lock().await;
    purge.signal(Signal::SIGINT);
    assert_eq!(purge.exit().await.code(), None, "the signal ended it: {:?}", purge.errors());
    let left = count(&mut database, "audit_events WHERE at < now() - interval '365 days'").await;
    assert!(left >= 500 && left % 1000 == 500, "{left} are left, so a batch was deleted in part");
    sql(&mut holder, "ROLLBACK").await;
    assert_eq!(trail(&deploy).await.last().map(String::as_str), Some("data_purged"), "the purge was audited");
    done(&deploy, &["purge", "--before", "90d"]).await;
    assert_eq!(count(&mut database, "audit_events WHERE at < now() - interval '365 days'").await, 0);
}

#[tokio::test]
async fn hourly_job_deletes_expired_rows_in_batches() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    Person::known(&deploy, &web).await;
    let mut database = deploy.database().await;
    for statement in [
        "INSERT INTO mailed_tokens SELECT n::text::bytea, id, 'verify', email, now() - interval '1 minute' FROM accounts, generate_series(1, 3500) n",
        "INSERT INTO mailed_tokens SELECT 'good', id, 'verify', email, now() + interval '1 hour' FROM accounts",
        "INSERT INTO audit_events (action, at) VALUES ('log_in', now() - interval '364 days'), ('log_in', now() - interval '366 days')",
        "INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('x', '1', 1, now() - interval '400 days')",
    ] {
        sql(&mut database, statement).await;
    }
    // The last expired row is locked, so the job blocks at its last batch.
    let mut holder = deploy.database().await;
    sql(&mut holder, "BEGIN; SELECT FROM mailed_tokens WHERE token_hash = '3500' FOR UPDATE").await;
    let worker = deploy.start("worker");
    done(&deploy, &["jobs", "enqueue", "purge_expired", "{}"]).await;
    let expired = "mailed_tokens WHERE expires_at < now()";
    eventually("three batches", async || (count(&mut deploy.database().await, expired).await <= 500).then_some(())).await;
    assert_eq!(count(&mut database, expired).await, 500, "each batch has its own transaction");
    sql(&mut holder, "ROLLBACK").await;
    let line = worker.logged("its end", |line| line["job_kind"] == "purge_expired" && line["outcome"] == "done").await;
    assert_eq!(line["attempt"], 1);
    assert_eq!(count(&mut database, expired).await, 0);
    assert_eq!(count(&mut database, "mailed_tokens").await, 1, "the valid token is kept");
    assert_eq!(count(&mut database, "audit_events WHERE at < now() - interval '363 days'").await, 1, "audit events are kept for a year");
    assert_eq!(count(&mut database, "jobs WHERE dead_at IS NOT NULL").await, 1, "dead jobs are kept for an operator");
    assert_eq!(worker.says("purged ").await["rows"], 3501);
}

#[tokio::test]
async fn job_commands_are_audited_when_they_succeed() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    sql(&mut database, "INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('x', '1', 1, now()), ('x', '1', 1, now())").await;
    let id: i64 = sqlx::query_scalar("SELECT min(id) FROM jobs").fetch_one(&mut database).await.unwrap();
    sql(&mut database, "UPDATE jobs SET last_error = E'\\x1b[2Jgone'").await;
    let listed = done(&deploy, &["jobs", "list"]).await;
    assert!(listed.contains("[2Jgone") && !listed.contains('\x1b'), "escape sequences are removed: {listed:?}");
    done(&deploy, &["jobs", "retry", &id.to_string()]).await;
    assert_eq!(deploy.admin(&["jobs", "retry", &id.to_string()]).await.status.code(), Some(1), "the job is no longer dead");
    done(&deploy, &["jobs", "discard", "--dead"]).await;
    done(&deploy, &["jobs", "enqueue", "purge_expired", "{}"]).await;
    assert_eq!(trail(&deploy).await, ["job_retried", "job_discarded", "job_enqueued"]);
    assert_eq!(count(&mut database, "jobs").await, 2);
}

#[tokio::test]
async fn commands_fail_on_stderr_without_postgres() {
    let deploy = Deploy::new().await.with("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d");
    for arguments in [
        ["schedule"].as_slice(),
        &["account", "list"],
        &["purge", "--before", "90d"],
        &["export", "a@example.com"],
        &["jobs"],
        &["statistics"],
    ] {
        let output = deploy.admin(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty() && stderr(&output).lines().any(|line| line.starts_with("admin: ")), "{output:?}");
    }
    let nothing = Deploy::new().await.without("DATABASE_URL").without("REDIS_URL").admin(&["account", "list"]).await;
    assert_eq!(nothing.status.code(), Some(78));
    assert!(stderr(&nothing).contains("DATABASE_URL is missing") && stderr(&nothing).contains("REDIS_URL is missing"), "{nothing:?}");
}

/// Without Redis, whose cache only the API uses.
#[tokio::test]
async fn admin_statistics_are_counted_anew() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let offline = deploy.clone_with("REDIS_URL", "redis://127.0.0.1:1");
    for number in 0..3 {
        let rows = crate::rows(&offline, &["statistics"]).await;
        let of = |of: &str, state: &str| rows.iter().find(|row| row["of"] == of && row["state"] == state).unwrap()["count"].clone();
        assert_eq!((of("accounts", "unverified"), of("jobs", "ready")), (number.into(), number.into()), "{rows:?}");
        Person::unverified(&web).await;
    }
    let table = done(&offline, &["statistics"]).await;
    let (head, lines) = table.split_once('\n').unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["of", "state", "count"]);
    assert!(lines.lines().any(|line| line.split_whitespace().eq(["accounts", "unverified", "3"])), "{table}");
}

#[tokio::test]
async fn purge_keeps_rows_that_change_meanwhile() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let patience = "DO $$ BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET lock_timeout = 0', current_database()); END $$";
    sql(&mut database, patience).await;
    sql(&mut database, "INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('x', '1', 1, now() - interval '400 days')").await;
    // An operator retries the dead job.
    let mut operator = deploy.database().await;
    sql(&mut operator, "BEGIN; UPDATE jobs SET dead_at = NULL, attempt = 0").await;
    let purge = tokio::spawn({
        let deploy = deploy.clone();
        async move { done(&deploy, &["purge", "--before", "90d"]).await }
    });
    deploy.waits_for_a_lock().await;
    sql(&mut operator, "COMMIT").await;
    purge.await.unwrap();
    assert_eq!(count(&mut database, "jobs").await, 1, "the job that was retried is deleted");
}
