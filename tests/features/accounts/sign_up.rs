//! Signing up, verifying the address, logging in and out.

use serde_json::{Value, json};

use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, eventually};

#[tokio::test]
async fn user_signs_up_verifies_and_logs_in() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let me: Value = ada.get("/session").await.json().await.unwrap();
    assert_eq!(me["email"], ada.email);
    assert_eq!((&me["role"], &me["verified"]), (&json!("user"), &json!(true)));
}

#[tokio::test]
async fn session_cookie_has_secure_attributes() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::stranger(&web);
    ada.sign_up().await;
    let cookie = ada.log_in().await.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("id="), "{cookie}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "{cookie}");

    let web = deploy.with("PUBLIC_URL", "https://example.com").web().await;
    let cookie = ada.at(&web).log_in().await.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("__Host-id=") && cookie.contains("; Secure"), "{cookie}");
}

/// Only the owner of the address is notified, and the account does not change.
#[tokio::test]
async fn sign_up_hides_that_address_is_taken() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let body = json!({ "email": ada.email.to_uppercase(), "password": "another password altogether" });
    let (first, again) = (Person::stranger(&web).sign_up().await, ada.post("/accounts", body.clone()).await);
    assert_eq!(first.status(), again.status());
    let names = |response: &reqwest::Response| response.headers().keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&first), names(&again));
    assert_eq!(first.text().await.unwrap(), again.text().await.unwrap());

    deploy.mail.to(&ada.email, "You have an account already").await;
    assert_eq!(ada.post("/session", body).await.status(), 401, "the new password must not work");
    assert_eq!(ada.log_in().await.status(), 200, "the old password must still work");
}

#[tokio::test]
async fn wrong_password_and_unknown_address_look_alike() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let known = json!({ "email": ada.email, "password": "not the right password" });
    let unknown = json!({ "email": "nobody@example.com", "password": PASSWORD });
    let (known_problem, unknown_problem) = (ada.post("/session", known.clone()).await, ada.post("/session", unknown.clone()).await);
    let known_problem = problem(known_problem, 401, "wrong-credentials").await;
    let unknown_problem = problem(unknown_problem, 401, "wrong-credentials").await;
    assert_eq!(known_problem["detail"], unknown_problem["detail"]);

    if !std::path::Path::new("/proc/self/stat").exists() {
        println!("skipped: needs /proc");
        return;
    }
    // Both compute one hash. Without it an unknown address costs a twentieth. Measured in the process's CPU time, which does
    // not depend on the machine's load.
    let mut costs = [0; 2];
    for (cost, body) in costs.iter_mut().zip([known, unknown]) {
        let before = web.process.cpu_ticks();
        for _ in 0..15 {
            ada.post("/session", body.clone()).await;
        }
        *cost = web.process.cpu_ticks() - before;
    }
    assert!(costs[0] > 0 && costs[1] * 3 > costs[0], "known {}, unknown {}", costs[0], costs[1]);
}

#[tokio::test]
async fn log_out_invalidates_the_session_cookie() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::stranger(&web);
    ada.sign_up().await;
    let cookie = ada.log_in().await.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let with_cookie = || Person::stranger(&web).request(reqwest::Method::GET, "/session").header("cookie", &cookie).send();
    assert_eq!(with_cookie().await.unwrap().status(), 200);
    assert_eq!(ada.delete("/session").await.status(), 204);
    problem(with_cookie().await.unwrap(), 401, "unauthenticated").await;
    problem(ada.get("/session").await, 401, "unauthenticated").await;
    assert_eq!(ada.delete("/session").await.status(), 204, "a second log-out succeeds");
}

#[tokio::test]
async fn each_log_in_creates_a_new_session() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let cookies = [ada.log_in().await, ada.log_in().await].map(|response| response.headers()["set-cookie"].clone());
    assert_ne!(cookies[0], cookies[1]);
}

#[tokio::test]
async fn verification_token_works_once() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let token = deploy.mail.to(&ada.email, "Did you sign up?").await.token();
    assert_eq!(ada.redeem(&token).await.status(), 204);
    problem(ada.redeem(&token).await, 422, "invalid-token").await;
    problem(ada.redeem("none").await, 422, "invalid-token").await;
}

#[tokio::test]
async fn verification_link_changes_nothing_until_submitted() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    let mail = deploy.mail.to(&ada.email, "Did you sign up?").await;
    assert!(mail.text.contains("http://localhost:8080/verify?token="), "{}", mail.text);

    let page = web.get(&format!("/verify?token={}", mail.token())).await;
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert!(page.text().await.unwrap().contains(&mail.token()));
    let verified = async || ada.get("/session").await.json::<Value>().await.unwrap()["verified"] == true;
    assert!(!verified().await, "opening the page verifies nothing");

    let press = async |password: &str| ada.press(&web, "/verify", &[("token", &mail.token()), ("password", password)]).await;
    let refused = press("not the right password").await;
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.unwrap().contains(&mail.token()), "the page shows the form again");
    assert!(!verified().await);
    let pressed = press(PASSWORD).await;
    assert_eq!((pressed.status().as_u16(), pressed.headers()["location"].to_str().unwrap()), (303, "/verify?done"));
    assert!(verified().await);
    let again = press(PASSWORD).await;
    assert_eq!((again.status().as_u16(), again.headers()["content-type"].to_str().unwrap()), (422, "text/html; charset=utf-8"));
    assert!(again.text().await.unwrap().contains("was used already"));
}

#[tokio::test]
async fn verification_mail_can_be_requested_again() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::unverified(&web).await;
    deploy.mail.to(&ada.email, "Did you sign up?").await;
    assert_eq!(ada.post("/email-verifications", json!({})).await.status(), 202);
    eventually("a second mail", async || {
        let mails = deploy.mail.all().await.into_iter().filter(|mail| mail.to == [ada.email.as_str()]).collect::<Vec<_>>();
        (mails.len() >= 2).then_some(())
    })
    .await;
    problem(Person::stranger(&web).post("/email-verifications", json!({})).await, 401, "unauthenticated").await;
}

#[tokio::test]
async fn cross_site_requests_are_rejected() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let url = format!("{}/api/v1/session", web.url);
    let post = |name: &str, value: &str| ada.client.delete(&url).header(name, value).send();
    problem(post("origin", "https://evil.example").await.unwrap(), 403, "cross-site").await;
    problem(post("origin", "null").await.unwrap(), 403, "cross-site").await;
    problem(post("sec-fetch-site", "cross-site").await.unwrap(), 403, "cross-site").await;
    problem(post("sec-fetch-site", "same-site").await.unwrap(), 403, "cross-site").await;
    problem(post("x-nothing", "at all").await.unwrap(), 403, "cross-site").await;
    problem(post("authorization", "Bearer x").await.unwrap(), 403, "cross-site").await;
    assert_eq!(ada.get("/session").await.status(), 200, "the session is still valid");
    assert_eq!(post("sec-fetch-site", "same-origin").await.unwrap().status(), 204);
}

#[tokio::test]
async fn role_change_ends_sessions_without_a_worker() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let output = deploy.admin(&["account", "grant", &ada.email, "admin"]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ada.get("/session").await.status(), 401);
    assert_eq!(ada.log_in().await.json::<Value>().await.unwrap()["role"], "admin");
    assert_eq!(ada.get("/session").await.status(), 200, "a session of the new epoch is valid");

    let output = deploy.admin(&["account", "grant", "nobody@example.com", "admin"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no account has the address"));
}

/// Everything else works: log-in, the session, and an account that an operator invites.
#[tokio::test]
async fn sign_up_can_be_switched_off() {
    let deploy = Deploy::new().await;
    let on = deploy.web().await;
    let started = on.process.says("web is starting").await;
    assert_eq!(started["flags"], "FEATURE_SIGN_UP=true");
    let ada = Person::unverified(&on).await;

    let off = deploy.clone_with("FEATURE_SIGN_UP", "false").web().await;
    assert_eq!(off.process.says("web is starting").await["flags"], "FEATURE_SIGN_UP=false");
    let eve = Person::stranger(&off);
    let refused = problem(eve.sign_up().await, 403, "feature-disabled").await;
    assert_eq!(refused["detail"], "This deploy has turned this off.");
    let mut database = deploy.database().await;
    let emails: Vec<String> = sqlx::query_scalar("SELECT email FROM accounts").fetch_all(&mut database).await.unwrap();
    assert_eq!(emails, [ada.email.as_str()], "nothing is created");
    assert_eq!(eve.log_in().await.status(), 401);

    let ada = ada.elsewhere().at(&off);
    assert_eq!(ada.log_in().await.status(), 200);
    assert_eq!(ada.get("/session").await.status(), 200);
    let invited = deploy.clone_with("FEATURE_SIGN_UP", "false").admin(&["account", "invite", &eve.email]).await;
    assert!(invited.status.success(), "{invited:?}");
}
