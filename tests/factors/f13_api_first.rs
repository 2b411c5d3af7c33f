//! XIII. API first: the committed document is the contract, and the service serves exactly what it describes.
//!
//! Violated by a renamed field, an undocumented route, or a document that is written afterwards.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::access::rules;
use crate::support::deploy::client;
use crate::support::openapi::Contract;
use crate::support::person::{PASSWORD, Person};

#[tokio::test]
async fn committed_document_is_served_and_printed() {
    let deploy = Deploy::new().await;
    let served: Value = deploy.web().await.get("/openapi.json").await.json().await.unwrap();
    assert!(served == Contract::committed().0, "openapi.json is out of date: cargo run --bin admin openapi >openapi.json");
    let printed = deploy.admin(&["openapi"]).await;
    assert!(serde_json::from_slice::<Value>(&printed.stdout).unwrap() == served, "admin prints a different document than web serves");
    let committed = std::fs::read("openapi.json").unwrap();
    assert!(printed.stdout == committed, "admin prints the same document as openapi.json in another order");
}

#[tokio::test]
async fn web_serves_exactly_the_documented_operations() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for (path, documented) in Contract::committed().operations() {
        let url = format!("{}{}", web.url, path.replace("{id}", &uuid::Uuid::nil().to_string()));
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer = client().request(method.parse().unwrap(), &url).send().await.unwrap();
            let status = answer.status().as_u16();
            if documented.contains(method) {
                // The caller is anonymous, so the service does not look for the resource.
                assert!(![404, 405, 500].contains(&status), "{method} {path} is documented but not served: {status}");
                continue;
            }
            assert_eq!(status, 405, "{method} {path} is served but not documented");
            let allowed = answer.headers()["allow"].to_str().unwrap().split(',').filter(|method| *method != "HEAD");
            assert_eq!(allowed.map(str::to_owned).collect::<BTreeSet<_>>(), documented, "Allow of {path}");
        }
    }
}

/// A route without a rule is never served, so the rules list every operation.
#[tokio::test]
async fn access_rules_match_the_documented_operations() {
    let mut table = BTreeMap::<_, BTreeSet<_>>::new();
    for rule in rules(&Deploy::new().await).await.into_iter().filter(|rule| rule.path.starts_with("/api/")) {
        table.entry(rule.path).or_default().insert(rule.method);
    }
    assert_eq!(table, Contract::committed().operations());
}

#[tokio::test]
async fn responses_have_exactly_the_documented_properties() {
    let (deploy, contract) = (Deploy::new().await, Contract::committed());
    let web = deploy.web().await;
    let (ada, admin) = tokio::join!(Person::known(&deploy, &web), Person::unverified(&web));
    assert!(deploy.admin(&["account", "grant", &admin.email, "admin"]).await.status.success());
    let token = json!({ "name": "as written", "scopes": ["tokens:read"], "expires_in_days": 1 });
    let credentials = json!({ "email": admin.email, "password": PASSWORD });
    for (person, request) in [
        (&ada, (Method::POST, "/tokens", Some(token), "201")),
        (&ada, (Method::GET, "/tokens", None, "200")),
        (&ada, (Method::GET, "/session", None, "200")),
        (&ada, (Method::GET, "/account/sessions", None, "200")),
        (&ada, (Method::PATCH, "/account", Some(json!({ "digest": true })), "200")),
        (&admin, (Method::POST, "/session", Some(credentials), "200")),
        (&admin, (Method::GET, "/admin/accounts", None, "200")),
    ] {
        contract.holds(person, "", request).await;
    }
    let refused: Value = Person::stranger(&web).get("/tokens").await.json().await.unwrap();
    assert_eq!(contract.fault(&contract.0["components"]["schemas"]["Problem"], &refused), None, "{refused}");
}
