//! A mail server that refuses.

use crate::support::Deploy;
use crate::support::person::Person;

#[tokio::test]
async fn a_mail_that_is_refused_for_now_is_tried_again_and_one_that_is_refused_for_good_is_dead_at_once() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    // The sink answers as the address asks it to.
    for (address, outcome) in [("later-450@refuse.example", "failed"), ("never-550@refuse.example", "dead")] {
        let ada = Person { email: address.to_owned(), ..Person::stranger(&web) };
        ada.sign_up().await;
        let line = worker.logged(outcome, |line| line["outcome"] == outcome).await;
        assert_eq!(line["attempt"], 1, "{line}");
        assert!(!line.to_string().contains(address), "no address in the log: {line}");
    }
    let output = deploy.admin(&["jobs", "list", "--dead"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("send_verification") && told.contains("550"), "{told}");
}
