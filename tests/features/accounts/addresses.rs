//! Addresses: mail can be sent to every address that a sign-up accepts. A permanent refusal by the mail server is not a
//! failure of the job.

use serde_json::json;

use crate::support::person::{PASSWORD, Person};
use crate::support::{Deploy, eventually};

async fn count(deploy: &Deploy, from: &str) -> i64 {
    let count = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {from}")));
    count.fetch_one(&mut deploy.database().await).await.unwrap()
}

#[tokio::test]
async fn accepted_addresses_can_be_mailed() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let impossible = ["a..b@example.com", ".a@example.com", "a.@example.com", "a b@example.com", "a@", "@example.com", "a@b@example.com"];
    let odd = [
        "a@[127.0.0.1]",
        "a@[IPv6:::1]",
        "a@localhost",
        "a@-example.com",
        "a@example..com",
        "a@example.com.",
        "\"a b\"@example.com",
        "j\u{fc}rgen@example.com",
        "a@b\u{fc}cher.example",
        "a+b=c@example.com",
        "A@EXAMPLE.COM",
        "a@xn--bcher-kva.example",
        &format!("{}@example.com", "a".repeat(64)),
        &format!("{}@example.com", "a".repeat(65)),
        &format!("a@{}.example", "b".repeat(64)),
    ];
    let mut taken = 0;
    for email in impossible.into_iter().chain(odd) {
        let signed_up = ada.post("/accounts", json!({ "email": email, "password": PASSWORD })).await.status().as_u16();
        let changed = ada.patch("/account", json!({ "email": email })).await.status().as_u16();
        assert!([(202, 200), (422, 422)].contains(&(signed_up, changed)), "{email}: {signed_up} {changed}");
        assert!(signed_up == 422 || !impossible.contains(&email), "{email}");
        taken += i64::from(signed_up == 202);
    }
    assert!(taken > 2);
    eventually("an empty queue", async || (count(&deploy, "jobs WHERE dead_at IS NULL").await == 0).then_some(())).await;
    let ends: Vec<_> = worker.log().into_iter().filter(|line| line["run_ms"].is_number() && line["outcome"] != "done").collect();
    assert!(ends.is_empty(), "{ends:?}");
}

#[tokio::test]
async fn refused_address_bounces_without_dead_job() {
    let deploy = Deploy::new().await.after_a_clock().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    // The sink refuses this address permanently.
    let ada = Person { email: "never-550@refuse.example".to_owned(), ..Person::stranger(&web) };
    ada.sign_up().await;
    let end = worker.logged("its end", |line| line["job_kind"] == "send_verification" && line["run_ms"].is_number()).await;
    assert_eq!((&end["outcome"], &end["attempt"]), (&json!("done"), &json!(1)), "{end}");
    let warning = worker.says("permanently refused").await;
    assert!(warning["message"].as_str().unwrap().contains("550") && !warning.to_string().contains("refuse.example"), "{warning}");
    assert_eq!(count(&deploy, "jobs").await, 0);
    let shown = async |email: &str| {
        let output = deploy.admin(&["account", "show", email, "--json"]).await;
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    assert!(shown(&ada.email).await["bounced_at"].is_string());
    let table = deploy.admin(&["account", "show", &ada.email]).await;
    assert!(String::from_utf8(table.stdout).unwrap().contains("bounced_at"));
    let doctor = deploy.admin(&["doctor"]).await;
    assert!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));

    // Verifying another address clears it.
    assert_eq!(ada.log_in().await.status(), 200);
    assert_eq!(ada.patch("/account", json!({ "email": "ada@example.org" })).await.status(), 200);
    let token = deploy.mail.to("ada@example.org", "Did you sign up?").await.token();
    assert_eq!(ada.redeem(&token).await.status(), 204);
    assert!(shown("ada@example.org").await["bounced_at"].is_null());
}
