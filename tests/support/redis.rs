//! A Redis server for one test, which can be killed, restarted and made a replica of another.

use std::path::PathBuf;

use deadpool_redis::redis::{self, Cmd, FromRedisValue};
use nix::sys::signal::Signal;
use tokio::process::Command;
use uuid::Uuid;

use super::balancer::has;
use super::{Process, eventually, free_port};

pub struct Redis {
    /// Host and port.
    pub address: String,
    options: Vec<String>,
    /// Where a replica stores the data it receives.
    folder: PathBuf,
    process: Process,
}

impl Redis {
    /// Returns `None` if this machine has no Redis program.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with options for the server.
    pub async fn start_with(options: &[&str]) -> Option<Self> {
        if !has("redis-server") {
            return None;
        }
        let port = free_port().to_string();
        let folder = std::env::temp_dir().join(Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let dir = folder.display().to_string();
        let common = ["--port", &port, "--bind", "127.0.0.1", "--dir", &dir, "--save", "", "--repl-diskless-sync-delay", "0"];
        let options: Vec<_> = common.iter().chain(options).map(ToString::to_string).collect();
        let process = launch(&options).await;
        Some(Self { address: format!("127.0.0.1:{port}"), options, folder, process })
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// Kills the server. Its data is lost.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.exit().await;
    }

    /// Restarts the server at the same port, empty.
    pub async fn start_again(&mut self) {
        self.process = launch(&self.options).await;
    }

    /// Runs one command.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
        let mut command = Cmd::new();
        command.arg(words);
        command.query_async(&mut connection).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Makes it a replica of another server, and waits until both report that it is up to date.
    async fn follow(&self, other: &Self) {
        let (host, port) = other.address.split_once(':').expect("host and port");
        self.ask::<()>(&["REPLICAOF", host, port]).await;
        eventually("a replica that is up to date", async || {
            let info: String = self.ask(&["INFO", "replication"]).await;
            let of_other: String = other.ask(&["INFO", "replication"]).await;
            (info.contains("master_link_status:up") && of_other.contains("state=online")).then_some(())
        })
        .await;
    }

    /// Fails over from another server without losing data. The other becomes a replica and continues to answer.
    pub async fn take_over_from(&self, other: &Self) {
        self.follow(other).await;
        let (host, port) = self.address.split_once(':').expect("host and port");
        other.ask::<()>(&["FAILOVER", "TO", host, port]).await;
        eventually("a new master", async || {
            let roles = [self.ask::<String>(&["INFO", "replication"]).await, other.ask(&["INFO", "replication"]).await];
            (roles[0].contains("role:master") && roles[1].contains("role:slave")).then_some(())
        })
        .await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn launch(options: &[String]) -> Process {
    let mut command = Command::new("redis-server");
    command.args(options);
    let process = Process::spawn(command);
    process.line("Ready to accept connections", |line| line.contains("Ready to accept connections")).await;
    process
}
