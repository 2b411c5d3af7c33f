//! Requests and responses of reminders: pages, concurrent changes, idempotency, invalid input.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{in_seconds, remind};
use crate::support::openapi::Contract;
use crate::support::person::{Person, problem};
use crate::support::{Deploy, Proxy, eventually};

#[tokio::test]
async fn reminder_responses_match_the_document() {
    let (deploy, contract) = (Deploy::new().await, Contract::committed());
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let body = json!({ "message": "as written", "due_at": in_seconds(600) });
    let made = contract.holds(&ada, "", (Method::POST, "/reminders", Some(body), "201")).await;
    let id = made["id"].as_str().unwrap();
    for request in [
        (Method::GET, "/reminders", None, "200"),
        (Method::GET, "/reminders/{id}", None, "200"),
        (Method::PATCH, "/reminders/{id}", Some(json!({ "message": "changed" })), "200"),
    ] {
        contract.holds(&ada, id, request).await;
    }
}

#[tokio::test]
async fn list_pages_are_ordered_by_time() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let same_time = in_seconds(1000);
    for message in ["b", "c", "d"] {
        ada.post("/reminders", json!({ "message": message, "due_at": same_time })).await;
    }
    remind(&ada, "e", 2000).await;
    remind(&ada, "a", 500).await;
    let (mut messages, mut path) = (Vec::new(), "/reminders?limit=2".to_owned());
    loop {
        let page: Value = ada.get(&path).await.json().await.unwrap();
        messages.extend(page["items"].as_array().unwrap().iter().map(|item| item["message"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/reminders?limit=2&cursor={next}");
    }
    assert_eq!(messages, ["a", "b", "c", "d", "e"]);
    problem(ada.get("/reminders?limit=0").await, 422, "invalid-input").await;
    problem(ada.get("/reminders?limit=many").await, 422, "invalid-input").await;
    problem(ada.get("/reminders?cursor=nonsense").await, 422, "invalid-input").await;
    // A well-formed cursor with a time before Postgres's earliest.
    let before_all = "WyItMDA5OTk5LTAxLTAyVDAxOjU5OjU5WiIsIjAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCJd";
    problem(ada.get(&format!("/reminders?cursor={before_all}")).await, 422, "invalid-input").await;
}

#[tokio::test]
async fn list_links_to_its_next_page() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    for seconds in [1000, 2000, 3000] {
        remind(&ada, "x", seconds).await;
    }
    let first = ada.get("/reminders?limit=2").await;
    let link = first.headers()["link"].to_str().unwrap().to_owned();
    let next = first.json::<Value>().await.unwrap()["next"].as_str().unwrap().to_owned();
    assert_eq!(link, format!("</api/v1/reminders?limit=2&cursor={next}>; rel=\"next\""));
    let last = ada.get(link.split(['<', '>']).nth(1).unwrap().trim_start_matches("/api/v1")).await;
    assert!(!last.headers().contains_key("link"));
    assert_eq!(last.json::<Value>().await.unwrap()["items"].as_array().unwrap().len(), 1);
    assert!(!ada.get("/reminders").await.headers().contains_key("link"), "a page holds twenty items by default");
}

#[tokio::test]
async fn lost_update_is_412() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let created = remind(&ada, "first", 3600).await;
    let read = created.headers()["etag"].clone();
    let path = created.headers()["location"].to_str().unwrap().replace("/api/v1", "");
    assert_eq!(ada.get(&path).await.headers()["etag"], read);
    let with = |method, etag: &str| ada.request(method, &path).header("if-match", etag).json(&json!({ "message": "second" })).send();
    let changed = with(Method::PATCH, read.to_str().unwrap()).await.unwrap();
    assert_eq!(changed.status(), 200);
    let now = changed.headers()["etag"].clone();
    assert_ne!(now, read);
    for etag in [read.to_str().unwrap(), "\"nonsense\"", "W/\"1\""] {
        problem(with(Method::PATCH, etag).await.unwrap(), 412, "changed-meanwhile").await;
        problem(with(Method::DELETE, etag).await.unwrap(), 412, "changed-meanwhile").await;
    }
    assert_eq!(ada.get(&path).await.json::<Value>().await.unwrap()["version"], 2, "rejected requests changed nothing");
    assert_eq!(with(Method::PATCH, "*").await.unwrap().status(), 200);
    let several = format!("\"1\", {}", ada.get(&path).await.headers()["etag"].to_str().unwrap());
    assert_eq!(with(Method::DELETE, &several).await.unwrap().status(), 204);
    problem(with(Method::DELETE, "*").await.unwrap(), 404, "not-found").await;
}

#[tokio::test]
async fn one_of_ten_concurrent_changes_wins() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let created = remind(&ada, "first", 3600).await;
    let (etag, path) = (created.headers()["etag"].clone(), created.headers()["location"].to_str().unwrap().replace("/api/v1", ""));
    let change = |message: String| {
        let request = ada.request(Method::PATCH, &path).header("if-match", &etag).json(&json!({ "message": message }));
        async move { request.send().await.unwrap().status().as_u16() }
    };
    let mut answers = futures_util::future::join_all((0..10).map(|number| change(number.to_string()))).await;
    answers.sort_unstable();
    assert_eq!(answers, [200, 412, 412, 412, 412, 412, 412, 412, 412, 412]);
}

#[tokio::test]
async fn idempotency_key_creates_one_reminder() {
    let deploy = Deploy::new().await;
    let (one, two, _worker) = (deploy.web().await, deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &one).await;
    let eve = Person::verified(&deploy, &one).await;
    let body = json!({ "message": "once", "due_at": in_seconds(3600) });
    let create = async |person: &Person, key: &str, body: &Value| {
        person.request(Method::POST, "/reminders").header("idempotency-key", key).json(body).send().await.unwrap()
    };
    let first = create(&ada, "a-key", &body).await;
    let again = create(&ada.at(&two), "a-key", &body).await;
    assert_eq!((first.status().as_u16(), again.status().as_u16()), (201, 201));
    for header in ["location", "etag"] {
        assert_eq!(first.headers()[header], again.headers()[header]);
    }
    assert_eq!(first.text().await.unwrap(), again.text().await.unwrap());
    // A client that has its response may repeat the request at once, at any process, because the key is free again.
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let far = deploy.clone_with("DATABASE_URL", deploy.through("DATABASE_URL", &proxy)).web().await;
    proxy.delay(Duration::from_millis(50));
    for web in [&far, &one, &far, &two] {
        assert_eq!(create(&ada.at(web), "a-key", &body).await.status(), 201);
    }
    problem(create(&ada, "a-key", &json!({ "message": "twice", "due_at": in_seconds(3600) })).await, 422, "idempotency-key-reused").await;
    for odd in [" ", &"x".repeat(256)] {
        problem(create(&ada, odd, &body).await, 422, "invalid-input").await;
    }
    assert_eq!(create(&eve, "a-key", &body).await.status(), 201, "keys belong to their account");
    let count = async || ada.get("/reminders").await.json::<Value>().await.unwrap()["items"].as_array().unwrap().len();
    assert_eq!(count().await, 1);

    // A day later the key is free again.
    let mut database = deploy.database().await;
    sqlx::query("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'").execute(&mut database).await.unwrap();
    assert_eq!(create(&ada, "a-key", &body).await.status(), 201);
    assert_eq!(count().await, 2);

    // A rejection is not stored, so the same key may be used again.
    problem(create(&ada, "b-key", &json!({ "message": "", "due_at": in_seconds(3600) })).await, 422, "invalid-input").await;
    assert_eq!(create(&ada, "b-key", &body).await.status(), 201);
}

#[tokio::test]
async fn idempotency_key_in_use_is_409() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let mut database = deploy.database().await;
    let mut lock = sqlx::Connection::begin(&mut database).await.unwrap();
    sqlx::query("LOCK TABLE reminders IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let body = json!({ "message": "once", "due_at": in_seconds(3600) });
    let create = || ada.request(Method::POST, "/reminders").header("idempotency-key", "a-key").json(&body).send();
    let running = tokio::spawn(create());
    eventually("the first holds the key", async || {
        let held = sqlx::query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())");
        held.fetch_optional(&mut deploy.database().await).await.unwrap().map(drop)
    })
    .await;
    problem(create().await.unwrap(), 409, "idempotency-key-in-use").await;
    lock.rollback().await.unwrap();
    assert_eq!(running.await.unwrap().unwrap().status(), 201);
    assert_eq!(create().await.unwrap().status(), 201);
    assert_eq!(ada.get("/reminders").await.json::<Value>().await.unwrap()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn invalid_input_is_422_and_creates_nothing() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let due_at = in_seconds(60);
    let long = "x".repeat(10_001);
    for (body, field) in [
        (json!({ "message": 5, "due_at": due_at }), "message"),
        (json!({ "message": "x", "due_at": "tomorrow" }), "due_at"),
        (json!({ "message": "x", "due_at": in_seconds(-60) }), "due_at"),
        (json!({ "message": "", "due_at": due_at }), "message"),
        (json!({ "message": long, "due_at": due_at }), "message"),
        (json!({ "message": "a\u{0}b", "due_at": due_at }), "message"),
    ] {
        let problem = problem(ada.post("/reminders", body).await, 422, "invalid-input").await;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        assert!(problem["errors"][0]["detail"].is_string());
    }
    problem(ada.post("/reminders", json!(["x", due_at])).await, 422, "invalid-input").await;
    problem(ada.post("/reminders", json!({ "message": "no time" })).await, 422, "invalid-input").await;
    assert_eq!(ada.get("/reminders").await.json::<Value>().await.unwrap()["items"], json!([]), "nothing was created");
    let exactly = json!({ "message": "é".repeat(10_000), "due_at": due_at });
    assert_eq!(ada.post("/reminders", exactly).await.status(), 201, "the limit is in characters");
}

#[tokio::test]
async fn hostile_times_and_texts_break_nothing() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let made: Value = remind(&ada, "kept", 3600).await.json().await.unwrap();
    let path = format!("/reminders/{}", made["id"].as_str().unwrap());
    for body in [
        r#"{"message": "\u0000", "due_at": "9999-12-31T23:59:59Z"}"#,
        r#"{"message": "x", "due_at": "9999-12-30T22:00:00.999999999Z"}"#,
        r#"{"message": "\ud800", "due_at": "-009999-01-02T00:00:00Z"}"#,
        r#"{"message": 1e999999, "due_at": 1e400}"#,
    ] {
        for (method, path) in [(Method::POST, "/reminders"), (Method::PATCH, &path)] {
            let request = ada.request(method, path).header("content-type", "application/json").body(body);
            let status = request.send().await.unwrap().status().as_u16();
            assert!(status < 500, "{status} for {body}");
        }
    }
    for path in ["/reminders?cursor=%00", "/reminders?limit=99999999999999999999", "/reminders/%00", "/reminders/%ff"] {
        assert!(ada.get(path).await.status().is_client_error(), "{path}");
    }
    let bad: Vec<_> = web.process.log().into_iter().filter(|line| line["level"] == "ERROR" || line["level"] == "WARN").collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
