//! `admin files …`, which compares the object store with the rows.

use serde_json::Value;

use super::{noise, path, stored};
use crate::support::person::Person;
use crate::support::{Deploy, store};

#[tokio::test]
async fn verify_finds_missing_and_changed_objects() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    // More than one part, and none at all.
    let whole = stored(&ada, "whole", noise(1, 6 * 1024 * 1024)).await;
    let _empty = stored(&ada, "empty", "").await;
    let (longer, changed, missing) = (stored(&ada, "a", "four").await, stored(&ada, "b", "four").await, stored(&ada, "c", "four").await);
    let verify_in = async |deploy: &Deploy, after: &[&str]| {
        let output = deploy.admin(&[&["files", "verify", "--json"], after].concat()).await;
        let rows = String::from_utf8(output.stdout.clone()).unwrap();
        let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), rows.iter().map(|row| (row["id"].clone(), row["problem"].as_str().unwrap().to_owned())).collect::<Vec<_>>())
    };
    let verify = async |after: &[&str]| verify_in(&deploy, after).await;
    assert_eq!(verify(&[]).await, (Some(0), Vec::new()));

    let key = |file: &Value| format!("files/{}/content", file["id"].as_str().unwrap());
    store::put(&deploy, &key(&longer), b"eleven more").await;
    store::put(&deploy, &key(&changed), b"five").await;
    let folder = &deploy.environment["STORAGE_URL"].strip_prefix("s3://files/").unwrap();
    let gone = object_store::path::Path::from(format!("{folder}/{}", key(&missing)));
    object_store::ObjectStoreExt::delete(&store::client(&deploy), &gone).await.unwrap();
    let wrong = [
        (longer["id"].clone(), "the object has 11 bytes, its row says 4".to_owned()),
        (changed["id"].clone(), "the object has another SHA-256 than its row".to_owned()),
        (missing["id"].clone(), "the object is missing".to_owned()),
    ];
    assert_eq!(verify(&[]).await, (Some(1), wrong.to_vec()));
    assert_eq!(verify(&["--after", changed["id"].as_str().unwrap()]).await, (Some(1), wrong[2..].to_vec()));

    // Without the store, every file is named and none is called missing.
    let (code, unread) = verify_in(&deploy.clone_with("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"), &[]).await;
    assert_eq!((code, unread.len()), (Some(1), 5));
    assert!(unread.iter().all(|(_, problem)| problem.starts_with("it cannot be read: object store operation head failed")), "{unread:?}");

    let shown = deploy.admin(&["files", "show", whole["id"].as_str().unwrap()]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["sha256"], &shown["state"]), (&whole["sha256"], &Value::from("stored")));
    assert_eq!(ada.get(&path(&whole)).await.status(), 200);
}
