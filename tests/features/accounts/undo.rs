//! An address change by a thief, and how the owner undoes it.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::deploy::Web;
use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, eventually};

const NEW_PASSWORD: &str = "another password altogether";

/// Waits until every job has ended.
async fn wait_until_idle(deploy: &Deploy) {
    eventually("an empty queue", async || {
        let jobs = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap();
        (jobs == 0).then_some(())
    })
    .await;
}

/// Ada's account after a thief with her session and password changed its address. Returns Ada, the thief, and the undo token.
async fn hijacked_account(deploy: &Deploy, web: &Web) -> (Person, Person, String) {
    let ada = Person::verified(deploy, web).await;
    let thief = format!("{}@example.org", Uuid::new_v4().simple());
    let session = Person { email: ada.email.clone(), ..Person::stranger(web) };
    session.log_in().await;
    assert_eq!(session.patch("/account", json!({ "email": thief })).await.status(), 200);
    let undo = deploy.mail.to(&ada.email, "Email address change requested").await;
    assert!(undo.text.contains("http://localhost:8080/undo?token="), "{}", undo.text);
    let verify = deploy.mail.to(&thief, "Did you sign up?").await;
    assert_eq!(session.redeem(&verify.token()).await.status(), 204);
    let me: Value = session.get("/session").await.json().await.unwrap();
    assert_eq!(me["email"], thief);
    (ada, Person { email: thief, ..session }, undo.token())
}

#[tokio::test]
async fn undo_restores_the_old_address() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, thief, undo) = hijacked_account(&deploy, &web).await;
    let three_days = "SELECT count(*) FROM mailed_tokens WHERE purpose = 'undo'
        AND expires_at BETWEEN now() + interval '71 hours' AND now() + interval '72 hours'";
    assert_eq!(sqlx::query_scalar::<_, i64>(three_days).fetch_one(&mut deploy.database().await).await.unwrap(), 1);
    // Nothing that the thief can do prevents the undo.
    assert_eq!(thief.post("/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })).await.status(), 204);
    let token = json!({ "name": "for later", "scopes": ["tokens:read"], "expires_in_days": 366 });
    let minted: Value = thief.post("/tokens", token).await.json().await.unwrap();
    assert_eq!(thief.patch("/account", json!({ "email": format!("2{}", thief.email) })).await.status(), 200);
    deploy.mail.to(&thief.email, "Email address change requested").await;
    let theirs = deploy.mail.to(&format!("2{}", thief.email), "Did you sign up?").await.token();
    // Nor does the limit of such mails to the address.
    let used_up = "INSERT INTO mails (recipient, job_id)
        SELECT sha256(convert_to('send_password_reset ' || lower($1), 'UTF8')), -n FROM generate_series(1, 3) AS n";
    sqlx::query(used_up).bind(&ada.email).execute(&mut deploy.database().await).await.unwrap();

    assert_eq!(ada.post("/email-changes/undo", json!({ "token": undo })).await.status(), 204);
    assert_eq!(thief.get("/session").await.status(), 401, "the thief's session has ended");
    let tokens = thief.elsewhere().request(reqwest::Method::GET, "/tokens").bearer_auth(minted["secret"].as_str().unwrap());
    assert_eq!(tokens.send().await.unwrap().status(), 401, "the thief's token has ended");
    for (email, password) in [(&ada.email, PASSWORD), (&ada.email, NEW_PASSWORD), (&thief.email, NEW_PASSWORD)] {
        let log_in = ada.post("/session", json!({ "email": email, "password": password })).await;
        problem(log_in, 401, "wrong-credentials").await;
    }
    let redeem = json!({ "token": theirs, "password": NEW_PASSWORD });
    problem(ada.post("/email-verifications/redeem", redeem).await, 422, "invalid-token").await;
    let reset = deploy.mail.to(&ada.email, "Set a new password").await.token();
    let reset = json!({ "token": reset, "password": "seven purple lanterns drift" });
    assert_eq!(ada.post("/password-resets/redeem", reset).await.status(), 204);
    let me = ada.post("/session", json!({ "email": ada.email, "password": "seven purple lanterns drift" })).await;
    let me: Value = me.json().await.unwrap();
    assert_eq!((&me["email"], &me["new_email"], &me["verified"]), (&json!(ada.email), &Value::Null, &json!(true)));
    problem(ada.post("/email-changes/undo", json!({ "token": undo })).await, 422, "invalid-token").await;
}

#[tokio::test]
async fn thief_cannot_undo_the_undo() {
    let deploy = Deploy::new().await;
    let (web, mut worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, thief, undo) = hijacked_account(&deploy, &web).await;
    // The thief requests another change, which makes the thief's address the old one. No worker runs, so its mail is late.
    assert_eq!(worker.terminate().await, Some(0));
    assert_eq!(thief.patch("/account", json!({ "email": "eve@example.net" })).await.status(), 200);
    assert_eq!(ada.post("/email-changes/undo", json!({ "token": undo })).await.status(), 204);
    let _worker = deploy.start("worker");
    wait_until_idle(&deploy).await;
    let links: Vec<_> = deploy.mail.all().await.into_iter().filter(|mail| mail.to == [thief.email.as_str()]).collect();
    assert!(links.iter().all(|mail| !mail.text.contains("/undo")), "{links:?}");
    assert_eq!(deploy.mail.all().await.iter().filter(|mail| mail.to == ["eve@example.net"]).count(), 0);
}

#[tokio::test]
async fn undo_mail_survives_ending_all_sessions() {
    let deploy = Deploy::new().await;
    let (web, mut worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    assert_eq!(worker.terminate().await, Some(0));
    assert_eq!(ada.patch("/account", json!({ "email": "eve@example.org" })).await.status(), 200);
    assert_eq!(ada.post("/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })).await.status(), 204);
    assert_eq!(ada.delete("/account/sessions").await.status(), 204);
    let _worker = deploy.start("worker");
    let undo = deploy.mail.to(&ada.email, "Email address change requested").await.token();
    assert_eq!(ada.post("/email-changes/undo", json!({ "token": undo })).await.status(), 204);
}

#[tokio::test]
async fn undo_page_changes_nothing_until_submitted() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, thief, undo) = hijacked_account(&deploy, &web).await;
    let page = web.get(&format!("/undo?token={undo}")).await.text().await.unwrap();
    assert!(page.contains(&undo) && page.contains("Keep this address") && !page.contains("type=\"password\""), "{page}");
    assert_eq!(thief.get("/session").await.status(), 200, "opening the page undoes nothing");
    let stranger = Person::stranger(&web);
    let pressed = stranger.press(&web, "/undo", &[("token", &undo)]).await;
    assert_eq!((pressed.status().as_u16(), pressed.headers()["location"].to_str().unwrap()), (303, "/undo?done"));
    assert!(web.get("/undo?done").await.text().await.unwrap().contains("address is back"));
    deploy.mail.to(&ada.email, "Set a new password").await;
    assert!(stranger.press(&web, "/undo", &[("token", &undo)]).await.text().await.unwrap().contains("was used already"));
}

#[tokio::test]
async fn undo_cancels_an_unverified_address_change() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    ada.patch("/account", json!({ "email": "eve@example.org" })).await;
    let verify = deploy.mail.to("eve@example.org", "Did you sign up?").await.token();
    let undo = deploy.mail.to(&ada.email, "Email address change requested").await.token();
    assert_eq!(ada.post("/email-changes/undo", json!({ "token": undo })).await.status(), 204);
    problem(ada.redeem(&verify).await, 422, "invalid-token").await;
    deploy.mail.to(&ada.email, "Set a new password").await;
}

#[tokio::test]
async fn password_change_ends_api_tokens() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let token = json!({ "name": "old", "scopes": ["tokens:read"], "expires_in_days": 366 });
    let minted: Value = ada.post("/tokens", token).await.json().await.unwrap();
    let by_token = async || {
        let asking = ada.elsewhere().request(reqwest::Method::GET, "/tokens").bearer_auth(minted["secret"].as_str().unwrap());
        asking.send().await.unwrap().status().as_u16()
    };
    assert_eq!(by_token().await, 200);
    assert_eq!(ada.post("/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })).await.status(), 204);
    assert_eq!(by_token().await, 401);
    let list: Value = ada.get("/tokens").await.json().await.unwrap();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn unverified_address_gets_no_undo_link() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let eve = Person::unverified(&web).await;
    let own = format!("{}@example.org", Uuid::new_v4().simple());
    deploy.mail.to(&eve.email, "Did you sign up?").await;
    eve.patch("/account", json!({ "email": own })).await;
    deploy.mail.to(&own, "Did you sign up?").await;
    assert_eq!(eve.post("/account/password", json!({ "old": PASSWORD, "new": NEW_PASSWORD })).await.status(), 204);
    assert_eq!(eve.delete("/account").await.status(), 204);
    wait_until_idle(&deploy).await;
    let strangers: Vec<_> = deploy.mail.all().await.into_iter().filter(|mail| mail.to == [eve.email.as_str()]).collect();
    assert_eq!(strangers.len(), 1, "an unverified address may belong to a stranger: {strangers:?}");
}
