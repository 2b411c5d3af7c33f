//! Reminders on the web page.

use serde_json::Value;
use thirtyfour::Key;

use super::{in_seconds, remind};
use crate::support::Deploy;
use crate::support::browser::Browser;
use crate::support::events::EventStream;
use crate::support::person::Person;

const FORM: &str = "[data-feature=reminders] form";
const SUBMIT: &str = "[data-feature=reminders] form > button";
const ITEM: &str = "[data-feature=reminders] li";

#[tokio::test]
async fn page_shows_the_next_reminder() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let script = "<script>alert(1)</script>\nsecond line";
    for (message, seconds) in [("sent already", 3600), (script, 7200), ("later", 10_800)] {
        assert_eq!(remind(&ada, message, seconds).await.status(), 201);
    }
    let send = "UPDATE reminders SET sent_at = now() WHERE message = 'sent already'";
    sqlx::query(send).execute(&mut deploy.database().await).await.unwrap();
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.shows(ITEM, 3).await;
    browser.says(&format!("{ITEM}.is-next"), script).await;
    browser.says(&format!("{ITEM}.past"), "mailed").await;
    browser.assert_accessible("reminders").await;
    browser.submit(FORM, &[("message", "too late"), ("due_at", "2001-02-03T04:05")]).await;
    browser.says(&format!("{FORM} .problem"), "must be in the future").await;
    browser.fill(FORM, &[("due_at", "2099-02-03T04:05")]).await;
    browser.press(SUBMIT).await;
    browser.says(&format!("{ITEM}:last-of-type"), "too late").await;
    // A double click only asks. Enter answers.
    let delete = browser.shown(&format!("{ITEM}:last-of-type [data-delete]")).await;
    browser.driver.action_chain().double_click_element(&delete).perform().await.unwrap();
    browser.says(&format!("{ITEM}:last-of-type [data-delete]"), "Really?").await;
    browser.shows(ITEM, 4).await;
    browser.key(Key::Enter).await;
    browser.shows(ITEM, 3).await;
    browser.end(&["status of 422"]).await;
}

#[tokio::test]
async fn sent_reminder_shows_without_reload() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    if !EventStream::are_served(&web).await {
        return;
    }
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("[data-feature=reminders]", "No reminders yet.").await;
    // Created elsewhere, so this page has no other reason to load it.
    assert_eq!(remind(&ada, "water the plants", 1).await.status(), 201);
    worker.logged("the job's end", |line| line["job_kind"] == "send_reminder" && line["outcome"] == "done").await;
    browser.says(&format!("{ITEM}.past"), "mailed").await;
    browser.end(&[]).await;
}

#[tokio::test]
async fn refused_form_is_sent_with_a_new_time() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.press(&format!("{FORM} [data-in='10']")).await;
    browser.fill(FORM, &[("message", "again")]).await;
    browser.press(SUBMIT).await;
    browser.says(&format!("{FORM} .problem"), "Verify your email address").await;
    let verify = "UPDATE accounts SET verified_at = now() WHERE email = $1";
    sqlx::query(verify).bind(&ada.email).execute(&mut deploy.database().await).await.unwrap();
    // As if the person did so a minute later.
    browser.run("const now = Date.now; Date.now = () => now() + 60_000", Vec::new()).await;
    let before = in_seconds(65);
    browser.press(SUBMIT).await;
    browser.says(ITEM, "again").await;
    let reminders: Value = ada.get("/reminders").await.json().await.unwrap();
    let [before, due] =
        [before.as_str(), reminders["items"][0]["due_at"].as_str().unwrap()].map(|at| at.parse::<jiff::Timestamp>().unwrap());
    assert!(before < due, "{before} {due}");
    browser.end(&["status of 403"]).await;
}

#[tokio::test]
async fn form_sent_twice_is_one_reminder() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("[data-feature=reminders]", "No reminders yet.").await;
    // Two clicks, and the response to the first request is lost.
    let lose = "const real = window.fetch;
        window.fetch = async (...call) => {
            const response = await real(...call);
            if (call[1]?.method !== 'POST') return response;
            window.fetch = real;
            throw new TypeError('lost');
        };";
    browser.run(lose, Vec::new()).await;
    browser.press(&format!("{FORM} [data-in='10']")).await;
    browser.fill(FORM, &[("message", "once")]).await;
    let before = in_seconds(10);
    let twice = format!("const form = document.querySelector('{FORM}'); form.requestSubmit(); form.requestSubmit();");
    browser.run(&twice, Vec::new()).await;
    browser.says(ITEM, "once").await;
    let reminders: Value = ada.get("/reminders").await.json().await.unwrap();
    assert_eq!(reminders["items"].as_array().unwrap().len(), 1, "{reminders}");
    // The ten seconds begin when the form is sent.
    let due_at = reminders["items"][0]["due_at"].as_str().unwrap();
    let [before, due, after] = [before.as_str(), due_at, &in_seconds(11)].map(|at| at.parse::<jiff::Timestamp>().unwrap());
    assert!(before <= due && due <= after, "{before} {due} {after}");
    browser.end(&[]).await;
}
