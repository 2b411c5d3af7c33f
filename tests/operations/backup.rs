//! A backup with Postgres's own programs, as `docs/operations.md` describes it, restores a complete deploy.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::deploy::connect;
use crate::support::person::Person;
use crate::support::{Deploy, eventually};
use crate::{count, done, rows, sql};

/// The folder of Postgres's programs that `bin/setup` has found, or `None` if Postgres runs in Docker.
fn programs() -> Option<String> {
    let services = std::fs::read_to_string(".local/services").expect("bin/setup has run");
    let folder = services.lines().find_map(|line| line.strip_prefix("POSTGRES=")).filter(|folder| !["docker", "''"].contains(folder));
    if folder.is_none() {
        println!("skipped: needs Postgres's programs on this machine");
    }
    folder.map(str::to_owned)
}

async fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().await.unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn restored_backup_keeps_accounts_and_jobs() {
    let Some(programs) = programs() else { return };
    let deploy = Deploy::new().await.after_a_clock().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let token =
        async |name: &str| ada.post("/tokens", json!({ "name": name, "scopes": ["tokens:read"], "expires_in_days": 1 })).await.status();
    assert_eq!(token("before").await, 201);
    assert_eq!(ada.request_reset().await.status(), 202);
    // Delay the job, so that the backup contains it.
    sql(&mut deploy.database().await, "UPDATE jobs SET run_at = now() + interval '1 hour' WHERE kind = 'send_password_reset'").await;

    let file = std::env::temp_dir().join(format!("{}.dump", uuid::Uuid::new_v4()));
    let file = file.to_str().unwrap();
    let dump = ["--format=custom", "--no-owner", "--no-privileges", "--file", file, &deploy.environment["DATABASE_URL"]];
    run(&format!("{programs}/pg_dump"), &dump).await;
    // Later changes are not in the backup.
    assert_eq!(token("after").await, 201);
    drop(web);

    // Restore to another database, with another Redis and mail server. A backup contains no sessions.
    let restored = format!("restored_{}", uuid::Uuid::new_v4().simple());
    sql(&mut connect("postgres").await, &format!("CREATE DATABASE {restored}")).await;
    let mut url = url::Url::parse(&deploy.environment["DATABASE_URL"]).unwrap();
    url.set_path(&restored);
    run(&format!("{programs}/pg_restore"), &["--exit-on-error", "--no-owner", "--no-privileges", "--dbname", url.as_str(), file]).await;
    std::fs::remove_file(file).unwrap();
    let deploy = Deploy::new().await.with("DATABASE_URL", url.as_str());

    assert_eq!(done(&deploy, &["migrate"]).await, "0 migration(s) applied; the schema is current\n");
    done(&deploy, &["doctor"]).await;
    let web = deploy.web().await;
    let ada = Person { email: ada.email, ..Person::stranger(&web) };
    assert_eq!(ada.log_in().await.status(), 200, "the restored password works");
    let tokens: Value = ada.get("/tokens").await.json().await.unwrap();
    assert_eq!(tokens["items"].as_array().map(Vec::len), Some(1), "{tokens}");
    assert_eq!(tokens["items"][0]["name"], "before");
    let jobs = rows(&deploy, &["jobs", "list"]).await;
    assert_eq!(jobs.iter().filter(|job| job["kind"] == "send_password_reset").count(), 1, "{jobs:?}");

    let mut database = deploy.database().await;
    sql(&mut database, "UPDATE jobs SET run_at = now() WHERE kind = 'send_password_reset'").await;
    let workers = [deploy.start("worker"), deploy.start("worker")];
    deploy.mail.to(&ada.email, "Set a new password").await;
    eventually("an empty queue", async || (count(&mut deploy.database().await, "jobs").await == 0).then_some(())).await;
    drop(workers);
    let mails = deploy.mail.all().await.into_iter().filter(|mail| mail.subject == "Set a new password").count();
    assert_eq!(mails, 1);
    assert_eq!(count(&mut database, "mailed_tokens WHERE purpose = 'reset'").await, 1);
}
