//! VII. Port binding: the program brings its server along and is reached at the port that the environment names.
//!
//! Violated by a server that it must be put into, or by a port that it chooses itself.

use crate::support::{Deploy, eventually, free_port};

#[tokio::test]
async fn it_serves_on_the_port_of_the_environment_and_on_every_interface() {
    let deploy = Deploy::new().await;
    let free = free_port();
    let deploy = deploy.with("PORT", free);
    let web = deploy.web().await;
    assert_eq!(web.port(), free);
    // 127.0.0.2 is another address of this machine than the usual one.
    let version = reqwest::get(format!("http://127.0.0.2:{free}/version")).await.unwrap();
    assert_eq!(version.json::<serde_json::Value>().await.unwrap()["process"], "web");

    let mut second = deploy.start("web");
    assert_eq!(second.exit().await.code(), Some(1));
    assert!(second.lines().iter().any(|line| line.contains(&format!("cannot listen on port {free}"))), "{:?}", second.lines());
}

#[tokio::test]
async fn every_process_type_answers_probes_on_its_metrics_port() {
    let deploy = Deploy::new().await.with("METRICS_PORT", 0);
    for name in ["web", "worker", "clock"] {
        let mut process = deploy.start(name);
        let port = process.logged("the second listener", |line| line["listener"] == "metrics").await["port"].to_string();
        let get = async |path: &str| reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.unwrap();
        assert_eq!(get("/livez").await.status(), 200);
        eventually("ready", async || (get("/readyz").await.status() == 200).then_some(())).await;
        let health = |port: String| deploy_health(&deploy, port);
        assert!(health(port.clone()).await, "{name}: admin health asks the same");
        process.terminate().await;
        assert!(!health(port).await);
    }
}

async fn deploy_health(deploy: &Deploy, port: String) -> bool {
    let mut command = tokio::process::Command::new(crate::support::process::programs().join("admin"));
    command.arg("health").env_clear().envs(&deploy.environment).env("METRICS_PORT", port);
    command.output().await.unwrap().status.success()
}
