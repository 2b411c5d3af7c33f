//! Accounts and sessions, as an operator looks after them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::access::rules;
use crate::support::person::{PASSWORD, Person};
use crate::support::{Deploy, eventually};
use crate::{count, done, on_a_terminal, rows, stderr, trail};

#[tokio::test]
async fn a_made_account_can_log_in_with_the_password_that_is_shown_once() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let made = rows(&deploy, &["account", "create", "ada@example.com"]).await;
    let again = deploy.admin(&["account", "create", "ADA@example.com"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("has an account already"), "{again:?}");
    for wrong in ["nobody", "a@b\u{1}.example", ""] {
        assert_eq!(deploy.admin(&["account", "create", wrong]).await.status.code(), Some(1), "{wrong:?}");
    }
    let password = made[0]["password"].as_str().unwrap();
    let log_in = json!({ "email": "ada@example.com", "password": password });
    let answer = Person::stranger(&web).post("/session", log_in).await;
    assert_eq!(answer.status(), 200);
    let account: Value = answer.json().await.unwrap();
    assert_eq!(account["verified"], true);

    let id = account["id"].as_str().unwrap();
    for name in ["ada@example.com", id] {
        let shown = rows(&deploy, &["account", "show", name]).await;
        assert_eq!(shown, std::slice::from_ref(&account), "by its address and by its id, and without its password");
    }
    assert_eq!(rows(&deploy, &["account", "list"]).await, std::slice::from_ref(&account));
    let next = rows(&deploy, &["account", "create", "grace@example.com"]).await;
    let after = rows(&deploy, &["account", "list", "--limit", "1", "--after", account["id"].as_str().unwrap()]).await;
    assert_eq!(after[0]["email"], next[0]["email"], "the next page");
    let table = done(&deploy, &["account", "list"]).await;
    assert!(table.starts_with("id ") && table.lines().nth(1).unwrap().starts_with(id), "{table}");
    assert!(!table.contains('\x1b'), "no colour in a pipe");
    assert_eq!(trail(&deploy).await, ["account_created", "log_in", "account_created"]);
    let unknown = deploy.admin(&["account", "show", "nobody@example.com"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("no account has the address or the id"), "{unknown:?}");
}

#[tokio::test]
async fn a_suspended_account_is_out_until_it_is_restored() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    done(&deploy, &["account", "suspend", &ada.email]).await;
    assert_eq!(ada.get("/session").await.status(), 401);
    assert_eq!(ada.log_in().await.status(), 401);
    done(&deploy, &["account", "suspend", "--restore", &ada.email]).await;
    assert_eq!(ada.log_in().await.status(), 200);
    done(&deploy, &["account", "grant", &ada.email, "admin"]).await;
    assert_eq!(ada.get("/session").await.status(), 401);
    let trail = trail(&deploy).await;
    for action in ["suspended", "restored", "role_changed"] {
        assert!(trail.contains(&action.to_owned()), "{trail:?}");
    }
}

#[tokio::test]
async fn deleting_asks_first_and_refuses_where_nobody_can_be_asked() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let refused = deploy.admin(&["account", "delete", &ada.email]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("say --yes"), "{refused:?}");
    assert_eq!(ada.get("/session").await.status(), 200);

    for (answer, deleted) in [("no", false), ("yes", true)] {
        let Some(told) = on_a_terminal(&deploy, &format!("account delete {}", ada.email), answer).await else { return };
        assert!(told.contains("Type yes:"), "{told}");
        assert_eq!(count(&mut deploy.database().await, "accounts").await, i64::from(!deleted), "{told}");
    }
    assert_eq!(ada.get("/session").await.status(), 401);

    let grace = Person::known(&deploy, &web).await;
    done(&deploy, &["account", "delete", "--yes", &grace.email]).await;
    assert_eq!(count(&mut deploy.database().await, "accounts").await, 0);
    assert_eq!(grace.get("/session").await.status(), 401);
    assert_eq!(trail(&deploy).await.iter().filter(|action| *action == "account_deleted").count(), 2);
}

#[tokio::test]
async fn a_table_on_a_terminal_has_a_bold_head_unless_no_color_is_set() {
    let deploy = Deploy::new().await;
    let Some(told) = on_a_terminal(&deploy, "schedule", "").await else { return };
    assert!(told.contains("\x1b[1mname "), "{told:?}");
    let told = on_a_terminal(&deploy.with("NO_COLOR", "1"), "schedule", "").await.unwrap();
    assert!(told.contains("name ") && !told.contains("\x1b["), "{told:?}");
}

#[tokio::test]
async fn sessions_are_listed_and_ended_one_or_all_also_while_redis_is_away() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let elsewhere = ada.elsewhere();
    assert_eq!(elsewhere.log_in().await.status(), 200);
    let sessions = rows(&deploy, &["session", "list", &ada.email]).await;
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|session| session["last_used_at"].is_string()), "{sessions:?}");

    // The oldest is the first.
    done(&deploy, &["session", "end", &ada.email, sessions[0]["id"].as_str().unwrap()]).await;
    assert_eq!(ada.get("/session").await.status(), 401);
    assert_eq!(elsewhere.get("/session").await.status(), 200);
    assert_eq!(deploy.admin(&["session", "end", &ada.email, "nonsense"]).await.status.code(), Some(1));

    // Without Redis a job ends them, when a worker runs it.
    done(&deploy.clone_with("REDIS_URL", "redis://127.0.0.1:1"), &["session", "end", &ada.email]).await;
    let worker = deploy.start("worker");
    worker.logged("the job", |line| line["job_kind"] == "end_sessions" && line["outcome"] == "done").await;
    assert_eq!(elsewhere.get("/session").await.status(), 401);
    assert_eq!(ada.log_in().await.status(), 200);
    done(&deploy, &["session", "end", &ada.email]).await;
    assert_eq!(ada.get("/session").await.status(), 401, "at once");
    assert_eq!(trail(&deploy).await.iter().filter(|action| *action == "sessions_ended").count(), 3);
    eventually("no session", async || rows(&deploy, &["session", "list", &ada.email]).await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn export_holds_one_person_without_secrets() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, grace) = (Person::known(&deploy, &web).await, Person::known(&deploy, &web).await);
    let token = async |person: &Person, name: &str| {
        let made = person.post("/tokens", json!({ "name": name, "scopes": ["tokens:read"], "expires_in_days": 1 })).await;
        made.json::<Value>().await.unwrap()["secret"].as_str().unwrap().to_owned()
    };
    let (secret, _) = (token(&ada, "backup").await, token(&grace, "of another").await);

    let printed = done(&deploy, &["export", &ada.email]).await;
    let export: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(export["account"]["email"], ada.email);
    assert_eq!(export["tokens"].as_array().unwrap().len(), 1);
    assert_eq!(export["tokens"][0]["name"], "backup");
    assert_eq!(export["sessions"].as_array().unwrap().len(), 1);
    let actions: Vec<_> = export["audit_events"].as_array().unwrap().iter().map(|event| event["action"].clone()).collect();
    assert_eq!(actions, ["sign_up", "log_in", "token_created", "data_exported"]);
    for not in ["of another", &grace.email, &secret, "argon2", PASSWORD, "hash"] {
        assert!(!printed.contains(not), "{not}: {printed}");
    }
    let log = stderr(&deploy.clone_with("LOG_LEVEL", "debug").admin(&["export", &ada.email]).await);
    assert!(!log.is_empty() && !log.contains(&ada.email), "the log holds no address: {log}");
}

#[tokio::test]
async fn export_names_each_features_part() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let export: Value = serde_json::from_str(&done(&deploy, &["export", &ada.email]).await).unwrap();
    let core = ["account", "audit_events", "sessions", "tokens"];
    let features: BTreeSet<_> = rules(&deploy).await.into_iter().map(|rule| rule.feature).collect();
    let parts: BTreeSet<_> = export.as_object().unwrap().keys().cloned().collect();
    assert!(core.iter().all(|part| parts.contains(*part)), "{parts:?}");
    for part in parts.iter().filter(|part| !core.contains(&part.as_str())) {
        assert!(features.contains(part), "{part} is the name of no feature: {features:?}");
    }
}
