//! The sample feature.

mod kept_data;
mod page;
mod quota;
mod requests;

use reqwest::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::access::{Things, prove_privacy, prove_table};
use crate::support::events::EventStream;
use crate::support::person::{Person, problem};
use crate::support::{Deploy, eventually};

/// Which callers may use which operations, written by hand. `tests/support/access.rs` explains the letters.
const ACCESS_TABLE: &str = "
    GET    /api/v1/reminders         - - s u a
    POST   /api/v1/reminders         - - s u a
    GET    /api/v1/reminders/{id}    - - s u a
    PATCH  /api/v1/reminders/{id}    - - s u a
    DELETE /api/v1/reminders/{id}    - - s u a
";

/// Creates a reminder that is due in this many seconds.
async fn remind(person: &Person, message: &str, seconds: i64) -> Response {
    person.post("/reminders", json!({ "message": message, "due_at": in_seconds(seconds) })).await
}

fn in_seconds(seconds: i64) -> String {
    #[expect(clippy::disallowed_methods, reason = "what a person's clock says")]
    let now = jiff::Timestamp::now();
    (now + jiff::SignedDuration::from_secs(seconds)).to_string()
}

async fn things(_: &Deploy, ada: &Person) -> Things {
    let made: Value = remind(ada, "a private message", 3600).await.json().await.unwrap();
    let ids = vec![("/api/v1/reminders", made["id"].as_str().unwrap().to_owned())];
    Things { ids, texts: vec!["a private message".to_owned()] }
}

#[tokio::test]
async fn reminders_follow_the_access_table() {
    prove_table(ACCESS_TABLE, things).await;
}

#[tokio::test]
async fn reminders_are_private() {
    prove_privacy(ACCESS_TABLE, things).await;
}

#[tokio::test]
async fn reminder_is_mailed_once_when_due() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let mut events = if EventStream::are_served(&web).await { Some(EventStream::of(&ada, &web).await) } else { None };
    let created = remind(&ada, "water the plants", 2).await;
    assert_eq!(created.status(), 201);
    let location = created.headers()["location"].to_str().unwrap().replace("/api/v1", "");
    let reminder: Value = created.json().await.unwrap();
    assert_eq!(location, format!("/reminders/{}", reminder["id"].as_str().unwrap()));
    let mail = deploy.mail.to(&ada.email, "A reminder").await;
    assert_eq!(mail.text.trim(), "water the plants");
    assert_eq!(mail.message_id, format!("reminder-{}-1@localhost", reminder["id"].as_str().unwrap()));

    if let Some(events) = &mut events {
        assert_eq!(events.next().await.unwrap().1, json!({ "feature": "reminders", "id": reminder["id"] }));
    }
    let sent =
        eventually("sent_at", async || ada.get(&location).await.json::<Value>().await.unwrap()["sent_at"].as_str().map(str::to_owned))
            .await;
    assert!(sent.parse::<jiff::Timestamp>().unwrap() >= reminder["due_at"].as_str().unwrap().parse().unwrap());
    let done = worker.logged("the job's end", |line| line["job_kind"] == "send_reminder" && line["outcome"] == "done").await;
    assert!(done["run_ms"].is_u64() && done["attempt"] == 1, "{done}");
    assert_eq!(deploy.mail.all().await.iter().filter(|mail| mail.subject == "A reminder").count(), 1);
}

#[tokio::test]
async fn mail_follows_changed_and_deleted_reminders() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let create = async |message: &str, seconds| {
        let reminder: Value = remind(&ada, message, seconds).await.json().await.unwrap();
        format!("/reminders/{}", reminder["id"].as_str().unwrap())
    };
    let (deleted, changed, last) = (create("deleted", 2).await, create("before", 2).await, create("last", 3).await);
    assert_eq!(ada.delete(&deleted).await.status(), 204);
    problem(ada.get(&deleted).await, 404, "not-found").await;
    let after: Value = ada.patch(&changed, json!({ "message": "after" })).await.json().await.unwrap();
    assert_eq!((&after["message"], &after["version"]), (&json!("after"), &json!(2)));
    let same: Value = ada.patch(&changed, json!({})).await.json().await.unwrap();
    assert_eq!(same, after, "an empty change creates no new version");
    eventually("the last", async || ada.get(&last).await.json::<Value>().await.unwrap()["sent_at"].as_str().map(drop)).await;
    let mut texts: Vec<_> = deploy.mail.all().await.into_iter().filter(|mail| mail.subject == "A reminder").map(|mail| mail.text).collect();
    texts.sort();
    assert_eq!(texts.iter().map(|text| text.trim()).collect::<Vec<_>>(), ["after", "last"]);
}

#[tokio::test]
async fn daily_digest_sends_one_mail_per_account() {
    let deploy = Deploy::new().await;
    let (web, _worker, clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
    clock.says("schedule daily-digest is new").await;
    let (ada, grace) = tokio::join!(Person::verified(&deploy, &web), Person::verified(&deploy, &web));
    for (person, message) in [(&ada, "first\nand its second line"), (&ada, "second"), (&grace, "third")] {
        assert_eq!(remind(person, message, 3600).await.status(), 201);
    }
    // At any time of day, they are due later on the day of the tick.
    let mut database = deploy.database().await;
    sqlx::query("UPDATE reminders SET due_at = date_trunc('day', last_tick AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '23 hours' FROM schedules WHERE name = 'daily-digest'")
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("UPDATE schedules SET last_tick = last_tick - interval '1 day' WHERE name = 'daily-digest'")
        .execute(&mut database)
        .await
        .unwrap();
    let tick = clock.says("schedule daily-digest ticked").await["tick"].as_str().unwrap()[..10].to_owned();
    let digest = deploy.mail.to(&ada.email, &format!("Due on {tick}")).await;
    assert_eq!(digest.text.trim().lines().collect::<Vec<_>>(), ["23:00 UTC  first", "23:00 UTC  second"]);
    assert_eq!(deploy.mail.to(&grace.email, &format!("Due on {tick}")).await.text.trim(), "23:00 UTC  third");
}

#[tokio::test]
async fn reminder_of_another_account_is_404() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, eve) = tokio::join!(Person::verified(&deploy, &web), Person::verified(&deploy, &web));
    let reminder: Value = remind(&ada, "mine", 3600).await.json().await.unwrap();
    let path = format!("/reminders/{}", reminder["id"].as_str().unwrap());
    problem(eve.get(&path).await, 404, "not-found").await;
    problem(eve.patch(&path, json!({ "message": "yours" })).await, 404, "not-found").await;
    problem(eve.delete(&path).await, 404, "not-found").await;
    assert_eq!(eve.get("/reminders").await.json::<Value>().await.unwrap(), json!({ "items": [], "next": null }));
    assert_eq!(ada.get(&path).await.json::<Value>().await.unwrap(), reminder, "the reminder is unchanged");
    problem(ada.get(&format!("/reminders/{}", Uuid::new_v4())).await, 404, "not-found").await;
    problem(ada.get("/reminders/17").await, 404, "not-found").await;
}

#[tokio::test]
async fn unverified_account_cannot_create_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    problem(remind(&ada, "mail bomb", 60).await, 403, "email-not-verified").await;
    assert_eq!(ada.get("/reminders").await.json::<Value>().await.unwrap()["items"], json!([]));
}

#[tokio::test]
async fn statistics_count_pending_and_sent_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for message in ["first", "second", "third"] {
        remind(&ada, message, 3600).await;
    }
    let sent = "UPDATE reminders SET sent_at = now() WHERE message = 'first'";
    sqlx::query(sent).execute(&mut deploy.database().await).await.unwrap();
    assert!(deploy.admin(&["account", "grant", &ada.email, "admin"]).await.status.success());
    ada.log_in().await;
    let statistics: Value = ada.get("/admin/statistics").await.json().await.unwrap();
    assert_eq!(statistics["features"]["reminders"], json!({ "pending": 2, "sent": 1 }));
}

#[tokio::test]
async fn killed_digest_enqueues_each_account_once() {
    let deploy = Deploy::new().await.with("WORKER_KINDS", "send_digests").with("JOB_LEASE", "10s");
    let mut database = deploy.database().await;
    // Three pages of accounts. Every third account has reminders that are due.
    let accounts = "INSERT INTO accounts (id, email, password_hash, verified_at)
        SELECT gen_random_uuid(), number || '@example.com', '', now() FROM generate_series(1, 1200) AS number";
    sqlx::query(accounts).execute(&mut database).await.unwrap();
    let reminders = "INSERT INTO reminders (id, account_id, message, due_at)
        SELECT gen_random_uuid(), id, 'due', '2099-01-01 12:00Z' FROM accounts, generate_series(1, 2) WHERE split_part(email, '@', 1)::int % 3 = 0";
    sqlx::query(reminders).execute(&mut database).await.unwrap();
    let enqueued = async || -> i64 {
        let count = "SELECT count(DISTINCT unique_key) FROM jobs WHERE kind = 'send_digest'";
        sqlx::query_scalar(count).fetch_one(&mut deploy.database().await).await.unwrap()
    };
    // The job waits at the third page, because an uncommitted row holds one of its unique keys. It is killed there.
    let mut transaction = sqlx::Connection::begin(&mut database).await.unwrap();
    let last = "SELECT count(*) FROM (SELECT id FROM accounts ORDER BY id OFFSET 1000) AS last";
    assert_eq!(sqlx::query_scalar::<_, i64>(last).fetch_one(&mut *transaction).await.unwrap(), 200);
    let key = "INSERT INTO jobs (kind, payload, max_attempts, unique_key) SELECT 'send_digest', '{}', 1, id || ':2099-01-01'
        FROM (SELECT id, email FROM accounts ORDER BY id OFFSET 1000) AS last WHERE split_part(email, '@', 1)::int % 3 = 0 LIMIT 1";
    sqlx::query(key).execute(&mut *transaction).await.unwrap();
    let mut worker = deploy.start("worker");
    assert!(deploy.admin(&["jobs", "enqueue", "send_digests", r#"{"day": "2099-01-01"}"#]).await.status.success());
    deploy.waits_for_a_lock().await;
    let two_pages = enqueued().await;
    assert!((200..400).contains(&two_pages), "{two_pages}");
    worker.signal(nix::sys::signal::Signal::SIGKILL);
    worker.exit().await;
    transaction.rollback().await.unwrap();
    // The digests of the first two pages have been sent, and must not be enqueued again.
    sqlx::query("DELETE FROM jobs WHERE kind = 'send_digest'").execute(&mut database).await.unwrap();
    sqlx::query("UPDATE jobs SET token = NULL, run_at = now()").execute(&mut database).await.unwrap();
    let worker = deploy.start("worker");
    worker.logged("its end", |line| line["job_kind"] == "send_digests" && line["outcome"] == "done").await;
    assert_eq!(two_pages + enqueued().await, 400);
}

#[tokio::test]
async fn ended_session_changes_nothing() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let made: Value = remind(&ada, "water the plants", 3600).await.json().await.unwrap();
    let path = format!("/reminders/{}", made["id"].as_str().unwrap());
    ada.ends_unnoticed(&deploy, "").await;
    problem(remind(&ada, "too late", 3600).await, 401, "unauthenticated").await;
    problem(ada.patch(&path, json!({ "message": "too late" })).await, 401, "unauthenticated").await;
    problem(ada.delete(&path).await, 401, "unauthenticated").await;
    let messages: Vec<String> = sqlx::query_scalar("SELECT message FROM reminders").fetch_all(&mut deploy.database().await).await.unwrap();
    assert_eq!(messages, ["water the plants"]);
}
