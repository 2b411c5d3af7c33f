//! Stored reminders: when they are deleted, what an export contains, and what is never logged.

use serde_json::Value;

use super::remind;
use crate::support::Deploy;
use crate::support::person::Person;

async fn messages(deploy: &Deploy) -> Vec<String> {
    let messages = sqlx::query_scalar("SELECT message FROM reminders ORDER BY message");
    messages.fetch_all(&mut deploy.database().await).await.unwrap()
}

/// Runs `admin`, which must succeed, and returns its output.
async fn admin(deploy: &Deploy, arguments: &[&str]) -> String {
    let output = deploy.admin(arguments).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn purge_deletes_only_old_sent_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    Person::known(&deploy, &web).await;
    for (message, sent_at) in [("old", "now() - interval '100 days'"), ("new", "now() - interval '80 days'"), ("unsent", "NULL")] {
        let insert = format!(
            "INSERT INTO reminders (id, account_id, message, due_at, sent_at)
             SELECT gen_random_uuid(), id, '{message}', now() - interval '100 days', {sent_at} FROM accounts"
        );
        sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&mut deploy.database().await).await.unwrap();
    }
    let counted = admin(&deploy, &["purge", "--before", "90d", "--dry-run"]).await;
    assert!(counted.contains("1 sent reminders would be deleted"), "{counted}");
    assert_eq!(messages(&deploy).await, ["new", "old", "unsent"]);
    admin(&deploy, &["purge", "--before", "90d"]).await;
    assert_eq!(messages(&deploy).await, ["new", "unsent"]);

    // The hourly job deletes none, because an operator decides how long they are kept.
    let worker = deploy.start("worker");
    admin(&deploy, &["jobs", "enqueue", "purge_expired", "{}"]).await;
    worker.logged("the job's end", |line| line["job_kind"] == "purge_expired" && line["outcome"] == "done").await;
    assert_eq!(messages(&deploy).await, ["new", "unsent"]);
}

#[tokio::test]
async fn export_holds_only_own_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, grace) = (Person::known(&deploy, &web).await, Person::known(&deploy, &web).await);
    remind(&ada, "water the plants", 3600).await;
    remind(&grace, "mow the lawn", 3600).await;
    let printed = admin(&deploy, &["export", &ada.email]).await;
    let export: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(export["reminders"].as_array().unwrap().len(), 1, "{printed}");
    assert_eq!(export["reminders"][0]["message"], "water the plants");
    assert!(!printed.contains("mow"), "{printed}");
}

#[tokio::test]
async fn account_deletion_removes_its_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    assert_eq!(remind(&ada, "never", 3600).await.status(), 201);
    assert_eq!(ada.delete("/account").await.status(), 204);
    assert!(messages(&deploy).await.is_empty());
}

#[tokio::test]
async fn reminder_message_is_never_logged() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    remind(&ada, "a private message", 1).await;
    deploy.mail.to(&ada.email, "A reminder").await;
    worker.logged("the job's end", |line| line["job_kind"] == "send_reminder" && line["outcome"] == "done").await;
    let lines = [web.process.lines(), worker.lines()].concat().join("\n");
    assert!(lines.contains("/api/v1/reminders") && !lines.contains("a private message"), "{lines}");
}
