//! JSON that 0.1.0 stored, byte by byte, must work with the current programs.

use deadpool_redis::redis::{AsyncCommands, cmd};
use serde_json::{Value, json};

use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, eventually};

async fn id_of(person: &Person) -> String {
    person.get("/session").await.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn old_format_session_stays_valid_unconfirmed() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let id = id_of(&ada).await;
    let mut redis = deploy.redis().await;
    let keys: Vec<String> = cmd("KEYS").arg("session:*").query_async(&mut redis).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "when it began")]
    let began = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let yesterday = format!(r#"{{"account_id":"{id}","epoch":0,"role":"user","created_at":"{began}","user_agent":null}}"#);
    redis.set_ex::<_, _, ()>(&keys[0], yesterday, 600).await.unwrap();
    assert_eq!(ada.get("/session").await.status(), 200);
    let list: Value = ada.get("/account/sessions").await.json().await.unwrap();
    assert_eq!(list["items"][0]["created_at"], began.to_string(), "{list}");
    let token = json!({ "name": "test", "scopes": ["tokens:read"], "expires_in_days": 1 });
    problem(ada.post("/tokens", token.clone()).await, 403, "confirmation-required").await;
    assert_eq!(ada.post("/session/confirm", json!({ "password": PASSWORD })).await.status(), 204);
    assert_eq!(ada.post("/tokens", token).await.status(), 201);
    // The current format contains every field that 0.1.0 reads.
    let today: Value = serde_json::from_str(&redis.get::<_, String>(&keys[0]).await.unwrap()).unwrap();
    let fields: Vec<_> =
        ["account_id", "epoch", "role", "created_at", "user_agent"].into_iter().filter(|field| today.get(*field).is_some()).collect();
    assert_eq!(fields.len(), 5, "{today}");
}

#[tokio::test]
async fn old_format_jobs_are_run() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, eve, grace) = (Person::known(&deploy, &web).await, Person::unverified(&web).await, Person::unverified(&web).await);
    let mut database = deploy.database().await;
    sqlx::query("DELETE FROM jobs").execute(&mut database).await.unwrap();
    let (adas, eves, graces) = (id_of(&ada).await, id_of(&eve).await, id_of(&grace).await);
    for (kind, payload, attempts) in [
        ("send_verification", format!(r#"{{"account_id": "{eves}"}}"#), 20),
        ("send_password_reset", format!(r#"{{"account_id": "{adas}"}}"#), 20),
        ("send_notice", format!(r#"{{"notice": "account_exists", "account_id": "{adas}"}}"#), 20),
        ("send_notice", format!(r#"{{"notice": "address_change", "account_id": "{adas}"}}"#), 20),
        ("send_notice", format!(r#"{{"notice": "password_changed", "account_id": "{adas}"}}"#), 20),
        ("end_sessions", format!(r#"{{"epoch": 1, "account_id": "{graces}"}}"#), 10_000),
        ("purge_expired", "{}".to_owned(), 20),
    ] {
        let insert = "INSERT INTO jobs (kind, payload, max_attempts) VALUES ($1, $2::jsonb, $3)";
        sqlx::query(insert).bind(kind).bind(payload).bind(attempts).execute(&mut database).await.unwrap();
    }
    let worker = deploy.start("worker");
    for subject in ["Set a new password", "You have an account already", "Email address change requested", "Your password was changed"] {
        deploy.mail.to(&ada.email, subject).await;
    }
    let token = deploy.mail.to(&eve.email, "Did you sign up?").await.token();
    assert_eq!(eve.redeem(&token).await.status(), 204);
    eventually("an empty queue", async || {
        let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap();
        (jobs == 0).then_some(())
    })
    .await;
    assert_eq!(grace.get("/session").await.status(), 401);
    let ends: Vec<_> = worker.log().into_iter().filter(|line| line["run_ms"].is_number() && line["outcome"] != "done").collect();
    assert!(ends.is_empty(), "{ends:?}");
}
