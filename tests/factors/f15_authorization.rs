//! XV. Authentication and authorization: every request shows whose it is, and does what that person may and nothing else.
//!
//! Violated by a route that nobody guards, a role that nobody asks for, a thing that is given to whoever knows its id.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::access::{Row, Things, prove_privacy, prove_table, rules};
use crate::support::deploy::client;
use crate::support::person::Person;

/// Who may do what with accounts, written by hand, as `tests/support/access.rs` reads it. Each feature's tests hold its own table.
const MAY: &str = "
    POST   /api/v1/accounts                      n t s u a
    POST   /api/v1/session                       n t s u a
    GET    /api/v1/session                       - - - u a
    DELETE /api/v1/session                       n t s u a
    POST   /api/v1/session/confirm               - - - u a
    POST   /api/v1/email-verifications           - - - u a
    POST   /api/v1/email-verifications/redeem    n t s u a
    POST   /api/v1/password-resets               n t s u a
    POST   /api/v1/password-resets/redeem        n t s u a
    POST   /api/v1/email-changes/undo            n t s u a
    GET    /verify                               n t s u a
    POST   /verify                               n t s u a
    GET    /reset                                n t s u a
    POST   /reset                                n t s u a
    GET    /undo                                 n t s u a
    POST   /undo                                 n t s u a
    PATCH  /api/v1/account                       - - - u a
    DELETE /api/v1/account                       - - - u a
    POST   /api/v1/account/password              - - - u a
    GET    /api/v1/account/sessions              - - - u a
    DELETE /api/v1/account/sessions              - - - u a
    DELETE /api/v1/account/sessions/{id}         - - - u a
    POST   /api/v1/tokens                        - - - u a
    GET    /api/v1/tokens                        - - s u a
    DELETE /api/v1/tokens/{id}                   - - s u a
    GET    /api/v1/admin/accounts                - - - - a
    POST   /api/v1/admin/accounts/{id}/suspend   - - - - a
    POST   /api/v1/admin/accounts/{id}/restore   - - - - a
";

/// A token, a session and an account of Ada's.
async fn things(_: &Deploy, ada: &Person) -> Things {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned();
    let token = json!({ "name": "private", "scopes": ["tokens:read"], "expires_in_days": 1 });
    let token: Value = ada.post("/tokens", token).await.json().await.unwrap();
    let sessions: Value = ada.get("/account/sessions").await.json().await.unwrap();
    let me: Value = ada.get("/session").await.json().await.unwrap();
    let ids = vec![
        ("/api/v1/tokens", text(&token["id"])),
        ("/api/v1/account/sessions", text(&sessions["items"][0]["id"])),
        ("/api/v1/admin/accounts", text(&me["id"])),
    ];
    Things { ids, texts: vec![ada.email.clone()] }
}

#[tokio::test]
async fn account_operations_follow_the_access_table() {
    prove_table(MAY, things).await;
}

#[tokio::test]
async fn users_cannot_read_or_change_others_data() {
    prove_privacy(MAY, things).await;
}

/// The rows of every table in the files of a folder, by operation, with the file that has them.
fn tables_in(folder: &Path, found: &mut BTreeMap<(String, String), Vec<String>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tables_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for row in text.lines().filter_map(Row::parse) {
                found.entry(row.operation()).or_default().push(path.display().to_string());
            }
        }
    }
}

#[tokio::test]
async fn each_rule_appears_in_exactly_one_table() {
    let mut tables = BTreeMap::new();
    for row in MAY.lines().filter_map(Row::parse) {
        tables.entry(row.operation()).or_insert_with(Vec::new).push(file!().to_owned());
    }
    tables_in(Path::new("tests/features"), &mut tables);
    let rules = rules(&Deploy::new().await).await;
    assert!(!rules.is_empty(), "admin access prints no rule");
    let mut proved = Vec::new();
    for rule in &rules {
        let operation = (rule.method.clone(), rule.path.clone());
        let files = tables.get(&operation).map_or(&[][..], Vec::as_slice);
        assert_eq!(files.len(), 1, "{operation:?} of {} must stand in one table, and stands in {files:?}", rule.feature);
        proved.push(operation);
    }
    let stale: Vec<_> = tables.iter().filter(|(operation, _)| !proved.contains(operation)).collect();
    assert!(stale.is_empty(), "no rule allows what these tables say: {stale:?}");
}

#[tokio::test]
async fn invalid_and_ended_credentials_are_rejected() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let body = json!({ "name": "test", "scopes": ["tokens:read"], "expires_in_days": 1 });
    let token: Value = ada.post("/tokens", body).await.json().await.unwrap();
    let sessions: Value = ada.get("/account/sessions").await.json().await.unwrap();
    let cookie = ada.elsewhere().cookie().await;
    let (name, id) = cookie.split_once('=').unwrap();
    let ask = async |name: &str, value: &str| {
        let asking = client().get(format!("{}/api/v1/tokens", web.url)).header(name, value);
        asking.send().await.unwrap().status().as_u16()
    };
    let bearer = format!("Bearer {}", token["secret"].as_str().unwrap());
    assert_eq!((ask("cookie", &cookie).await, ask("authorization", &bearer).await), (200, 200));
    let stored = sessions["items"][0]["id"].as_str().unwrap();
    for cookie in [format!("{name}="), format!("{name}={}", id.to_lowercase()), format!("{name}={stored}")] {
        assert_eq!(ask("cookie", &cookie).await, 401, "{cookie}");
    }
    // Each by itself, as a client that ignores its end would.
    let log_out = client().delete(format!("{}/api/v1/session", web.url)).header("cookie", &cookie).header("sec-fetch-site", "same-origin");
    assert_eq!(log_out.send().await.unwrap().status(), 204);
    assert_eq!(ask("cookie", &cookie).await, 401, "a session that has ended");
    assert_eq!(ada.delete(&format!("/tokens/{}", token["id"].as_str().unwrap())).await.status(), 204);
    assert_eq!(ask("authorization", &bearer).await, 401, "a token that has ended");
}
