//! The numbers that admins see.

use serde_json::{Value, json};

use crate::support::Deploy;
use crate::support::person::Person;

#[tokio::test]
async fn statistics_count_accounts_and_jobs_by_state() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let admin = Person::known(&deploy, &web).await;
    let suspended = Person::known(&deploy, &web).await;
    Person::unverified(&web).await;
    for arguments in [["account", "grant", &admin.email, "admin"].as_slice(), &["account", "suspend", &suspended.email]] {
        assert!(deploy.admin(arguments).await.status.success());
    }
    admin.log_in().await;
    // Each sign-up enqueued a mail, and ended sessions may leave a job, too.
    let mut database = deploy.database().await;
    for statement in [
        "DELETE FROM jobs WHERE kind <> 'send_verification'",
        "UPDATE jobs SET run_at = now() + interval '1 hour' WHERE id = (SELECT min(id) FROM jobs)",
        "UPDATE jobs SET dead_at = now() WHERE id = (SELECT max(id) FROM jobs)",
        "INSERT INTO jobs (kind, payload, max_attempts, token, run_at) VALUES ('x', '{}', 1, gen_random_uuid(), now() + interval '1 hour')",
    ] {
        sqlx::query(statement).execute(&mut database).await.unwrap();
    }
    let statistics: Value = admin.get("/admin/statistics").await.json().await.unwrap();
    assert_eq!(statistics["accounts"], json!({ "verified": 1, "unverified": 1, "suspended": 1 }));
    assert_eq!(statistics["jobs"], json!({ "ready": 1, "scheduled": 1, "running": 1, "dead": 1 }));
    let features = statistics["features"].as_object().unwrap();
    for (name, numbers) in features {
        assert!(numbers.as_object().unwrap().values().all(Value::is_i64), "{name} counts in numbers: {numbers}");
    }
    assert!(statistics["counted_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let again: Value = admin.get("/admin/statistics").await.json().await.unwrap();
    assert_eq!(again, statistics, "the numbers are cached");
    for said in ["dropped\n", "nothing was cached under this key\n"] {
        let dropped = deploy.admin(&["cache", "drop", "statistics"]).await;
        assert_eq!(String::from_utf8(dropped.stdout).unwrap(), said);
    }
    let anew: Value = admin.get("/admin/statistics").await.json().await.unwrap();
    assert_ne!(anew["counted_at"], statistics["counted_at"]);
}
