//! Password resets and changes, address changes, and which sessions each of them ends.

use std::time::Duration;

use deadpool_redis::redis;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::Row;
use uuid::Uuid;

use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, Proxy, eventually};

const NEW_PASSWORD: &str = "another password altogether";

/// The same person, logged in from another browser.
async fn elsewhere(ada: &Person) -> Person {
    let other = ada.elsewhere();
    assert_eq!(other.log_in().await.status(), StatusCode::OK);
    other
}

/// How many sessions Redis has, valid or not.
async fn sessions_in_redis(deploy: &Deploy) -> usize {
    redis::cmd("KEYS").arg("session:*").query_async::<Vec<String>>(&mut deploy.redis().await).await.unwrap().len()
}

async fn status(person: &Person) -> u16 {
    person.get("/session").await.status().as_u16()
}

#[tokio::test]
async fn password_reset_by_mail_ends_every_session() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let other = elsewhere(&ada).await;
    let known = ada.post("/password-resets", json!({ "email": ada.email.to_uppercase() })).await;
    let unknown = ada.post("/password-resets", json!({ "email": "nobody@example.com" })).await;
    assert_eq!((known.status().as_u16(), unknown.status().as_u16()), (202, 202));
    assert_eq!(known.text().await.unwrap(), unknown.text().await.unwrap());

    let token = deploy.mail.to(&ada.email, "Set a new password").await.token();
    let redeem = async |password: &str| ada.post("/password-resets/redeem", json!({ "token": token, "password": password })).await;
    problem(redeem("short").await, 422, "invalid-input").await;
    assert_eq!(redeem(NEW_PASSWORD).await.status(), 204);
    assert_eq!((status(&ada).await, status(&other).await), (401, 401));
    problem(redeem(NEW_PASSWORD).await, 422, "invalid-token").await;
    problem(ada.log_in().await, 401, "wrong-credentials").await;
    let me = ada.post("/session", json!({ "email": ada.email, "password": NEW_PASSWORD })).await;
    assert_eq!(me.json::<Value>().await.unwrap()["verified"], true, "receiving the mail verifies the address");
    deploy.mail.to(&ada.email, "Your password was changed").await;
    assert!(deploy.mail.all().await.iter().all(|mail| mail.to != ["nobody@example.com"]));
}

#[tokio::test]
async fn reset_page_explains_rejected_passwords() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    ada.post("/password-resets", json!({ "email": ada.email })).await;
    let mail = deploy.mail.to(&ada.email, "Set a new password").await;
    assert!(mail.text.contains("http://localhost:8080/reset?token="), "{}", mail.text);
    let token = mail.token();
    let page = web.get(&format!("/reset?token={token}")).await.text().await.unwrap();
    assert!(page.contains(&token) && page.contains("type=\"password\""), "{page}");
    let press = async |password: &str| ada.press(&web, "/reset", &[("token", &token), ("password", password)]).await;
    let again = press("short").await;
    assert_eq!(again.status(), 422);
    let again = again.text().await.unwrap();
    assert!(again.contains(&token) && again.contains("too short"), "the page shows the form again: {again}");
    let done = press(NEW_PASSWORD).await;
    assert_eq!((done.status().as_u16(), done.headers()["location"].to_str().unwrap()), (303, "/reset?done"));
    assert!(press(NEW_PASSWORD).await.text().await.unwrap().contains("was used already"));
    assert_eq!(ada.post("/session", json!({ "email": ada.email, "password": NEW_PASSWORD })).await.status(), 200);
}

#[tokio::test]
async fn mailed_token_expires_and_has_one_purpose() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let verify = deploy.mail.to(&ada.email, "Did you sign up?").await.token();
    let reset = json!({ "token": verify, "password": NEW_PASSWORD });
    problem(ada.post("/password-resets/redeem", reset).await, 422, "invalid-token").await;
    let mut database = deploy.database().await;
    let row = sqlx::query("SELECT token_hash, expires_at > now() + interval '23 hours' FROM mailed_tokens").fetch_one(&mut database).await;
    let row = row.unwrap();
    assert_eq!(row.get::<Vec<u8>, _>(0), Sha256::digest(&verify).to_vec(), "only the token's hash is stored");
    assert!(row.get::<bool, _>(1));
    sqlx::query("UPDATE mailed_tokens SET expires_at = now()").execute(&mut database).await.unwrap();
    problem(ada.redeem(&verify).await, 422, "invalid-token").await;
}

#[tokio::test]
async fn reset_link_of_old_address_is_rejected() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    // The token of a job that read the account before its address changed.
    let mut database = deploy.database().await;
    let token = token(&mut database, &ada.email).await;
    sqlx::query("UPDATE mailed_tokens SET email = 'eve@example.org' WHERE purpose = 'reset'").execute(&mut database).await.unwrap();
    let reset = json!({ "token": token, "password": NEW_PASSWORD });
    problem(ada.post("/password-resets/redeem", reset).await, 422, "invalid-token").await;
    assert_eq!(ada.log_in().await.status(), StatusCode::OK, "the password has not changed");
}

/// A change needs the old password.
#[tokio::test]
async fn password_change_ends_all_other_sessions() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let other = elsewhere(&ada).await;
    let change = async |old: &str, new: &str| ada.post("/account/password", json!({ "old": old, "new": new })).await;
    problem(change("not the right password", NEW_PASSWORD).await, 403, "wrong-password").await;
    problem(change(PASSWORD, "1q2w3e4r5t6y").await, 422, "invalid-input").await;
    assert_eq!((status(&ada).await, status(&other).await), (200, 200));
    let changed = change(PASSWORD, NEW_PASSWORD).await;
    assert_eq!(changed.status(), 204);
    assert!(changed.headers().contains_key("set-cookie"), "the session has a new id");
    assert_eq!((status(&ada).await, status(&other).await), (200, 401));
    problem(other.log_in().await, 401, "wrong-credentials").await;
}

#[tokio::test]
async fn password_change_cancels_pending_address_change() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    ada.patch("/account", json!({ "email": "eve@example.org" })).await;
    let token = deploy.mail.to("eve@example.org", "Did you sign up?").await.token();
    assert_eq!(ada.post("/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })).await.status(), 204);
    let redeem = json!({ "token": token, "password": NEW_PASSWORD });
    problem(ada.post("/email-verifications/redeem", redeem).await, 422, "invalid-token").await;
    let me: Value = ada.get("/session").await.json().await.unwrap();
    assert_eq!((&me["email"], &me["new_email"]), (&json!(ada.email), &Value::Null));
}

#[tokio::test]
async fn users_list_and_end_their_sessions() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let other = ada.elsewhere();
    let body = json!({ "email": ada.email, "password": PASSWORD });
    other.request(Method::POST, "/session").header("user-agent", "a phone").json(&body).send().await.unwrap();
    let list: Value = ada.get("/account/sessions").await.json().await.unwrap();
    let sessions = list["items"].as_array().unwrap();
    assert_eq!(sessions.len(), 2, "{list}");
    assert_eq!((&sessions[0]["current"], &sessions[1]["current"]), (&json!(true), &json!(false)));
    assert_eq!(sessions[1]["user_agent"], "a phone");
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(time(&sessions[0]["last_used_at"]) >= time(&sessions[0]["created_at"]));
    let later = eventually("a later use", async || {
        assert_eq!(status(&ada).await, 200);
        let list: Value = ada.get("/account/sessions").await.json().await.unwrap();
        let used = time(&list["items"][0]["last_used_at"]);
        (used > time(&sessions[0]["last_used_at"])).then_some(used)
    });
    later.await;

    let page: Value = ada.get("/account/sessions?limit=1").await.json().await.unwrap();
    let rest: Value = ada.get(&format!("/account/sessions?cursor={}", page["next"].as_str().unwrap())).await.json().await.unwrap();
    assert_eq!((rest["items"][0]["id"].clone(), &rest["next"]), (sessions[1]["id"].clone(), &Value::Null));

    let second = format!("/account/sessions/{}", sessions[1]["id"].as_str().unwrap());
    assert_eq!(ada.delete(&second).await.status(), 204);
    problem(ada.delete(&second).await, 404, "not-found").await;
    assert_eq!((status(&ada).await, status(&other).await), (200, 401));
    other.log_in().await;
    assert_eq!(ada.delete("/account/sessions").await.status(), 204);
    assert_eq!((status(&ada).await, status(&other).await), (401, 401));
}

#[tokio::test]
async fn session_stays_listed_until_redis_deletes_it() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let web = deploy.with("REDIS_URL", url).web().await;
    let ada = Person::unverified(&web).await;
    let other = elsewhere(&ada).await;
    let list: Value = ada.get("/account/sessions").await.json().await.unwrap();
    let second = format!("/account/sessions/{}", list["items"][1]["id"].as_str().unwrap());

    // Redis becomes unavailable just as the session is deleted.
    proxy.delay(Duration::from_millis(300));
    let interrupted = async {
        eventually("the deletion", async || proxy.sent().iter().any(|piece| piece.contains("\r\nDEL\r\n")).then_some(())).await;
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(ada.delete(&second), interrupted);
    problem(answer, 503, "unavailable").await;
    proxy.heal();
    let again = eventually("an answer", async || Some(ada.delete(&second).await).filter(|answer| answer.status() != 503)).await;
    assert_eq!((again.status().as_u16(), status(&other).await), (204, 401));
}

#[tokio::test]
async fn oldest_session_ends_beyond_one_hundred() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let first = Person::unverified(&web).await;
    let me: Value = first.get("/session").await.json().await.unwrap();
    let second = elsewhere(&first).await;
    // Ninety-eight more, without the cost of a log-in for each.
    let mut redis = deploy.redis().await;
    let set = format!("sessions:{}", me["id"].as_str().unwrap());
    let mut add = redis::pipe();
    for number in 0..98 {
        add.zadd(&set, number, i64::MAX / 2048).ignore().set(format!("session:{number}"), "{}").ignore();
    }
    // An expired session does not count.
    add.zadd(&set, "gone", i64::MAX / 2048).ignore();
    add.query_async::<()>(&mut redis).await.unwrap();
    assert_eq!((status(&first).await, status(&second).await), (200, 200));
    let count = async || redis::cmd("ZCARD").arg(&set).query_async::<usize>(&mut redis.clone()).await.unwrap();
    assert_eq!(count().await, 101);
    elsewhere(&first).await;
    assert_eq!((status(&first).await, status(&second).await, count().await), (401, 200, 100));
}

#[tokio::test]
async fn sessions_end_after_a_long_redis_outage() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let web = deploy.web().await;
    let far = deploy.clone_with("REDIS_URL", url);
    let ada = Person::unverified(&web).await;
    proxy.cut();
    let output = far.admin(&["account", "suspend", &ada.email]).await;
    assert!(output.status.success(), "{output:?}");
    // The job has failed for months.
    let often = sqlx::query("UPDATE jobs SET attempt = 2000, run_at = now() WHERE kind = 'end_sessions'");
    assert_eq!(often.execute(&mut deploy.database().await).await.unwrap().rows_affected(), 1);
    let worker = far.start("worker");
    worker.logged("the failure", |line| line["job_kind"] == "end_sessions" && line["outcome"] == "failed").await;
    assert_eq!(status(&ada).await, 401, "Redis still has the session, but Postgres rejects it");
    assert_eq!(sessions_in_redis(&deploy).await, 1, "the session is not deleted yet");
    proxy.heal();
    sqlx::query("UPDATE jobs SET run_at = now() WHERE token IS NULL").execute(&mut deploy.database().await).await.unwrap();
    eventually("the end of the session", async || (sessions_in_redis(&deploy).await == 0).then_some(())).await;
}

/// The old address is notified when the change is requested.
#[tokio::test]
async fn address_change_takes_effect_once_verified() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let new = format!("{}@example.org", Uuid::new_v4().simple());
    let me: Value = ada.patch("/account", json!({ "email": new })).await.json().await.unwrap();
    assert_eq!((&me["email"], &me["new_email"]), (&json!(ada.email), &json!(new)));
    deploy.mail.to(&ada.email, "Email address change requested").await;
    let token = deploy.mail.to(&new, "Did you sign up?").await.token();
    assert_eq!(ada.log_in().await.status(), 200, "until then the old address counts");
    assert_eq!(ada.redeem(&token).await.status(), 204);
    let me: Value = ada.get("/session").await.json().await.unwrap();
    assert_eq!((&me["email"], &me["new_email"], &me["verified"]), (&json!(new), &Value::Null, &json!(true)));
    problem(ada.log_in().await, 401, "wrong-credentials").await;

    // An address that already has an account gets a mail, but cannot be taken over.
    let eve = Person::unverified(&web).await;
    ada.patch("/account", json!({ "email": eve.email })).await;
    let mail = eventually("the mail to Eve", async || {
        let mails = deploy.mail.all().await;
        mails.into_iter().find(|mail| mail.to == [eve.email.as_str()] && mail.message_id.contains(me["id"].as_str().unwrap()))
    });
    problem(ada.redeem(&mail.await.token()).await, 422, "invalid-token").await;
    assert_eq!(ada.get("/session").await.json::<Value>().await.unwrap()["email"], json!(new));

    // The link to a mistyped address becomes invalid when another change is requested.
    let strangers = format!("{}@example.net", Uuid::new_v4().simple());
    ada.patch("/account", json!({ "email": strangers })).await;
    let theirs = deploy.mail.to(&strangers, "Did you sign up?").await.token();
    let own = format!("{}@example.net", Uuid::new_v4().simple());
    ada.patch("/account", json!({ "email": own })).await;
    let token = deploy.mail.to(&own, "Did you sign up?").await.token();
    problem(ada.redeem(&theirs).await, 422, "invalid-token").await;
    assert_eq!(ada.redeem(&token).await.status(), 204);
    let me: Value = ada.get("/session").await.json().await.unwrap();
    assert_eq!(me["email"], own);
}

#[tokio::test]
async fn account_patch_keeps_absent_and_rejects_null() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let off: Value = ada.patch("/account", json!({ "digest": false })).await.json().await.unwrap();
    assert_eq!((&off["digest"], &off["email"]), (&json!(false), &json!(ada.email)));
    assert_eq!(ada.patch("/account", json!({})).await.json::<Value>().await.unwrap(), off);
    for body in [json!({ "digest": null }), json!({ "email": null }), json!({ "digset": true })] {
        problem(ada.patch("/account", body).await, 422, "invalid-input").await;
    }
}

#[tokio::test]
async fn account_deletion_removes_all_its_data() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let other = elsewhere(&ada).await;
    let token = json!({ "name": "never", "scopes": ["tokens:read"], "expires_in_days": 1 });
    assert_eq!(ada.post("/tokens", token).await.status(), 201);
    assert_eq!(ada.delete("/account").await.status(), 204);
    assert_eq!((status(&ada).await, status(&other).await), (401, 401));
    problem(ada.log_in().await, 401, "wrong-credentials").await;
    let mut database = deploy.database().await;
    for table in ["accounts", "mailed_tokens", "api_tokens"] {
        let count = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"))).fetch_one(&mut database).await.unwrap();
        assert_eq!(count.get::<i64, _>(0), 0, "{table}");
    }
    assert_eq!(ada.sign_up().await.status(), 202, "the address can sign up again");
}

/// Stores a reset token, as if it had been mailed.
async fn token(database: &mut sqlx::PgConnection, email: &str) -> String {
    let token = Uuid::new_v4().to_string();
    let insert = "INSERT INTO mailed_tokens (token_hash, account_id, purpose, email, expires_at)
        SELECT $1, id, 'reset', email, now() + interval '1 hour' FROM accounts WHERE email = $2";
    sqlx::query(insert).bind(Sha256::digest(&token).to_vec()).bind(email).execute(database).await.unwrap();
    token
}

/// A thousand times, a log-in with the old password races the reset that replaces it.
#[tokio::test]
async fn racing_log_in_never_outlives_a_reset() {
    let deploy = Deploy::new().await.with("DATABASE_POOL_SIZE", 10).with("RATE_LIMIT_REQUESTS", 1_000_000);
    let web = deploy.web().await;
    let race = async |number: usize| {
        let ada = Person::unverified(&web).await;
        let mut database = deploy.database().await;
        let (mut old, mut won) = (PASSWORD.to_owned(), 0);
        for round in 0..125 {
            let new = format!("seven purple lanterns drift {number} {round}");
            let token = token(&mut database, &ada.email).await;
            let racer = ada.elsewhere();
            let (log_in, reset) = tokio::join!(
                racer.post("/session", json!({ "email": ada.email, "password": old })),
                ada.post("/password-resets/redeem", json!({ "token": token, "password": new })),
            );
            assert_eq!(reset.status(), 204);
            won += usize::from(log_in.status() == 200);
            // Whether its response came before or after the reset's, the log-in's cookie is invalid now.
            assert_eq!(status(&racer).await, 401, "round {round}: {:?}", log_in.status());
            old = new;
        }
        won
    };
    let won = futures_util::future::join_all((0..8).map(race)).await;
    assert!(won.iter().sum::<usize>() > 0, "some log-ins must succeed before the reset, or there was no race: {won:?}");
}

#[tokio::test]
async fn web_killed_after_reset_leaves_no_session() {
    let deploy = Deploy::new().await;
    let proxy = crate::support::Proxy::to(deploy.address_of("REDIS_URL")).await;
    let behind = deploy.through("REDIS_URL", &proxy);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let token = token(&mut deploy.database().await, &ada.email).await;

    // This process commits, and is killed before it deletes the session in Redis.
    let redis = deploy.environment["REDIS_URL"].clone();
    let deploy = deploy.with("REDIS_URL", behind).with("RATE_LIMIT_LOGIN", 1_000_000);
    let hanging = deploy.web().await;
    proxy.delay(Duration::from_millis(200));
    let body = json!({ "token": token, "password": NEW_PASSWORD });
    let at = ada.at(&hanging);
    let reset = tokio::spawn(async move { at.request(Method::POST, "/password-resets/redeem").json(&body).send().await });
    eventually("the commit", async || {
        let raised = sqlx::query("SELECT 1 FROM accounts WHERE session_epoch = 1").fetch_optional(&mut deploy.database().await).await;
        raised.unwrap().map(drop)
    })
    .await;
    hanging.process.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(reset.await.unwrap().is_err(), "the client gets no response");
    let deploy = deploy.with("REDIS_URL", redis);
    assert_eq!(sessions_in_redis(&deploy).await, 1, "the session is not deleted yet");
    assert_eq!(status(&ada).await, 401, "Redis still has the session, but Postgres rejects it");
    let _worker = deploy.start("worker");
    eventually("the end of the session", async || (sessions_in_redis(&deploy).await == 0).then_some(())).await;
}
