//! A deploy: one environment, and the programs that run in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deadpool_redis::redis;
use sqlx::{Connection, Executor, PgConnection};
use tokio::process::Command;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::balancer::{found_or_skipped, has};
use super::clients::builder;
use super::mail::Sink;
use super::process::programs;
use super::store::KEY;
use super::{EVENT_TIMEOUT, Process};

/// The database that every test's database is copied from.
const TEMPLATE: &str = "migrated";

#[derive(Clone)]
pub struct Deploy {
    pub environment: BTreeMap<String, String>,
    pub mail: Arc<Sink>,
    /// The folder of its programs.
    pub programs: PathBuf,
}

/// A server's address without the name or number of a database. `bin/test` starts the servers.
fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is unset: run the tests with bin/test"))
}

pub async fn connect(database: &str) -> PgConnection {
    PgConnection::connect(&format!("{}/{database}", server("SERVER_URL"))).await.expect("the tests' Postgres answers")
}

impl Deploy {
    /// A deploy with an empty, migrated database.
    pub async fn new() -> Self {
        static MIGRATED: OnceCell<()> = OnceCell::const_new();
        MIGRATED.get_or_init(migrate_template).await;
        Self::on(&format!("TEMPLATE {TEMPLATE}")).await
    }

    /// A deploy with an empty database without any migration.
    pub async fn unmigrated() -> Self {
        Self::on("").await
    }

    async fn on(template: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let database = format!("test_{}", Uuid::new_v4().simple());
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {database} {template}"));
        let mut server_connection = connect("postgres").await;
        server_connection.execute(create).await.expect("the test's database");
        if template.contains(TEMPLATE) {
            copy_settings(&mut server_connection, &database).await;
        }
        let mail = Arc::new(Sink::start().await);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let redis_url = format!("{}/{number}", server("TEST_REDIS_URL"));
        // An earlier run may have left rate limits in this database of Redis.
        let redis = redis::Client::open(redis_url.as_str()).expect("a URL");
        let mut redis = redis.get_multiplexed_async_connection().await.expect("the tests' Redis answers");
        redis::cmd("FLUSHDB").query_async::<()>(&mut redis).await.expect("an empty Redis");
        let environment = [
            ("DATABASE_URL", format!("{}/{database}", std::env::var("POOLER_URL").unwrap_or_else(|_| server("SERVER_URL")))),
            ("DATABASE_POOL_SIZE", "4".to_owned()),
            ("REDIS_URL", redis_url),
            ("REDIS_POOL_SIZE", "2".to_owned()),
            ("SMTP_URL", mail.smtp_url.clone()),
            ("MAIL_FROM", "Example <hello@example.com>".to_owned()),
            // Each deploy has its own folder in the shared bucket.
            ("STORAGE_URL", format!("s3://files/{database}")),
            ("AWS_ENDPOINT_URL_S3", server("TEST_STORE_URL")),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEY.to_owned()),
            ("PUBLIC_URL", "http://localhost:8080".to_owned()),
            ("PORT", "0".to_owned()),
            // All tests use one client address.
            ("RATE_LIMIT_LOGIN", "1000000".to_owned()),
        ];
        Self { environment: environment.map(|(name, value)| (name.to_owned(), value)).into(), mail, programs: programs() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// The same deploy with another value in its environment.
    pub fn clone_with(&self, name: &str, value: impl ToString) -> Self {
        self.clone().with(name, value)
    }

    /// The same deploy with the programs of another release.
    pub fn run_by(&self, programs: PathBuf) -> Self {
        Self { programs, ..self.clone() }
    }

    /// Starts a process type.
    pub fn start(&self, name: &str) -> Process {
        Process::start(name, &self.programs, &self.environment)
    }

    /// Starts a process type, or an `admin` command, in a mount namespace where every file system is read-only, even /tmp.
    /// Needs root.
    pub fn start_without_disk(&self, command_line: &str) -> Process {
        // All mounts are copied, because the programs may be on another file system.
        let script = "set -e; mount --make-rprivate /; mount --rbind / /mnt; \
                      for at in $(findmnt --raw --noheadings --output TARGET --submounts /mnt); do mount -o remount,bind,ro \"$at\"; done; \
                      if touch /mnt/tmp/x 2>/dev/null; then echo 'the disk takes files' >&2; exit 99; fi; \
                      exec chroot /mnt /usr/bin/env --ignore-environment $VARIABLES $PROGRAM";
        // The shell splits the variables at spaces, so the sender must not contain one.
        let deploy = self.clone_with("MAIL_FROM", "hello@example.com");
        let variables: Vec<_> = deploy.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).env("VARIABLES", variables.join(" "));
        command.env("PROGRAM", format!("{}/{command_line}", programs().display()));
        Process::spawn(command)
    }

    /// The same deploy, after a clock has registered each schedule.
    pub async fn after_a_clock(self) -> Self {
        let mut clock = self.start("clock");
        super::eventually("a look at every schedule", async || {
            let schedule = self.admin(&["schedule", "--json"]).await;
            (schedule.status.success() && !String::from_utf8_lossy(&schedule.stdout).contains("\"last_tick\":null")).then_some(())
        })
        .await;
        assert_eq!(clock.terminate().await, Some(0));
        self
    }

    /// Starts `examples/rough_worker.rs`, a worker whose jobs misbehave.
    pub fn rough_worker(&self) -> Process {
        self.rough_worker_with(&[])
    }

    /// The same with arguments.
    pub fn rough_worker_with(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(programs().join("examples/rough_worker"));
        command.args(arguments).env_clear().envs(&self.environment);
        Process::spawn(command)
    }

    /// Starts a `web` and waits until it is ready.
    pub async fn web(&self) -> Web {
        let web = self.web_unready().await;
        web.process.logged("ready", |line| line["message"] == "ready").await;
        web
    }

    /// Starts a `web` and waits until it listens.
    pub async fn web_unready(&self) -> Web {
        Web::of(self.start("web")).await
    }

    /// Waits until a query waits for a lock.
    pub async fn waits_for_a_lock(&self) {
        super::eventually("a query that waits", async || {
            let mut database = self.database().await;
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let count: i64 = sqlx::query_scalar(waiting).fetch_one(&mut database).await.expect("Postgres answers");
            (count > 0).then_some(())
        })
        .await;
    }

    /// Runs `admin` to its end.
    pub async fn admin(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.programs.join("admin"));
        command.args(arguments).env_clear().envs(&self.environment).kill_on_drop(true);
        tokio::time::timeout(EVENT_TIMEOUT, command.output()).await.expect("admin ends").expect("admin runs")
    }

    /// A connection to the deploy's database, for data that the programs do not show.
    pub async fn database(&self) -> PgConnection {
        PgConnection::connect(&self.environment["DATABASE_URL"]).await.expect("the deploy's database")
    }

    /// A connection to the deploy's Redis, for the same purpose.
    pub async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.environment["REDIS_URL"].as_str()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("the deploy's Redis")
    }

    /// Host and port of a resource.
    pub fn address_of(&self, variable: &str) -> String {
        let url = url::Url::parse(&self.environment[variable]).expect("a URL");
        format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
    }

    /// The resource's URL with another address in it.
    pub fn through(&self, variable: &str, proxy: &super::Proxy) -> String {
        let mut url = url::Url::parse(&self.environment[variable]).expect("a URL");
        url.set_ip_host(proxy.address.ip()).expect("a host");
        url.set_port(Some(proxy.address.port())).expect("a port");
        url.to_string()
    }
}

/// Copies the settings that `admin migrate` made for the role in the template. `CREATE DATABASE` does not copy them.
async fn copy_settings(server_connection: &mut PgConnection, database: &str) {
    let copy = format!(
        "DO $$ DECLARE setting text; BEGIN
             FOR setting IN SELECT unnest(setconfig) FROM pg_db_role_setting JOIN pg_database AS d ON d.oid = setdatabase
                 WHERE datname = '{TEMPLATE}'
             LOOP
                 EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE {database} SET %I = %L',
                     split_part(setting, '=', 1), split_part(setting, '=', 2));
             END LOOP;
         END $$"
    );
    server_connection.execute(sqlx::AssertSqlSafe(copy)).await.expect("the settings of the template");
}

async fn migrate_template() {
    let mut server_connection = connect("postgres").await;
    for statement in [format!("DROP DATABASE IF EXISTS {TEMPLATE}"), format!("CREATE DATABASE {TEMPLATE}")] {
        server_connection.execute(sqlx::AssertSqlSafe(statement)).await.expect("a template");
    }
    let mut command = Command::new(programs().join("admin"));
    command.arg("migrate").env_clear().env("DATABASE_URL", format!("{}/{TEMPLATE}", server("SERVER_URL")));
    let output = command.output().await.expect("admin runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether this machine allows a test to start programs with a read-only disk.
pub fn without_disk() -> bool {
    has("unshare") && found_or_skipped(nix::unistd::Uid::effective().is_root(), "root")
}

/// A `web` that listens.
pub struct Web {
    pub process: Process,
    pub url: String,
}

impl Web {
    /// Waits until the process listens.
    pub async fn of(process: Process) -> Self {
        let port = process.logged("web is listening", |line| line["listener"] == "web").await["port"].as_u64().expect("a port");
        Self { process, url: format!("http://127.0.0.1:{port}") }
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        client().get(format!("{}{path}", self.url)).send().await.expect("web answers")
    }
}

/// A client with its own cookie jar. Its timeout is shorter than the tests'.
pub fn client() -> reqwest::Client {
    let client = builder().cookie_store(true).redirect(reqwest::redirect::Policy::none());
    client.timeout(Duration::from_secs(20)).build().expect("a client")
}
