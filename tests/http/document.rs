//! The document that describes the API, and the page that shows it.

use std::collections::BTreeSet;

use crate::support::Deploy;
use crate::support::openapi::Contract;

#[test]
fn documented_problems_have_types_and_examples() {
    let contract = Contract::committed();
    assert!(contract.0["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in contract.0["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                let problem = &contract.resolve(response)["content"]["application/problem+json"];
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

#[test]
fn document_is_short_enough_to_read() {
    let lines = std::fs::read_to_string("openapi.json").unwrap().lines().count();
    let operations: usize = Contract::committed().operations().values().map(BTreeSet::len).sum();
    // If each operation listed its problems in full, the document would be twice as long.
    let most = 140 * operations;
    assert!(lines < most, "openapi.json has {lines} lines, more than {most}: move shared parts to `components`");
}

#[tokio::test]
async fn api_page_needs_no_other_site() {
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
