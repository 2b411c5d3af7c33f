//! `admin run`, which makes a change of the data once, and `admin --reason`.

use serde_json::json;

use crate::support::Deploy;
use crate::support::person::Person;
use crate::{count, done, rows, sql, stderr};

const BOUNCED: &str = "accounts WHERE bounced_at IS NOT NULL";

#[tokio::test]
async fn script_runs_once_and_says_why() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let _ada = Person::known(&deploy, &web).await;
    let mut database = deploy.database().await;
    let bounce = "UPDATE accounts SET bounced_at = now()";
    sql(&mut database, bounce).await;

    let dry = done(&deploy, &["run", "clear-bounces"]).await;
    assert!(dry.contains("would change 1 row(s); nothing was changed"), "{dry}");
    let refused = deploy.admin(&["run", "clear-bounces", "--write"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("say why with --reason"), "{refused:?}");
    let unknown = deploy.admin(&["run", "repair", "--write", "--reason", "ticket 7"]).await;
    assert!(stderr(&unknown).contains("this release has no script repair; it has: clear-bounces"), "{unknown:?}");
    assert_eq!((count(&mut database, BOUNCED).await, count(&mut database, "scripts_run").await), (1, 0));

    let write = ["run", "clear-bounces", "--write", "--reason", "ticket 7"];
    let (one, other) = tokio::join!(done(&deploy, &write), done(&deploy, &write));
    let mut both = [one, other];
    both.sort();
    assert_eq!(both[0], "clear-bounces changed 1 row(s)\n");
    assert!(both[1].starts_with("clear-bounces has already run"), "{both:?}");
    sql(&mut database, bounce).await;
    done(&deploy, &write).await;
    assert_eq!(count(&mut database, BOUNCED).await, 1, "it ran once");
    let listed = rows(&deploy, &["run"]).await;
    assert_eq!(
        (&listed[0]["script"], &listed[0]["changed_rows"], &listed[0]["reason"]),
        (&json!("clear-bounces"), &json!(1), &json!("ticket 7"))
    );
    assert_eq!(count(&mut database, "audit_events WHERE action = 'script_ran' AND reason = 'ticket 7'").await, 1);
}

/// A reason that would be lost is refused.
#[tokio::test]
async fn audit_trail_keeps_the_reason() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let suspend = ["account", "suspend", &ada.email, "--reason", "asked by phone"];
    let refused = deploy.clone_with("LOG_LEVEL", "off").admin(&suspend).await;
    assert_eq!((refused.status.code(), stderr(&refused).contains("set LOG_LEVEL to error")), (Some(1), true), "{refused:?}");
    assert_eq!(ada.get("/session").await.status(), 200, "nothing was changed");
    done(&deploy.clone_with("LOG_LEVEL", "error"), &suspend).await;
    done(&deploy, &["account", "restore", &ada.email]).await;
    let mut database = deploy.database().await;
    assert_eq!(count(&mut database, "audit_events WHERE action = 'suspended' AND reason = 'asked by phone'").await, 1);
    assert_eq!(count(&mut database, "audit_events WHERE action = 'restored' AND reason IS NULL").await, 1);
}
