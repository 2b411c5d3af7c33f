//! VI. Processes: they are stateless and share nothing; any of them may answer any request, and any may die.
//!
//! Violated by a session, a cache or an upload that one process has and the next has not.

use nix::sys::signal::Signal;

use crate::support::Deploy;
use crate::support::person::Person;

#[tokio::test]
async fn a_session_made_at_one_process_works_at_the_others_and_outlives_it() {
    let deploy = Deploy::new().await;
    let (mut first, second, third) = tokio::join!(deploy.web(), deploy.web(), deploy.web());
    let ada = Person::unverified(&first).await;
    for web in [&second, &third, &first, &second] {
        assert_eq!(ada.at(web).get("/session").await.status(), 200);
    }
    first.process.signal(Signal::SIGKILL);
    first.process.exit().await;
    assert_eq!(ada.at(&second).get("/session").await.status(), 200);
    assert_eq!(ada.at(&third).delete("/session").await.status(), 204);
    assert_eq!(ada.at(&second).get("/session").await.status(), 401, "and its end is everyone's");
}
