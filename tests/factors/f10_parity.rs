//! X. Dev/prod parity: development runs the same programs with the same kinds of services, by one command.
//!
//! Violated by an in-memory stand-in, by a second pin, by a development server of its own.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::{Process, eventually, free_port};

/// `bin/dev` with services and ports of its own, so that it disturbs no other that runs here.
struct Dev {
    process: Process,
    folder: String,
    port: u16,
    page: String,
}

impl Dev {
    async fn start(arguments: &[&str]) -> Self {
        let folder = format!(".local/dev-{}.throwaway", uuid::Uuid::new_v4().simple());
        let port = two_free_ports();
        let mut command = bin_dev(arguments);
        command.env("DEV_DIR", &folder).env("PORT", port.to_string());
        let process = Process::spawn(command);
        let page = process.line("the mail sink", |line| line.starts_with("mail.1 | takes mail at")).await;
        let page = page.rsplit(' ').next().unwrap().to_owned();
        for web in ["web.1 |", "web.2 |"].iter().take(if arguments.contains(&"web=2") { 2 } else { 1 }) {
            process.line("readiness", |line| line.starts_with(web) && line.contains("\"ready\"")).await;
        }
        Self { process, folder, port, page }
    }

    /// Every process that belongs to this run, by the folder or the port in its environment.
    fn left_behind(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let read = |name: &str| String::from_utf8_lossy(&std::fs::read(entry.path().join(name)).unwrap_or_default()).replace('\0', " ");
            let (line, environment) = (read("cmdline"), read("environ"));
            if line.contains(&self.folder) || environment.contains(&format!("DEV_DIR={}", self.folder)) {
                found.push(line);
            }
        }
        found
    }
}

/// `bin/dev` as a person types it: what `cargo test` adds to the environment would make cargo build anew.
fn bin_dev(arguments: &[&str]) -> Command {
    // A shell cannot trap what is ignored when it starts, as SIGINT is where these tests run in the background.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", "bin/dev"]);
    for name in std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CARGO_")) {
        if !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    // A developer's own `.env` must decide nothing here.
    command.args(arguments).env_remove("OUT_DIR").env_remove("CI").env("ENV_FILE", "/dev/null");
    command
}

fn two_free_ports() -> u16 {
    loop {
        let (first, second) = (free_port(), free_port());
        if second == first + 1 {
            return first;
        }
    }
}

#[tokio::test]
async fn one_command_runs_it_all_and_the_first_five_minutes_of_the_readme_work_as_written() {
    let mut dev = Dev::start(&["web=2"]).await;
    let readme = std::fs::read_to_string("README.md").unwrap();
    let section = readme.split("## The first five minutes").nth(1).unwrap().split("\n## ").next().unwrap();
    let commands: String = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    let commands = commands
        .replace("origin: http://localhost:8080", &format!("origin: http://localhost:{}", dev.port))
        .replace("localhost:8080", &format!("127.0.0.1:{}", dev.port))
        .replace("localhost:8081", &format!("127.0.0.1:{}", dev.port + 1))
        .replace("http://localhost:8025", &dev.page)
        .replace("localhost:8025", dev.page.trim_start_matches("http://"));
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    let run = Command::new("bash").args(["-euo", "pipefail", "-c", &commands]).current_dir(&folder).output();
    let output = tokio::time::timeout(Duration::from_mins(1), run).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let what = || format!("{commands}\n{told}\n{}\n{:#?}", String::from_utf8_lossy(&output.stderr), dev.process.lines());
    assert!(output.status.success(), "{}", what());
    assert!(told.contains("water the plants"), "{told}");
    std::fs::remove_dir_all(folder).unwrap();

    // A request whose body is still on its way at Ctrl-C, and which then needs the database, is answered.
    let mut request = TcpStream::connect(("127.0.0.1", dev.port)).await.unwrap();
    let body = r#"{"email": "nobody@example.com", "password": "none"}"#;
    let head =
        format!("POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    request.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    dev.process.signal(Signal::SIGINT);
    dev.process.line("the drain", |line| line.starts_with("web.1 |") && line.contains("draining")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    request.write_all(body.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    request.read_exact(&mut answer).await.unwrap();
    assert_eq!(std::str::from_utf8(&answer).unwrap(), "HTTP/1.1 401");

    assert_eq!(dev.process.exit().await.code(), Some(0));
    let lines = dev.process.lines();
    for name in ["web.1", "web.2", "worker.1", "clock.1"] {
        let last = lines.iter().rfind(|line| line.starts_with(&format!("{name} | "))).unwrap();
        assert!(last.contains("has stopped") && last.contains("\"exit_status\":0"), "{last}");
    }
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_process_is_started_again_and_a_killed_bin_dev_leaves_nothing_behind() {
    let mut dev = Dev::start(&["clock=0"]).await;
    let worker = dev.process.line("the worker", |line| line.starts_with("worker.1 | {")).await;
    let worker: serde_json::Value = serde_json::from_str(worker.split_once(" | ").unwrap().1).unwrap();
    let pid = worker["instance"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let errors = async || dev.process.errors().into_iter().find(|line| line.contains("worker.1 ended (exit 137) and is started again"));
    eventually("a new worker", errors).await;

    dev.process.signal(Signal::SIGKILL);
    dev.process.exit_within(Duration::from_mins(1)).await;
    eventually("nothing left behind", async || dev.left_behind().is_empty().then_some(())).await;
    assert!(!std::path::Path::new(&dev.folder).exists());
}

#[tokio::test]
async fn a_wrong_formation_and_a_taken_port_are_told_before_anything_starts() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, port, told) in [
        (["web=two"].as_slice(), "0", "usage: bin/dev [TYPE=COUNT …]"),
        (&["release=1"], "0", "usage: bin/dev [TYPE=COUNT …]"),
        (&[], port.as_str(), "is taken: stop what listens there"),
    ] {
        let output = bin_dev(arguments).env("PORT", port).output().await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(told), "{output:?}");
    }
}

#[test]
fn each_backing_service_is_pinned_in_one_place() {
    let compose = std::fs::read_to_string("docker-compose.yml").unwrap();
    for pin in ["postgres:17-trixie", "redis:8-trixie"] {
        assert_eq!(compose.matches(pin).count(), 1);
        for script in ["bin/setup", "bin/dev", "bin/test", "bin/services.sh"] {
            assert!(!std::fs::read_to_string(script).unwrap().contains(pin), "{script}");
        }
    }
}
