//! III. Config: everything that differs between deploys comes from the environment, and from nowhere else.
//!
//! Violated by a value in the code, a file for each environment, a start with an incomplete config, or a secret in a message.

mod urls;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::clients::get;
use crate::support::collector::Collector;
use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, eventually};

async fn run(program: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(programs().join(program)).env_clear().envs(environment.iter().copied()).output().await.unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn web_and_clock_take_no_arguments() {
    for program in ["web", "clock"] {
        let output = Command::new(programs().join(program)).arg("--port=8080").env_clear().output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(stderr(&output).starts_with(&format!("usage: {program}\nIt takes no arguments")), "{output:?}");
    }
}

#[tokio::test]
async fn empty_environment_reports_every_missing_variable() {
    for (program, needed) in [
        ("web", ["DATABASE_URL", "REDIS_URL", "PUBLIC_URL"].as_slice()),
        ("worker", &["DATABASE_URL", "REDIS_URL", "SMTP_URL", "MAIL_FROM", "PUBLIC_URL"]),
        ("clock", &["DATABASE_URL"]),
    ] {
        let output = run(program, &[]).await;
        assert_eq!(output.status.code(), Some(78), "{program}");
        let printed = stderr(&output);
        assert_eq!(printed.lines().count(), needed.len() + 1, "{printed}");
        for (line, name) in printed.lines().skip(1).zip(needed) {
            assert!(line.trim().starts_with(&format!("{name} is missing")), "{line}");
        }
    }
}

#[tokio::test]
async fn invalid_values_are_named_never_printed() {
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
    let printed = stderr(&output);
    for (name, value) in environment {
        assert!(printed.lines().any(|line| line.trim().starts_with(&format!("{name} must be "))), "{name}: {printed}");
        assert!(value == "0" || !printed.contains(value), "{name}: {printed}");
    }
    assert!(!printed.contains("sekret"), "{printed}");
    assert!(stderr(&run("web", &[("PORT", "")]).await).lines().all(|line| !line.contains("PORT")), "empty counts as unset");
}

#[tokio::test]
async fn value_with_invalid_utf8_is_reported() {
    use std::os::unix::ffi::OsStrExt;
    let value = std::ffi::OsStr::from_bytes(b"postgres://\xff");
    let output = Command::new(programs().join("clock")).env_clear().env("DATABASE_URL", value).output().await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("DATABASE_URL is not valid UTF-8"));
    assert_eq!(stderr(&output).lines().count(), 2, "it is not reported as missing, too");
}

/// The variables of libpq, such as `PGUSER`, do not fill in what the URL leaves out.
#[tokio::test]
async fn incomplete_database_url_is_rejected() {
    for (url, left_out) in
        [("postgres:///name", "a host and a user"), ("postgres://host/name", "a user"), ("postgres://user@host", "a database name")]
    {
        let printed = stderr(&run("clock", &[("DATABASE_URL", url), ("PGUSER", "guess"), ("PGDATABASE", "guess")]).await);
        assert!(printed.contains(&format!("DATABASE_URL leaves out {left_out}:")), "{printed}");
    }
    let printed = stderr(&run("clock", &[("DATABASE_URL", "postgres://user@host/name"), ("PGSSLROOTCERT", "/etc/guess")]).await);
    assert!(printed.contains("unset PGSSLROOTCERT"), "{printed}");
}

/// Unlike other variables, an empty `SSL_CERT_FILE` does not count as unset.
#[tokio::test]
async fn certificate_file_without_certificates_is_rejected() {
    for file in ["", "/nowhere/sekret", "src", "Cargo.toml"] {
        let output = run("clock", &[("DATABASE_URL", "postgres://user@host/name"), ("SSL_CERT_FILE", file)]).await;
        assert_eq!(output.status.code(), Some(78), "{file}");
        let printed = stderr(&output);
        assert!(printed.contains("SSL_CERT_FILE must be a file") && !printed.contains("sekret"), "{printed}");
        assert_eq!(printed.lines().count(), 2, "{printed}");
    }
}

#[tokio::test]
async fn secret_file_excludes_the_plain_variable() {
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
    clock.says("is new; it first fires at its next tick").await;

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
async fn admin_config_lists_variables_without_secrets() {
    let deploy = Deploy::new().await.with("SMTP_URL", "smtps://user:sekret@mail.example").with("REQUEST_TIMEOUT", "sekret");
    let output = deploy.admin(&["config"]).await;
    assert_eq!(output.status.code(), Some(1), "one value is invalid");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(!shown.contains("sekret") && !shown.contains(&deploy.environment["DATABASE_URL"]), "{shown}");
    let value = |name: &str| shown.lines().find_map(|line| line.strip_prefix(&format!("{name:<19} "))).unwrap_or_default().to_owned();
    assert_eq!(value("SMTP_URL"), "[redacted]  (environment)");
    assert_eq!(value("PORT"), "0  (environment)");
    assert_eq!(value("DRAIN_TIMEOUT"), "25s  (default)");
    assert_eq!(value("METRICS_PORT"), "unset");
    assert!(value("REQUEST_TIMEOUT").starts_with("WRONG: must be a duration"));
}

/// The variables that the code reads, as `admin config` prints them in an empty environment.
async fn variables() -> BTreeMap<String, Value> {
    let output = Command::new(programs().join("admin")).args(["config", "--json"]).env_clear().output().await.unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let variables = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    variables.map(|variable| (variable["name"].as_str().unwrap().to_owned(), variable)).collect()
}

#[tokio::test]
async fn documents_match_the_codes_variables() {
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
    // Platforms set these two. The compose file does not.
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
async fn proxy_variables_have_no_effect() {
    let collector = Collector::start().await;
    let mut deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 50);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        deploy = deploy.with(name, "http://127.0.0.1:1");
    }
    let web = deploy.web().await;
    web.get("/version").await;
    eventually("a span", async || (!collector.spans().is_empty()).then_some(())).await;
    let doctor = deploy.admin(&["doctor"]).await;
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    storage"), "{doctor:?}");
}

#[tokio::test]
async fn planted_secret_appears_in_no_output() {
    let sekret = format!("sekret{}", uuid::Uuid::new_v4().simple());
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace").with("METRICS_PORT", 0);
    // Wrong secrets, because failures produce the most output.
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
    let pages = pages.iter().chain([&metrics]).map(async |url| get(url).await.unwrap().text().await.unwrap());
    let commands = [["config"].as_slice(), &["config", "--json"], &["doctor"], &["migrate", "--check"]];
    let commands = commands.iter().map(async |arguments| {
        let output = deploy.admin(arguments).await;
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    });
    let sign_up = async { Person::stranger(&web).sign_up().await.text().await.unwrap() };
    // Concurrently, because each of them waits for Postgres until it times out.
    let (pages, commands, refused) = tokio::join!(join_all(pages), join_all(commands), sign_up);
    assert!(refused.contains("unavailable"), "{refused}");
    let mut printed = [pages, commands, vec![refused]].concat();
    worker.says("cannot claim jobs").await;
    clock.says("cannot check the schedule: Postgres unavailable").await;
    // The command lines of all processes, because any user may read them.
    for process in std::fs::read_dir("/proc").unwrap() {
        printed.push(String::from_utf8_lossy(&std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default()).into_owned());
    }
    let mut web = web.process;
    for process in [&mut web, &mut worker, &mut clock] {
        process.signal(Signal::SIGKILL);
        process.exit().await;
        printed.extend([process.lines(), process.errors()].concat());
    }
    let leaks: Vec<_> = printed.iter().filter(|text| text.contains(&sekret)).collect();
    assert!(leaks.is_empty(), "a secret was printed: {leaks:#?}");
}

/// What a deploy shows from outside, without the headers that differ in every response.
async fn behaviour(deploy: &Deploy) -> Vec<String> {
    let mut shown = Vec::new();
    let web = deploy.web().await;
    let ada = Person::stranger(&web);
    for answer in [ada.sign_up().await, ada.log_in().await, ada.get("/tokens").await, ada.get("/nothing").await, web.get("/docs/").await] {
        let varies = ["date", "x-request-id", "x-served-by", "ratelimit", "content-length"];
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
async fn environment_name_changes_no_behaviour() {
    let deploy = Deploy::new().await;
    let (config, unnamed) = (deploy.admin(&["config"]).await, behaviour(&deploy).await);
    for name in ["production", "staging", "development", "test"] {
        let variables = ["APP_ENV", "ENVIRONMENT", "ENV", "RUST_ENV", "NODE_ENV", "STAGE", "PROFILE"];
        let named = variables.iter().fold(deploy.clone(), |deploy, variable| deploy.with(variable, name));
        assert_eq!(named.admin(&["config"]).await, config, "with the environment named {name}, the config is different");
        assert_eq!(behaviour(&named).await, unnamed, "with the environment named {name}, web behaves differently");
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
async fn git_history_holds_no_credential() {
    let log = ["log", "--all", "--patch", "--unified=0", "--no-color", "--format=commit %h", "--no-textconv"];
    let history = Command::new("git").args(log).output().await.ok().filter(|output| output.status.success());
    // There is no history before the first commit.
    let history = history.filter(|output| !output.stdout.is_empty());
    let Some(history) = history else {
        println!("skipped: needs git's history");
        return;
    };
    let history = String::from_utf8_lossy(&history.stdout).into_owned();
    assert!(history.contains("+++ b/tests/factors/f03_config.rs"), "the history holds this file");
    let held: Vec<_> = history.lines().filter(|line| line.starts_with('+')).filter(|line| holds_credential(line)).collect();
    assert!(held.is_empty(), "revoke these credentials, then find out how they were committed: {held:#?}");

    // The scan recognizes credentials of each kind.
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
