//! URLs of resources: every usual form works, the others are named, and no part of any reaches a log.

use serde_json::Value;

use super::{run, stderr};
use crate::support::person::Person;
use crate::support::postgres::Postgres;
use crate::support::{Deploy, Proxy, eventually};

/// The problem that a program has with a URL.
async fn problem_with(variable: &str, url: &str) -> String {
    let output = run("worker", &[(variable, url)]).await;
    assert_eq!(output.status.code(), Some(78), "{url}");
    let told = stderr(&output);
    let line = told.lines().find(|line| line.trim().starts_with(variable) && !line.contains("is missing"));
    line.unwrap_or_else(|| panic!("{url} is taken: {told}")).trim().to_owned()
}

#[tokio::test]
async fn unusable_url_is_named_with_what_to_write() {
    for (variable, url, told) in [
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
        assert!(problem.contains(told), "{url}: {problem}");
        assert!(!problem.contains("sek") && !problem.contains(url), "{problem}");
    }
}

#[tokio::test]
async fn unknown_parameter_is_told_once_without_its_value() {
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
async fn resources_are_reached_over_ipv6() {
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
async fn host_may_stand_in_a_parameter() {
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    // Postgres runs as another user where this is root.
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

/// A text that no line may hold.
fn secret() -> String {
    format!("sekret{}", uuid::Uuid::new_v4().simple())
}

/// Panics if a program told the secret.
fn is_kept(secret: &str, told: &[String]) {
    let leaks: Vec<_> = told.iter().filter(|line| line.to_lowercase().contains(secret)).collect();
    assert!(leaks.is_empty(), "a secret is told: {leaks:#?}");
}

#[tokio::test]
async fn no_part_of_a_url_is_logged_while_nobody_answers() {
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
        let mut told = Vec::new();
        for arguments in [&["doctor"][..], &["doctor", "--json"], &["config"]] {
            let output = deploy.admin(arguments).await;
            told.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
        }
        for program in ["web", "worker", "clock"] {
            let mut process = deploy.start(program);
            process.says(if program == "clock" { "cannot check the schedule" } else { "not ready: postgres" }).await;
            process.terminate().await;
            told.extend([process.lines(), process.errors()].concat());
        }
        is_kept(&s, &told);
    }
}

#[tokio::test]
async fn no_secret_part_of_a_url_is_logged_while_they_answer() {
    let s = secret();
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
    let with_password = |name: &str| deploy.environment[name].replacen("://", &format!("://{s}:{s}@"), 1);
    // Parameters that mean something, and some that do not.
    let database = format!("{}?sslpassword={s}&sslrootcert=%2F{s}&options=-capp.name%3D{s}", deploy.environment["DATABASE_URL"]);
    let deploy = deploy.clone_with("DATABASE_URL", database).with("SMTP_URL", with_password("SMTP_URL"));
    let (mut web, mut worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::stranger(&web);
    assert_eq!(ada.sign_up().await.status(), 202);
    // The sink knows no passwords.
    let failed = worker.logged("the mail's failure", |line| line["outcome"] == "failed").await;
    assert!(failed["error"].as_str().unwrap().contains("at Auth"), "{failed}");
    web.process.terminate().await;
    worker.terminate().await;
    is_kept(&s, &[web.process.lines(), web.process.errors(), worker.lines(), worker.errors()].concat());

    let mut refused = deploy.clone_with("REDIS_URL", with_password("REDIS_URL")).web_unready().await;
    refused.process.says("not ready: redis").await;
    refused.process.terminate().await;
    is_kept(&s, &[refused.process.lines(), refused.process.errors()].concat());
}

#[tokio::test]
async fn no_part_of_a_refused_url_is_told() {
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
        is_kept(&s, &[problem_with(variable, &url).await]);
    }
}

/// A `REDIS_URL` with a parameter that means nothing is none that stops a start; nor does any other deploy's oddity.
#[tokio::test]
async fn deploy_with_odd_but_good_urls_serves() {
    let deploy = Deploy::new().await;
    let odd = |name: &str, end: &str| format!("{}{end}", deploy.environment[name]);
    let deploy =
        deploy.clone_with("DATABASE_URL", odd("DATABASE_URL", "?connect_timeout=10")).with("REDIS_URL", odd("REDIS_URL", "?family=4"));
    let deploy = deploy.clone_with("SMTP_URL", odd("SMTP_URL", "/"));
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    Person::verified(&deploy, &web).await;
    eventually("ready", async || (web.get("/readyz").await.json::<Value>().await.unwrap()["ready"] == true).then_some(())).await;
}
