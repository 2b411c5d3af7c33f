//! III. Config: what differs between deploys comes from the environment, and from nowhere else.
//!
//! Violated by a value in the code, a file for each environment, a start with half a config, a secret in a message.

mod urls;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::Deploy;
use crate::support::person::Person;
use crate::support::process::programs;

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

/// The variables that the code reads, as `admin config` tells them in an empty environment.
async fn variables() -> BTreeMap<String, Value> {
    let output = Command::new(programs().join("admin")).args(["config", "--json"]).env_clear().output().await.unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let variables = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    variables.map(|variable| (variable["name"].as_str().unwrap().to_owned(), variable)).collect()
}

#[tokio::test]
async fn documents_name_the_same_variables_as_the_code() {
    let variables = variables().await;
    let read = |path: &str| std::fs::read_to_string(path).unwrap();

    let example = read(".env.example");
    let pairs = example.lines().filter_map(|line| line.trim_start_matches('#').split_once('=')).filter(|(name, _)| is_name(name));
    let pairs: Vec<_> = pairs.collect();
    assert_eq!(pairs.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), variables.keys().map(String::as_str).collect());
    for (name, value) in pairs.iter().filter(|(name, _)| variables[*name]["origin"] == "default") {
        assert_eq!(variables[*name]["value"], *value, "{name}");
    }

    let compose = read("docker-compose.yml");
    let section = compose.split("  environment:\n").nth(1).unwrap().split("  healthcheck:").next().unwrap();
    let compose: BTreeSet<_> = section.lines().filter_map(|line| line.trim().split_once(": ")).map(|(name, _)| name.to_owned()).collect();
    // Docker sets these itself, or nobody does.
    let expected = variables.keys().filter(|name| !["DYNO", "HOSTNAME"].contains(&name.as_str())).cloned();
    assert_eq!(compose, expected.collect());

    let rows = pairs.iter().map(|(name, _)| {
        let [value, meaning] = ["value", "meaning"].map(|field| variables[*name][field].as_str().unwrap());
        let default = match value {
            "missing" => "needed ".to_owned(),
            "unset" => String::new(),
            _ => format!("`{value}` "),
        };
        format!("| `{name}` | {default}| {meaning} |\n")
    });
    let table = format!("| variable | default | meaning |\n|---|---|---|\n{}", rows.collect::<String>());
    assert!(read("docs/config.md").ends_with(&table), "docs/config.md must end with this table:\n\n{table}");
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

#[tokio::test]
async fn a_planted_secret_appears_nowhere() {
    let sekret = format!("sekret{}", uuid::Uuid::new_v4().simple());
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace").with("METRICS_PORT", 0);
    // Wrong ones, since a refusal is what is told most about.
    let url = deploy.environment["DATABASE_URL"].replacen("postgres://postgres:", &format!("postgres://postgres:{sekret}"), 1);
    let deploy = deploy.with("DATABASE_URL", url).with("OTEL_EXPORTER_OTLP_HEADERS", format!("key={sekret}"));
    let with_password = |name: &str| deploy.environment[name].replacen("://", &format!("://user:{sekret}@"), 1);
    let deploy = deploy.clone_with("REDIS_URL", with_password("REDIS_URL")).with("SMTP_URL", with_password("SMTP_URL"));
    let web = deploy.web_unready().await;
    let (mut worker, mut clock) = (deploy.start("worker"), deploy.start("clock"));
    web.process.says("not ready: postgres").await;
    web.process.says("not ready: redis").await;
    let metrics = web.process.logged("the port of the metrics", |line| line["listener"] == "metrics").await["port"].to_string();
    let metrics = format!("http://127.0.0.1:{metrics}/metrics");
    let pages = ["/version", "/livez", "/readyz", "/verify?token=x", "/api/v1/tokens"].map(|path| format!("{}{path}", web.url));
    let pages = pages.iter().chain([&metrics]).map(async |url| reqwest::get(url).await.unwrap().text().await.unwrap());
    let commands = [["config"].as_slice(), &["config", "--json"], &["doctor"], &["migrate", "--check"]];
    let commands = commands.iter().map(async |arguments| {
        let output = deploy.admin(arguments).await;
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    });
    let sign_up = async { Person::stranger(&web).sign_up().await.text().await.unwrap() };
    // At the same time, since each waits in vain for Postgres.
    let (pages, commands, refused) = tokio::join!(join_all(pages), join_all(commands), sign_up);
    assert!(refused.contains("unavailable"), "{refused}");
    let mut told = [pages, commands, vec![refused]].concat();
    worker.says("no jobs claimed").await;
    clock.says("the schedule waits for Postgres").await;
    // Every process of the machine, ours among them: what is on a command line, everybody may read.
    for process in std::fs::read_dir("/proc").unwrap() {
        told.push(String::from_utf8_lossy(&std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default()).into_owned());
    }
    let mut web = web.process;
    for process in [&mut web, &mut worker, &mut clock] {
        process.signal(Signal::SIGKILL);
        process.exit().await;
        told.extend([process.lines(), process.errors()].concat());
    }
    let leaks: Vec<_> = told.iter().filter(|text| text.contains(&sekret)).collect();
    assert!(leaks.is_empty(), "a secret is told: {leaks:#?}");
}

/// What a deploy shows of itself from outside, but for what no two answers share.
async fn behaviour(deploy: &Deploy) -> Vec<String> {
    let mut shown = Vec::new();
    let web = deploy.web().await;
    let ada = Person::stranger(&web);
    for answer in [ada.sign_up().await, ada.log_in().await, ada.get("/tokens").await, ada.get("/nothing").await, web.get("/docs/").await] {
        let varies = ["date", "x-request-id", "ratelimit", "content-length"];
        let headers = answer.headers().iter().filter(|(name, _)| !varies.contains(&name.as_str()));
        // A cookie's attributes, not its secret.
        let headers = headers.map(|(name, value)| {
            let value = value.to_str().unwrap();
            (name.as_str(), if name == "set-cookie" { value.split_once(';').unwrap().1 } else { value })
        });
        shown.push(format!("{} {:?}", answer.status(), headers.collect::<BTreeMap<_, _>>()));
    }
    let line = web.process.says("is starting").await;
    shown.push(format!("{:?}", line.as_object().unwrap().keys().collect::<Vec<_>>()));
    shown
}

#[tokio::test]
async fn the_name_of_an_environment_changes_nothing() {
    let deploy = Deploy::new().await;
    let (config, unnamed) = (deploy.admin(&["config"]).await, behaviour(&deploy).await);
    for name in ["production", "staging", "development", "test"] {
        let variables = ["APP_ENV", "ENVIRONMENT", "ENV", "RUST_ENV", "NODE_ENV", "STAGE", "PROFILE"];
        let named = variables.iter().fold(deploy.clone(), |deploy, variable| deploy.with(variable, name));
        assert_eq!(named.admin(&["config"]).await, config, "where the environment is named {name}, the config is another");
        assert_eq!(behaviour(&named).await, unnamed, "where the environment is named {name}, web is another");
    }
}

/// Whether a line holds a private key, a key of a well-known shape, or a URL with a password that is no placeholder.
fn holds_credential(line: &str) -> bool {
    let mut labels = line.split("-----BEGIN ").skip(1).filter_map(|after| after.split("-----").next());
    let private_key = |label: &str| label.ends_with("PRIVATE KEY") && label.chars().all(|c| c.is_ascii_uppercase() || c == ' ');
    let length = |word: &str| word.chars().take_while(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).count();
    let shapes = ["AKIA", "ghp_", "github_pat_", "sk_live_", "xoxb-"];
    let mut urls = line.split("://").skip(1);
    let password = |after: &str| {
        let authority = after.split(|c: char| c.is_whitespace() || "/?#\"'`<>\\".contains(c)).next()?;
        let (_, password) = authority.rsplit_once('@')?.0.split_once(':')?;
        let placeholders = ["password", "development", "secret", "sekret", "nothing", "p"];
        (!password.starts_with(['$', '{']) && !placeholders.contains(&password)).then_some(())
    };
    labels.any(private_key)
        || shapes.iter().any(|begin| line.split(begin).skip(1).any(|rest| length(rest) >= 16))
        || urls.any(|after| password(after).is_some())
}

#[tokio::test]
async fn no_commit_has_ever_held_a_credential() {
    let log = ["log", "--all", "--patch", "--unified=0", "--no-color", "--format=commit %h", "--no-textconv"];
    let history = Command::new("git").args(log).output().await.ok().filter(|output| output.status.success());
    // Before the first commit there is none.
    let history = history.filter(|output| !output.stdout.is_empty());
    let Some(history) = history else {
        println!("skipped: needs git's history");
        return;
    };
    let history = String::from_utf8_lossy(&history.stdout).into_owned();
    assert!(history.contains("+++ b/tests/factors/f03_config.rs"), "the history holds this file");
    let held: Vec<_> = history.lines().filter(|line| line.starts_with('+')).filter(|line| holds_credential(line)).collect();
    assert!(held.is_empty(), "revoke these, then see how they came in: {held:#?}");

    // The scan sees what it should.
    let key = |parts: &[&str]| parts.concat();
    for leak in [
        key(&["-----BEGIN RSA ", "PRIVATE KEY-----"]),
        key(&["id = AKI", "AIOSFODNN7EXAMPLE1"]),
        key(&["token: gh", "p_abcdefghijklmnopqrstuvwxyz0123456789"]),
        key(&["DATABASE_URL=postgres:", "//app:xK3dk29sKd@db.example/app"]),
    ] {
        assert!(holds_credential(&leak), "{leak}");
    }
}
