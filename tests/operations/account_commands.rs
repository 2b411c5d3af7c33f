//! The `admin` commands for accounts and sessions.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::access::rules;
use crate::support::person::{PASSWORD, Person};
use crate::support::{Deploy, eventually};
use crate::{count, done, on_a_terminal, rows, stderr, stdout, trail};

/// Runs `admin account invite`, which must succeed and print only the invitation.
async fn invite(deploy: &Deploy, email: &str, role: &str) {
    let output = deploy.admin(&["account", "invite", email, "--role", role]).await;
    assert!(output.status.success(), "{output:?}");
    let id: String = sqlx::query_scalar("SELECT id::text FROM accounts WHERE email = $1")
        .bind(email)
        .fetch_one(&mut deploy.database().await)
        .await
        .unwrap();
    assert_eq!(stdout(&output), format!("account {id}: invited. The link is mailed to {email}\n"));
    assert_eq!(stderr(&output), "");
}

#[tokio::test]
async fn invited_user_sets_password_by_mail() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person { email: "ada@example.com".to_owned(), ..Person::stranger(&web) };
    invite(&deploy, &ada.email, "admin").await;
    let token = deploy.mail.to(&ada.email, "You are invited").await.token();
    let three_days =
        "mailed_tokens WHERE purpose = 'reset' AND expires_at BETWEEN now() + interval '71 hours' AND now() + interval '72 hours'";
    assert_eq!(count(&mut deploy.database().await, three_days).await, 1);
    assert_eq!(ada.log_in().await.status(), 401, "there is no password yet");
    let reset = json!({ "token": token, "password": PASSWORD });
    assert_eq!(ada.post("/password-resets/redeem", reset.clone()).await.status(), 204);
    assert_eq!(ada.post("/password-resets/redeem", reset).await.status(), 422, "the link works once");
    let answer = ada.log_in().await;
    assert_eq!(answer.status(), 200);
    let account: Value = answer.json().await.unwrap();
    assert_eq!((&account["verified"], &account["role"]), (&json!(true), &json!("admin")));

    let again = deploy.admin(&["account", "invite", "ADA@example.com"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("already has an account"), "{again:?}");
    for wrong in ["nobody", "a@b\u{1}.example", "", "a..b@example.com"] {
        assert_eq!(deploy.admin(&["account", "invite", wrong]).await.status.code(), Some(1), "{wrong:?}");
    }
    assert_eq!(trail(&deploy).await, ["account_invited", "log_in_failed", "password_reset", "log_in"]);
}

#[tokio::test]
async fn invitation_can_be_mailed_again() {
    let deploy = Deploy::new().await;
    let _worker = deploy.start("worker");
    for number in 1..=2 {
        invite(&deploy, "ada@example.com", "user").await;
        eventually("the mail", async || (deploy.mail.all().await.len() == number).then_some(())).await;
    }
}

#[tokio::test]
async fn second_invitation_does_not_wait_for_the_first() {
    let deploy = Deploy::new().await;
    for _ in 0..2 {
        invite(&deploy, "ada@example.com", "user").await;
    }
    // The second has withdrawn the link of the first, which may be on its way.
    assert_eq!(count(&mut deploy.database().await, "jobs WHERE kind = 'send_invitation'").await, 2);
}

#[tokio::test]
async fn invitation_reclaims_address_from_squatter() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    // Eve has signed up with an address that an operator will invite.
    let eve = Person::unverified(&web).await;
    invite(&deploy, &eve.email, "admin").await;
    assert_eq!(eve.get("/admin/accounts").await.status(), 401, "the session has ended");
    assert_eq!(eve.log_in().await.status(), 401, "the squatter's password has ended");
    let token = deploy.mail.to(&eve.email, "You are invited").await.token();
    let owner = Person { email: eve.email.clone(), ..Person::stranger(&web) };
    let reset = json!({ "token": token, "password": "another password altogether" });
    assert_eq!(owner.post("/password-resets/redeem", reset).await.status(), 204);
}

#[tokio::test]
async fn admin_lists_and_shows_accounts() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, grace) = (Person::unverified(&web).await, Person::unverified(&web).await);
    let account: Value = ada.get("/session").await.json().await.unwrap();
    let id = account["id"].as_str().unwrap();
    for name in [&*ada.email, id] {
        let shown = rows(&deploy, &["account", "show", name]).await;
        assert_eq!(shown, std::slice::from_ref(&account), "the account is found by address and by id");
    }
    let first = rows(&deploy, &["account", "list", "--limit", "1"]).await;
    assert_eq!(first, std::slice::from_ref(&account));
    let after = rows(&deploy, &["account", "list", "--limit", "1", "--after", id]).await;
    assert_eq!(after[0]["email"], grace.email, "the next page starts after the id");
    let table = done(&deploy, &["account", "list"]).await;
    assert!(table.starts_with("id ") && table.lines().nth(1).unwrap().starts_with(id), "{table}");
    assert!(!table.contains('\x1b'), "output to a pipe has no colour");
    let unknown = deploy.admin(&["account", "show", "nobody@example.com"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("no account has the address or the id"), "{unknown:?}");
}

#[tokio::test]
async fn operator_suspends_and_restores_an_account() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    done(&deploy, &["account", "suspend", &ada.email]).await;
    assert_eq!(ada.get("/session").await.status(), 401);
    assert_eq!(ada.log_in().await.status(), 401);
    done(&deploy, &["account", "restore", &ada.email]).await;
    assert_eq!(ada.log_in().await.status(), 200);
    done(&deploy, &["account", "grant", &ada.email, "admin"]).await;
    assert_eq!(ada.get("/session").await.status(), 401);
    let trail = trail(&deploy).await;
    for action in ["suspended", "restored", "role_changed"] {
        assert!(trail.contains(&action.to_owned()), "{trail:?}");
    }
}

/// Without a terminal it needs `--yes`.
#[tokio::test]
async fn account_deletion_asks_for_confirmation() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let refused = deploy.admin(&["account", "delete", &ada.email]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("confirm with --yes"), "{refused:?}");
    assert_eq!(ada.get("/session").await.status(), 200);

    for (answer, deleted) in [("no", false), ("yes", true)] {
        let Some(printed) = on_a_terminal(&deploy, &format!("account delete {}", ada.email), answer).await else { return };
        assert!(printed.contains("Type yes:"), "{printed}");
        assert_eq!(count(&mut deploy.database().await, "accounts").await, i64::from(!deleted), "{printed}");
    }
    assert_eq!(ada.get("/session").await.status(), 401);

    let grace = Person::known(&deploy, &web).await;
    done(&deploy, &["account", "delete", "--yes", &grace.email]).await;
    assert_eq!(count(&mut deploy.database().await, "accounts").await, 0);
    assert_eq!(grace.get("/session").await.status(), 401);
    assert_eq!(trail(&deploy).await.iter().filter(|action| *action == "account_deleted").count(), 2);
}

#[tokio::test]
async fn terminal_table_heads_respect_no_color() {
    let deploy = Deploy::new().await;
    let Some(printed) = on_a_terminal(&deploy, "schedule", "").await else { return };
    assert!(printed.contains("\x1b[1mname "), "{printed:?}");
    let printed = on_a_terminal(&deploy.with("NO_COLOR", "1"), "schedule", "").await.unwrap();
    assert!(printed.contains("name ") && !printed.contains("\x1b["), "{printed:?}");
}

#[tokio::test]
async fn operator_lists_and_ends_sessions() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let elsewhere = ada.elsewhere();
    assert_eq!(elsewhere.log_in().await.status(), 200);
    let sessions = rows(&deploy, &["session", "list", &ada.email]).await;
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|session| session["last_used_at"].is_string()), "{sessions:?}");

    // The first session is the oldest.
    done(&deploy, &["session", "end", &ada.email, sessions[0]["id"].as_str().unwrap()]).await;
    assert_eq!(ada.get("/session").await.status(), 401);
    assert_eq!(elsewhere.get("/session").await.status(), 200);
    assert_eq!(deploy.admin(&["session", "end", &ada.email, "nonsense"]).await.status.code(), Some(1));

    // Without Redis a job ends them later.
    done(&deploy.clone_with("REDIS_URL", "redis://127.0.0.1:1"), &["session", "end", &ada.email]).await;
    let worker = deploy.start("worker");
    worker.logged("the job", |line| line["job_kind"] == "end_sessions" && line["outcome"] == "done").await;
    assert_eq!(elsewhere.get("/session").await.status(), 401);
    assert_eq!(ada.log_in().await.status(), 200);
    done(&deploy, &["session", "end", &ada.email]).await;
    assert_eq!(ada.get("/session").await.status(), 401, "with Redis the session ends at once");
    assert_eq!(trail(&deploy).await.iter().filter(|action| *action == "sessions_ended").count(), 3);
    eventually("no session", async || rows(&deploy, &["session", "list", &ada.email]).await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn export_holds_one_account_without_secrets() {
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
async fn export_parts_are_named_after_features() {
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
