//! III. Config: what differs between deploys comes from the environment, and from nowhere else.
//!
//! Violated by a value in the code, a file for each environment, a start with half a config, a secret in a message.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use tokio::process::Command;

use crate::support::process::programs;
use crate::support::{Deploy, Process};

async fn run(program: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(programs().join(program)).env_clear().envs(environment.iter().copied()).output().await.unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn without_an_environment_every_missing_name_is_told_at_once() {
    for (program, needed) in [
        ("web", ["DATABASE_URL", "REDIS_URL", "PUBLIC_URL"].as_slice()),
        ("worker", &["DATABASE_URL", "REDIS_URL", "SMTP_URL", "MAIL_FROM", "PUBLIC_URL"]),
        ("clock", &["DATABASE_URL"]),
    ] {
        let output = run(program, &[]).await;
        assert_eq!(output.status.code(), Some(78), "{program}");
        let told = stderr(&output);
        assert_eq!(told.lines().count(), needed.len() + 1, "{told}");
        for (line, name) in told.lines().skip(1).zip(needed) {
            assert!(line.trim().starts_with(&format!("{name} is missing")), "{line}");
        }
    }
}

#[tokio::test]
async fn wrong_values_are_named_and_never_shown() {
    let environment = [
        ("PORT", "eighty"),
        ("DATABASE_URL", "nonsense"),
        ("REDIS_URL", "http://user:sekret@host"),
        ("PUBLIC_URL", "ftp://sekret.example"),
        ("SESSION_TTL", "14 sekret"),
        ("REQUEST_TIMEOUT", "99ms"),
        ("DATABASE_POOL_SIZE", "0"),
        ("LOG_LEVEL", "sekret=sekret=sekret"),
        ("LOG_FORMAT", "xml"),
    ];
    let output = run("web", &environment).await;
    assert_eq!(output.status.code(), Some(78));
    let told = stderr(&output);
    for (name, value) in environment {
        assert!(told.lines().any(|line| line.trim().starts_with(&format!("{name} must be "))), "{name}: {told}");
        assert!(value == "0" || !told.contains(value), "{name}: {told}");
    }
    assert!(!told.contains("sekret"), "{told}");
    assert!(stderr(&run("web", &[("PORT", "")]).await).lines().all(|line| !line.contains("PORT")), "empty counts as unset");
}

#[tokio::test]
async fn a_value_that_is_not_utf8_is_a_problem_like_any_other() {
    use std::os::unix::ffi::OsStrExt;
    let value = std::ffi::OsStr::from_bytes(b"postgres://\xff");
    let output = Command::new(programs().join("clock")).env_clear().env("DATABASE_URL", value).output().await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("DATABASE_URL is not valid UTF-8"));
    assert_eq!(stderr(&output).lines().count(), 2, "and not also missing");
}

#[tokio::test]
async fn what_the_database_url_leaves_out_is_a_problem_and_not_a_guess() {
    for (url, left_out) in
        [("postgres:///name", "a host and a user"), ("postgres://host/name", "a user"), ("postgres://user@host", "a database name")]
    {
        let told = stderr(&run("clock", &[("DATABASE_URL", url), ("PGUSER", "guess"), ("PGDATABASE", "guess")]).await);
        assert!(told.contains(&format!("DATABASE_URL leaves out {left_out}:")), "{told}");
    }
    let told = stderr(&run("clock", &[("DATABASE_URL", "postgres://user@host/name"), ("PGSSLROOTCERT", "/etc/guess")]).await);
    assert!(told.contains("unset PGSSLROOTCERT"), "{told}");
}

#[tokio::test]
async fn a_file_of_certificates_that_vouches_for_nobody_is_a_problem_even_where_it_is_empty() {
    for file in ["", "/nowhere/sekret", "src", "Cargo.toml"] {
        let output = run("clock", &[("DATABASE_URL", "postgres://user@host/name"), ("SSL_CERT_FILE", file)]).await;
        assert_eq!(output.status.code(), Some(78), "{file}");
        let told = stderr(&output);
        assert!(told.contains("SSL_CERT_FILE must be a file") && !told.contains("sekret"), "{told}");
        assert_eq!(told.lines().count(), 2, "{told}");
    }
}

#[tokio::test]
async fn a_secret_may_come_from_a_file_but_not_from_two_places() {
    let deploy = Deploy::new().await;
    let folder = tempfile();
    let file = folder.join("database-url");
    std::fs::write(&file, format!("{}\n", deploy.environment["DATABASE_URL"])).unwrap();
    let both = deploy.with("DATABASE_URL_FILE", file.display());
    let mut refused = both.start("clock");
    assert_eq!(refused.exit().await.code(), Some(78));
    assert!(refused.errors().join("\n").contains("DATABASE_URL is set, and so is DATABASE_URL_FILE"));

    let deploy = both.without("DATABASE_URL");
    let clock = deploy.start("clock");
    clock.says("is new, its first tick is the next").await;

    let output = deploy.with("DATABASE_URL_FILE", "/nowhere/sekret").admin(&["migrate", "--check"]).await;
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("the file that DATABASE_URL_FILE names"), "{output:?}");
    assert!(!stderr(&output).contains("sekret"));
    std::fs::remove_dir_all(folder).unwrap();
}

fn tempfile() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    folder
}

#[tokio::test]
async fn admin_config_shows_every_variable_and_no_secret() {
    let deploy = Deploy::new().await.with("SMTP_URL", "smtps://user:sekret@mail.example").with("REQUEST_TIMEOUT", "sekret");
    let output = deploy.admin(&["config"]).await;
    assert_eq!(output.status.code(), Some(1), "a value is wrong");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(!shown.contains("sekret") && !shown.contains(&deploy.environment["DATABASE_URL"]), "{shown}");
    let value = |name: &str| shown.lines().find_map(|line| line.strip_prefix(&format!("{name:<19} "))).unwrap_or_default().to_owned();
    assert_eq!(value("SMTP_URL"), "[redacted]  (environment)");
    assert_eq!(value("PORT"), "0  (environment)");
    assert_eq!(value("DRAIN_TIMEOUT"), "25s  (default)");
    assert_eq!(value("METRICS_PORT"), "unset");
    assert!(value("REQUEST_TIMEOUT").starts_with("WRONG: must be a duration"));
}

/// The variables that the code reads, with their defaults, as `admin config` tells them in an empty environment.
async fn variables() -> BTreeMap<String, Option<String>> {
    let output = run("admin", &[("PATH", "")]).await;
    drop(output);
    let output = Command::new(programs().join("admin")).arg("config").env_clear().output().await.unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    let lines = shown.lines().filter(|line| !line.starts_with(' '));
    lines
        .map(|line| {
            line.split_once(' ').map(|(name, rest)| (name.to_owned(), rest.trim().strip_suffix("  (default)").map(str::to_owned))).unwrap()
        })
        .collect()
}

#[tokio::test]
async fn the_example_and_the_compose_file_name_the_same_variables_as_the_code() {
    let variables = variables().await;
    let read = |path: &str| std::fs::read_to_string(path).unwrap();

    let example = read(".env.example");
    let pairs = example.lines().filter_map(|line| line.trim_start_matches('#').split_once('=')).filter(|(name, _)| is_name(name));
    let example: BTreeMap<_, _> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(example.keys().collect::<Vec<_>>(), variables.keys().collect::<Vec<_>>());
    for (name, default) in &variables {
        if let Some(default) = default {
            assert_eq!(&example[name], default, "{name}");
        }
    }

    let compose = read("docker-compose.yml");
    let section = compose.split("  environment:\n").nth(1).unwrap().split("  healthcheck:").next().unwrap();
    let compose: BTreeSet<_> = section.lines().filter_map(|line| line.trim().split_once(": ")).map(|(name, _)| name.to_owned()).collect();
    // Docker sets these itself, or nobody does.
    let expected = variables.keys().filter(|name| !["DYNO", "HOSTNAME"].contains(&name.as_str())).cloned();
    assert_eq!(compose, expected.collect());
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

#[tokio::test]
async fn a_planted_secret_appears_in_no_line_of_any_process() {
    let deploy = Deploy::new().await;
    let url = deploy.environment["DATABASE_URL"].replacen("postgres://postgres:", "postgres://postgres:sekret", 1);
    let deploy = deploy.with("DATABASE_URL", url).with("LOG_LEVEL", "trace");
    let mut processes: Vec<Process> = ["web", "worker", "clock"].iter().map(|name| deploy.start(name)).collect();
    processes[0].says("not ready: postgres").await;
    processes[1].says("no jobs claimed").await;
    processes[2].says("the schedule waits for Postgres").await;
    for process in &mut processes {
        process.terminate().await;
        let lines = [process.lines(), process.errors()].concat();
        assert!(!lines.iter().any(|line| line.contains("sekret")), "{lines:#?}");
    }
}
