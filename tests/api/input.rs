//! Bad input: each kind gets its status as a problem, and nothing is half done.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::person::{PASSWORD, Person, in_seconds, problem};

async fn raw(person: &Person, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Response {
    person.request(Method::POST, path).header("content-type", content_type).body(body).send().await.unwrap()
}

#[tokio::test]
async fn what_cannot_be_parsed_is_400_and_what_breaks_a_rule_422_with_the_fields_name() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    for broken in ["", "{", "{\"message\": ", "nonsense", "{} {}", "[1,]"] {
        problem(raw(&ada, "/reminders", "application/json", broken).await, 400, "malformed").await;
    }
    problem(raw(&ada, "/reminders", "application/json", vec![b'"', 0xff, b'"']).await, 400, "malformed").await;
    problem(raw(&ada, "/reminders", "text/plain", "{}").await, 415, "unsupported-media-type").await;

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
    assert_eq!(ada.get("/reminders").await.json::<Value>().await.unwrap()["items"], json!([]), "nothing is half done");
    let exactly = json!({ "message": "é".repeat(10_000), "due_at": due_at });
    assert_eq!(ada.post("/reminders", exactly).await.status(), 201, "the limit is in characters");
}

#[tokio::test]
async fn every_wrong_field_is_named_at_once() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let answer = Person::stranger(&web).post("/accounts", json!({ "email": "nowhere", "password": "short" })).await;
    let problem = problem(answer, 422, "invalid-input").await;
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["email", "password"]);
    for email in ["a\u{0}b@example.com", "a@b@c", "", &format!("{}@example.com", "x".repeat(300))] {
        let answer = Person::stranger(&web).post("/accounts", json!({ "email": email, "password": PASSWORD })).await;
        assert_eq!(answer.status(), 422, "{email}");
    }
    let answer = Person::stranger(&web).post("/session", json!({ "email": "a\u{0}b", "password": PASSWORD })).await;
    assert_eq!(answer.status(), 422);
}

#[tokio::test]
async fn a_body_over_a_mebibyte_is_413() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    problem(raw(&ada, "/reminders", "application/json", vec![b' '; 1024 * 1024 + 1]).await, 413, "body-too-large").await;
    problem(raw(&ada, "/reminders", "application/json", vec![b' '; 1024 * 1024]).await, 400, "malformed").await;
}

#[tokio::test]
async fn without_a_session_everything_that_needs_one_is_401() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let nobody = Person::stranger(&web);
    let id = "/reminders/0199d5b5-0000-7000-8000-000000000000";
    for (method, path) in [
        (Method::GET, "/session"),
        (Method::POST, "/email-verifications"),
        (Method::GET, "/reminders"),
        (Method::POST, "/reminders"),
        (Method::GET, id),
        (Method::PATCH, id),
        (Method::DELETE, id),
    ] {
        problem(nobody.request(method.clone(), path).send().await.unwrap(), 401, "unauthenticated").await;
        let forged = nobody.request(method, path).header("cookie", "id=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").send();
        problem(forged.await.unwrap(), 401, "unauthenticated").await;
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let nobody = Person::stranger(&web);
    problem(nobody.get("/nothing").await, 404, "not-found").await;
    problem(web.get("/").await, 404, "not-found").await;
    let answer = nobody.request(Method::PUT, "/session").send().await.unwrap();
    assert!(answer.headers()["allow"].to_str().unwrap().contains("DELETE"), "{answer:?}");
    problem(answer, 405, "method-not-allowed").await;
}

#[tokio::test]
async fn a_request_id_is_taken_if_it_is_a_sane_one_and_always_answered() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let nobody = Person::stranger(&web);
    let answer = |id: &'static str| nobody.request(Method::GET, "/session").header("x-request-id", id).send();
    assert_eq!(answer("trace-me.12345678").await.unwrap().headers()["x-request-id"], "trace-me.12345678");
    for odd in ["short", "with space in it", "{\"json\":\"injection\"}"] {
        assert_ne!(answer(odd).await.unwrap().headers()["x-request-id"], odd);
    }
}
