//! The queue and the schedule, as admins see and change them.

mod page;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::access::{Things, prove_table};
use crate::support::person::{Person, problem};
use crate::support::{Deploy, eventually};

/// Which callers may use which operations, written by hand. `tests/support/access.rs` explains the letters.
const ACCESS_TABLE: &str = "
    GET    /api/v1/admin/jobs               - - - - a
    GET    /api/v1/admin/jobs/counts        - - - - a
    DELETE /api/v1/admin/jobs/{id}          - - - - a
    POST   /api/v1/admin/jobs/{id}/retry    - - - - a
    GET    /api/v1/admin/schedules          - - - - a
";

/// A job whose attempts are used up.
const DEAD: &str = "attempt = max_attempts, dead_at = now()";

/// A job that a worker holds.
const RUNNING: &str = "token = gen_random_uuid(), run_at = now() + interval '1 hour'";

/// Enqueues a job that only `rough_worker` knows, then sets some of its columns. Returns its id.
async fn insert(deploy: &Deploy, change: &str) -> i64 {
    let mut database = deploy.database().await;
    // In one transaction, because a worker may take the job at once.
    let mut transaction = database.begin().await.unwrap();
    let insert = "INSERT INTO jobs (kind, payload, max_attempts) VALUES ('noop', '{\"note\": \"private\"}', 3) RETURNING id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(&mut *transaction).await.unwrap();
    let change = format!("UPDATE jobs SET {change} WHERE id = {id}");
    sqlx::query(sqlx::AssertSqlSafe(change)).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    id
}

async fn is_there(deploy: &Deploy, id: i64) -> bool {
    let find = sqlx::query_scalar::<_, i64>("SELECT id FROM jobs WHERE id = $1").bind(id);
    find.fetch_optional(&mut deploy.database().await).await.unwrap().is_some()
}

/// The changes of jobs in the audit trail: action, actor, the actor's id, the account, whether there is an address.
async fn trail(deploy: &Deploy) -> Vec<(String, String, Option<String>, Option<String>, bool)> {
    let events = "SELECT action, actor, actor_id::text, account_id::text, address IS NOT NULL FROM audit_events
        WHERE action LIKE 'job_%' ORDER BY id";
    sqlx::query_as(events).fetch_all(&mut deploy.database().await).await.unwrap()
}

async fn list(admin: &Person, path: &str) -> Vec<Value> {
    let answer = admin.get(path).await;
    assert_eq!(answer.status(), 200);
    answer.json::<Value>().await.unwrap()["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn operations_follow_the_access_table() {
    let make = async |deploy: &Deploy, _: &Person| {
        let ids = vec![("/api/v1/admin/jobs", insert(deploy, DEAD).await.to_string())];
        Things { ids, texts: Vec::new() }
    };
    prove_table(ACCESS_TABLE, make).await;
}

#[tokio::test]
async fn retried_job_runs_and_is_audited() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.rough_worker());
    let admin = Person::admin(&deploy, &web).await;
    let id = insert(&deploy, &format!("{DEAD}, last_error = 'it broke'")).await;
    let mut dead = list(&admin, "/admin/jobs?state=dead").await;
    let run_at = dead[0].as_object_mut().unwrap().remove("run_at").unwrap();
    assert!(run_at.as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let shown = json!({ "id": id, "kind": "noop", "state": "dead", "attempt": 3, "max_attempts": 3, "last_error": "it broke" });
    assert_eq!(dead, [shown], "all of it but the payload");

    assert_eq!(admin.post(&format!("/admin/jobs/{id}/retry"), json!({})).await.status(), 204);
    eventually("the job's end", async || (!is_there(&deploy, id).await).then_some(())).await;
    assert_eq!(list(&admin, "/admin/jobs?state=dead").await, Vec::<Value>::new());
    problem(admin.post(&format!("/admin/jobs/{id}/retry"), json!({})).await, 404, "not-found").await;
    let me: Value = admin.get("/session").await.json().await.unwrap();
    let me = me["id"].as_str().map(str::to_owned);
    assert_eq!(trail(&deploy).await, [("job_retried".to_owned(), "account".to_owned(), me, None, true)]);
}

#[tokio::test]
async fn discarded_job_is_deleted_and_audited() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let (dead, waiting) = (insert(&deploy, DEAD).await, insert(&deploy, "attempt = 1").await);
    for id in [dead, waiting] {
        assert_eq!(admin.delete(&format!("/admin/jobs/{id}")).await.status(), 204);
        assert!(!is_there(&deploy, id).await);
        problem(admin.delete(&format!("/admin/jobs/{id}")).await, 404, "not-found").await;
    }
    let me: Value = admin.get("/session").await.json().await.unwrap();
    for event in trail(&deploy).await {
        assert_eq!((&*event.0, &*event.1, event.2.as_deref()), ("job_discarded", "account", me["id"].as_str()));
    }
    assert_eq!(trail(&deploy).await.len(), 2);
}

#[tokio::test]
async fn job_that_may_not_change_is_409() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let (running, waiting) = (insert(&deploy, RUNNING).await, insert(&deploy, "unique_key = 'a'").await);
    let dead = insert(&deploy, &format!("unique_key = 'a', {DEAD}")).await;
    problem(admin.delete(&format!("/admin/jobs/{running}")).await, 409, "job-running").await;
    let retry = async |id| admin.post(&format!("/admin/jobs/{id}/retry"), json!({})).await;
    problem(retry(running).await, 409, "not-dead").await;
    problem(retry(waiting).await, 409, "not-dead").await;
    let taken = problem(retry(dead).await, 409, "unique-key-taken").await;
    assert!(taken["detail"].as_str().unwrap().contains("another job with its unique key"), "{taken}");
    for path in ["/admin/jobs/nonsense", "/admin/jobs/99999999999999999999"] {
        problem(admin.delete(path).await, 404, "not-found").await;
    }
    let left = list(&admin, "/admin/jobs").await;
    let states: Vec<_> = left.iter().filter(|job| job["kind"] == "noop").map(|job| job["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["running", "ready", "dead"]);
    assert_eq!(trail(&deploy).await, [], "nothing has changed, so nothing is recorded");
}

#[tokio::test]
async fn former_admin_changes_no_jobs() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let dead = insert(&deploy, DEAD).await;
    admin.ends_unnoticed(&deploy, ", role = 'user'").await;
    problem(admin.post(&format!("/admin/jobs/{dead}/retry"), json!({})).await, 401, "unauthenticated").await;
    problem(admin.delete(&format!("/admin/jobs/{dead}")).await, 401, "unauthenticated").await;
    assert!(is_there(&deploy, dead).await);
    assert_eq!(trail(&deploy).await, []);
}

#[tokio::test]
async fn jobs_are_listed_in_pages() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let mut dead = Vec::new();
    for change in [DEAD, "attempt = 1", DEAD, DEAD] {
        let id = insert(&deploy, change).await;
        if change == DEAD {
            dead.push(id);
        }
    }
    let first: Value = admin.get("/admin/jobs?state=dead&limit=2").await.json().await.unwrap();
    let next = format!("/admin/jobs?state=dead&limit=2&cursor={}", first["next"].as_str().unwrap());
    let second: Value = admin.get(&next).await.json().await.unwrap();
    assert_eq!(second["next"], Value::Null);
    let both = [first, second].map(|page| page["items"].as_array().unwrap().clone()).concat();
    assert_eq!(both.iter().map(|job| job["id"].as_i64().unwrap()).collect::<Vec<_>>(), dead);
    problem(admin.get("/admin/jobs?state=lost").await, 422, "invalid-input").await;
    problem(admin.get("/admin/jobs?cursor=x").await, 422, "invalid-input").await;
}

#[tokio::test]
async fn jobs_are_counted_by_kind_and_state() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    for change in [DEAD, "run_at = now() + interval '1 hour'", RUNNING, "attempt = 1", "created_at = now() - interval '1 hour'"] {
        insert(&deploy, change).await;
    }
    let counts = list(&admin, "/admin/jobs/counts").await;
    let noops: Vec<_> = counts.iter().filter(|count| count["kind"] == "noop").collect();
    let numbers: Vec<_> = noops.iter().map(|count| (count["state"].as_str().unwrap(), count["jobs"].as_i64().unwrap())).collect();
    assert_eq!(numbers, [("dead", 1), ("ready", 2), ("running", 1), ("scheduled", 1)]);
    let oldest: Vec<_> = noops.iter().map(|count| count["oldest_s"].as_i64().unwrap() / 600).collect();
    assert_eq!(oldest, [0, 6, 0, 0], "in ten minutes");
}

#[tokio::test]
async fn schedule_shows_last_and_next_tick() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let before = list(&admin, "/admin/schedules").await;
    assert!(before.iter().all(|line| line["last_tick"].is_null() && line["next_tick"].is_string()), "{before:?}");
    assert!(before.iter().any(|line| line["name"] == "purge-expired" && line["cron"] == "15 * * * *"), "{before:?}");
    let deploy = deploy.after_a_clock().await;
    let after = list(&admin, "/admin/schedules").await;
    assert!(after.iter().all(|line| line["last_tick"].as_str() < line["next_tick"].as_str() && line["last_tick"].is_string()), "{after:?}");
    let printed = String::from_utf8(deploy.admin(&["schedule", "--json"]).await.stdout).unwrap();
    assert_eq!(printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>(), after);
}
