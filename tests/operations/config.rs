//! The `admin` commands for config, migrations, access rules and the schedule.

use serde_json::Value;
use tokio::process::Command;

use crate::support::process::programs;
use crate::support::{Deploy, EVENT_TIMEOUT, Process, eventually};
use crate::{count, done, rows, sql, stderr, stdout};

#[tokio::test]
async fn env_example_matches_admin_env() {
    let output = Command::new(programs().join("admin")).arg("env").env_clear().output().await.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(stdout(&output), std::fs::read_to_string(".env.example").unwrap(), "run `cargo run --bin admin env >.env.example`");
    // Every value in the file is valid.
    let lines = stdout(&output);
    let lines = lines.lines().filter_map(|line| line.strip_prefix('#')?.split_once('=')).filter(|(_, value)| !value.is_empty());
    let lines: Vec<_> = lines.filter(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')).collect();
    assert!(lines.len() > 15, "{lines:?}");
    let output = Command::new(programs().join("admin")).args(["config", "--check"]).env_clear().envs(lines).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn config_check_and_json_hide_secrets() {
    let deploy = Deploy::new().await;
    assert_eq!(done(&deploy, &["config", "--check"]).await, "");
    let rows = rows(&deploy, &["config"]).await;
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!((row("REDIS_URL")["value"].as_str(), row("REDIS_URL")["origin"].as_str()), (Some("[redacted]"), Some("environment")));
    assert_eq!((row("JOB_LEASE")["value"].as_str(), row("JOB_LEASE")["origin"].as_str()), (Some("30s"), Some("default")));

    let wrong = deploy.with("PORT", "sekret").without("MAIL_FROM").admin(&["config", "--check"]).await;
    assert_eq!(wrong.status.code(), Some(78));
    assert_eq!(stderr(&wrong).lines().count(), 3, "only the problems are printed: {wrong:?}");
    assert!(stderr(&wrong).contains("PORT must be") && stderr(&wrong).contains("MAIL_FROM is missing"), "{wrong:?}");
    assert!(!stderr(&wrong).contains("sekret"));
}

#[tokio::test]
async fn lease_under_ten_seconds_is_rejected() {
    let deploy = Deploy::new().await;
    for (lease, expected) in
        [("9s", "JOB_LEASE must be 10s or longer"), ("9999ms", "JOB_LEASE must be 10s or longer"), ("soon", "JOB_LEASE must")]
    {
        let mut worker = deploy.clone_with("JOB_LEASE", lease).start("worker");
        assert_eq!(worker.exit().await.code(), Some(78), "{lease}");
        assert!(worker.errors().iter().any(|line| line.contains(expected)), "{:?}", worker.errors());
        assert_eq!(deploy.clone_with("JOB_LEASE", lease).admin(&["config", "--check"]).await.status.code(), Some(78));
    }
    deploy.clone_with("JOB_LEASE", "10s").start("worker").says("ready").await;
}

#[tokio::test]
async fn migration_plan_prints_sql_and_changes_nothing() {
    let deploy = Deploy::unmigrated().await;
    let plan = done(&deploy, &["migrate", "--plan"]).await;
    let mut files: Vec<_> = std::fs::read_dir("migrations").unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "sql"));
    files.sort();
    let mut rest = plan.as_str();
    for file in &files {
        let head = format!("-- {}\n{}", file.file_name().unwrap().to_str().unwrap(), std::fs::read_to_string(file).unwrap());
        rest = rest.split_once(&head).unwrap_or_else(|| panic!("{head} is missing or out of order in {plan}")).1;
    }
    assert_eq!(deploy.admin(&["migrate", "--check"]).await.status.code(), Some(1), "nothing was applied");
    assert_eq!(deploy.admin(&["migrate", "--check", "--plan"]).await.status.code(), Some(2));

    // The plan's SQL also works when it is run by hand.
    crate::sql(&mut deploy.database().await, &plan).await;
    done(&Deploy::new().await, &["migrate", "--plan"]).await;
    assert_eq!(done(&Deploy::new().await, &["migrate", "--plan"]).await, "");
}

#[tokio::test]
async fn admin_access_prints_every_rule() {
    let deploy = Deploy::new().await;
    let rules = rows(&deploy, &["access"]).await;
    // The table has the same rules, line by line. Cells may contain spaces, so the head's positions define the columns.
    let table = done(&deploy, &["access"]).await;
    let (head, lines) = table.split_once('\n').unwrap();
    let columns = ["method", "path", "who", "limit", "flag", "feature"];
    let starts = columns.map(|column| head.find(column).unwrap());
    let cells = |line: &str| {
        let ends = starts[1..].iter().copied().chain([line.len()]);
        starts.iter().zip(ends).map(|(start, end)| line[*start..end].trim().to_owned()).collect::<Vec<_>>()
    };
    let text = |rule: &Value| columns.map(|column| rule[column].as_str().unwrap_or_default().to_owned()).to_vec();
    assert_eq!(lines.lines().map(cells).collect::<Vec<_>>(), rules.iter().map(text).collect::<Vec<_>>());
    for rule in &rules {
        let who = rule["who"].as_str().unwrap();
        assert!(
            ["anyone", "session", "confirmed session", "admin session or admin service"].contains(&who)
                || who.starts_with("session or scope "),
            "{rule}"
        );
        let limits = if who == "anyone" {
            &["RATE_LIMIT_LOGIN", "RATE_LIMIT_REQUESTS", "none"][..]
        } else {
            &["RATE_LIMIT_LOGIN", "RATE_LIMIT_REQUESTS"]
        };
        assert!(limits.contains(&rule["limit"].as_str().unwrap()), "{rule}");
    }
    for (method, path, who) in [
        ("POST", "/api/v1/accounts", "anyone"),
        ("GET", "/api/v1/session", "session"),
        ("PATCH", "/api/v1/account", "confirmed session"),
        ("GET", "/api/v1/tokens", "session or scope tokens:read"),
        ("GET", "/api/v1/admin/accounts", "admin session or admin service"),
    ] {
        let rule = rules.iter().find(|rule| rule["method"] == method && rule["path"] == path).unwrap_or_else(|| panic!("{table}"));
        assert_eq!((&rule["who"], &rule["feature"]), (&who.into(), &"accounts".into()));
        assert_eq!(rule["flag"] == "FEATURE_SIGN_UP", path == "/api/v1/accounts", "{rule}");
    }
}

#[tokio::test]
async fn admin_schedule_prints_ticks() {
    let deploy = Deploy::new().await;
    let before = rows(&deploy, &["schedule"]).await;
    assert!(before.iter().all(|row| row["last_tick"].is_null()), "no clock has run: {before:?}");
    let purge = before.iter().find(|row| row["name"] == "purge-expired").unwrap();
    assert_eq!(purge["cron"], "15 * * * *");
    assert!(purge["next_tick"].as_str().unwrap().ends_with(":15:00Z"), "{purge}");

    let deploy = deploy.after_a_clock().await;
    let after = rows(&deploy, &["schedule"]).await;
    assert!(after.iter().all(|row| row["last_tick"].as_str() < row["next_tick"].as_str()), "{after:?}");
    assert!(after.iter().all(|row| row["last_tick"].is_string()), "{after:?}");
}

#[tokio::test]
async fn operations_handbook_lists_every_command() {
    let deploy = Deploy::new().await;
    let handbook = std::fs::read_to_string("docs/operations.md").unwrap();
    let help = done(&deploy, &["--help"]).await;
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<_> = commands.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(commands.len() > 10, "{help}");
    for command in commands {
        assert!(handbook.lines().any(|line| line.starts_with(&format!("| `{command}"))), "docs/operations.md lacks {command}");
    }
}

#[tokio::test]
async fn waiting_migration_blocks_no_index_build() {
    let deploy = Deploy::unmigrated().await;
    let (mut other, mut index) = (deploy.database().await, deploy.database().await);
    // The lock that another `admin migrate` holds.
    sql(&mut other, &format!("BEGIN; SELECT pg_advisory_xact_lock({})", 0x6d69_6772_6174_6531_i64)).await;
    let mut command = Command::new(programs().join("admin"));
    command.arg("migrate").env_clear().envs(&deploy.environment);
    let mut waiting = Process::spawn(command);
    eventually("admin waits", async || {
        let asks = "pg_stat_activity WHERE datname = current_database() AND application_name = 'admin' AND query LIKE '%advisory%'";
        (count(&mut deploy.database().await, asks).await > 0).then_some(())
    })
    .await;
    sql(&mut index, "CREATE TABLE large (id int)").await;
    tokio::time::timeout(EVENT_TIMEOUT, sql(&mut index, "CREATE INDEX CONCURRENTLY ON large (id)")).await.expect("the index is built");
    assert!(waiting.ended().is_none());
    sql(&mut other, "COMMIT").await;
    assert_eq!(waiting.exit().await.code(), Some(0), "{:?}", waiting.errors());
}

#[tokio::test]
async fn shells_can_complete_the_commands() {
    let deploy = Deploy::unmigrated().await.without("DATABASE_URL");
    for shell in ["bash", "fish", "zsh"] {
        let printed = deploy.admin(&["completion", shell]).await;
        let script = String::from_utf8(printed.stdout).unwrap();
        assert!(printed.status.success() && script.contains("statistics") && script.contains("discard"), "{shell}: {script}");
    }
}
