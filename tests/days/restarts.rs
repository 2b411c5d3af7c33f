//! Processes come and go under load, and clients do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Client;

use crate::support::balancer::{Balancer, free_port, has};
use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::{Deploy, Process};

/// Clients that ask one thing after the other until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Each client has a connection of its own; all ask who they are, which needs Redis and Postgres.
    fn start(count: usize, url: &str, cookie: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..count).map(|_| {
            let (stop, answered, url, cookie) = (stop.clone(), answered.clone(), format!("{url}/api/v1/session"), cookie.to_owned());
            tokio::spawn(async move {
                // No pool: a client that quietly asked again on another connection would hide what this looks for.
                let client = Client::builder().pool_max_idle_per_host(1).retry(reqwest::retry::never()).build().unwrap();
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
    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

/// Three processes at ports of their own, and somebody's cookie.
async fn three(deploy: Deploy) -> (Vec<Deploy>, Vec<Process>, Vec<u16>, String) {
    let first = deploy.web().await;
    let ada = Person::stranger(&first);
    ada.sign_up().await;
    let cookie = ada.log_in().await.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
    let deploys: Vec<_> = ports.iter().map(|port| deploy.clone_with("PORT", port)).collect();
    let mut webs = Vec::new();
    for deploy in &deploys {
        webs.push(up(deploy).await);
    }
    (deploys, webs, ports, cookie)
}

async fn up(deploy: &Deploy) -> Process {
    let Web { process, .. } = deploy.web().await;
    process
}

#[tokio::test]
async fn ten_rolling_restarts_under_load_fail_no_request() {
    if !has("haproxy") {
        return;
    }
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "1s").with("RATE_LIMIT_REQUESTS", 10_000_000);
    let (deploys, mut webs, ports, cookie) = three(deploy).await;
    let balancer = Balancer::before(&ports).await;
    let load = Load::start(200, &balancer.url, &cookie);
    for round in 0..10 {
        for number in 0..3 {
            assert_eq!(webs[number].terminate().await, Some(0), "round {round}, web {number}: {:#?}", webs[number].lines());
            webs[number] = up(&deploys[number]).await;
            balancer.until(number, "UP").await;
        }
    }
    let (answered, failures) = load.stop().await;
    assert!(answered > 1_000, "too little load to tell: {answered}");
    assert!(failures.is_empty(), "{} of {answered} failed: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
}

#[tokio::test]
async fn a_process_that_is_killed_takes_only_its_requests_in_flight_with_it() {
    if !has("haproxy") {
        return;
    }
    let (deploys, mut webs, ports, cookie) = three(Deploy::new().await.with("RATE_LIMIT_REQUESTS", 10_000_000)).await;
    let balancer = Balancer::before(&ports).await;
    let load = Load::start(50, &balancer.url, &cookie);
    tokio::time::sleep(Duration::from_secs(1)).await;
    webs[1].signal(Signal::SIGKILL);
    webs[1].exit().await;
    balancer.until(1, "DOWN").await;
    let (_, failures) = load.stop().await;
    // What was on its way, and what the balancer sent there before it looked again.
    assert!(failures.len() <= 50, "{}: {:#?}", failures.len(), &failures[..3]);
    let load = Load::start(50, &balancer.url, &cookie);
    tokio::time::sleep(Duration::from_secs(1)).await;
    webs[1] = up(&deploys[1]).await;
    balancer.until(1, "UP").await;
    let (answered, failures) = load.stop().await;
    assert!(failures.is_empty() && answered > 50, "the session lives, at two processes and at three: {answered} {failures:#?}");
}

#[tokio::test]
async fn five_sigterms_are_one_drain() {
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "1s");
    let mut web = deploy.web().await;
    for _ in 0..5 {
        web.process.signal(Signal::SIGTERM);
        web.process.says("draining").await;
    }
    assert_eq!(web.process.exit().await.code(), Some(0));
    assert_eq!(web.process.lines().iter().filter(|line| line.contains("draining")).count(), 1);
}
