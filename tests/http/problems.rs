//! Pages that explain the API: one for each problem type, and the API docs, which can be switched off.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::openapi::Contract;
use crate::support::person::{PASSWORD, Person, problem};

#[tokio::test]
async fn every_problem_type_has_a_page() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let document = Contract::committed();
    let mut types = BTreeSet::new();
    let mut parts = vec![&document.0];
    while let Some(part) = parts.pop() {
        parts.extend(part.as_object().into_iter().flat_map(|object| object.values()).chain(part.as_array().into_iter().flatten()));
        types.extend(part["type"].as_str().filter(|kind| kind.starts_with("/problems/")).map(str::to_owned));
    }
    assert!(types.len() > 15, "{types:?}");
    // Problems of requests that reach no operation, too.
    let (nobody, ada) = (Person::stranger(&web), Person::unverified(&web).await);
    let long = "x".repeat(40_000);
    for request in [
        nobody.request(Method::GET, "/nothing"),
        nobody.request(Method::PUT, "/session"),
        nobody.request(Method::GET, "/session"),
        nobody.request(Method::GET, "/session").header("x-long", &long),
        nobody.request(Method::POST, "/session").header("content-type", "application/json").body("{"),
        nobody.request(Method::POST, "/session").header("content-type", "text/plain").body("{}"),
        nobody.request(Method::POST, "/session").header("content-type", "application/json").body(vec![b' '; 1024 * 1024 + 1]),
        nobody.request(Method::POST, "/session").header("origin", "https://evil.example").header("sec-fetch-site", "cross-site"),
        nobody.request(Method::POST, "/session").json(&json!({ "email": "nobody@example.com", "password": PASSWORD })),
        ada.request(Method::GET, "/admin/accounts"),
        ada.request(Method::POST, "/tokens").json(&json!({ "name": "x", "scopes": ["tokens:read"], "expires_in_days": 1 })),
    ] {
        let answer = request.send().await.unwrap();
        let problem: Value = answer.json().await.unwrap();
        types.insert(problem["type"].as_str().unwrap_or_else(|| panic!("no problem: {problem}")).to_owned());
    }
    for kind in &types {
        let page = web.get(kind).await;
        assert_eq!(page.status(), 200, "{kind}");
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        let (name, page) = (kind.trim_start_matches("/problems/"), page.text().await.unwrap());
        let (_, text) = page.split_once(&format!("<h1>{name}</h1>")).unwrap_or_else(|| panic!("{page}"));
        assert!(text.contains("<p>Status ") && text.matches("<p>").count() > 1, "{kind} has no explanation: {page}");
    }
    for unknown in ["/problems/unheard-of", "/problems/%3Cscript%3E"] {
        problem(web.get(unknown).await, 404, "not-found").await;
    }
}

#[tokio::test]
async fn api_docs_can_be_switched_off() {
    let deploy = Deploy::new().await;
    let paths = ["/docs", "/docs/", "/docs/swagger-initializer.js", "/openapi.json"];
    let on = deploy.web().await;
    for path in paths {
        assert!(web_has(on.get(path).await.status().as_u16()), "{path}");
    }
    let off = deploy.clone_with("API_DOCS", "false").web().await;
    for path in paths {
        problem(off.get(path).await, 404, "not-found").await;
    }
    assert_eq!(off.get("/problems/not-found").await.status(), 200, "the pages of problems stay available");
    assert_eq!(off.get("/version").await.status(), 200);
    let mut wrong = deploy.with("API_DOCS", "perhaps").start("web");
    assert_eq!(wrong.exit().await.code(), Some(78));
    assert!(wrong.errors().iter().any(|line| line.contains("API_DOCS must be")), "{:?}", wrong.errors());
}

fn web_has(status: u16) -> bool {
    [200, 303, 307, 308].contains(&status)
}
