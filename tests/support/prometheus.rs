//! A real Prometheus that scrapes the processes' metrics and evaluates the alerts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::clients::get;
use super::{eventually, free_port};

pub struct Prometheus {
    url: String,
    folder: PathBuf,
    _server: Child,
}

impl Prometheus {
    /// Starts Prometheus with the project's alerts, shortened to fire at once. It scrapes the processes at these ports.
    pub async fn start(ports: &[u16]) -> Self {
        let rules = "deploy/prometheus/alerts.yml";
        let check = Command::new("promtool").args(["check", "rules", rules]).output().await.expect("promtool runs");
        assert!(check.status.success(), "{check:?}");
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let rules = std::fs::read_to_string(rules)
            .expect("the alerts")
            .replace("for: 1m", "for: 0s")
            .replace("for: 2m", "for: 0s")
            .replace("> 60", "> 5");
        std::fs::write(folder.join("alerts.yml"), rules).expect("the alerts");
        let targets: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let config = format!(
            "global: {{ scrape_interval: 500ms, evaluation_interval: 500ms }}\nrule_files: [alerts.yml]\n\
             scrape_configs: [{{ job_name: app, static_configs: [{{ targets: {targets:?} }}] }}]\n"
        );
        std::fs::write(folder.join("prometheus.yml"), config).expect("its config");
        let port = free_port();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}/prometheus.yml", folder.display()));
        command.arg(format!("--storage.tsdb.path={}/data", folder.display())).arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let prometheus = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().expect("prometheus starts");
        Self { url: format!("http://127.0.0.1:{port}/api/v1"), folder, _server: prometheus }
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = url::Url::parse_with_params(&format!("{}{path}", self.url), query).expect("a URL");
        get(url).await.ok()?.json().await.ok()
    }

    /// The first value of an expression.
    pub async fn value(&self, expression: &str) -> Option<f64> {
        let answer = self.ask("/query", &[("query", expression)]).await?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// The firing alerts.
    pub async fn firing(&self) -> BTreeSet<String> {
        let answer = self.ask("/alerts", &[]).await.unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect()
    }

    /// Waits longer than `eventually`, because a value must be scraped and then evaluated.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        for _ in 0..600 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        eventually(what, async || None::<()>).await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
