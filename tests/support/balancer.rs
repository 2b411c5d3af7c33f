//! A load balancer: haproxy, which follows `/readyz` and never retries a request.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::{eventually, free_port};

/// Whether a tool is installed. A test without it is skipped, except in CI, where it fails.
pub fn has(tool: &str) -> bool {
    found_or_skipped(is_installed(tool), tool)
}

pub fn is_installed(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).exists()));
    found || PathBuf::from("/usr/sbin").join(tool).exists()
}

/// The same for a prerequisite that is not a tool in PATH.
pub fn found_or_skipped(found: bool, what: &str) -> bool {
    assert!(found || std::env::var("CI").as_deref() != Ok("true"), "{what} is missing");
    if !found {
        println!("skipped: needs {what}");
    }
    found
}

pub struct Balancer {
    pub url: String,
    folder: PathBuf,
    _haproxy: Child,
}

impl Balancer {
    /// Starts haproxy before the servers at these ports, and waits until all of them are up.
    pub async fn before(ports: &[u16]) -> Self {
        let port = free_port();
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).expect("a folder");
        // A check may take longer than its interval, because a server on a busy machine may be slow.
        let mut config = format!(
            "global\n  maxconn 2000\n  stats socket {}/stats level admin\n\
             defaults\n  mode http\n  retries 0\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n  timeout http-keep-alive 30s\n  timeout check 2s\n\
             listen web\n  bind 127.0.0.1:{port}\n  option httpchk GET /readyz\n  balance roundrobin\n",
            folder.display()
        );
        for (number, port) in ports.iter().enumerate() {
            writeln!(config, "  server web{number} 127.0.0.1:{port} check inter 100ms fall 1 rise 1").expect("a text");
        }
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, config).expect("its config");
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("haproxy");
        command.env("PATH", path).arg("-db").arg("-f").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let haproxy = command.spawn().expect("haproxy starts");
        let balancer = Self { url: format!("http://127.0.0.1:{port}"), folder, _haproxy: haproxy };
        for number in 0..ports.len() {
            balancer.until(number, "UP").await;
        }
        balancer
    }

    /// Waits until haproxy considers a server `UP` or `DOWN`.
    pub async fn until(&self, number: usize, state: &str) {
        eventually(&format!("web{number} is {state}"), async || {
            let statistics = self.ask("show stat\n").await?;
            let line = statistics.lines().find(|line| line.starts_with(&format!("web,web{number},")))?.to_owned();
            line.split(',').nth(17).is_some_and(|now| now.starts_with(state)).then_some(())
        })
        .await;
    }

    async fn ask(&self, command: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::UnixStream::connect(self.folder.join("stats")).await.ok()?;
        socket.write_all(command.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
