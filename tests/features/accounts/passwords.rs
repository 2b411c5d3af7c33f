//! Passwords: Unicode forms, easy passwords, and hashes of earlier releases.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use reqwest::StatusCode;
use serde_json::json;

use crate::support::Deploy;
use crate::support::person::{PASSWORD, Person, problem};

/// A hash as an earlier release made it: of exactly these bytes, at this cost.
fn hash(password: &str, memory_kib: u32) -> String {
    let params = Params::new(memory_kib, 1, 1, None).unwrap();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password(password.as_bytes()).unwrap().to_string()
}

async fn stored(deploy: &Deploy, person: &Person) -> String {
    let stored = sqlx::query_scalar("SELECT password_hash FROM accounts WHERE email = $1").bind(&person.email);
    stored.fetch_one(&mut deploy.database().await).await.unwrap()
}

async fn store(deploy: &Deploy, person: &Person, hash: &str) {
    let store = sqlx::query("UPDATE accounts SET password_hash = $2 WHERE email = $1").bind(&person.email).bind(hash);
    store.execute(&mut deploy.database().await).await.unwrap();
}

async fn log_in(person: &Person, password: &str) -> StatusCode {
    person.post("/session", json!({ "email": person.email, "password": password })).await.status()
}

#[tokio::test]
async fn log_in_upgrades_a_cheaper_hash() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let today = stored(&deploy, &ada).await;
    let cost = |hash: &str| hash.split('$').nth(3).unwrap().to_owned();
    let old = hash(PASSWORD, 4096);
    assert_ne!(cost(&old), cost(&today));
    store(&deploy, &ada, &old).await;
    assert_eq!(log_in(&ada, "not the right password").await, 401);
    assert_eq!(stored(&deploy, &ada).await, old, "a failed log-in does not upgrade the hash");
    assert_eq!(log_in(&ada, PASSWORD).await, 200);
    let renewed = stored(&deploy, &ada).await;
    assert_eq!(cost(&renewed), cost(&today));
    assert!(PasswordHash::new(&renewed).is_ok() && renewed != today);
    assert_eq!(log_in(&ada, PASSWORD).await, 200);
    assert_eq!(stored(&deploy, &ada).await, renewed, "the hash is upgraded once");
    assert_eq!(ada.get("/session").await.status(), 200);
}

#[tokio::test]
async fn password_matches_in_every_unicode_form() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    // One code point or two, a ligature or its letters, wide digits or narrow ones.
    let typed = ["vier gr\u{fc}ne \u{fb01}sche im \u{ff12}. see", "vier gru\u{308}ne fische im 2. see"];
    for (signed_up, logs_in) in [(typed[0], typed[1]), (typed[1], typed[0])] {
        let ada = Person::stranger(&web);
        assert_eq!(ada.post("/accounts", json!({ "email": ada.email, "password": signed_up })).await.status(), 202);
        assert_eq!((log_in(&ada, logs_in).await, log_in(&ada, signed_up).await), (StatusCode::OK, StatusCode::OK));
        assert_eq!(log_in(&ada, "vier gru\u{308}ne fische im 3. see").await, 401);
    }
    // 0.1.0 hashed the bytes as typed.
    let ada = Person::unverified(&web).await;
    store(&deploy, &ada, &hash(typed[1], 19 * 1024)).await;
    assert_eq!(log_in(&ada, typed[0]).await, 401, "the old hash matches only the bytes as typed");
    assert_eq!(log_in(&ada, typed[1]).await, 200);
    assert_eq!((log_in(&ada, typed[0]).await, log_in(&ada, typed[1]).await), (StatusCode::OK, StatusCode::OK));
}

#[tokio::test]
async fn easy_passwords_are_rejected_everywhere() {
    let deploy = Deploy::new().await.with("PUBLIC_URL", "http://flowershop.example");
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person { email: "lovelace1815@example.com".to_owned(), ..Person::stranger(&web) };
    let sign_up = async |password: &str| ada.post("/accounts", json!({ "email": ada.email, "password": password })).await;
    let easy = [
        "Password12345",
        "qwertyuiopasdf",
        "aaaaaaaaaaaaaaaa",
        "abcdefghijklmnop",
        "iloveyouiloveyou",
        "lovelace1815!",
        "lovelace1815@example.com",
        "Flowershop.Example1",
    ];
    for password in easy {
        let refusal = problem(sign_up(password).await, 422, "invalid-input").await;
        assert_eq!(refusal["errors"][0]["field"], "password", "{password}: {refusal}");
    }
    assert_eq!(sign_up(PASSWORD).await.status(), 202);
    ada.log_in().await;
    let change = async |new: &str| ada.post("/account/password", json!({ "old": PASSWORD, "new": new })).await;
    ada.request_reset().await;
    let token = deploy.mail.to(&ada.email, "Set a new password").await.token();
    for password in easy {
        problem(change(password).await, 422, "invalid-input").await;
        let reset = json!({ "token": token, "password": password });
        problem(ada.post("/password-resets/redeem", reset).await, 422, "invalid-input").await;
    }
    let pressed = ada.press(&web, "/reset", &[("token", &token), ("password", easy[0])]).await;
    assert_eq!(pressed.status(), 422);
    assert!(pressed.text().await.unwrap().contains("easy to guess"));
    assert_eq!(
        ada.post("/password-resets/redeem", json!({ "token": token, "password": "seven purple lanterns drift" })).await.status(),
        204
    );
}

#[tokio::test]
async fn each_password_change_sends_a_mail() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let guess = json!({ "old": "a wrong old password", "new": "another password altogether" });
    problem(ada.post("/account/password", guess).await, 403, "wrong-password").await;
    let guesses = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM audit_events WHERE action = 'confirmation_failed'");
    assert_eq!(guesses.fetch_one(&mut deploy.database().await).await.unwrap(), 1);
    // While the mail server is down, the owner changes the password, and then a thief does.
    for (old, new) in [(PASSWORD, "another password altogether"), ("another password altogether", "seven purple lanterns drift")] {
        assert_eq!(ada.post("/account/password", json!({ "old": old, "new": new })).await.status(), 204);
    }
    let notices = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs WHERE kind = 'send_notice'");
    assert_eq!(notices.fetch_one(&mut deploy.database().await).await.unwrap(), 2);
}
