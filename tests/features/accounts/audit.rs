//! The audit trail: each event names its actor, its action and its target, with a request id that the caller cannot choose.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row;

use crate::support::Deploy;
use crate::support::person::Person;

async fn id_of(person: &Person) -> String {
    person.get("/session").await.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

/// The actor, its id, and the target account of the latest event with this action.
async fn latest(deploy: &Deploy, action: &str) -> (String, Option<String>, Option<String>) {
    let event = "SELECT actor, actor_id::text, account_id::text FROM audit_events WHERE action = $1 ORDER BY id DESC LIMIT 1";
    let row = sqlx::query(event).bind(action).fetch_one(&mut deploy.database().await).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

#[tokio::test]
async fn audit_event_names_actor_and_target() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, root) = (Person::known(&deploy, &web).await, Person::unverified(&web).await);
    let (adas, roots) = (id_of(&ada).await, id_of(&root).await);
    assert_eq!(latest(&deploy, "sign_up").await, ("anyone".to_owned(), None, Some(roots.clone())));
    assert!(deploy.admin(&["account", "grant", &root.email, "admin"]).await.status.success());
    assert_eq!(latest(&deploy, "role_changed").await, ("operator".to_owned(), None, Some(roots.clone())));
    root.log_in().await;
    assert_eq!(latest(&deploy, "log_in").await, ("account".to_owned(), Some(roots.clone()), Some(roots.clone())));

    let token = json!({ "name": "test", "scopes": ["tokens:write"], "expires_in_days": 1 });
    let made: Value = ada.post("/tokens", token).await.json().await.unwrap();
    assert_eq!(latest(&deploy, "token_created").await, ("account".to_owned(), Some(adas.clone()), Some(adas.clone())));
    let id = made["id"].as_str().unwrap();
    let by_token = Person::stranger(&web).request(Method::DELETE, &format!("/tokens/{id}")).bearer_auth(made["secret"].as_str().unwrap());
    assert_eq!(by_token.send().await.unwrap().status(), 204);
    assert_eq!(latest(&deploy, "token_deleted").await, ("token".to_owned(), Some(id.to_owned()), Some(adas.clone())));

    for (action, event) in [("suspend", "suspended"), ("restore", "restored")] {
        assert_eq!(root.post(&format!("/admin/accounts/{adas}/{action}"), json!({})).await.status(), 204);
        assert_eq!(latest(&deploy, event).await, ("account".to_owned(), Some(roots.clone()), Some(adas.clone())));
    }
    ada.post("/session", json!({ "email": ada.email, "password": "not the right password" })).await;
    assert_eq!(latest(&deploy, "log_in_failed").await, ("anyone".to_owned(), None, Some(adas)));
}

#[tokio::test]
async fn caller_cannot_choose_the_audited_request_id() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let log_in = json!({ "email": ada.email, "password": "not the right password" });
        let request = ada.request(Method::POST, "/session").header("x-request-id", "callers-own-id").json(&log_in);
        let answer = request.send().await.unwrap();
        ids.push(answer.headers()["x-request-id"].to_str().unwrap().to_owned());
    }
    assert!(ids[0] != ids[1] && !ids.contains(&"callers-own-id".to_owned()), "{ids:?}");
    let events = "SELECT request_id, caller_request_id FROM audit_events WHERE action = 'log_in_failed' ORDER BY id";
    let events = sqlx::query_as::<_, (String, String)>(events).fetch_all(&mut deploy.database().await).await.unwrap();
    assert_eq!(events.iter().map(|(own, _)| own).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    assert!(events.iter().all(|(_, callers)| callers == "callers-own-id"), "{events:?}");
    for id in &ids {
        let line = web.process.logged("the request", |line| line["request_id"] == id.as_str() && line["route"].is_string()).await;
        assert_eq!(line["caller_request_id"], "callers-own-id");
    }
}

#[tokio::test]
async fn traceparent_needs_a_trusted_proxy() {
    let deploy = Deploy::new().await;
    let foreign = "0af7651916cd43dd8448eb211c80319c";
    for (proxies, joins) in [(0, false), (1, true)] {
        let web = deploy.clone_with("TRUSTED_PROXIES", proxies).web().await;
        let ada = Person::stranger(&web);
        let body = json!({ "email": ada.email, "password": crate::support::person::PASSWORD });
        let traceparent = format!("00-{foreign}-b7ad6b7169203331-01");
        let request = ada.request(Method::POST, "/accounts").header("traceparent", traceparent).json(&body);
        assert_eq!(request.send().await.unwrap().status(), 202);
        let trace = "SELECT trace_context->>'traceparent' FROM jobs ORDER BY id DESC LIMIT 1";
        let trace: String = sqlx::query_scalar(trace).fetch_one(&mut deploy.database().await).await.unwrap();
        assert_eq!(trace.contains(foreign), joins, "TRUSTED_PROXIES={proxies}: {trace}");
    }
}
