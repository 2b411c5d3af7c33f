//! The table of who may do what, beside the routes and the document; that it says what it should is proved in `tests/factors/`.

use app::http::access::{Rate, Who, rule};
use app::web::ACCESS;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use crate::support::Deploy;
use crate::support::deploy::client;
use crate::support::person::problem;

#[tokio::test]
async fn a_route_is_served_if_and_only_if_it_is_in_the_table() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for (method, path, ..) in ACCESS {
        let request = client().request(method.clone(), format!("{}{}", web.url, path.replace("{id}", &Uuid::nil().to_string())));
        let answer = request.header("x-request-id", format!("{method}-is-served")).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let template = *path;
        web.process.logged("the route", |line| line["request_id"] == id && line["route"] == template).await;
        assert_ne!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path} is in the table, and served by no handler");
    }
    let answer = client().put(format!("{}/api/v1/session", web.url)).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "POST,GET,HEAD,DELETE");
    problem(answer, 405, "method-not-allowed").await;
}

#[test]
fn what_is_not_in_the_table_nobody_may() {
    let table = [(Method::GET, "/mine", Who::SignedIn, Rate::Requests)];
    for asked in [Method::GET, Method::HEAD] {
        assert_eq!(rule(&table, &asked, "/mine").unwrap(), (Method::GET, Who::SignedIn, Rate::Requests));
    }
    for (method, path) in [(Method::POST, "/mine"), (Method::GET, "/mine/"), (Method::GET, "/other"), (Method::OPTIONS, "/mine")] {
        assert_eq!(rule(&table, &method, path).unwrap_err().status, 405, "{method} {path}");
    }
}

#[tokio::test]
async fn each_documented_problem_has_a_type_and_an_example() {
    let document: Value = serde_json::from_str(&std::fs::read_to_string("openapi.json").unwrap()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                let problem = &response["content"]["application/problem+json"];
                let types = problem["schema"]["allOf"][1]["properties"]["type"]["enum"].as_array().unwrap();
                let examples = problem["examples"].as_object().unwrap();
                assert_eq!(types.len(), examples.len(), "{method} {path} {status}");
                for example in examples.values() {
                    assert!(types.contains(&example["value"]["type"]) && example["value"]["status"] == status.parse::<u16>().unwrap());
                }
            }
            for status in ["500", "503", "429"] {
                assert!(responses.contains_key(status), "{method} {path} {status}");
            }
        }
    }
}

#[tokio::test]
async fn the_browsable_page_of_the_api_needs_no_other_site() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let page = web.get("/docs/").await;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'self'") && !policy.contains("http"), "{policy}");
    let html = page.text().await.unwrap();
    let scripts: Vec<_> = html.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(!scripts.is_empty() && scripts.iter().all(|script| !script.contains("//")), "{scripts:?}");
    for script in scripts {
        let script = web.get(&format!("/docs/{}", script.trim_start_matches("./"))).await;
        assert_eq!(script.status(), 200);
        assert!(!script.text().await.unwrap().is_empty());
    }
    assert_eq!(web.get("/docs").await.headers()["location"], "/docs/");
}
