//! `bin/dev`: signals, crashes, and wrong arguments.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::dev::{Dev, bin_dev};
use crate::support::{Deploy, eventually};

#[tokio::test]
async fn ctrl_c_drains_processes_before_services_stop() {
    let mut dev = Dev::start(&["web=2"]).await;
    // At Ctrl-C the request's body is incomplete, and the request still needs the database. It must be answered.
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
    assert_eq!(dev.processes(), Vec::<String>::new());
}

/// It cleans up even if it is killed itself.
#[tokio::test]
async fn bin_dev_restarts_processes_and_cleans_up() {
    let mut dev = Dev::start(&["clock=0"]).await;
    let worker = dev.process.line("the worker", |line| line.starts_with("worker.1 | {")).await;
    let worker: serde_json::Value = serde_json::from_str(worker.split_once(" | ").unwrap().1).unwrap();
    let pid = worker["instance"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let errors = async || dev.process.errors().into_iter().find(|line| line.contains("worker.1 exited with status 137; restarting it"));
    eventually("a new worker", errors).await;

    dev.process.signal(Signal::SIGKILL);
    dev.process.exit_within(Duration::from_mins(1)).await;
    eventually("nothing left behind", async || dev.processes().is_empty().then_some(())).await;
    assert!(!std::path::Path::new(&dev.folder).exists());
}

/// Variables that end in `_FILE` are part of it.
#[tokio::test]
async fn bin_dev_shares_its_config_with_terminals() {
    let deploy = Deploy::new().await;
    let file = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::write(&file, &deploy.environment["DATABASE_URL"]).unwrap();
    let dev = Dev::start_with(&["clock=0"], &[("DATABASE_URL_FILE", file.to_str().unwrap()), ("SESSION_TTL", "3d")]).await;
    let accounts: i64 = sqlx::query_scalar("SELECT count(*) FROM accounts").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(accounts, 2, "the demo accounts are in that database");
    let mut other = tokio::process::Command::new("bash");
    other.args(["-c", &format!(". {}/env && admin config", dev.folder)]).env_remove("DATABASE_URL").env_remove("SESSION_TTL");
    let config = other.output().await.unwrap();
    let printed = String::from_utf8_lossy(&config.stdout);
    let line = |name: &str| printed.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(config.status.success() && line("SESSION_TTL ").contains(" 3d ") && line("DATABASE_URL ").contains("(file)"), "{config:?}");
    std::fs::remove_file(file).unwrap();
}

/// A terminal that has read them must be able to start it again.
#[tokio::test]
async fn bin_dev_ignores_servers_of_earlier_runs() {
    let folder = format!(".local/dev-{}.throwaway", uuid::Uuid::new_v4().simple());
    std::fs::create_dir_all(&folder).unwrap();
    let gone = "postgres://127.0.0.1:1/gone";
    std::fs::write(format!("{folder}/env"), format!("# servers of this run: DATABASE_URL\nexport DATABASE_URL={gone}\n")).unwrap();
    let mut dev = Dev::start_with(&["clock=0"], &[("DEV_DIR", &folder), ("DATABASE_URL", gone)]).await;
    let now = std::fs::read_to_string(format!("{folder}/env")).unwrap();
    assert!(now.contains("# servers of this run: DATABASE_URL REDIS_URL SMTP_URL ") && !now.contains(gone), "{now}");
    dev.process.signal(Signal::SIGINT);
    assert_eq!(dev.process.exit().await.code(), Some(0));
}

#[tokio::test]
async fn bin_dev_checks_formation_and_port_first() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, port, expected) in [
        (["web=two"].as_slice(), "0", "usage: bin/dev [TYPE=COUNT …]"),
        (&["release=1"], "0", "usage: bin/dev [TYPE=COUNT …]"),
        (&[], port.as_str(), "is taken: stop what listens there"),
    ] {
        let output = bin_dev(arguments).env("PORT", port).output().await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    }
}

#[tokio::test]
async fn given_servers_need_no_installed_ones() {
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    let copied = Command::new("cp").args(["-R", "bin", "docker-compose.yml"]).arg(&folder).status().await.unwrap();
    assert!(copied.success());
    let mut setup = Command::new(folder.join("bin/setup"));
    setup.current_dir(&folder).env_remove("CI").env("DATABASE_URL", "postgres://localhost/app").env("REDIS_URL", "redis://localhost");
    assert!(setup.status().await.unwrap().success());
    let read = Command::new("bash").args(["-euc", ". .local/services"]).current_dir(&folder).status().await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(read.success(), "bin/dev could not read what bin/setup found");
}
