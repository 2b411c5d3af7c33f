//! API tokens, admins, and the audit trail.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::Row;

use crate::support::deploy::Web;
use crate::support::person::{Person, problem};
use crate::support::{Deploy, eventually};

async fn token(person: &Person, scopes: &[&str]) -> Value {
    let answer = person.post("/tokens", json!({ "name": "a script", "scopes": scopes, "expires_in_days": 1 })).await;
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    answer.json().await.unwrap()
}

async fn with(web: &Web, token: &Value, method: Method, path: &str) -> Response {
    let request = Person::stranger(web).client.request(method, format!("{}/api/v1{path}", web.url));
    request.bearer_auth(token["secret"].as_str().unwrap()).send().await.unwrap()
}

#[tokio::test]
async fn token_is_shown_once_scoped_and_revocable() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let read = token(&ada, &["tokens:read"]).await;
    assert!(read["secret"].as_str().unwrap().starts_with("pat_"));
    assert_eq!(with(&web, &read, Method::GET, "/tokens").await.status(), 200);
    let path = format!("/tokens/{}", read["id"].as_str().unwrap());
    let refused = with(&web, &read, Method::DELETE, &path).await;
    assert_eq!(refused.headers()["www-authenticate"], "Bearer error=\"insufficient_scope\"");
    problem(refused, 403, "insufficient-scope").await;
    problem(with(&web, &read, Method::GET, "/session").await, 403, "insufficient-scope").await;

    let list: Value = ada.get("/tokens").await.json().await.unwrap();
    assert_eq!((&list["items"][0]["name"], &list["items"][0]["secret"]), (&json!("a script"), &Value::Null));
    let stored = sqlx::query("SELECT encode(token_hash, 'escape') FROM api_tokens").fetch_one(&mut deploy.database().await).await.unwrap();
    assert!(!stored.get::<String, _>(0).contains(read["secret"].as_str().unwrap()));

    let (write, other) = (token(&ada, &["tokens:write"]).await, token(&ada, &["tokens:read"]).await);
    // Without Origin and Sec-Fetch-Site, because a client with a token is not a browser.
    let other_path = format!("/tokens/{}", other["id"].as_str().unwrap());
    assert_eq!(with(&web, &write, Method::DELETE, &other_path).await.status(), 204);
    problem(with(&web, &other, Method::GET, "/tokens").await, 401, "unauthenticated").await;

    assert_eq!(ada.delete(&path).await.status(), 204);
    problem(ada.delete(&path).await, 404, "not-found").await;
    let ended = with(&web, &read, Method::GET, "/tokens").await;
    assert_eq!(ended.headers()["www-authenticate"], "Bearer");
    problem(ended, 401, "unauthenticated").await;
    sqlx::query("UPDATE api_tokens SET expires_at = now()").execute(&mut deploy.database().await).await.unwrap();
    problem(with(&web, &write, Method::DELETE, "/tokens/0199d5b5-0000-7000-8000-000000000000").await, 401, "unauthenticated").await;
}

#[tokio::test]
async fn token_works_without_redis() {
    let deploy = Deploy::new().await;
    let proxy = crate::support::Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let deploy = deploy.with("REDIS_URL", url);
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let read = token(&ada, &["tokens:read"]).await;
    proxy.cut();
    assert_eq!(with(&web, &read, Method::GET, "/tokens").await.status(), 200);
    problem(ada.get("/tokens").await, 503, "unavailable").await;
}

#[tokio::test]
async fn suspension_blocks_sessions_and_tokens_until_restored() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, root) = tokio::join!(Person::known(&deploy, &web), Person::unverified(&web));
    let read = token(&ada, &["tokens:read"]).await;
    assert!(deploy.admin(&["account", "grant", &root.email, "admin"]).await.status.success());
    eventually("the role", async || {
        root.log_in().await;
        (root.get("/admin/accounts").await.status() == 200).then_some(())
    })
    .await;
    let page: Value = root.get("/admin/accounts?limit=1").await.json().await.unwrap();
    let next = page["next"].as_str().unwrap();
    let rest: Value = root.get(&format!("/admin/accounts?cursor={next}")).await.json().await.unwrap();
    let all: Vec<_> = page["items"].as_array().unwrap().iter().chain(rest["items"].as_array().unwrap()).collect();
    assert_eq!(all.len(), 2);
    let id = all.iter().find(|account| account["email"] == ada.email.as_str()).unwrap()["id"].as_str().unwrap().to_owned();

    assert_eq!(root.post(&format!("/admin/accounts/{id}/suspend"), json!({})).await.status(), 204);
    problem(ada.get("/session").await, 401, "unauthenticated").await;
    problem(with(&web, &read, Method::GET, "/tokens").await, 401, "unauthenticated").await;
    problem(ada.log_in().await, 401, "wrong-credentials").await;
    assert_eq!(root.post(&format!("/admin/accounts/{id}/restore"), json!({})).await.status(), 204);
    assert_eq!(with(&web, &read, Method::GET, "/tokens").await.status(), 200);
    assert_eq!(ada.log_in().await.status(), 200);
    let mine = all.iter().find(|account| account["email"] == root.email.as_str()).unwrap()["id"].as_str().unwrap().to_owned();
    problem(root.post(&format!("/admin/accounts/{mine}/suspend"), json!({})).await, 409, "own-account").await;
    let nobody = "/admin/accounts/0199d5b5-0000-7000-8000-000000000000/suspend";
    problem(root.post(nobody, json!({})).await, 404, "not-found").await;

    ada.post("/session", json!({ "email": ada.email, "password": "not the right password" })).await;
    ada.post("/session", json!({ "email": "nobody@example.com", "password": "not the right password" })).await;
    let trail = "SELECT action, account_id::text, request_id IS NOT NULL, address FROM audit_events ORDER BY id";
    let trail = sqlx::query(trail).fetch_all(&mut deploy.database().await).await.unwrap();
    let of_ada: Vec<String> =
        trail.iter().filter(|row| row.get::<Option<String>, _>(1).as_ref() == Some(&id)).map(|row| row.get(0)).collect();
    assert_eq!(of_ada, ["sign_up", "log_in", "token_created", "suspended", "log_in_failed", "restored", "log_in", "log_in_failed"]);
    let last = trail.last().unwrap();
    assert_eq!((last.get::<String, _>(0), last.get::<Option<String>, _>(1)), ("log_in_failed".to_owned(), None));
    let granted = trail.iter().find(|row| row.get::<String, _>(0) == "role_changed").unwrap();
    assert!(!granted.get::<bool, _>(2), "an operator's action has no request");
    let others = trail.iter().filter(|row| row.get::<String, _>(0) != "role_changed");
    assert!(others.into_iter().all(|row| row.get::<bool, _>(2) && row.get::<String, _>(3) == "127.0.0.1"));
}

/// A password reset ends the token.
#[tokio::test]
async fn token_needs_verified_address_and_known_scopes() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let eve = Person::unverified(&web).await;
    let body = json!({ "name": "before the owner came", "scopes": ["tokens:read"], "expires_in_days": 366 });
    problem(eve.post("/tokens", body.clone()).await, 403, "email-not-verified").await;

    let ada = Person::known(&deploy, &web).await;
    let unknown =
        problem(ada.post("/tokens", json!({ "name": "x", "scopes": ["admin"], "expires_in_days": 1 })).await, 422, "invalid-input").await;
    assert!(unknown["errors"][0]["detail"].as_str().unwrap().contains("tokens:read, tokens:write"), "{unknown}");
    let read = token(&ada, &["tokens:read"]).await;
    ada.post("/password-resets", json!({ "email": ada.email })).await;
    let link = deploy.mail.to(&ada.email, "Set a new password").await.token();
    let reset = json!({ "token": link, "password": "another password altogether" });
    assert_eq!(ada.post("/password-resets/redeem", reset).await.status(), 204);
    problem(with(&web, &read, Method::GET, "/tokens").await, 401, "unauthenticated").await;
}
