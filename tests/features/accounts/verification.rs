//! Verifying an address: its owner cannot be tricked into verifying another person's account.

use serde_json::{Value, json};

use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, eventually};

#[tokio::test]
async fn address_owner_cannot_verify_strangers_account() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    // Eve signs up with another person's address, and knows the password.
    let eve = Person::unverified(&web).await;
    let mail = deploy.mail.to(&eve.email, "Did you sign up?").await;
    assert!(mail.text.contains("If it was not you, ignore this mail"), "{}", mail.text);
    let owner = Person::stranger(&web);
    let page = web.get(&format!("/verify?token={}", mail.token())).await.text().await.unwrap();
    assert!(page.contains("Did you sign up?") && page.contains("type=\"password\""), "{page}");
    // The honest owner enters another password.
    let pressed = owner.press(&web, "/verify", &[("token", &mail.token()), ("password", "the owner's own password")]).await;
    assert_eq!(pressed.status(), 403);
    assert!(pressed.text().await.unwrap().contains("is not the account"));
    let without = owner.press(&web, "/verify", &[("token", &mail.token())]).await;
    assert!(without.status().is_client_error(), "{without:?}");
    let redeem = json!({ "token": mail.token(), "password": "the owner's own password" });
    problem(owner.post("/email-verifications/redeem", redeem).await, 403, "wrong-password").await;
    problem(owner.post("/email-verifications/redeem", json!({ "token": mail.token() })).await, 422, "invalid-input").await;
    let verified = async || eve.get("/session").await.json::<Value>().await.unwrap()["verified"].clone();
    assert_eq!(verified().await, json!(false));

    // The owner takes over the account by a reset, which ends Eve's session and password.
    owner.post("/password-resets", json!({ "email": eve.email })).await;
    let reset = deploy.mail.to(&eve.email, "Set a new password").await.token();
    let reset = json!({ "token": reset, "password": "seven purple lanterns drift" });
    assert_eq!(owner.post("/password-resets/redeem", reset).await.status(), 204);
    assert_eq!((eve.get("/session").await.status().as_u16(), eve.log_in().await.status().as_u16()), (401, 401));
}

#[tokio::test]
async fn second_sign_up_mails_another_link() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let first = deploy.mail.to(&ada.email, "Did you sign up?").await;
    // The first mail was lost, and the password forgotten.
    let again = json!({ "email": ada.email.to_uppercase(), "password": "another password altogether" });
    assert_eq!(ada.post("/accounts", again).await.status(), 202);
    let second = eventually("a second mail", async || {
        let mails = deploy.mail.all().await;
        mails.into_iter().find(|mail| mail.to == [ada.email.as_str()] && mail.message_id != first.message_id)
    })
    .await;
    assert_eq!(second.subject, "Did you sign up?");
    assert_eq!(ada.redeem(&second.token()).await.status(), 204, "the first sign-up's password counts");
    assert_eq!(ada.log_in().await.status(), 200);
}

#[tokio::test]
async fn unverified_address_gets_no_notice() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let eve = Person::unverified(&web).await;
    Person::stranger(&web).post("/accounts", json!({ "email": eve.email, "password": PASSWORD })).await;
    let change = json!({ "old": PASSWORD, "new": "another password altogether" });
    assert_eq!(eve.post("/account/password", change).await.status(), 204);
    eventually("an empty queue", async || {
        let jobs = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap();
        (jobs == 0).then_some(())
    })
    .await;
    let subjects: Vec<_> = deploy.mail.all().await.into_iter().map(|mail| mail.subject).collect();
    assert_eq!(subjects, ["Did you sign up?", "Did you sign up?"]);
}
