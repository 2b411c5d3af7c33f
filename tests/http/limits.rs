//! Limits of requests by address and account, of concurrent requests, and of passwords.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, Proxy, eventually};

/// All processes share one count.
#[tokio::test]
async fn log_ins_are_limited_by_client_address() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 4).with("TRUSTED_PROXIES", 1);
    let (one, two) = (deploy.web().await, deploy.web().await);
    let eve = Person::stranger(&one);
    let there = eve.at(&two);
    let guess = async |person: &Person, from: &str| {
        let body = json!({ "email": "ada@example.com", "password": "a guess at a password" });
        person.request(Method::POST, "/session").header("x-forwarded-for", from).json(&body).send().await.unwrap()
    };
    for _ in 0..2 {
        problem(guess(&eve, "192.0.2.1").await, 401, "wrong-credentials").await;
        problem(guess(&there, "6.6.6.6, 192.0.2.1").await, 401, "wrong-credentials").await;
    }
    let refused = guess(&eve, "7.7.7.7, 192.0.2.1").await;
    let wait: u32 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=15).contains(&wait), "at most a quarter of a minute: {wait}");
    assert_eq!(refused.headers()["ratelimit-policy"], "\"minute\";q=4;w=60");
    assert!(refused.headers()["ratelimit"].to_str().unwrap().starts_with("\"minute\";r=0;t="));
    problem(refused, 429, "too-many-requests").await;
    problem(guess(&there, "192.0.2.1").await, 429, "too-many-requests").await;
    problem(guess(&eve, "192.0.2.2").await, 401, "wrong-credentials").await;
    assert_eq!(there.get("/session").await.status(), 401, "other requests have their own limit");
}

#[tokio::test]
async fn requests_are_limited_by_account() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 30);
    let web = deploy.web().await;
    let (ada, eve) = (Person::known(&deploy, &web).await, Person::unverified(&web).await);
    let body = json!({ "name": "test", "scopes": ["tokens:read"], "expires_in_days": 1 });
    let token = ada.post("/tokens", body).await.json::<Value>().await.unwrap()["secret"].as_str().unwrap().to_owned();
    let mut left = Vec::new();
    let refused = loop {
        let answer = ada.get("/session").await;
        if answer.status() != 200 {
            break answer;
        }
        let text = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
        left.push(text.split("r=").nth(1).unwrap().split(';').next().unwrap().parse::<u32>().unwrap());
        assert!(left.len() < 60, "no limit: {left:?}");
    };
    problem(refused, 429, "too-many-requests").await;
    assert_eq!(left[0], 28, "creating the token used one of the thirty: {left:?}");
    assert!(left.windows(2).all(|pair| pair[1] <= pair[0]), "{left:?}");
    assert_eq!(eve.get("/session").await.status(), 200, "another account has its own bucket");
    let by_token = Person::stranger(&web).request(Method::GET, "/tokens").bearer_auth(&token).send().await.unwrap();
    problem(by_token, 429, "too-many-requests").await;
    // A log-in still works, but its session shares the account's limit.
    let elsewhere = ada.elsewhere();
    assert_eq!(elsewhere.log_in().await.status(), 200);
    problem(elsewhere.get("/session").await, 429, "too-many-requests").await;
}

#[tokio::test]
async fn clock_of_redis_set_back_locks_nobody_out() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let id = ada.get("/session").await.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    // As if the server's clock had been an hour ahead.
    let script = "local now = redis.call('TIME') return redis.call('SET', KEYS[1], (now[1] + 3600) .. '000000')";
    let key = format!("limit:account:{id}");
    let set: String = deadpool_redis::redis::cmd("EVAL").arg(script).arg(1).arg(&key).query_async(&mut deploy.redis().await).await.unwrap();
    assert_eq!(set, "OK");
    assert_eq!(ada.get("/session").await.status(), 200);
}

#[tokio::test]
async fn forged_credentials_are_limited_by_address() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 10);
    let web = deploy.web().await;
    let eve = Person::stranger(&web);
    for number in 0..5 {
        let with_cookie = eve.request(Method::GET, "/session").header("cookie", format!("id=forged-{number}")).send().await.unwrap();
        problem(with_cookie, 401, "unauthenticated").await;
        let with_token = eve.request(Method::GET, "/tokens").bearer_auth(format!("pat_forged-{number}")).send().await.unwrap();
        problem(with_token, 401, "unauthenticated").await;
    }
    let with_cookie = eve.request(Method::GET, "/session").header("cookie", "id=forged-again").send().await.unwrap();
    problem(with_cookie, 429, "too-many-requests").await;
}

#[tokio::test]
async fn forwarded_header_cannot_evade_the_limit() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 3);
    let web = deploy.web().await;
    let eve = Person::stranger(&web);
    let body = json!({ "email": "ada@example.com" });
    for number in 0..3 {
        let from = format!("192.0.2.{number}");
        let answer = eve.request(Method::POST, "/password-resets").header("x-forwarded-for", from).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
    }
    let answer = eve.request(Method::POST, "/password-resets").header("x-forwarded-for", "192.0.2.9").json(&body).send().await.unwrap();
    problem(answer, 429, "too-many-requests").await;
}

#[tokio::test]
async fn redis_outage_allows_only_harmless_requests() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 3);
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let web = deploy.with("REDIS_URL", url).web().await;
    let ada = Person::unverified(&web).await;
    proxy.cut();
    problem(ada.log_in().await, 503, "unavailable").await;
    let guess = json!({ "email": ada.email, "password": "a guess at a password" });
    problem(ada.post("/session", guess).await, 503, "unavailable").await;
    // Requests that send mail or try secrets are rejected while they cannot be counted.
    problem(Person::stranger(&web).sign_up().await, 503, "unavailable").await;
    problem(ada.request_reset().await, 503, "unavailable").await;
    for _ in 0..5 {
        problem(Person::stranger(&web).get("/session").await, 401, "unauthenticated").await;
    }
    let is_warning = |line: &Value| line["message"].as_str().unwrap().contains("are not rate limited");
    web.process.logged("that there is no limit", is_warning).await;
    assert_eq!(web.process.log().iter().filter(|line| is_warning(line)).count(), 1);
}

#[tokio::test]
async fn overload_is_503_while_probes_answer() {
    let deploy = Deploy::new().await.with("REQUEST_TIMEOUT", "20s").with("RATE_LIMIT_REQUESTS", 1_000_000);
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let mut database = deploy.database().await;
    let mut lock = sqlx::Connection::begin(&mut database).await.unwrap();
    sqlx::query("LOCK TABLE api_tokens").execute(&mut *lock).await.unwrap();
    let answers = futures_util::future::join_all((0..600).map(|_| ada.get("/tokens")));
    let (answers, ()) = tokio::join!(answers, async {
        web.process.logged("the first refusal", |line| line["status"] == 503).await;
        assert_eq!(web.get("/livez").await.status(), 200);
        // Six hundred requests at once overload a small machine for a moment, but cannot block a probe.
        eventually("readiness", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
        lock.rollback().await.unwrap();
    });
    let mut overloaded = 0;
    for answer in answers.into_iter().filter(|answer| answer.status() == 503) {
        assert_eq!(answer.headers()["retry-after"], "1");
        overloaded += usize::from(answer.json::<Value>().await.unwrap()["type"] == "/problems/overloaded");
    }
    assert!((1..=88).contains(&overloaded), "512 of 600 requests run concurrently: {overloaded} were rejected");
    assert_eq!(ada.get("/tokens").await.status(), 200);
}

#[tokio::test]
async fn highest_limit_refuses_no_request() {
    // The limit is so high that a request's share of a minute rounds to zero.
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", u32::MAX);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    for _ in 0..10 {
        assert_eq!(ada.get("/session").await.status(), 200);
    }
}

/// A password of the greatest length is not truncated.
#[tokio::test]
async fn sign_up_rejects_weak_and_overlong_passwords() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let eve = Person::stranger(&web);
    let sign_up = async |password: &str| eve.post("/accounts", json!({ "email": eve.email, "password": password })).await.status().as_u16();
    let long = |length: usize| format!("{PASSWORD:é<length$}");
    for (password, status) in [
        ("qwertyqwerty", 422),
        ("PASSWORD1234", 422),
        ("letmeinletmein", 422),
        (&"é".repeat(256), 422),
        ("localhost 2026", 422),
        (&format!("{} 1", eve.email), 422),
        ("c7!Wq-x", 422),
        (&long(257), 422),
        (&long(256), 202),
    ] {
        assert_eq!(sign_up(password).await, status, "{password}");
    }
    let log_in = async |password: String| eve.post("/session", json!({ "email": eve.email, "password": password })).await.status().as_u16();
    assert_eq!(log_in(long(255)).await, 401);
    assert_eq!(log_in(long(256)).await, 200);
}
