//! XIII. API first: the committed document is the contract; what is served is what it says, no less and no more.
//!
//! Violated by a field that is renamed in passing, a route that nobody wrote down, a document that is written afterwards.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::deploy::client;
use crate::support::person::Person;
use crate::support::person::in_seconds;

/// What clients were promised.
fn contract() -> Value {
    serde_json::from_str(&std::fs::read_to_string("openapi.json").unwrap()).unwrap()
}

/// The methods of each path.
fn operations(contract: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let paths = contract["paths"].as_object().unwrap().iter();
    paths.map(|(path, methods)| (path.clone(), methods.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect())).collect()
}

#[tokio::test]
async fn the_committed_document_is_what_is_served_and_what_admin_prints() {
    let deploy = Deploy::new().await;
    let served: Value = deploy.web().await.get("/openapi.json").await.json().await.unwrap();
    assert!(served == contract(), "openapi.json is out of date: cargo run --bin admin openapi >openapi.json");
    let printed = deploy.admin(&["openapi"]).await;
    assert!(serde_json::from_slice::<Value>(&printed.stdout).unwrap() == served, "admin prints another document than web serves");
}

#[tokio::test]
async fn every_operation_of_the_document_is_served_and_no_other() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for (path, documented) in operations(&contract()) {
        let url = format!("{}{}", web.url, path.replace("{id}", &uuid::Uuid::nil().to_string()));
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer = client().request(method.parse().unwrap(), &url).send().await.unwrap();
            let status = answer.status().as_u16();
            if documented.contains(method) {
                // Nobody asks, so nothing is looked for that could be missing.
                assert!(![404, 405, 500].contains(&status), "{method} {path} is documented, and not served: {status}");
                continue;
            }
            assert_eq!(status, 405, "{method} {path} is served, and not documented");
            let allowed = answer.headers()["allow"].to_str().unwrap().split(',').filter(|method| *method != "HEAD");
            assert_eq!(allowed.map(str::to_owned).collect::<BTreeSet<_>>(), documented, "Allow of {path}");
        }
    }
}

/// A route that is in no line of the table of access is served to nobody, so the table is all that there is.
#[test]
fn the_table_that_decides_what_is_served_and_the_document_name_the_same_operations() {
    let mut table = BTreeMap::<_, BTreeSet<_>>::new();
    for (method, path, ..) in app::web::ACCESS.iter().filter(|rule| rule.1.starts_with("/api/")) {
        table.entry((*path).to_owned()).or_default().insert(method.to_string());
    }
    assert_eq!(table, operations(&contract()));
}

/// What is wrong with a value, by its schema in the contract: a property that is missing, unknown, or of another type.
fn fault(contract: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return fault(contract, contract.pointer(reference.trim_start_matches('#')).unwrap(), value);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    if !kinds.iter().any(|may| may == kind) {
        return Some(format!("{value} is no {}", schema["type"]));
    }
    if let Some(items) = value.as_array() {
        return items.iter().find_map(|item| fault(contract, &schema["items"], item));
    }
    let properties = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten();
    let missing = required.filter_map(Value::as_str).find(|name| !properties.contains_key(*name));
    missing.map(|name| format!("it lacks {name}")).or_else(|| {
        properties.iter().find_map(|(name, value)| match schema["properties"].get(name) {
            Some(schema) => fault(contract, schema, value).map(|fault| format!("{name}: {fault}")),
            None => Some(format!("the document knows no {name}")),
        })
    })
}

#[tokio::test]
async fn an_answer_has_the_properties_that_the_document_names_and_no_others() {
    let (deploy, contract) = (Deploy::new().await, contract());
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut made = String::new();
    let token = json!({ "name": "as written", "scopes": ["tokens:read"], "expires_in_days": 1 });
    assert_eq!(ada.post("/tokens", token).await.status(), 201);
    for (method, path, body, expected) in [
        (Method::POST, "/reminders", Some(json!({ "message": "as written", "due_at": in_seconds(600) })), "201"),
        (Method::GET, "/reminders", None, "200"),
        (Method::GET, "/reminders/{id}", None, "200"),
        (Method::PATCH, "/reminders/{id}", Some(json!({ "message": "changed" })), "200"),
        (Method::GET, "/tokens", None, "200"),
        (Method::GET, "/session", None, "200"),
        (Method::GET, "/account/sessions", None, "200"),
        (Method::PATCH, "/account", Some(json!({ "digest": true })), "200"),
    ] {
        let mut request = ada.request(method.clone(), &path.replace("{id}", &made));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let what = format!("{method} {path}");
        assert_eq!(answer.status().as_str(), expected, "{what}");
        let answer: Value = answer.json().await.unwrap();
        let operation = &contract["paths"][format!("/api/v1{path}")][method.as_str().to_ascii_lowercase()];
        let schema = &operation["responses"][expected]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{what}: the document describes no answer");
        assert_eq!(fault(&contract, schema, &answer), None, "{what} answers otherwise than documented: {answer}");
        if let (true, Some(id)) = (made.is_empty(), answer["id"].as_str()) {
            id.clone_into(&mut made);
        }
    }
    let refused: Value = Person::stranger(&web).get("/tokens").await.json().await.unwrap();
    assert_eq!(fault(&contract, &contract["components"]["schemas"]["Problem"], &refused), None, "{refused}");
}
