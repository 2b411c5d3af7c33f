//! The web page in a browser.

use deadpool_redis::redis::{AsyncCommands, cmd};
use nix::sys::signal::Signal;
use reqwest::header::USER_AGENT;
use serde_json::{Value, json};
use thirtyfour::{By, Key};

use crate::support::balancer::{Balancer, has};
use crate::support::browser::Browser;
use crate::support::deploy::{Web, client};
use crate::support::person::{PASSWORD, Person};
use crate::support::{Deploy, eventually, free_port};

/// The form that creates an API token.
const NEW_TOKEN: &str = "form[data-post='/api/v1/tokens']";

/// The script that a stranger would like to run.
const SCRIPT: &str = "<img src=x onerror=alert(1)><script>alert(2)</script>";

/// Names a scope, after which only the name of the new token is missing.
async fn begin_token(browser: &Browser) {
    browser.press("[data-feature=tokens] summary").await;
    browser.press(&format!("{NEW_TOKEN} [value='tokens:read']")).await;
}

#[tokio::test]
async fn person_signs_up_and_logs_in() {
    let port = free_port();
    let deploy = Deploy::new().await.with("PORT", port).with("PUBLIC_URL", format!("http://127.0.0.1:{port}"));
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::stranger(&web);
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.assert_accessible("the page of strangers").await;
    browser.submit("#sign-up", &[("email", &ada.email), ("password", "correct")]).await;
    assert_eq!(browser.driver.find_all(By::Css("#sign-up :invalid")).await.unwrap().len(), 1, "a short password is not sent");
    browser.submit("#sign-up", &[("email", &ada.email), ("password", "passwordpassword")]).await;
    browser.says("#sign-up .problem", "is easy to guess").await;
    browser.submit("#sign-up", &[("email", &ada.email), ("password", PASSWORD)]).await;
    browser.says("#sign-up [data-result]", "A mail is on its way").await;

    browser.log_in(&ada).await;
    browser.says("#unverified", &format!("we mailed to {}", ada.email)).await;
    browser.assert_accessible("the page of a new account").await;
    let mail = deploy.mail.to(&ada.email, "Did you sign up?").await;
    let link = mail.text.split_whitespace().find(|word| word.contains("token=")).unwrap();
    browser.go(link).await;
    browser.assert_accessible("the page of the mailed link").await;
    browser.submit("form", &[("password", PASSWORD)]).await;
    browser.says("main", "Your email address is verified").await;

    browser.press("main a[href='/']").await;
    browser.says("#me", &ada.email).await;
    browser.shows("#unverified", 0).await;
    browser.press("#log-out").await;
    browser.shown("#log-in").await;
    browser.submit("#log-in", &[("email", &ada.email), ("password", "something else entirely")]).await;
    browser.says("#log-in .problem", "The email address or the password is wrong.").await;
    browser.assert_accessible("a problem").await;
    browser.end(&["status of 422", "status of 401"]).await;
}

#[tokio::test]
async fn page_needs_only_a_keyboard() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    let tab_to = async |css: &str| {
        for _ in 0..40 {
            browser.key(Key::Tab).await;
            // Behind the last element, the focus is on the body for a moment.
            let look = "const e = document.activeElement;
                return [e.matches(arguments[0]), e === document.body || getComputedStyle(e).outlineStyle === 'solid', e.outerHTML]";
            let seen = browser.run(look, vec![json!(css)]).await;
            assert_eq!(seen[1], true, "the focus is not visible: {seen}");
            if seen[0] == true {
                return;
            }
        }
        panic!("the focus never comes to {css}");
    };
    tab_to("#log-in [name=email]").await;
    browser.key(ada.email.as_str()).await;
    tab_to("#log-in [name=password]").await;
    browser.key(PASSWORD).await;
    browser.key(Key::Enter).await;
    browser.says("#me", &ada.email).await;
    browser.shows("[data-feature=sessions] li", 2).await;
    tab_to("[data-delete^='/api/v1/account/sessions/']").await;
    browser.key(Key::Enter).await;
    browser.key(Key::Enter).await;
    browser.shows("[data-feature=sessions] li", 1).await;
    tab_to("#log-out").await;
    browser.key(Key::Enter).await;
    browser.shown("#log-in").await;
    browser.end(&[]).await;
}

#[tokio::test]
async fn ended_session_keeps_typed_text() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    begin_token(&browser).await;
    browser.fill(NEW_TOKEN, &[("name", "laptop")]).await;
    let elsewhere = ada.elsewhere();
    elsewhere.log_in().await;
    assert_eq!(elsewhere.delete("/account/sessions").await.status(), 204);

    // The page learns it from its stream of events.
    browser.says("#again", "Your session has ended").await;
    browser.shows("[data-list] li", 0).await;
    browser.assert_accessible("the dialog").await;
    browser.submit("#again form", &[("password", "something else entirely")]).await;
    browser.says("#again .problem", "The email address or the password is wrong.").await;
    for _ in 0..3 {
        browser.key(Key::Escape).await;
    }
    browser.submit("#again form", &[("password", PASSWORD)]).await;
    browser.shows("#again", 0).await;
    browser.press(&format!("{NEW_TOKEN} button")).await;
    browser.says(NEW_TOKEN, "pat_").await;
    browser.says("[data-feature=tokens] li", "laptop").await;
    browser.shows("[data-feature=sessions] li", 1).await;
    browser.end(&["status of 401"]).await;
}

#[tokio::test]
async fn session_ended_elsewhere_signs_out() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.shows("[data-feature=sessions] li", 2).await;
    let sessions: Value = ada.get("/account/sessions").await.json().await.unwrap();
    let other = sessions["items"].as_array().unwrap().iter().find(|session| session["current"] == false).unwrap();
    assert_eq!(ada.delete(&format!("/account/sessions/{}", other["id"].as_str().unwrap())).await.status(), 204);

    // The page learns it from its stream of events.
    browser.says("#again", "Your session has ended").await;
    browser.shows("[data-list] li", 0).await;
    browser.press("#again [data-close]").await;
    browser.shown("#log-in").await;
    // A page that is opened with the cookie of an ended session shows the forms, too.
    browser.log_in(&ada).await;
    assert_eq!(ada.delete("/account/sessions").await.status(), 204);
    browser.go(&web.url).await;
    browser.shown("#log-in").await;
    browser.end(&["status of 401"]).await;
}

#[tokio::test]
async fn old_session_confirms_before_a_token() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    let mut redis = deploy.redis().await;
    for key in cmd("KEYS").arg("session:*").query_async::<Vec<String>>(&mut redis).await.unwrap() {
        let mut session: Value = serde_json::from_str(&redis.get::<_, String>(&key).await.unwrap()).unwrap();
        session["confirmed_at"] = Value::Null;
        redis.set_ex::<_, _, ()>(&key, session.to_string(), 600).await.unwrap();
    }
    begin_token(&browser).await;
    browser.submit(NEW_TOKEN, &[("name", "laptop")]).await;
    browser.shown("#confirm").await;
    browser.submit("#confirm form", &[("password", "something else entirely")]).await;
    browser.says("#confirm .problem", "The password is wrong.").await;
    browser.press("#confirm [data-close]").await;
    browser.shows("#confirm", 0).await;
    browser.press(&format!("{NEW_TOKEN} button")).await;
    browser.submit("#confirm form", &[("password", PASSWORD)]).await;
    let said = browser.says(NEW_TOKEN, "pat_").await;
    let secret = said.split_whitespace().find(|word| word.starts_with("pat_")).unwrap();
    let asked = client().get(format!("{}/api/v1/tokens", web.url)).bearer_auth(secret);
    assert_eq!(asked.send().await.unwrap().status(), 200);
    browser.press("[data-feature=tokens] [data-delete]").await;
    browser.says("[data-feature=tokens] [data-delete]", "Really?").await;
    browser.press("[data-feature=tokens] [data-delete]").await;
    browser.says("[data-feature=tokens]", "No tokens yet.").await;
    browser.end(&["status of 403"]).await;
}

#[tokio::test]
async fn killed_process_is_replaced_by_the_next() {
    if !has("haproxy") {
        return;
    }
    let deploy = Deploy::new().await.with("RELEASE_VERSION", "v12");
    let ports = [free_port(), free_port()];
    let mut webs = Vec::new();
    for port in ports {
        webs.push(deploy.clone_with("PORT", port).web().await);
    }
    let ada = Person::known(&deploy, &webs[0]).await;
    let balancer = Balancer::before(&ports).await;
    let Some(browser) = Browser::open(&balancer.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("#served-by", "release v12").await;
    let answering = async || {
        let foot = browser.shown("#served-by").await;
        foot.attr("data-process").await.unwrap().unwrap()
    };
    let name = async |web: &Web| {
        let header = web.get("/version").await.headers()["x-served-by"].to_str().unwrap().to_owned();
        header.split(['=', '&']).nth(1).unwrap().to_owned()
    };
    let names = [name(&webs[0]).await, name(&webs[1]).await];
    // The foot names the one process and then the other.
    for name in &names {
        eventually("each process at the foot", async || {
            browser.come_back().await;
            (answering().await == *name).then_some(())
        })
        .await;
    }
    webs[1].process.signal(Signal::SIGKILL);
    webs[1].process.exit().await;
    begin_token(&browser).await;
    // At once, while the balancer may still send requests to the dead process.
    browser.come_back().await;
    browser.fill(NEW_TOKEN, &[("name", "laptop")]).await;
    eventually("a token", async || {
        browser.press(&format!("{NEW_TOKEN} button")).await;
        browser.shown(&format!("{NEW_TOKEN}[aria-busy=false]")).await.text().await.ok()?.contains("pat_").then_some(())
    })
    .await;
    assert_eq!(answering().await, names[0]);
    browser.says("[data-feature=tokens] li", "laptop").await;
    browser.shows("main > .problem", 0).await;
    browser.end(&["status of 503", "status of 502", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION", "ERR_INCOMPLETE_CHUNKED"]).await;
}

#[tokio::test]
async fn page_shows_what_happened_during_a_restart() {
    let deploy = Deploy::new().await.with("PORT", free_port());
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("[data-feature=tokens]", "No tokens yet.").await;
    assert_eq!(web.process.terminate().await, Some(0));
    // Nobody is there who could tell the page.
    let token = "INSERT INTO api_tokens (id, token_hash, account_id, name, scopes, expires_at)
        SELECT gen_random_uuid(), 'x', id, 'made meanwhile', '{}', now() + interval '1 day' FROM accounts";
    sqlx::query(token).execute(&mut deploy.database().await).await.unwrap();
    let _web = deploy.web().await;
    browser.says("[data-feature=tokens] li", "made meanwhile").await;
    browser.shows("#again", 0).await;
    browser.end(&["ERR_"]).await;
}

#[tokio::test]
async fn draining_process_says_so() {
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "20s");
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    web.process.signal(Signal::SIGTERM);
    web.process.says("draining").await;
    browser.come_back().await;
    browser.says("#served-by", "draining, about to stop").await;
    browser.end(&[]).await;
}

#[tokio::test]
async fn strangers_text_stays_text() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let log_in = ada.elsewhere().request(reqwest::Method::POST, "/session").header(USER_AGENT, SCRIPT);
    assert_eq!(log_in.json(&json!({ "email": ada.email, "password": PASSWORD })).send().await.unwrap().status(), 200);
    let token = json!({ "name": SCRIPT, "scopes": ["tokens:read"], "expires_in_days": 1 });
    assert_eq!(ada.post("/tokens", token).await.status(), 201);
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("[data-feature=sessions] li", SCRIPT).await;
    browser.says("[data-feature=tokens] li", SCRIPT).await;
    assert_eq!(browser.driver.find_all(By::Css("main img, main script")).await.unwrap().len(), 0);
    browser.end(&[]).await;
}

#[tokio::test]
async fn page_fits_every_window() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let long = "long".repeat(25);
    let token = json!({ "name": long, "scopes": ["tokens:read", "tokens:write"], "expires_in_days": 1 });
    assert_eq!(ada.post("/tokens", token).await.status(), 201);
    let Some(browser) = Browser::open(&web.url).await else { return };
    for signed_in in [false, true] {
        if signed_in {
            browser.log_in(&ada).await;
            browser.says("[data-feature=tokens] li", &long).await;
            begin_token(&browser).await;
        }
        for (width, scheme) in [(320, "light"), (320, "dark"), (1920, "light"), (1920, "dark")] {
            browser.look(width, 800, scheme).await;
            assert_eq!(browser.overflow().await, 0, "{width} pixels, signed in: {signed_in}");
            browser.assert_accessible(&format!("the page at {width} pixels, {scheme}, signed in: {signed_in}")).await;
        }
    }
    browser.end(&[]).await;
}
