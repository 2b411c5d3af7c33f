//! Failovers: another server takes over, while the old one still answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::clients::get;
use crate::support::deploy::Web;
use crate::support::person::{Person, problem};
use crate::support::redis::Redis;
use crate::support::{Deploy, Process, Proxy, eventually, free_port};

/// How soon every process must recover once there is a primary again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(2);

/// A `web`, and a worker and a clock with the addresses of their probes.
async fn formation(deploy: &Deploy) -> (Web, Vec<(String, Process)>) {
    let web = deploy.web().await;
    let mut others = Vec::new();
    for program in ["worker", "clock"] {
        let port = free_port();
        let process = deploy.clone_with("METRICS_PORT", port).start(program);
        let url = format!("http://127.0.0.1:{port}");
        until_ready(&url, 200).await;
        others.push((url, process));
    }
    (web, others)
}

/// Waits until `/readyz` of a process has this status.
async fn until_ready(url: &str, status: u16) {
    let ready = async || get(format!("{url}/readyz")).await.ok().filter(|answer| answer.status() == status).map(drop);
    eventually(&format!("{status} of {url}/readyz"), ready).await;
}

/// The warnings and errors of a process, with their counts. Those of the driver are left out, because it logs one for each
/// connection.
fn warnings(process: &Process) -> BTreeMap<String, usize> {
    let mut warnings = BTreeMap::new();
    let ours = |line: &Value| line["target"].as_str().is_some_and(|target| target.starts_with("app"));
    for line in process.log().iter().filter(|line| ours(line) && (line["level"] == "WARN" || line["level"] == "ERROR")) {
        *warnings.entry(line["message"].to_string()).or_default() += 1;
    }
    warnings
}

#[tokio::test]
async fn processes_recover_from_read_only_postgres() {
    let deploy = Deploy::new().await;
    let (web, others) = formation(&deploy).await;
    let ada = Person::unverified(&web).await;
    // As in a failover whose old primary stays reachable as a standby.
    let mut server = PgConnection::connect(&deploy.environment["DATABASE_URL"]).await.unwrap();
    server.execute("SET default_transaction_read_only = off").await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut server).await.unwrap();
    let mut set = async |how: &str| {
        let set = format!("ALTER DATABASE {name} {how} default_transaction_read_only");
        let statement = if how == "SET" { format!("{set} = on") } else { set };
        server.execute(AssertSqlSafe(statement)).await.unwrap();
        if how == "SET" {
            let end =
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
            server.execute(end).await.unwrap();
        }
    };
    set("SET").await;
    for url in [&web.url, &others[0].0, &others[1].0] {
        until_ready(url, 503).await;
    }
    for _ in 0..3 {
        problem(Person::stranger(&web).sign_up().await, 503, "unavailable").await;
        problem(ada.log_in().await, 503, "unavailable").await;
    }
    tokio::time::sleep(RECOVERY_LIMIT).await;
    set("RESET").await;
    let back = Instant::now();
    for url in [&web.url, &others[0].0, &others[1].0] {
        until_ready(url, 200).await;
    }
    let grace = Person::stranger(&web);
    assert_eq!(grace.sign_up().await.status(), 202, "{:#?}", web.process.lines());
    assert_eq!(ada.log_in().await.status(), 200, "{:#?}", web.process.lines());
    assert!(back.elapsed() < RECOVERY_LIMIT, "recovery took {:?}", back.elapsed());
    deploy.mail.to(&grace.email, "Did you sign up?").await;
    for (_, process) in &others {
        let again: Vec<_> = warnings(process).into_iter().filter(|(_, count)| *count > 1).collect();
        assert!(again.is_empty(), "each warning is logged once: {again:#?}");
    }
}

#[tokio::test]
async fn web_follows_redis_failover_despite_old_master() {
    let (Some(first), Some(second)) = (Redis::start().await, Redis::start().await) else { return };
    let proxy = Proxy::to(first.address.clone()).await;
    let deploy = Deploy::new().await.with("REDIS_URL", format!("redis://{}/0", proxy.address)).with("REDIS_POOL_SIZE", 4);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    // Open every connection of the pool.
    for _ in 0..8 {
        assert_eq!(ada.get("/session").await.status(), 200);
    }
    second.take_over_from(&first).await;
    proxy.turn_to(second.address.clone());
    let turned = Instant::now();
    eventually("the session", async || (ada.get("/session").await.status() == 200).then_some(())).await;
    let answers = join_all((0..20).map(|_| ada.get("/session"))).await;
    assert!(answers.iter().all(|answer| answer.status() == 200), "{answers:#?}");
    assert_eq!(ada.log_in().await.status(), 200);
    until_ready(&web.url, 200).await;
    assert!(turned.elapsed() < RECOVERY_LIMIT, "recovery took {:?}", turned.elapsed());
    assert!(first.ask::<String>(&["INFO", "replication"]).await.contains("role:slave"), "the old master still runs");
}

#[tokio::test]
async fn web_is_unready_while_redis_rejects_writes() {
    let cluster = Redis::start_with(&["--cluster-enabled", "yes"]).await;
    let (Some(redis), Some(slotless)) = (Redis::start().await, cluster) else { return };
    let deploy = Deploy::new().await.with("REDIS_URL", redis.url());
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    until_ready(&web.url, 503).await;
    problem(ada.log_in().await, 503, "unavailable").await;
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    until_ready(&web.url, 200).await;
    assert_eq!(ada.log_in().await.status(), 200);

    let web = deploy.with("REDIS_URL", slotless.url()).web_unready().await;
    web.process.says("not ready: redis").await;
}

#[tokio::test]
async fn redis_may_forbid_unneeded_commands() {
    let Some(redis) = Redis::start().await else { return };
    redis.ask::<()>(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info", "-config", "-client"]).await;
    let deploy = Deploy::new().await.with("REDIS_URL", format!("redis://app:secret@{}/0", redis.address));
    let web = deploy.web().await;
    Person::unverified(&web).await;
    let doctor = deploy.admin(&["doctor", "--json"]).await;
    let printed = String::from_utf8(doctor.stdout).unwrap();
    assert!(printed.lines().any(|line| line.contains("\"check\":\"redis\"") && line.contains("\"ok\":true")), "{printed}");
}

#[tokio::test]
async fn idle_web_recovers_right_after_redis() {
    let Some(mut redis) = Redis::start().await else { return };
    let deploy = Deploy::new().await.with("REDIS_URL", redis.url()).with("REDIS_POOL_SIZE", 16);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    // Open sixteen connections, which the kill breaks all at once.
    join_all((0..64).map(|_| ada.get("/session"))).await;
    for _ in 0..3 {
        redis.kill().await;
        redis.start_again().await;
        let back = Instant::now();
        until_ready(&web.url, 200).await;
        // A check that began before the kill may have succeeded, so two more must succeed, too.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let ready = web.get("/readyz").await.status() == 200;
            assert!(ready || back.elapsed() < Duration::from_secs(1), "not ready after {:?}", back.elapsed());
        }
    }
}
