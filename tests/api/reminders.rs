//! The sample feature.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::person::{Person, in_seconds, problem};
use crate::support::{Deploy, eventually};

#[tokio::test]
async fn a_reminder_arrives_by_mail_once_and_not_before_it_is_due() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let created = ada.remind("water the plants", 2).await;
    assert_eq!(created.status(), 201);
    let location = created.headers()["location"].to_str().unwrap().replace("/api/v1", "");
    let reminder: Value = created.json().await.unwrap();
    assert_eq!(location, format!("/reminders/{}", reminder["id"].as_str().unwrap()));
    let mail = deploy.mail.to(&ada.email, "A reminder").await;
    assert_eq!(mail.text.trim(), "water the plants");
    assert_eq!(mail.message_id, format!("reminder-{}-1@localhost", reminder["id"].as_str().unwrap()));

    let sent =
        eventually("sent_at", async || ada.get(&location).await.json::<Value>().await.unwrap()["sent_at"].as_str().map(str::to_owned))
            .await;
    assert!(sent.parse::<jiff::Timestamp>().unwrap() >= reminder["due_at"].as_str().unwrap().parse().unwrap());
    let done = worker.logged("the job's end", |line| line["job_kind"] == "send_reminder" && line["outcome"] == "done").await;
    assert!(done["run_ms"].is_u64() && done["attempt"] == 1, "{done}");
    assert_eq!(deploy.mail.all().await.iter().filter(|mail| mail.subject == "A reminder").count(), 1);
}

#[tokio::test]
async fn a_changed_or_deleted_reminder_is_not_mailed_as_it_was() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let create = async |message: &str, seconds| {
        let reminder: Value = ada.remind(message, seconds).await.json().await.unwrap();
        format!("/reminders/{}", reminder["id"].as_str().unwrap())
    };
    let (deleted, changed, last) = (create("deleted", 2).await, create("before", 2).await, create("last", 3).await);
    assert_eq!(ada.delete(&deleted).await.status(), 204);
    problem(ada.get(&deleted).await, 404, "not-found").await;
    let after: Value = ada.patch(&changed, json!({ "message": "after" })).await.json().await.unwrap();
    assert_eq!((&after["message"], &after["version"]), (&json!("after"), &json!(2)));
    let same: Value = ada.patch(&changed, json!({})).await.json().await.unwrap();
    assert_eq!(same, after, "nothing to change is no new version");
    eventually("the last", async || ada.get(&last).await.json::<Value>().await.unwrap()["sent_at"].as_str().map(drop)).await;
    let mut texts: Vec<_> = deploy.mail.all().await.into_iter().filter(|mail| mail.subject == "A reminder").map(|mail| mail.text).collect();
    texts.sort();
    assert_eq!(texts.iter().map(|text| text.trim()).collect::<Vec<_>>(), ["after", "last"]);
}

#[tokio::test]
async fn another_persons_reminder_is_not_there() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, eve) = tokio::join!(Person::verified(&deploy, &web), Person::verified(&deploy, &web));
    let reminder: Value = ada.remind("mine", 3600).await.json().await.unwrap();
    let path = format!("/reminders/{}", reminder["id"].as_str().unwrap());
    problem(eve.get(&path).await, 404, "not-found").await;
    problem(eve.patch(&path, json!({ "message": "yours" })).await, 404, "not-found").await;
    problem(eve.delete(&path).await, 404, "not-found").await;
    assert_eq!(eve.get("/reminders").await.json::<Value>().await.unwrap(), json!({ "items": [], "next": null }));
    assert_eq!(ada.get(&path).await.json::<Value>().await.unwrap(), reminder, "and is unchanged");
    problem(ada.get(&format!("/reminders/{}", Uuid::new_v4())).await, 404, "not-found").await;
    problem(ada.get("/reminders/17").await, 404, "not-found").await;
}

#[tokio::test]
async fn only_a_verified_address_gets_reminders() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    problem(ada.remind("mail bomb", 60).await, 403, "email-not-verified").await;
    assert_eq!(ada.get("/reminders").await.json::<Value>().await.unwrap()["items"], json!([]));
}

#[tokio::test]
async fn a_list_comes_in_pages_in_the_order_of_their_time() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let same_time = in_seconds(1000);
    for message in ["b", "c", "d"] {
        ada.post("/reminders", json!({ "message": message, "due_at": same_time })).await;
    }
    ada.remind("e", 2000).await;
    ada.remind("a", 500).await;
    let (mut messages, mut path) = (Vec::new(), "/reminders?limit=2".to_owned());
    loop {
        let page: Value = ada.get(&path).await.json().await.unwrap();
        messages.extend(page["items"].as_array().unwrap().iter().map(|item| item["message"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/reminders?limit=2&cursor={next}");
    }
    assert_eq!(messages, ["a", "b", "c", "d", "e"]);
    problem(ada.get("/reminders?limit=0").await, 422, "invalid-input").await;
    problem(ada.get("/reminders?limit=many").await, 422, "invalid-input").await;
    problem(ada.get("/reminders?cursor=nonsense").await, 422, "invalid-input").await;
}
