//! Secrets in files that change while the processes run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::Executor;
use uuid::Uuid;

use crate::support::clients::builder;
use crate::support::load::Load;
use crate::support::mail::Sink;
use crate::support::person::Person;
use crate::support::{Deploy, Proxy, eventually};

/// A file with a secret, as Docker and Kubernetes mount it.
struct Secret(PathBuf);

impl Secret {
    fn new(text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(Uuid::new_v4().to_string()));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn with_password(url: &str, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.to_string()
}

#[tokio::test]
async fn postgres_password_change_fails_no_request() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000);
    let role = format!("role_{}", Uuid::new_v4().simple());
    let mut database = deploy.database().await;
    let mut set = async |statement: String| database.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    set(format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'one'")).await;
    let url = deploy.environment["DATABASE_URL"].clone();
    let file = Secret::new(&with_password(&url, &role, "one"));
    let web = deploy.clone_with("DATABASE_URL_FILE", file.0.display()).without("DATABASE_URL").web().await;
    let cookie = Person::stranger(&web).cookie().await;
    let first = Load::start(1, &web.url, &cookie);
    tokio::time::sleep(Duration::from_millis(500)).await;
    set(format!("ALTER ROLE {role} PASSWORD 'two'")).await;
    let changed: String = sqlx::query_scalar("SELECT now()::text").fetch_one(&mut deploy.database().await).await.unwrap();
    // More clients than there are open connections.
    let load = Load::start(40, &web.url, &cookie);
    tokio::time::sleep(Duration::from_millis(500)).await;
    // An incomplete URL first, as from a program that does not write atomically.
    file.write("postgres://");
    tokio::time::sleep(Duration::from_millis(500)).await;
    file.write(&with_password(&url, &role, "two"));
    web.process.says("DATABASE_URL has changed; new connections use the new value").await;
    let old = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}' AND backend_start < '{changed}'");
    eventually("the old connections are closed", async || {
        let count = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(old.clone())).fetch_one(&mut deploy.database().await).await.unwrap();
        (count == 0).then_some(())
    })
    .await;
    let (answered, failures) = load.stop().await;
    assert!(failures.is_empty() && answered > 40, "{answered} {failures:#?}");
    assert!(first.stop().await.1.is_empty());

    // Every connection is replaced.
    set(format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")).await;
    let client = builder().build().unwrap();
    eventually("an answer", async || {
        let answer = client.get(format!("{}/api/v1/session", web.url)).header("cookie", &cookie).send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
    eventually("readiness", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
    let log = web.process.lines().join("\n");
    assert!(!log.contains("one@") && !log.contains("two@"), "no secret is logged");
}

#[tokio::test]
async fn bad_secret_file_keeps_old_connections() {
    let deploy = Deploy::new().await;
    let role = format!("role_{}", Uuid::new_v4().simple());
    let mut database = deploy.database().await;
    let mut set = async |statement: String| database.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    set(format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'one'")).await;
    let url = deploy.environment["DATABASE_URL"].clone();
    let file = Secret::new(&with_password(&url, &role, "one"));
    let deploy = deploy.without("DATABASE_URL").with("DATABASE_URL_FILE", file.0.display());
    let (web, clock) = (deploy.web().await, deploy.start("clock"));
    clock.says("schedule purge-expired is new").await;
    file.write(&with_password(&url, &role, "two"));
    web.process.says("does not work yet").await;
    assert_eq!(web.get("/readyz").await.status(), 200);
    set(format!("ALTER ROLE {role} PASSWORD 'two'")).await;
    for process in [&web.process, &clock] {
        process.says("DATABASE_URL has changed; new connections use the new value").await;
    }
    assert_eq!(web.process.lines().iter().filter(|line| line.contains("does not work yet")).count(), 1);
}

#[tokio::test]
async fn redis_and_smtp_change_without_a_restart() {
    let deploy = Deploy::new().await;
    let (redis, smtp) = (Secret::new(&deploy.environment["REDIS_URL"]), Secret::new(&deploy.environment["SMTP_URL"]));
    let deploy = deploy.without("REDIS_URL").without("SMTP_URL");
    let deploy = deploy.with("REDIS_URL_FILE", redis.0.display()).with("SMTP_URL_FILE", smtp.0.display());
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let other = Deploy::new().await;
    redis.write(&other.environment["REDIS_URL"]);
    web.process.says("REDIS_URL has changed").await;
    assert_eq!(ada.get("/session").await.status(), 401, "the other Redis does not have the session");
    assert_eq!(ada.log_in().await.status(), 200);
    let sink = Sink::start().await;
    smtp.write(&sink.smtp_url);
    worker.says("SMTP_URL has changed").await;
    let grace = Person::unverified(&web).await;
    sink.to(&grace.email, "Did you sign up?").await;
}

#[tokio::test]
async fn silent_server_blocks_no_change_or_drain() {
    let deploy = Deploy::new().await;
    let url = deploy.environment["DATABASE_URL"].clone();
    let nobody = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    nobody.stall();
    let silent = deploy.through("DATABASE_URL", &nobody);
    let file = Secret::new(&url);
    let deploy = deploy.without("DATABASE_URL").with("DATABASE_URL_FILE", file.0.display());
    let mut web = deploy.web().await;
    file.write(&silent);
    web.process.says("DATABASE_URL has changed and does not work yet").await;
    file.write(&format!("{url}?application_name=other"));
    web.process.says("DATABASE_URL has changed; new connections use the new value").await;
    let before = nobody.connections();
    file.write(&silent);
    eventually("an attempt to connect", async || (nobody.connections() > before).then_some(())).await;
    let started = Instant::now();
    assert_eq!(web.process.terminate().await, Some(0), "{:#?}", web.process.lines());
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "the exit must not wait for the attempt, which takes five seconds: {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn object_store_key_changes_without_a_restart() {
    let deploy = Deploy::new().await.without("AWS_SECRET_ACCESS_KEY");
    let file = Secret::new("the last one");
    let deploy = deploy.with("AWS_SECRET_ACCESS_KEY_FILE", file.0.display());
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    worker.says("is starting").await;
    file.write("not known yet");
    web.process.says("AWS_SECRET_ACCESS_KEY has changed and does not work yet").await;
    file.write(crate::support::store::KEY);
    for process in [&web.process, &worker] {
        process.says("AWS_SECRET_ACCESS_KEY has changed; new connections use the new value").await;
    }
    let doctor = deploy.admin(&["doctor"]).await;
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    storage"), "{doctor:?}");
}
