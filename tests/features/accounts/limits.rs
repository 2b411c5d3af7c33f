//! Limits of one account: its requests, by session or token, and its tokens.

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncCommands, cmd};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::deploy::Web;
use crate::support::person::{Person, problem};
use crate::support::{Deploy, Proxy};

async fn mint(person: &Person) -> Response {
    person.post("/tokens", json!({ "name": "test", "scopes": ["tokens:read"], "expires_in_days": 1 })).await
}

async fn by_token(web: &Web, token: &str) -> Response {
    Person::stranger(web).request(Method::GET, "/tokens").bearer_auth(token).send().await.unwrap()
}

/// How many requests remain.
fn left(answer: &Response) -> u32 {
    let text = answer.headers()["ratelimit"].to_str().unwrap();
    text.split("r=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn sessions_and_tokens_share_one_limit() {
    // The limit is so low that Redis keeps a bucket for half a minute after one request.
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 2);
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let phone = ada.elsewhere();
    phone.log_in().await;
    let token = mint(&ada).await.json::<Value>().await.unwrap()["secret"].as_str().unwrap().to_owned();
    // Find the one bucket that counts requests of the session.
    let mut redis = deploy.redis().await;
    let buckets =
        async |mut redis: MultiplexedConnection| cmd("KEYS").arg("limit:account:*").query_async::<Vec<String>>(&mut redis).await.unwrap();
    for bucket in buckets(redis.clone()).await {
        redis.del::<_, ()>(bucket).await.unwrap();
    }
    assert_eq!(ada.get("/session").await.status(), 200);
    let [bucket] = buckets(redis.clone()).await.try_into().unwrap();
    // Empty it as far as it goes, so that no request becomes available for half a minute, even on a slow machine.
    let (now, _): (u64, u64) = cmd("TIME").query_async(&mut redis).await.unwrap();
    redis.set_ex::<_, _, ()>(bucket, (now + 59) * 1_000_000, 60).await.unwrap();
    for answer in [ada.get("/session").await, phone.get("/session").await, by_token(&web, &token).await] {
        assert_eq!(left(&answer), 0);
        problem(answer, 429, "too-many-requests").await;
    }
    let other = ada.elsewhere();
    assert_eq!(other.log_in().await.status(), 200);
    problem(other.get("/session").await, 429, "too-many-requests").await;
    let eve = Person::unverified(&web).await;
    assert_eq!(eve.get("/session").await.status(), 200, "another account has its own limit");
}

#[tokio::test]
async fn account_holds_at_most_fifty_tokens() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let insert = "INSERT INTO api_tokens (id, token_hash, account_id, name, scopes, expires_at)
        SELECT gen_random_uuid(), n::text::bytea, id, 'test', '{}', now() + (n - 1) * interval '1 day' FROM accounts, generate_series(1, 50) n";
    sqlx::query(insert).execute(&mut deploy.database().await).await.unwrap();
    // The first has expired and does not count.
    let made: Value = mint(&ada).await.json().await.unwrap();
    problem(mint(&ada).await, 409, "too-many-tokens").await;
    assert_eq!(ada.delete(&format!("/tokens/{}", made["id"].as_str().unwrap())).await.status(), 204);
    let answers = futures_util::future::join_all((0..4).map(|_| mint(&ada))).await;
    let mut answers: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [201, 409, 409, 409], "concurrent requests cannot exceed the limit");
}

#[tokio::test]
async fn malformed_bearer_costs_no_query() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let url = deploy.through("DATABASE_URL", &proxy);
    let web = deploy.with("DATABASE_URL", url).web().await;
    let unknown = format!("pat_{}", "A".repeat(43));
    problem(by_token(&web, &unknown).await, 401, "unauthenticated").await;
    proxy.cut();
    // A well-formed token is looked up, which now fails. A malformed one is not.
    problem(by_token(&web, &unknown).await, 503, "unavailable").await;
    for garbage in ["x", "pat_", "pat_short", &"A".repeat(47), &format!("pat_{}", "A".repeat(44)), &format!("pat_{}", "!".repeat(43))] {
        problem(by_token(&web, garbage).await, 401, "unauthenticated").await;
    }
}

#[tokio::test]
async fn token_reports_its_last_use() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let made: Value = mint(&ada).await.json().await.unwrap();
    assert_eq!(made["last_used_at"], Value::Null);
    let used = async || {
        let list: Value = ada.get("/tokens").await.json().await.unwrap();
        list["items"][0]["last_used_at"].clone()
    };
    assert_eq!(used().await, Value::Null, "reading the list does not count as a use");
    let token = made["secret"].as_str().unwrap();
    assert_eq!(by_token(&web, token).await.status(), 200);
    let first = used().await;
    assert!(first.as_str().unwrap().parse::<jiff::Timestamp>().unwrap() >= made["created_at"].as_str().unwrap().parse().unwrap());
    assert_eq!(by_token(&web, token).await.status(), 200);
    assert_eq!(used().await, first, "within a minute the time is not updated");
    let age = "UPDATE api_tokens SET last_used_at = last_used_at - interval '61 seconds'";
    sqlx::query(age).execute(&mut deploy.database().await).await.unwrap();
    assert_eq!(by_token(&web, token).await.status(), 200);
    assert!(used().await.as_str() >= first.as_str());
    let refused = Person::stranger(&web).request(Method::DELETE, "/tokens/0199d5b5-0000-7000-8000-000000000000").bearer_auth(token);
    assert_eq!(refused.send().await.unwrap().status(), 403);
}
