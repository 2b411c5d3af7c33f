//! The limit of mails per recipient, and requests that send mail or try secrets while Redis cannot count them.

use serde_json::{Value, json};

use crate::support::clients::get;
use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, Proxy, eventually, free_port};

async fn count(deploy: &Deploy, from: &str) -> i64 {
    let count = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {from}")));
    count.fetch_one(&mut deploy.database().await).await.unwrap()
}

/// Waits until every job has ended, and counts the mails to an address.
async fn mails_to(deploy: &Deploy, email: &str) -> usize {
    eventually("an empty queue", async || (count(deploy, "jobs").await == 0).then_some(())).await;
    deploy.mail.all().await.iter().filter(|mail| mail.to == [email]).count()
}

#[tokio::test]
async fn recipient_gets_three_mails_of_a_kind_per_hour() {
    let deploy = Deploy::new().await.with("METRICS_PORT", free_port());
    let web = deploy.clone().without("METRICS_PORT").web().await;
    let _worker = deploy.start("worker");
    let ada = Person::verified(&deploy, &web).await;
    let eve = Person::stranger(&web);
    for number in 0..10 {
        let email = if number % 2 == 0 { ada.email.clone() } else { ada.email.to_uppercase() };
        assert_eq!(eve.post("/password-resets", json!({ "email": email })).await.status(), 202, "the response reveals nothing");
        assert_eq!(eve.post("/accounts", json!({ "email": email, "password": PASSWORD })).await.status(), 202);
    }
    // The link to verify her address, three links to set a password, and three notices of a sign-up.
    assert_eq!(mails_to(&deploy, &ada.email).await, 7);
    let metrics = get(format!("http://127.0.0.1:{}/metrics", deploy.environment["METRICS_PORT"])).await.unwrap().text().await.unwrap();
    let held = metrics.lines().find(|line| line.contains("held_back")).unwrap_or_else(|| panic!("no metric: {metrics}"));
    assert!(!held.ends_with(" 0"), "{held}");

    // Other recipients get their mail, and the owner gets notices of her own actions.
    let grace = Person::unverified(&web).await;
    deploy.mail.to(&grace.email, "Did you sign up?").await;
    let change = json!({ "old": PASSWORD, "new": "another password altogether" });
    assert_eq!(ada.post("/account/password", change).await.status(), 204);
    deploy.mail.to(&ada.email, "Your password was changed").await;
    assert_eq!(mails_to(&deploy, &ada.email).await, 8);

    // An hour later she gets mail again.
    sqlx::query("UPDATE mails SET at = at - interval '1 hour'").execute(&mut deploy.database().await).await.unwrap();
    assert_eq!(ada.request_reset().await.status(), 202);
    assert_eq!(mails_to(&deploy, &ada.email).await, 9);
}

#[tokio::test]
async fn retried_mail_counts_once() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    // The sink refuses this address temporarily.
    let ada = Person { email: "later-450@refuse.example".to_owned(), ..Person::stranger(&web) };
    ada.sign_up().await;
    for attempt in 1..=4 {
        worker.logged("a failure", |line| line["attempt"] == attempt && line["outcome"] == "failed").await;
        // The failure is logged a moment before the job is released.
        let again = "UPDATE jobs SET run_at = now() WHERE token IS NULL AND attempt = $1";
        eventually("the next attempt", async || {
            let moved = sqlx::query(again).bind(attempt).execute(&mut deploy.database().await).await.unwrap();
            (moved.rows_affected() == 1).then_some(())
        })
        .await;
    }
    assert_eq!(count(&deploy, "mails").await, 1);
}

#[tokio::test]
async fn owner_over_mail_limit_gets_429() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    for number in 1..3 {
        assert_eq!(mails_to(&deploy, &ada.email).await, number);
        assert_eq!(ada.post("/email-verifications", json!({})).await.status(), 202);
    }
    assert_eq!(mails_to(&deploy, &ada.email).await, 3);
    let refused = ada.post("/email-verifications", json!({})).await;
    assert!(refused.headers().contains_key("retry-after"));
    problem(refused, 429, "too-many-requests").await;
}

#[tokio::test]
async fn redis_outage_blocks_mails_and_guesses() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let deploy = deploy.with("REDIS_URL", url);
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let (jobs, accounts) = (count(&deploy, "jobs").await, count(&deploy, "accounts").await);
    proxy.cut();
    let eve = Person::stranger(&web);
    for (path, body) in [
        ("/accounts", json!({ "email": eve.email, "password": PASSWORD })),
        ("/session", json!({ "email": ada.email, "password": PASSWORD })),
        ("/password-resets", json!({ "email": ada.email })),
        ("/password-resets/redeem", json!({ "token": "x", "password": PASSWORD })),
        ("/email-verifications/redeem", json!({ "token": "x", "password": PASSWORD })),
        ("/email-changes/undo", json!({ "token": "x" })),
    ] {
        problem(eve.post(path, body).await, 503, "unavailable").await;
    }
    for page in ["/verify", "/reset", "/undo"] {
        let pressed = eve.press(&web, page, &[("token", "x"), ("password", PASSWORD)]).await;
        assert_eq!(pressed.status(), 503, "{page}");
        assert_eq!(web.get(&format!("{page}?token=x")).await.status(), 200, "opening the page is not limited");
    }
    assert_eq!((count(&deploy, "jobs").await, count(&deploy, "accounts").await), (jobs, accounts));
    assert_eq!(count(&deploy, "audit_events WHERE action = 'log_in_failed'").await, 0);
}

#[tokio::test]
async fn unknown_token_costs_no_password_hash() {
    if !std::path::Path::new("/proc/self/stat").exists() {
        println!("skipped: needs /proc");
        return;
    }
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let eve = Person::stranger(&web);
    // Measured in the process's CPU time, which does not depend on the machine's load.
    let cost = async |path: &str, body: Value| {
        let before = web.process.cpu_ticks();
        for _ in 0..20 {
            assert!(eve.post(path, body.clone()).await.status().is_client_error());
        }
        web.process.cpu_ticks() - before
    };
    let hashes = cost("/session", json!({ "email": eve.email, "password": PASSWORD })).await;
    for path in ["/password-resets/redeem", "/email-verifications/redeem"] {
        let none = cost(path, json!({ "token": "unknown", "password": PASSWORD })).await;
        assert!(hashes > 0 && none * 3 < hashes, "{path} costs {none} ticks, a hash {hashes}");
    }
}
