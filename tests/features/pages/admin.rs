//! The page for admins in a browser.

use thirtyfour::Key;

use crate::support::Deploy;
use crate::support::browser::Browser;
use crate::support::person::Person;

const SENTENCE: &str = "This page is for admins.";

#[tokio::test]
async fn users_see_that_the_page_is_for_admins() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, admin) = (Person::known(&deploy, &web).await, Person::admin(&deploy, &web).await);
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.shows("a[href='/admin']", 0).await;
    browser.go(&format!("{}/admin", web.url)).await;
    browser.says("main", SENTENCE).await;
    browser.shows("[data-feature]", 0).await;
    browser.assert_accessible("the page for admins, to a user").await;
    browser.press("#log-out").await;
    browser.shown("#log-in").await;
    browser.shows("#sign-up", 0).await;
    browser.assert_accessible("the page for admins, to a stranger").await;
    browser.log_in(&admin).await;
    browser.shown("[data-feature=accounts] li").await;
    let said = browser.shown("main").await.text().await.unwrap();
    assert!(!said.contains(SENTENCE), "{said}");
    // The page asked for nothing that the API refuses.
    browser.end(&[]).await;
}

#[tokio::test]
async fn admin_suspends_and_restores_an_account() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (admin, ada) = (Person::admin(&deploy, &web).await, Person::known(&deploy, &web).await);
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.go(&format!("{}/admin", web.url)).await;
    browser.log_in(&admin).await;
    let [suspend, restore] = ["Suspend", "Restore"].map(|verb| format!("[aria-label$='{verb} {}']", ada.email));
    let focus = "document.querySelector(arguments[0]).focus()";
    browser.shown(&suspend).await;
    browser.run(focus, vec![suspend.as_str().into()]).await;
    browser.key(Key::Enter).await;
    assert_eq!(ada.get("/session").await.status(), 200, "one press changes nothing");
    browser.key(Key::Enter).await;
    browser.says("[data-feature=accounts] li", "user, suspended").await;
    assert_eq!(ada.log_in().await.status(), 401);
    // The button that undoes it has the focus.
    browser.shown(&format!("{restore}:focus")).await;
    browser.key(Key::Enter).await;
    browser.key(Key::Enter).await;
    browser.shown(&format!("{suspend}:focus")).await;
    assert_eq!(ada.log_in().await.status(), 200);

    browser.press_twice(&format!("[aria-label$='Suspend {}']", admin.email)).await;
    browser.says("[data-feature=accounts] .problem", "You cannot suspend your own account").await;
    browser.says("[data-list='/api/v1/admin/statistics'] li", "accounts verified: 2").await;
    browser.end(&["status of 409"]).await;
}

#[tokio::test]
async fn page_for_admins_fits_every_window() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::admin(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.go(&format!("{}/admin", web.url)).await;
    browser.log_in(&admin).await;
    browser.shown("[data-list='/api/v1/admin/statistics'] li").await;
    for (width, scheme) in [(320, "light"), (320, "dark"), (1920, "light"), (1920, "dark")] {
        browser.look(width, 800, scheme).await;
        assert_eq!(browser.overflow().await, 0, "{width} pixels");
        browser.assert_accessible(&format!("the page for admins at {width} pixels, {scheme}")).await;
    }
    browser.end(&[]).await;
}
