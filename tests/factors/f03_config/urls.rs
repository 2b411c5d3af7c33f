//! URLs of resources: every usual form works, other forms are rejected by name, and no part of a URL reaches a log.

use serde_json::Value;

use super::{run, stderr};
use crate::support::person::Person;
use crate::support::postgres::Postgres;
use crate::support::{Deploy, Proxy, eventually};

/// The error that a program prints about a URL.
async fn problem_with(variable: &str, url: &str) -> String {
    let output = run("worker", &[(variable, url)]).await;
    assert_eq!(output.status.code(), Some(78), "{url}");
    let printed = stderr(&output);
    let line = printed.lines().find(|line| line.trim().starts_with(variable) && !line.contains("is missing"));
    line.unwrap_or_else(|| panic!("{url} is accepted: {printed}")).trim().to_owned()
}

#[tokio::test]
async fn unusable_url_error_names_the_remedy() {
    for (variable, url, expected) in [
        ("DATABASE_URL", "postgres://u:p@host/name?sslmode=no-verify", "sslmode that is not one of disable"),
        ("DATABASE_URL", "postgres://u:sek#ret@host/name", "write it as %23"),
        ("DATABASE_URL", "postgres://u:p@one,two/name", "several hosts: name one"),
        ("DATABASE_URL", "postgres://u:p@one:5432,two:5432/name", "several hosts: name one"),
        ("DATABASE_URL", "postgres://u:p@host/name/", "`/` after the database's name"),
        ("DATABASE_URL", "postgres://u:p@host/name?channel_binding=require", "requires channel_binding"),
        ("DATABASE_URL", "postgres://u:p@host/name?gssencmode=require", "requires gssencmode"),
        ("DATABASE_URL", "mysql://u:p@host/name", "must be a URL such as postgres://"),
        ("SMTP_URL", "smtp://host?tls=maybe", "tls that is not one of"),
        ("SMTP_URL", "smtps://host?tls=none", "leave tls out"),
        ("SMTP_URL", "smtp://user@host", "a user but no password"),
        ("SMTP_URL", "smtp://host?timeout=5", "parameter timeout"),
        ("REDIS_URL", "http://host", "must be a URL such as redis://"),
    ] {
        let problem = problem_with(variable, url).await;
        assert!(problem.contains(expected), "{url}: {problem}");
        assert!(!problem.contains("sek") && !problem.contains(url), "{problem}");
    }
}

#[tokio::test]
async fn unknown_parameter_is_logged_once_without_value() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
    let parameters = "sslpassword=hunter2&channel_binding=prefer&pgbouncer=true&target_session_attrs=read-write";
    let url = format!("{}?{parameters}", deploy.environment["DATABASE_URL"]);
    let web = deploy.with("DATABASE_URL", url).web().await;
    Person::unverified(&web).await;
    let log = web.process.log();
    for name in ["sslpassword", "channel_binding", "pgbouncer"] {
        let lines: Vec<_> = log.iter().filter(|line| line["message"].as_str().is_some_and(|message| message.contains(name))).collect();
        assert!(lines.len() == 1 && lines[0]["level"] == "WARN", "{name}: {lines:#?}");
    }
    let all = web.process.lines().join("\n");
    assert!(!all.contains("hunter2") && !all.contains("target_session_attrs"), "{all}");
}

#[tokio::test]
async fn processes_reach_resources_over_ipv6() {
    let deploy = Deploy::new().await;
    let proxies = ["DATABASE_URL", "REDIS_URL", "SMTP_URL"].map(|variable| (variable, Proxy::on_ipv6(deploy.address_of(variable))));
    let (mut there, mut kept) = (deploy.clone(), Vec::new());
    for (variable, proxy) in proxies {
        let Some(proxy) = proxy.await else {
            println!("skipped: needs IPv6");
            return;
        };
        there = there.clone_with(variable, deploy.through(variable, &proxy));
        assert!(there.environment[variable].contains("[::1]:"), "{}", there.environment[variable]);
        kept.push(proxy);
    }
    let (web, _worker) = (there.web().await, there.start("worker"));
    Person::verified(&there, &web).await;
}

#[tokio::test]
async fn database_url_accepts_host_parameter() {
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    // Postgres runs as another user if the tests run as root.
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket = folder.display().to_string();
    let Some(postgres) = Postgres::start_with(&["-k", &socket]).await else { return };
    let server = url::Url::parse(&postgres.url).unwrap();
    let (password, port) = (server.password().unwrap(), server.port().unwrap());
    for host in [socket.replace('/', "%2F"), socket.clone(), "127.0.0.1".to_owned()] {
        let url = format!("postgres://postgres:{password}@/postgres?host={host}&port={port}");
        let deploy = Deploy::unmigrated().await.with("DATABASE_URL", url);
        let output = deploy.admin(&["migrate"]).await;
        assert!(output.status.success(), "{host}: {output:?}");
        assert!(deploy.web().await.get("/readyz").await.status() == 200);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// A text that no line may contain.
fn secret() -> String {
    format!("sekret{}", uuid::Uuid::new_v4().simple())
}

/// Panics if a program printed the secret.
fn assert_not_printed(secret: &str, printed: &[String]) {
    let leaks: Vec<_> = printed.iter().filter(|line| line.to_lowercase().contains(secret)).collect();
    assert!(leaks.is_empty(), "a secret was printed: {leaks:#?}");
}

#[tokio::test]
async fn unreachable_resource_urls_are_never_logged() {
    let s = secret();
    let parameters = format!("sslpassword={s}&channel_binding={s}&application_name={s}&options=-csearch_path%3D{s}&sslrootcert=%2F{s}");
    for (database, redis, smtp) in [
        (format!("127.0.0.1:1/{s}?{parameters}"), format!("127.0.0.1:1/0?{s}={s}"), "127.0.0.1:1/".to_owned()),
        (format!("{s}.invalid/{s}"), format!("{s}.invalid"), format!("{s}.invalid/{s}")),
        (format!("/{s}?host=%2Fnowhere%2F{s}"), format!("{s}.invalid:1"), format!("{s}.invalid:1")),
    ] {
        let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
        let deploy =
            deploy.with("DATABASE_URL", format!("postgres://{s}:{s}@{database}")).with("REDIS_URL", format!("redis://{s}:{s}@{redis}"));
        let deploy = deploy.with("SMTP_URL", format!("smtp://{s}:{s}@{smtp}"));
        let mut printed = Vec::new();
        for arguments in [&["doctor"][..], &["doctor", "--json"], &["config"]] {
            let output = deploy.admin(arguments).await;
            printed.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
        }
        for program in ["web", "worker", "clock"] {
            let mut process = deploy.start(program);
            process.says(if program == "clock" { "cannot check the schedule" } else { "not ready: postgres" }).await;
            process.terminate().await;
            printed.extend([process.lines(), process.errors()].concat());
        }
        assert_not_printed(&s, &printed);
    }
}

#[tokio::test]
async fn reachable_resource_secrets_are_never_logged() {
    let s = secret();
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
    let with_password = |name: &str| deploy.environment[name].replacen("://", &format!("://{s}:{s}@"), 1);
    // Parameters that have an effect, and some that have none.
    let database = format!("{}?sslpassword={s}&sslrootcert=%2F{s}&options=-capp.name%3D{s}", deploy.environment["DATABASE_URL"]);
    let deploy = deploy.clone_with("DATABASE_URL", database).with("SMTP_URL", with_password("SMTP_URL"));
    let (mut web, mut worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::stranger(&web);
    assert_eq!(ada.sign_up().await.status(), 202);
    // The sink does not offer AUTH.
    let failed = worker.logged("the mail's failure", |line| line["outcome"] == "failed").await;
    assert!(failed["error"].as_str().unwrap().contains("at Auth"), "{failed}");
    web.process.terminate().await;
    worker.terminate().await;
    assert_not_printed(&s, &[web.process.lines(), web.process.errors(), worker.lines(), worker.errors()].concat());

    let mut refused = deploy.clone_with("REDIS_URL", with_password("REDIS_URL")).web_unready().await;
    refused.process.says("not ready: redis").await;
    refused.process.terminate().await;
    assert_not_printed(&s, &[refused.process.lines(), refused.process.errors()].concat());
}

#[tokio::test]
async fn rejected_url_is_never_printed() {
    let s = secret();
    for (variable, url) in [
        ("DATABASE_URL", s.clone()),
        ("DATABASE_URL", format!("postgres://u:{s}#{s}@{s}/{s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s},{s}/{s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s}/{s}/{s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s}:{s}/{s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s}/{s}?sslmode={s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s}/{s}?channel_binding=require&x={s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s}/{s}?require_auth={s}")),
        ("DATABASE_URL", format!("postgres://{s}:{s}@{s}/{s}?port={s}")),
        ("REDIS_URL", s.clone()),
        ("REDIS_URL", format!("redis://{s}:{s}@{s}/{s}")),
        ("REDIS_URL", format!("redis://{s}:{s}@{s}:{s}/0")),
        ("SMTP_URL", s.clone()),
        ("SMTP_URL", format!("imap://{s}:{s}@{s}/{s}")),
        ("SMTP_URL", format!("smtp://{s}@{s}/{s}")),
        ("SMTP_URL", format!("smtp://{s}:{s}@{s}/{s}?tls={s}")),
        ("SMTP_URL", format!("smtp://{s}:{s}@{s}/{s}?timeout={s}")),
    ] {
        assert_not_printed(&s, &[problem_with(variable, &url).await]);
    }
}

/// A parameter without effect, or a trailing slash, does not prevent a start.
#[tokio::test]
async fn unusual_but_valid_urls_work() {
    let deploy = Deploy::new().await;
    let odd = |name: &str, end: &str| format!("{}{end}", deploy.environment[name]);
    let deploy =
        deploy.clone_with("DATABASE_URL", odd("DATABASE_URL", "?connect_timeout=10")).with("REDIS_URL", odd("REDIS_URL", "?family=4"));
    let deploy = deploy.clone_with("SMTP_URL", odd("SMTP_URL", "/"));
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    Person::verified(&deploy, &web).await;
    eventually("ready", async || (web.get("/readyz").await.json::<Value>().await.unwrap()["ready"] == true).then_some(())).await;
}
