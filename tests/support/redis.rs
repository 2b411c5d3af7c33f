//! A Redis of one test's own, which can be killed, started again and made another's replica.

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
    /// Where a replica puts what it is sent.
    folder: PathBuf,
    process: Process,
}

impl Redis {
    /// None where there is no program of Redis on this machine.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with options of the server's.
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

    /// Kills it. What it held is lost.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.exit().await;
    }

    /// Starts it again at the same port, empty.
    pub async fn start_again(&mut self) {
        self.process = launch(&self.options).await;
    }

    /// One command, in words.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
        let mut command = Cmd::new();
        command.arg(words);
        command.query_async(&mut connection).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Makes it the replica of another, and waits until both know that it has all that the other has.
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

    /// Takes over from another, which becomes its replica and goes on answering: a failover in which nothing is lost.
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
