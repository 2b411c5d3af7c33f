//! Sensitive requests need a recent confirmation by password, so that a stolen session is not enough to take over an account.

use deadpool_redis::redis::{AsyncCommands, cmd};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::person::{PASSWORD, Person, problem};

/// Makes the confirmation of every session this many minutes older.
async fn minutes_pass(deploy: &Deploy, minutes: i64) {
    let mut redis = deploy.redis().await;
    for key in cmd("KEYS").arg("session:*").query_async::<Vec<String>>(&mut redis).await.unwrap() {
        let data: String = redis.get(&key).await.unwrap();
        let mut session: Value = serde_json::from_str(&data).unwrap();
        let at: jiff::Timestamp = session["confirmed_at"].as_str().unwrap().parse().unwrap();
        session["confirmed_at"] = json!(at - jiff::SignedDuration::from_mins(minutes));
        redis.set_ex::<_, _, ()>(&key, session.to_string(), 600).await.unwrap();
    }
}

/// The requests that need a confirmed session. The last one ends it.
fn requests() -> [(Method, &'static str, Value); 3] {
    [
        (Method::PATCH, "/account", json!({ "email": "eve@example.org" })),
        (Method::POST, "/tokens", json!({ "name": "for later", "scopes": ["tokens:read"], "expires_in_days": 366 })),
        (Method::DELETE, "/account", json!({})),
    ]
}

async fn ask(person: &Person, (method, path, body): (Method, &str, Value)) -> Response {
    person.request(method, path).json(&body).send().await.unwrap()
}

async fn confirm(person: &Person, password: &str) -> Response {
    person.post("/session/confirm", json!({ "password": password })).await
}

#[tokio::test]
async fn stolen_session_cannot_take_over_account() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let phone = ada.elsewhere();
    phone.log_in().await;
    minutes_pass(&deploy, 11).await;
    for request in requests() {
        let refusal = problem(ask(&ada, request).await, 403, "confirmation-required").await;
        assert!(refusal["detail"].as_str().unwrap().contains("/session/confirm"), "{refusal}");
    }
    let me: Value = ada.get("/session").await.json().await.unwrap();
    assert_eq!((&me["email"], &me["new_email"]), (&json!(ada.email), &Value::Null), "other requests need no confirmation");

    problem(confirm(&ada, "not the right password").await, 403, "wrong-password").await;
    problem(ask(&ada, requests()[1].clone()).await, 403, "confirmation-required").await;
    assert_eq!(confirm(&ada, PASSWORD).await.status(), StatusCode::NO_CONTENT);
    problem(ask(&phone, requests()[1].clone()).await, 403, "confirmation-required").await;
    let answers = [200, 201, 204];
    for (request, status) in requests().into_iter().zip(answers) {
        assert_eq!(ask(&ada, request).await.status(), status);
    }
    assert_eq!(phone.get("/session").await.status(), 401);
    let trail = sqlx::query_scalar::<_, String>("SELECT action FROM audit_events WHERE action LIKE 'confirm%' ORDER BY id");
    assert_eq!(trail.fetch_all(&mut deploy.database().await).await.unwrap(), ["confirmation_failed", "confirmed"]);
}

#[tokio::test]
async fn log_in_confirms_for_ten_minutes() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    minutes_pass(&deploy, 9).await;
    assert_eq!(ask(&ada, requests()[1].clone()).await.status(), 201);
    minutes_pass(&deploy, 1).await;
    problem(ask(&ada, requests()[1].clone()).await, 403, "confirmation-required").await;
    ada.log_in().await;
    assert_eq!(ask(&ada, requests()[1].clone()).await.status(), 201);
}

#[tokio::test]
async fn confirmation_cannot_renew_an_ended_session() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    // The session ends after `find` has read it and before `confirm` writes it.
    let mut connection = deploy.database().await;
    let mut held = sqlx::Connection::begin(&mut connection).await.unwrap();
    sqlx::query("LOCK TABLE audit_events").execute(&mut *held).await.unwrap();
    let asking = tokio::spawn(ada.request(Method::POST, "/session/confirm").json(&json!({ "password": PASSWORD })).send());
    deploy.waits_for_a_lock().await;
    let mut redis = deploy.redis().await;
    cmd("FLUSHDB").query_async::<()>(&mut redis).await.unwrap();
    held.rollback().await.unwrap();
    asking.await.unwrap().unwrap();
    assert_eq!(ada.get("/session").await.status(), 401);
}

#[tokio::test]
async fn confirmation_counts_against_log_in_limit() {
    // One attempt becomes available every half minute.
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 2);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    // The sign-up and the log-in used both attempts.
    problem(confirm(&ada, "a guess at a password").await, 429, "too-many-requests").await;
    assert_eq!(ada.get("/session").await.status(), 200);
}

#[tokio::test]
async fn new_token_and_deletion_send_notices() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    assert_eq!(ask(&ada, requests()[1].clone()).await.status(), 201);
    deploy.mail.to(&ada.email, "An API token was created").await;
    assert_eq!(ask(&ada, requests()[2].clone()).await.status(), 204);
    deploy.mail.to(&ada.email, "Your account was deleted").await;
}
