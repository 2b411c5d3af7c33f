//! VI. Processes: they are stateless and share nothing. Any process may answer any request, and any may be killed.
//!
//! Violated by a session, a cache, a count or an upload that only one process has.

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::support::Deploy;
use crate::support::deploy::{Web, without_disk};
use crate::support::person::Person;

#[tokio::test]
async fn session_is_shared_and_outlives_its_process() {
    let deploy = Deploy::new().await;
    let (mut first, second, third) = tokio::join!(deploy.web(), deploy.web(), deploy.web());
    // The cookie is sent by hand, as by a client that ignores its expiry.
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
    assert_eq!(ask(Method::GET, &second).await, 401, "every process rejects the ended session");
}

#[tokio::test]
async fn rate_limit_counts_across_processes() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 6);
    let (first, second, third) = tokio::join!(deploy.web(), deploy.web(), deploy.web());
    let eve = Person::stranger(&first);
    let mut answers = Vec::new();
    for web in [&first, &second, &third].into_iter().cycle().take(9) {
        answers.push(eve.at(web).log_in().await.status().as_u16());
    }
    // One attempt becomes available every ten seconds.
    assert_eq!(answers[..6], [401; 6]);
    assert!(answers[6..].contains(&429), "each process has its own count: {answers:?}");
}

#[tokio::test]
async fn processes_work_without_a_writable_disk() {
    if !without_disk() {
        return;
    }
    let deploy = Deploy::new().await;
    let mut admin = deploy.start_without_disk("admin migrate --check");
    assert_eq!(admin.exit().await.code(), Some(0), "{:?}", admin.errors());
    let mut web = Web::of(deploy.start_without_disk("web")).await;
    let (mut worker, mut clock) = (deploy.start_without_disk("worker"), deploy.start_without_disk("clock"));
    let ada = Person::verified(&deploy, &web).await;
    assert_eq!(ada.request_reset().await.status(), 202);
    deploy.mail.to(&ada.email, "Set a new password").await;
    clock.says("is new").await;
    for process in [&mut web.process, &mut worker, &mut clock] {
        assert_eq!(process.terminate().await, Some(0));
        assert!(!process.lines().iter().any(|line| line.contains("Read-only")), "{:?}", process.lines());
    }
}
