//! The `admin jobs` commands, with which an operator inspects and changes the queue.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::Deploy;
use crate::{field, insert};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn admin_counts_lists_and_shows_jobs() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let dead = insert(&mut database, "purge_expired", json!({}), 3).await;
    sqlx::query("UPDATE jobs SET dead_at = now(), last_error = 'it broke'").execute(&mut database).await.unwrap();
    insert(&mut database, "purge_expired", json!({}), 3).await;
    insert(&mut database, "purge_expired", json!({}), 3).await;

    let table = stdout(&deploy.admin(&["jobs"]).await);
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["kind", "state", "jobs", "oldest_s"]);
    assert_eq!((&lines[1][..3], &lines[2][..3]), (&["purge_expired", "dead", "1"][..], &["purge_expired", "ready", "2"][..]));
    assert_eq!(rows(&deploy.admin(&["jobs", "--json"]).await)[1]["jobs"], 2);

    let list = rows(&deploy.admin(&["jobs", "list", "--dead", "--json"]).await);
    assert_eq!((list.len(), &list[0]["id"], &list[0]["last_error"]), (1, &json!(dead), &json!("it broke")));
    let shown = deploy.admin(&["jobs", "show", &dead.to_string()]).await;
    assert_eq!(serde_json::from_str::<Value>(&stdout(&shown)).unwrap()["kind"], "purge_expired");
    assert_eq!(deploy.admin(&["jobs", "show", "999999"]).await.status.code(), Some(1));
}

#[tokio::test]
async fn admin_retries_or_discards_dead_jobs() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let mut dead = Vec::new();
    for _ in 0..3 {
        dead.push(insert(&mut database, "purge_expired", json!({}), 3).await);
    }
    sqlx::query("UPDATE jobs SET dead_at = now(), attempt = 3, unique_key = 'a' || id").execute(&mut database).await.unwrap();
    // A new job holds the second one's key.
    let live = insert(&mut database, "purge_expired", json!({}), 3).await;
    sqlx::query("UPDATE jobs SET unique_key = 'a' || $2 WHERE id = $1").bind(live).bind(dead[1]).execute(&mut database).await.unwrap();

    let output = deploy.admin(&["jobs", "retry", "--dead"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains(&format!("job {} was not retried: another job with its unique key", dead[1])), "{output:?}");
    assert!(stdout(&output).contains("2 of 3 job(s) retried"));
    assert_eq!(field(&deploy, dead[0], "attempt || ' ' || (dead_at IS NULL)").await.as_deref(), Some("0 true"));
    assert_eq!(field(&deploy, dead[1], "attempt || ' ' || (dead_at IS NULL)").await.as_deref(), Some("3 false"));

    let output = deploy.admin(&["jobs", "retry", &live.to_string()]).await;
    assert!(stdout(&output).contains("it is not dead"), "{output:?}");
    assert!(deploy.admin(&["jobs", "discard", "--dead"]).await.status.success());
    assert_eq!(field(&deploy, dead[1], "id").await, None);
    assert!(field(&deploy, live, "id").await.is_some(), "discard deletes dead jobs only");
    assert_eq!(deploy.admin(&["jobs", "discard"]).await.status.code(), Some(2), "discard needs an id or --dead");
}

#[tokio::test]
async fn admin_enqueues_only_valid_jobs() {
    let deploy = Deploy::new().await;
    let worker = deploy.start("worker");
    assert!(deploy.admin(&["jobs", "enqueue", "purge_expired", "{}"]).await.status.success());
    worker.logged("its end", |line| line["job_kind"] == "purge_expired" && line["outcome"] == "done").await;
    for (kind, payload, expected) in [
        ("nonsense", "{}", "there is no kind nonsense; the kinds are: "),
        ("end_sessions", "{}", "the payload does not fit the kind end_sessions: missing field `account_id`"),
        ("purge_expired", "{", "the payload is not JSON"),
    ] {
        let output = deploy.admin(&["jobs", "enqueue", kind, payload]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    }
}
