//! The queue and the schedule on the page for admins.

use super::{DEAD, insert, is_there};
use crate::support::Deploy;
use crate::support::browser::Browser;
use crate::support::person::Person;

const DEAD_JOBS: &str = "[data-list^='/api/v1/admin/jobs?state=dead'] li";

#[tokio::test]
async fn admin_retries_and_discards_dead_jobs() {
    let deploy = Deploy::new().await.after_a_clock().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let script = "<img src=x onerror=alert(1)>";
    let first = insert(&deploy, &format!("{DEAD}, last_error = '{script}\nsecond line'")).await;
    let second = insert(&deploy, &format!("{DEAD}, last_error = '{}'", "long".repeat(500))).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&admin).await;
    browser.press("a[href='/admin']").await;
    browser.shows(DEAD_JOBS, 2).await;
    browser.says(DEAD_JOBS, script).await;
    browser.says("[data-list='/api/v1/admin/jobs/counts'] li", "noop: 2 dead").await;
    browser.says("[data-list='/api/v1/admin/schedules'] li", "purge-expired, 15 * * * *\nLast tick").await;
    for (width, scheme) in [(320, "light"), (1280, "dark")] {
        browser.look(width, 800, scheme).await;
        assert_eq!(browser.overflow().await, 0, "{width} pixels");
        browser.assert_accessible(&format!("the page for admins at {width} pixels")).await;
    }

    let _worker = deploy.rough_worker();
    browser.press_twice(&format!("[aria-label$='Retry noop {first}']")).await;
    browser.shows(DEAD_JOBS, 1).await;
    let focus = browser.run("return document.activeElement.ariaLabel", Vec::new()).await;
    assert_eq!(focus, format!("Retry noop {second}"), "the focus is on the next job");
    browser.press(&format!("[aria-label$='Discard noop {second}']")).await;
    assert!(is_there(&deploy, second).await, "one click deletes nothing");
    browser.press(&format!("[aria-label='Really? Discard noop {second}']")).await;
    browser.says("[data-feature=operations]", "No dead jobs.").await;
    crate::support::eventually("no job", async || (!is_there(&deploy, first).await && !is_there(&deploy, second).await).then_some(()))
        .await;
    browser.end(&[]).await;
}

#[tokio::test]
async fn refused_retry_says_why() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    insert(&deploy, "unique_key = 'a'").await;
    let id = insert(&deploy, &format!("unique_key = 'a', {DEAD}")).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.go(&format!("{}/admin", web.url)).await;
    browser.log_in(&admin).await;
    browser.press_twice(&format!("[aria-label$='Retry noop {id}']")).await;
    browser.says(&format!("{DEAD_JOBS} .problem"), "another job with its unique key is waiting or running").await;
    browser.end(&["status of 409"]).await;
}
