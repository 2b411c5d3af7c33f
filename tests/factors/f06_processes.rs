//! VI. Processes: they are stateless and share nothing; any of them may answer any request, and any may die.
//!
//! Violated by a session, a cache, a count or an upload that one process has and the next has not.

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::support::Deploy;
use crate::support::deploy::{Web, without_disk};
use crate::support::person::Person;

#[tokio::test]
async fn a_session_made_at_one_process_works_at_the_others_and_outlives_it() {
    let deploy = Deploy::new().await;
    let (mut first, second, third) = tokio::join!(deploy.web(), deploy.web(), deploy.web());
    // By the cookie alone, as a client that ignores its end would.
    let cookie = Person::stranger(&first).cookie().await;
    let ask = async |method: Method, web: &Web| {
        let asking = Person::stranger(web).request(method, "/session").header("cookie", &cookie);
        asking.send().await.unwrap().status().as_u16()
    };
    for web in [&second, &third, &first, &second] {
        assert_eq!(ask(Method::GET, web).await, 200);
    }
    first.process.signal(Signal::SIGKILL);
    first.process.exit().await;
    assert_eq!(ask(Method::GET, &second).await, 200);
    assert_eq!(ask(Method::DELETE, &third).await, 204);
    assert_eq!(ask(Method::GET, &second).await, 401, "and its end is everyone's");
}

#[tokio::test]
async fn a_limit_counts_over_all_processes() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 6);
    let (first, second, third) = tokio::join!(deploy.web(), deploy.web(), deploy.web());
    let eve = Person::stranger(&first);
    let mut answers = Vec::new();
    for web in [&first, &second, &third].into_iter().cycle().take(9) {
        answers.push(eve.at(web).log_in().await.status().as_u16());
    }
    // One comes free each ten seconds.
    assert_eq!(answers[..6], [401; 6]);
    assert!(answers[6..].contains(&429), "each process counts for itself: {answers:?}");
}

#[tokio::test]
async fn nothing_is_kept_on_the_disk() {
    if !without_disk() {
        return;
    }
    let deploy = Deploy::new().await;
    let web = Web::of(deploy.start_without_disk("web")).await;
    let (worker, mut clock) = (deploy.start_without_disk("worker"), deploy.start_without_disk("clock"));
    let ada = Person::verified(&deploy, &web).await;
    assert_eq!(ada.forget().await.status(), 202);
    deploy.mail.to(&ada.email, "Set a new password").await;
    clock.says("is new").await;
    assert!(clock.ended().is_none() && !worker.lines().iter().any(|line| line.contains("Read-only")));
}
