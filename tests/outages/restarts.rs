//! Processes restart under load, and no request fails.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::balancer::{Balancer, has};
use crate::support::deploy::Web;
use crate::support::load::Load;
use crate::support::person::Person;
use crate::support::{Deploy, Process, free_port};

/// Three web processes with their ports, and the cookie of a session.
async fn three_webs(deploy: Deploy) -> (Vec<Deploy>, Vec<Process>, Vec<u16>, String) {
    let first = deploy.web().await;
    let cookie = Person::stranger(&first).cookie().await;
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
async fn rolling_restarts_fail_no_request() {
    if !has("haproxy") {
        return;
    }
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "1s").with("RATE_LIMIT_REQUESTS", 10_000_000);
    let (deploys, mut webs, ports, cookie) = three_webs(deploy).await;
    let balancer = Balancer::before(&ports).await;
    let load = Load::start(200, &balancer.url, &cookie);
    let mut unready = Vec::new();
    for round in 0..10 {
        for number in 0..3 {
            assert_eq!(webs[number].terminate().await, Some(0), "round {round}, web {number}: {:#?}", webs[number].lines());
            unready.extend(webs[number].lines().into_iter().filter(|line| line.contains("not ready") || line.contains("\"ERROR\"")));
            webs[number] = up(&deploys[number]).await;
            balancer.until(number, "UP").await;
        }
    }
    let (answered, failures) = load.stop().await;
    assert!(answered > 1_000, "too little load: {answered}");
    let some = &failures[..failures.len().min(5)];
    assert!(failures.is_empty(), "{} of {answered} failed: {some:#?}, with the webs' errors {unready:#?}", failures.len());
}

#[tokio::test]
async fn killed_web_loses_only_requests_in_flight() {
    if !has("haproxy") {
        return;
    }
    let (deploys, mut webs, ports, cookie) = three_webs(Deploy::new().await.with("RATE_LIMIT_REQUESTS", 10_000_000)).await;
    let balancer = Balancer::before(&ports).await;
    let load = Load::start(50, &balancer.url, &cookie);
    tokio::time::sleep(Duration::from_secs(1)).await;
    webs[1].signal(Signal::SIGKILL);
    webs[1].exit().await;
    balancer.until(1, "DOWN").await;
    let (_, failures) = load.stop().await;
    // The requests in flight, and those that the balancer sent before its next check.
    assert!(failures.len() <= 50, "{}: {:#?}", failures.len(), &failures[..3]);
    let load = Load::start(50, &balancer.url, &cookie);
    tokio::time::sleep(Duration::from_secs(1)).await;
    webs[1] = up(&deploys[1]).await;
    balancer.until(1, "UP").await;
    let (answered, failures) = load.stop().await;
    assert!(failures.is_empty() && answered > 50, "requests failed while the process restarted: {answered} {failures:#?}");
}

#[tokio::test]
async fn five_sigterms_start_one_drain() {
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "1s");
    let web = deploy.web().await.process;
    let (worker, clock) = (deploy.start("worker"), deploy.start("clock"));
    worker.says("worker is starting").await;
    clock.says("is new").await;
    for mut process in [web, worker, clock] {
        for _ in 0..5 {
            // The process may have exited before the later signals.
            let _ = nix::sys::signal::kill(process.pid(), Signal::SIGTERM);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(process.exit().await.code(), Some(0));
        assert_eq!(process.lines().iter().filter(|line| line.contains("draining")).count(), 1);
    }
}
