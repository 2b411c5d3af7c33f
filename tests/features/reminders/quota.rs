//! The quota of pending reminders, reminders of suspended accounts, and data of 0.1.0.

use serde_json::{Value, json};

use super::{in_seconds, remind};
use crate::support::person::{Person, problem};
use crate::support::{Deploy, eventually};

#[tokio::test]
async fn account_has_at_most_thousand_pending_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    // Sent reminders do not count.
    let insert = "INSERT INTO reminders (id, account_id, message, due_at, sent_at)
        SELECT gen_random_uuid(), id, 'x', now() + interval '1 day', CASE WHEN n > 999 THEN now() END FROM accounts, generate_series(1, 1500) n";
    sqlx::query(insert).execute(&mut deploy.database().await).await.unwrap();
    let made: Value = remind(&ada, "the thousandth", 3600).await.json().await.unwrap();
    problem(remind(&ada, "one more", 3600).await, 403, "quota-reached").await;
    let jobs: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'send_reminder'").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(jobs, 1, "the rejected reminder has no job");
    // Nor do earlier versions keep theirs, so changes cannot fill the queue.
    let thousandth = format!("/reminders/{}", made["id"].as_str().unwrap());
    for _ in 0..3 {
        assert_eq!(ada.patch(&thousandth, json!({ "message": "changed" })).await.status(), 200);
    }
    let versions = "SELECT array_agg(payload->>'version') FROM jobs WHERE kind = 'send_reminder'";
    let versions: Vec<String> = sqlx::query_scalar(versions).fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(versions, ["4"]);
    // A new time makes a reminder that was sent pending again.
    let sent = "SELECT id::text FROM reminders WHERE sent_at IS NOT NULL LIMIT 1";
    let sent: String = sqlx::query_scalar(sent).fetch_one(&mut deploy.database().await).await.unwrap();
    let again = json!({ "due_at": in_seconds(3600) });
    problem(ada.patch(&format!("/reminders/{sent}"), again).await, 403, "quota-reached").await;
    assert_eq!(ada.delete(&thousandth).await.status(), 204);
    let jobs: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'send_reminder'").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(jobs, 0, "a deleted reminder has no job");
    assert_eq!(remind(&ada, "in its place", 3600).await.status(), 201);
}

#[tokio::test]
async fn reminder_of_a_suspended_account_waits() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let made: Value = remind(&ada, "not lost", 3600).await.json().await.unwrap();
    assert!(deploy.admin(&["account", "suspend", &ada.email]).await.status.success());
    let due = async || {
        let now = "UPDATE jobs SET run_at = now() WHERE kind = 'send_reminder' AND token IS NULL";
        let now = sqlx::query(now).execute(&mut deploy.database().await).await.unwrap();
        (now.rows_affected() == 1).then_some(())
    };
    // More often than a job may be retried after failures.
    for number in 1..=25 {
        eventually("the job is free", due).await;
        eventually("a look", async || {
            let looks = worker.log().iter().filter(|line| line["job_kind"] == "send_reminder" && line["outcome"] == "later").count();
            (looks >= number).then_some(())
        })
        .await;
    }
    assert!(deploy.mail.all().await.iter().all(|mail| mail.subject != "A reminder"));
    assert!(deploy.admin(&["account", "restore", &ada.email]).await.status.success());
    eventually("the job is free", due).await;
    assert_eq!(deploy.mail.to(&ada.email, "A reminder").await.text.trim(), "not lost");
    ada.log_in().await;
    let path = format!("/reminders/{}", made["id"].as_str().unwrap());
    eventually("sent_at", async || ada.get(&path).await.json::<Value>().await.unwrap()["sent_at"].as_str().map(drop)).await;
}

#[tokio::test]
async fn old_format_jobs_and_responses_still_work() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let due_at = in_seconds(3600);
    let made: Value = remind(&ada, "water the plants", 3600).await.json().await.unwrap();
    let mut database = deploy.database().await;
    sqlx::query("DELETE FROM jobs").execute(&mut database).await.unwrap();

    // A response as 0.1.0 stored it: without status, headers and bytes.
    let body = format!(r#"{{"message":"water the plants","due_at":"{due_at}"}}"#);
    let insert = "INSERT INTO idempotency_keys (account_id, route, key, body_hash, answer)
        SELECT id, 'POST /reminders', 'a-key', $1, $2::jsonb FROM accounts";
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&body).to_vec();
    sqlx::query(insert).bind(digest).bind(made.to_string()).execute(&mut database).await.unwrap();
    let again = ada.request(reqwest::Method::POST, "/reminders").header("idempotency-key", "a-key");
    let again = again.header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.headers()["content-type"].to_str().unwrap()), (201, "application/json"));
    assert_eq!(again.json::<Value>().await.unwrap(), made);

    // The current format keeps the response's JSON where 0.1.0 reads it.
    let today = ada.request(reqwest::Method::POST, "/reminders").header("idempotency-key", "b-key");
    let today: Value = today.json(&serde_json::json!({ "message": "x", "due_at": due_at })).send().await.unwrap().json().await.unwrap();
    let kept = sqlx::query_scalar("SELECT answer FROM idempotency_keys WHERE key = 'b-key'").fetch_one(&mut database).await;
    assert_eq!(kept.map(|sqlx::types::Json::<Value>(kept)| kept).unwrap(), today);

    let day = &due_at[..10];
    let id = ada.get("/session").await.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    for (kind, payload) in [
        ("send_digest", format!(r#"{{"day": "{day}", "account_id": "{id}"}}"#)),
        ("send_digests", format!(r#"{{"day": "{day}"}}"#)),
        ("send_reminder", format!(r#"{{"id": {}, "version": 1}}"#, made["id"])),
    ] {
        let insert = "INSERT INTO jobs (kind, payload, max_attempts) VALUES ($1, $2::jsonb, 20)";
        sqlx::query(insert).bind(kind).bind(payload).execute(&mut database).await.unwrap();
        worker.logged("its end", |line| line["job_kind"] == kind && line["outcome"] == "done").await;
    }
    deploy.mail.to(&ada.email, &format!("Due on {day}")).await;
    deploy.mail.to(&ada.email, "A reminder").await;
}
