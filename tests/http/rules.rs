//! The access rules beside the routes. `tests/factors/f15_authorization.rs` tests what they allow.

use app::auth::rules::{Rate, Rule, Who, find};
use reqwest::{Method, StatusCode};
use uuid::Uuid;

use crate::support::Deploy;
use crate::support::access::rules;
use crate::support::deploy::client;
use crate::support::person::problem;

#[tokio::test]
async fn every_rule_has_a_handler() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for rule in rules(&deploy).await {
        let method: Method = rule.method.parse().unwrap();
        let request = client().request(method.clone(), format!("{}{}", web.url, rule.path.replace("{id}", &Uuid::nil().to_string())));
        let answer = request.header("x-request-id", format!("{method}-is-served")).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        web.process.logged("the route", |line| line["request_id"] == id && line["route"] == rule.path).await;
        assert_ne!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {} has a rule but no handler", rule.path);
    }
    let answer = client().put(format!("{}/api/v1/session", web.url)).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "POST,GET,HEAD,DELETE");
    problem(answer, 405, "method-not-allowed").await;
}

#[test]
fn route_without_rule_is_refused() {
    let mine = Rule::new(Method::GET, "/mine", Who::SignedIn, Rate::Requests);
    let table = [mine.clone()];
    for asked in [Method::GET, Method::HEAD] {
        assert_eq!(find(&table, &asked, "/mine").unwrap(), &mine);
    }
    for (method, path) in [(Method::POST, "/mine"), (Method::GET, "/mine/"), (Method::GET, "/other"), (Method::OPTIONS, "/mine")] {
        assert_eq!(find(&table, &method, path).unwrap_err().status, 405, "{method} {path}");
    }
}
