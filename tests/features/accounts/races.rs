//! Decisions on a row that changes meanwhile. Each test locks the account's row, so that a request has read it and waits to
//! write. Then it changes the row, as a concurrent request would.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::support::Deploy;
use crate::support::person::{PASSWORD, Person, problem};

const NEW_PASSWORD: &str = "another password altogether";

/// Sends a request of Ada's that must wait for her row, changes the row with `meanwhile`, and returns the response.
async fn send_while_row_changes(deploy: &Deploy, ada: &Person, request: (Method, &str, Value), meanwhile: &str) -> reqwest::Response {
    let (mut connection, (method, path, body)) = (deploy.database().await, request);
    let mut held = lock_row(&mut connection, ada).await;
    let asking = tokio::spawn(ada.request(method, path).json(&body).send());
    deploy.waits_for_a_lock().await;
    let change = format!("UPDATE accounts SET {meanwhile} WHERE email = $1");
    sqlx::query(sqlx::AssertSqlSafe(change)).bind(&ada.email).execute(&mut *held).await.unwrap();
    held.commit().await.unwrap();
    asking.await.unwrap().unwrap()
}

async fn lock_row<'a>(connection: &'a mut PgConnection, person: &Person) -> Transaction<'a, Postgres> {
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("SELECT FROM accounts WHERE email = $1 FOR UPDATE").bind(&person.email).execute(&mut *transaction).await.unwrap();
    transaction
}

async fn count(deploy: &Deploy, from: &str) -> i64 {
    let count = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {from}")));
    count.fetch_one(&mut deploy.database().await).await.unwrap()
}

#[tokio::test]
async fn password_change_gives_demoted_admin_no_session() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let eve = Person::unverified(&web).await;
    assert!(deploy.admin(&["account", "grant", &eve.email, "admin"]).await.status.success());
    assert_eq!(eve.log_in().await.status(), StatusCode::OK);
    assert_eq!(eve.get("/admin/accounts").await.status(), StatusCode::OK);
    let change = (Method::POST, "/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD }));
    let answer = send_while_row_changes(&deploy, &eve, change, "role = 'user', session_epoch = session_epoch + 1").await;
    assert!(!answer.headers().contains_key("set-cookie"), "{answer:?}");
    problem(answer, 401, "unauthenticated").await;
    assert_eq!(eve.log_in().await.status(), StatusCode::OK, "the password has not changed");
    problem(eve.get("/admin/accounts").await, 403, "insufficient-role").await;
}

#[tokio::test]
async fn reset_wins_over_an_earlier_password_change() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, grace) = (Person::unverified(&web).await, Person::unverified(&web).await);
    assert_eq!(grace.post("/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })).await.status(), 204);
    // The owner resets the password while a thief with the old password changes it.
    let change = (Method::POST, "/account/password", json!({ "old": PASSWORD, "new": "seven purple lanterns drift" }));
    let reset =
        format!("session_epoch = session_epoch + 1, password_hash = (SELECT password_hash FROM accounts WHERE email = '{}')", grace.email);
    problem(send_while_row_changes(&deploy, &ada, change, &reset).await, 401, "unauthenticated").await;
    let log_in = async |password: &str| ada.post("/session", json!({ "email": ada.email, "password": password })).await.status();
    assert_eq!((log_in("seven purple lanterns drift").await, log_in(PASSWORD).await, log_in(NEW_PASSWORD).await), {
        (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED, StatusCode::OK)
    });
}

#[tokio::test]
async fn ended_or_suspended_session_changes_nothing() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let token = json!({ "name": "late", "scopes": ["tokens:read"], "expires_in_days": 366 });
    for meanwhile in ["session_epoch = session_epoch + 1", "suspended_at = now(), session_epoch = session_epoch + 1"] {
        for request in [
            (Method::PATCH, "/account", json!({ "email": "eve@example.org", "digest": false })),
            (Method::DELETE, "/account", json!({})),
            (Method::DELETE, "/account/sessions", json!({})),
            (Method::DELETE, "/account/sessions/CURRENT", json!({})),
            (Method::POST, "/email-verifications", json!({})),
            (Method::POST, "/tokens", token.clone()),
            (Method::POST, "/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })),
        ] {
            let ada = Person::known(&deploy, &web).await;
            let what = format!("{} {} after {meanwhile}", request.0, request.1);
            let listed: Value = ada.get("/account/sessions").await.json().await.unwrap();
            let path = request.1.replace("CURRENT", listed["items"][0]["id"].as_str().unwrap());
            let answer = send_while_row_changes(&deploy, &ada, (request.0, &path, request.2), meanwhile).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{what}");
            let unchanged = format!("accounts WHERE email = '{}' AND new_email IS NULL AND digest AND session_epoch = 1", ada.email);
            assert_eq!(count(&deploy, &unchanged).await, 1, "{what}");
        }
    }
    assert_eq!(count(&deploy, "api_tokens").await, 0);
    let done = "audit_events WHERE action NOT IN ('sign_up', 'log_in')";
    assert_eq!(count(&deploy, done).await, 0, "rejected requests leave no audit event");
}

#[tokio::test]
async fn suspended_account_cannot_be_verified() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let token = deploy.mail.to(&ada.email, "Did you sign up?").await.token();
    let redeem = (Method::POST, "/email-verifications/redeem", json!({ "token": token, "password": PASSWORD }));
    let answer = send_while_row_changes(&deploy, &ada, redeem, "suspended_at = now(), session_epoch = session_epoch + 1").await;
    problem(answer, 422, "invalid-token").await;
    assert_eq!(count(&deploy, "accounts WHERE verified_at IS NOT NULL").await, 0);
    assert_eq!(count(&deploy, "mailed_tokens").await, 1, "the link stays valid");
}

#[tokio::test]
async fn concurrent_resets_use_a_link_once() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    ada.request_reset().await;
    let token = deploy.mail.to(&ada.email, "Set a new password").await.token();
    let mut connection = deploy.database().await;
    let held = lock_row(&mut connection, &ada).await;
    let reset =
        |password: &str| ada.request(Method::POST, "/password-resets/redeem").json(&json!({ "token": token, "password": password }));
    let passwords = [NEW_PASSWORD, "seven purple lanterns drift"];
    let first = tokio::spawn(reset(passwords[0]).send());
    deploy.waits_for_a_lock().await;
    let second = tokio::spawn(reset(passwords[1]).send());
    crate::support::eventually("both wait", async || {
        let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (count(&deploy, waiting).await == 2).then_some(())
    })
    .await;
    held.rollback().await.unwrap();
    let answers = (first.await.unwrap().unwrap().status().as_u16(), second.await.unwrap().unwrap().status().as_u16());
    assert_eq!(answers, (204, 422));
    let log_in = async |password: &str| ada.post("/session", json!({ "email": ada.email, "password": password })).await.status().as_u16();
    assert_eq!((log_in(passwords[0]).await, log_in(passwords[1]).await), (200, 401));
}
