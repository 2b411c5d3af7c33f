//! Load: clients that go on asking while a test is rough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Client;

/// Clients that ask one thing after the other until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Each client has a connection of its own; all ask who they are, which needs Redis and Postgres.
    pub fn start(count: usize, url: &str, cookie: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..count).map(|_| {
            let (stop, answered, url, cookie) = (stop.clone(), answered.clone(), format!("{url}/api/v1/session"), cookie.to_owned());
            tokio::spawn(async move {
                // No pool: a client that quietly asked again on another connection would hide what this looks for.
                let client = Client::builder().pool_max_idle_per_host(1).retry(reqwest::retry::never()).build().expect("a client");
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let asking = async {
                        let answer = client.get(&url).header("cookie", &cookie).timeout(Duration::from_secs(20)).send().await?;
                        answer.error_for_status()?.bytes().await
                    };
                    match asking.await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => failures.push(format!("{e:?}")),
                    }
                    // Many connections, not much work: the machine is the tests' all together.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                failures
            })
        });
        let clients = clients.collect();
        Self { stop, answered, clients }
    }

    /// The number of answers, and every failure.
    pub async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.expect("a client"));
        }
        (self.answered.load(Ordering::Relaxed), failures)
    }
}
