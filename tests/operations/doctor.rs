//! `admin doctor`: each test gives a deploy a fault that the doctor must report.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::support::Deploy;
use crate::{objects, sql, stdout};

/// A fake Redis with this clock and this policy. On the real one, both would affect other tests.
async fn redis(seconds_behind: i64, policy: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (read, mut write) = stream.split();
                let mut lines = BufReader::new(read).lines();
                // A command is an array of strings. A line with its length precedes each string.
                while let Ok(Some(line)) = lines.next_line().await {
                    let length: usize = line.trim_start_matches('*').parse().unwrap();
                    let mut words = Vec::new();
                    for _ in 0..length {
                        lines.next_line().await.unwrap();
                        words.push(lines.next_line().await.unwrap().unwrap().to_uppercase());
                    }
                    let answer = match words[0].as_str() {
                        "INFO" => {
                            let info = format!("redis_version:8.0.0\r\nmaxmemory:1000000\r\nmaxmemory_policy:{policy}\r\n");
                            format!("${}\r\n{info}\r\n", info.len())
                        }
                        "TIME" => {
                            #[expect(clippy::disallowed_methods, reason = "what a clock says")]
                            let now = (jiff::Timestamp::now().as_second() - seconds_behind).to_string();
                            format!("*2\r\n${}\r\n{now}\r\n$1\r\n0\r\n", now.len())
                        }
                        "PING" => "+PONG\r\n".to_owned(),
                        _ => "+OK\r\n".to_owned(),
                    };
                    if write.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("redis://{address}")
}

/// The doctor's line about a check, or its whole output if there is none.
async fn line(deploy: &Deploy, check: &str) -> String {
    let output = stdout(&deploy.admin(&["doctor"]).await);
    output.lines().find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(&format!("{check} ")))).unwrap_or(&output).to_owned()
}

/// A fault fails its own check and no other.
#[tokio::test]
async fn doctor_reports_each_fault_with_remedy() {
    let late = "INSERT INTO jobs (kind, payload, max_attempts, run_at) VALUES ('unheard_of', '1', 1, now() - interval '100 minutes')";
    let dead = "INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('x', '1', 1, now())";
    let missed = "UPDATE schedules SET last_tick = now() - interval '2 days' WHERE name = 'purge-expired'";
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$";
    let unlimited = "DO $$ BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET lock_timeout = 0', current_database()); END $$";
    let with = async |statement: &str| {
        let deploy = Deploy::new().await.after_a_clock().await;
        sql(&mut deploy.database().await, statement).await;
        deploy
    };
    let well = Deploy::new().await.after_a_clock().await;
    let wrong_password = well.clone();
    let url = wrong_password.environment["DATABASE_URL"].replacen("postgres://postgres:", "postgres://postgres:sekret", 1);
    for (deploy, check, expected, remedy) in [
        (well.clone().without("MAIL_FROM"), "config", "MAIL_FROM is missing", "set them in this deploy's environment"),
        (well.clone_with("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"), "postgres", "refused", "check DATABASE_URL"),
        (wrong_password.with("DATABASE_URL", url), "postgres", "password authentication failed", "check DATABASE_URL"),
        (with(read_only).await, "postgres", "accepts no writes", "may connect and write"),
        (Deploy::unmigrated().await, "schema", " migration(s) pending", "run `admin migrate`"),
        (with(late).await, "late jobs", "a job unheard_of has been due for 60", "start a worker"),
        (with(dead).await, "dead jobs", "1 dead job(s)", "admin jobs list --dead"),
        (with(missed).await, "schedule", "the tick of purge-expired at ", "start a clock"),
        (Deploy::new().await, "schedule", "no clock of this release has run", "start a clock"),
        (with(unlimited).await, "limits", "no time limit", "run `admin migrate`"),
        (well.clone_with("REDIS_URL", "redis://127.0.0.1:1"), "redis", "no connection to Redis", "check REDIS_URL"),
        (well.clone_with("REDIS_URL", redis(3600, "noeviction").await), "redis", "1h", "NTP"),
        (well.clone_with("REDIS_URL", redis(0, "allkeys-lru").await), "redis", "allkeys-lru", "maxmemory-policy is noeviction"),
        (well.clone_with("SMTP_URL", "smtp://127.0.0.1:1"), "smtp", "refused", "check SMTP_URL"),
        (well.clone_with("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"), "storage", "put failed", "check STORAGE_URL"),
        (well.clone_with("AWS_SECRET_ACCESS_KEY", "sekret"), "storage", "SignatureDoesNotMatch", "the access key"),
        (well.clone_with("STORAGE_URL", "s3://elsewhere"), "storage", "NoSuchBucket", "check STORAGE_URL"),
    ] {
        let output = deploy.admin(&["doctor"]).await;
        let printed = stdout(&output);
        assert_eq!(output.status.code(), Some(1), "{check}: {output:?}");
        let failures: Vec<_> = printed.split("\nok ").filter_map(|part| part.split_once("FAIL  ")).map(|(_, failure)| failure).collect();
        assert_eq!(failures.len(), 1, "{check}: {printed}");
        let (what, to_do) = failures[0].split_once("\n                 do: ").unwrap_or_else(|| panic!("no remedy: {printed}"));
        assert!(what.starts_with(check) && what.contains(expected), "{check} {expected}: {printed}");
        assert!(to_do.contains(remedy) || what.contains(remedy), "{remedy}: {printed}");
        assert!(!printed.contains("sekret"), "{printed}");
    }
}

#[tokio::test]
async fn doctor_measures_a_healthy_deploy() {
    let deploy = Deploy::new().await.with("REDIS_URL", redis(0, "noeviction").await);
    let deploy = deploy.after_a_clock().await;
    for (check, expected) in [
        ("config", ["every variable", ""]),
        ("postgres", ["answers in ", ", no TLS, "]),
        ("schema", ["current", ""]),
        ("limits", ["a statement may take 9s", ""]),
        ("late jobs", ["none", ""]),
        ("dead jobs", ["none", ""]),
        ("schedule", ["no tick is missing", ""]),
        ("redis", ["answers in ", ", no TLS"]),
        ("smtp", ["answers in ", ", no TLS"]),
        ("storage", ["writes, reads and deletes in ", " ms"]),
    ] {
        let line = line(&deploy, check).await;
        assert!(line.starts_with("ok ") && expected.iter().all(|expected| line.contains(expected)), "{line}");
    }
}

#[tokio::test]
async fn doctor_compares_server_versions_with_pins() {
    let deploy = Deploy::new().await;
    let compose = std::fs::read_to_string("docker-compose.yml").unwrap();
    for name in ["postgres", "redis"] {
        let pinned = compose.lines().find_map(|line| line.trim().strip_prefix(&format!("image: {name}:"))).unwrap();
        let major = pinned.split(['.', '-']).next().unwrap();
        let line = line(&deploy, name).await;
        assert!(line.contains(&format!("({major} is pinned)")), "{line}");
    }
}

#[tokio::test]
async fn doctor_json_prints_one_object_per_check() {
    let deploy = Deploy::new().await;
    sql(&mut deploy.database().await, "INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('x', '1', 1, now())").await;
    let checks = objects(&stdout(&deploy.admin(&["doctor", "--json"]).await));
    let of = |name: &str| checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("{checks:?}"));
    assert_eq!((&of("redis")["ok"], &of("dead jobs")["ok"]), (&true.into(), &false.into()));
    assert!(of("dead jobs")["remedy"].as_str().unwrap().contains("admin jobs retry"), "{checks:?}");
}
