//! XV. Authentication and authorization: every request is identified, and does only what its caller may do.
//!
//! Violated by an unguarded route, a role that is not checked, or a resource that its id alone gives access to.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::access::{Row, Things, prove_privacy, prove_table, rules};
use crate::support::deploy::client;
use crate::support::person::Person;

/// Which callers may use which operations of accounts, written by hand. `tests/support/access.rs` explains the letters.
/// Each feature's tests have their own table.
const ACCESS_TABLE: &str = "
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
    GET    /api/v1/admin/statistics              - - - - a
";

/// A token, a session and an account of Ada's.
async fn things(_: &Deploy, ada: &Person) -> Things {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned();
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
    prove_table(ACCESS_TABLE, things).await;
}

#[tokio::test]
async fn users_cannot_read_or_change_others_data() {
    prove_privacy(ACCESS_TABLE, things).await;
}

/// Finds the rows of every table in a folder, and adds their files by operation.
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
    for row in ACCESS_TABLE.lines().filter_map(Row::parse) {
        tables.entry(row.operation()).or_insert_with(Vec::new).push(file!().to_owned());
    }
    tables_in(Path::new("tests/features"), &mut tables);
    let rules = rules(&Deploy::new().await).await;
    assert!(!rules.is_empty(), "admin access prints no rule");
    let mut proved = Vec::new();
    for rule in &rules {
        let operation = (rule.method.clone(), rule.path.clone());
        let files = tables.get(&operation).map_or(&[][..], Vec::as_slice);
        assert_eq!(files.len(), 1, "{operation:?} of {} must be in exactly one table, but is in {files:?}", rule.feature);
        proved.push(operation);
    }
    let stale: Vec<_> = tables.iter().filter(|(operation, _)| !proved.contains(operation)).collect();
    assert!(stale.is_empty(), "these rows of tables belong to no rule: {stale:?}");
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
    // The cookie is sent by hand, as by a client that ignores its expiry.
    let log_out = client().delete(format!("{}/api/v1/session", web.url)).header("cookie", &cookie).header("sec-fetch-site", "same-origin");
    assert_eq!(log_out.send().await.unwrap().status(), 204);
    assert_eq!(ask("cookie", &cookie).await, 401, "the session has ended");
    assert_eq!(ada.delete(&format!("/tokens/{}", token["id"].as_str().unwrap())).await.status(), 204);
    assert_eq!(ask("authorization", &bearer).await, 401, "the token was deleted");
}
