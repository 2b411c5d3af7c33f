//! Ended sessions that Redis still has, or has again, because a deletion there was late or lost.

use std::time::{Duration, Instant};

use deadpool_redis::redis::{AsyncCommands, cmd};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::person::{PASSWORD, Person};
use crate::support::{Deploy, Proxy};

/// How long an ended session may still be accepted.
const SESSION_END_LIMIT: Duration = Duration::from_secs(5);

/// The sessions in Redis, to be restored later.
async fn sessions(deploy: &Deploy) -> Vec<(String, String)> {
    let mut redis = deploy.redis().await;
    let mut found = Vec::new();
    for key in cmd("KEYS").arg("session:*").query_async::<Vec<String>>(&mut redis).await.unwrap() {
        let data = redis.get(&key).await.unwrap();
        found.push((key, data));
    }
    assert!(!found.is_empty());
    found
}

/// Restores sessions, as a failover does to a replica that had not received the deletion.
async fn put_back(deploy: &Deploy, sessions: &[(String, String)]) {
    let mut redis = deploy.redis().await;
    for (key, data) in sessions {
        redis.set_ex::<_, _, ()>(key, data, 600).await.unwrap();
    }
}

/// Sends requests until the session is rejected, which must happen within `SESSION_END_LIMIT`.
async fn is_refused_in_time(person: &Person, ended: Instant) {
    loop {
        let asked = ended.elapsed();
        match person.get("/session").await.status() {
            StatusCode::UNAUTHORIZED => return,
            status => assert!(status == StatusCode::OK && asked < SESSION_END_LIMIT, "{status} after {asked:?}"),
        }
        // A fast machine would reach the limit of requests.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn mint(person: &Person) -> reqwest::Response {
    person.post("/tokens", json!({ "name": "for later", "scopes": ["tokens:read"], "expires_in_days": 366 })).await
}

#[tokio::test]
async fn lost_redis_deletion_revives_no_session() {
    let deploy = Deploy::new().await;
    let (one, two) = (deploy.web().await, deploy.web().await);
    for (number, ending) in ["sessions end", "suspension", "role", "password change", "deletion"].into_iter().enumerate() {
        let ada = Person::known(&deploy, &one).await;
        let there = ada.at(&two);
        // Both processes have cached the account's status.
        assert_eq!((ada.get("/session").await.status(), there.get("/session").await.status()), (StatusCode::OK, StatusCode::OK));
        let before = sessions(&deploy).await;
        let elsewhere = ada.elsewhere();
        match ending {
            "sessions end" => {
                elsewhere.log_in().await;
                assert_eq!(elsewhere.delete("/account/sessions").await.status(), StatusCode::NO_CONTENT);
            }
            "suspension" => assert!(deploy.admin(&["account", "suspend", &ada.email]).await.status.success()),
            "role" => assert!(deploy.admin(&["account", "grant", &ada.email, "admin"]).await.status.success()),
            "password change" => {
                elsewhere.log_in().await;
                let change = json!({ "old": PASSWORD, "new": "another password altogether" });
                assert_eq!(elsewhere.post("/account/password", change).await.status(), StatusCode::NO_CONTENT);
            }
            _ => assert!(deploy.admin(&["account", "delete", "--yes", &ada.email]).await.status.success()),
        }
        let ended = Instant::now();
        put_back(&deploy, &before).await;
        let minted = mint(&ada).await.status();
        assert_eq!(minted, StatusCode::UNAUTHORIZED, "{ending}: it cannot create a token even in the first seconds");
        is_refused_in_time(&ada, ended).await;
        is_refused_in_time(&there, ended).await;
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM api_tokens").fetch_one(&mut deploy.database().await).await.unwrap();
        assert_eq!(left, 0, "{number} {ending}");
        // The next iteration starts without these sessions.
        cmd("FLUSHDB").query_async::<()>(&mut deploy.redis().await).await.unwrap();
    }
}

#[tokio::test]
async fn suspension_works_while_redis_is_unavailable() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let (web, far) = (deploy.web().await, deploy.clone_with("REDIS_URL", deploy.through("REDIS_URL", &proxy)));
    let ada = Person::known(&deploy, &web).await;
    assert_eq!(ada.get("/session").await.status(), StatusCode::OK);
    proxy.cut();
    // No worker runs, so the session is never deleted.
    assert!(far.admin(&["account", "suspend", &ada.email]).await.status.success());
    let ended = Instant::now();
    assert_eq!(mint(&ada).await.status(), StatusCode::UNAUTHORIZED);
    is_refused_in_time(&ada, ended).await;
    assert_eq!(sessions(&deploy).await.len(), 1, "Redis still has the session");
}

#[tokio::test]
async fn ended_admin_session_cannot_suspend_accounts() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (root, ada) = (Person::unverified(&web).await, Person::unverified(&web).await);
    assert!(deploy.admin(&["account", "grant", &root.email, "admin"]).await.status.success());
    root.log_in().await;
    let list: Value = root.get("/admin/accounts").await.json().await.unwrap();
    let accounts = list["items"].as_array().unwrap();
    let id = accounts.iter().find(|account| account["email"] == ada.email).unwrap()["id"].as_str().unwrap();
    let before = sessions(&deploy).await;
    assert!(deploy.admin(&["account", "grant", &root.email, "user"]).await.status.success());
    put_back(&deploy, &before).await;
    // For five seconds the session may still read, but it cannot change anything.
    let refused = root.post(&format!("/admin/accounts/{id}/suspend"), json!({})).await;
    assert!([StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&refused.status()), "{refused:?}");
    assert_eq!(ada.get("/session").await.status(), StatusCode::OK);
}
