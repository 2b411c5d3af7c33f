//! Build, release, run: `bin/release` and `bin/run`, with a build of the programs under test.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::support::process::programs;
use crate::support::{Deploy, Process, free_port};
use crate::{stderr, stdout};

/// A folder for builds, configs and releases. It is deleted after the test.
struct Platform(PathBuf);

impl Platform {
    async fn new() -> Self {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir_all(folder.join("stage/bin")).unwrap();
        let platform = Self(folder);
        // Two programs are enough, and without debug information they are quick to pack.
        platform.sh("strip --strip-debug -o stage/bin/admin $PROGRAMS/admin; strip --strip-debug -o stage/bin/clock $PROGRAMS/clock; chmod 755 stage/bin/*").await;
        platform
            .sh("printf 'release: admin migrate\\nclock: clock\\n' >stage/Procfile; tar -cf - -C stage . | gzip -1 >build.tar.gz")
            .await;
        platform.sh("mv build.tar.gz 0123456789ab-$(sha256sum build.tar.gz | cut -c 1-16).tar.gz").await;
        platform
    }

    async fn sh(&self, script: &str) {
        let status = Command::new("bash").args(["-euc", script]).current_dir(&self.0).env("PROGRAMS", programs()).status().await.unwrap();
        assert!(status.success(), "{script}");
    }

    fn build(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.to_string_lossy().ends_with(".tar.gz")).unwrap()
    }

    /// A file with the config of a deploy.
    fn config(&self, deploy: &Deploy) -> PathBuf {
        let path = self.0.join("config");
        let lines: Vec<_> = deploy.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        std::fs::write(&path, format!("# What this deploy is.\n{}\n", lines.join("\n"))).unwrap();
        path
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(format!("bin/{name}"));
        command.env("RELEASES", self.0.join("releases")).env("MARKER", "of-who-started-it");
        command
    }

    async fn release(&self, arguments: &[&Path]) -> Output {
        self.script("release").args(arguments).output().await.unwrap()
    }

    fn of(&self, version: &str, file: &str) -> PathBuf {
        self.0.join("releases").join(version).join(file)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chmod").args(["-R", "u+w"]).arg(&self.0).status();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn releases_are_validated_numbered_and_immutable() {
    let platform = Platform::new().await;
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "10s");
    let build = platform.build();

    let wrong = platform.release(&[&build, &platform.config(&deploy.clone_with("DRAIN_TIMEOUT", "soon").without("MAIL_FROM"))]).await;
    assert!(!wrong.status.success());
    for expected in ["DRAIN_TIMEOUT must be", "MAIL_FROM is missing", "nothing was released"] {
        assert!(stderr(&wrong).contains(expected), "{wrong:?}");
    }
    assert!(!platform.of("v1", "").exists());

    let first = platform.release(&[&build, &platform.config(&deploy)]).await;
    assert!(first.status.success() && stdout(&first) == "v1\n", "{first:?}");
    let second = platform.release(&[&build, &platform.config(&deploy.clone_with("DRAIN_TIMEOUT", "20s").with("LOG_LEVEL", "debug"))]).await;
    assert_eq!(stdout(&second), "v2\n", "{second:?}");
    for file in ["bin/admin", "bin/clock", "config", "Procfile", "SHA256SUMS"] {
        let mode = platform.of("v1", file).metadata().unwrap().mode();
        assert_eq!(mode & 0o222, 0, "{file} can be changed");
    }
    assert_eq!(platform.of("v1", "config").metadata().unwrap().mode() & 0o077, 0, "only the owner can read the config");

    let back = platform.release(&[Path::new("rollback")]).await;
    assert_eq!(stdout(&back), "v3\n", "{back:?}");
    let read = |version| std::fs::read_to_string(platform.of(version, "config")).unwrap();
    assert_eq!(read("v3"), read("v1"));

    let log = stdout(&platform.release(&[Path::new("log")]).await);
    let lines: Vec<Vec<_>> = log.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.iter().map(|line| line[0]).collect::<Vec<_>>(), ["v3", "v2", "v1"]);
    assert_eq!((lines[0][4], lines[0][5]), ("rollback to v1", "~DRAIN_TIMEOUT -LOG_LEVEL "));
    assert_eq!((lines[1][4], lines[1][5]), ("release", "~DRAIN_TIMEOUT +LOG_LEVEL "));
    assert!(build.to_string_lossy().contains(lines[2][3]) && lines[2][5].contains("+DATABASE_URL"), "{log}");
    for value in deploy.environment.values().filter(|value| value.len() > 5) {
        assert!(!log.contains(value), "the log contains no values: {log}");
    }
}

#[tokio::test]
async fn rollback_goes_back_further_each_time() {
    let platform = Platform::new().await;
    let deploy = Deploy::new().await;
    let mut published = 0;
    // Each release has its number in its config.
    let mut release = async || {
        published += 1;
        let config = platform.config(&deploy.clone_with("RELEASE_NOTE", published));
        let released = platform.release(&[&platform.build(), &config]).await;
        assert!(released.status.success(), "{released:?}");
        stdout(&released).trim().to_owned()
    };
    let rollback = async || {
        let back = platform.release(&[Path::new("rollback")]).await;
        let version = stdout(&back).trim().to_owned();
        let config = std::fs::read_to_string(platform.of(&version, "config")).unwrap_or_default();
        (version, config.lines().find_map(|line| line.strip_prefix("RELEASE_NOTE=").map(str::to_owned)), stderr(&back))
    };
    for version in ["v1", "v2", "v3"] {
        assert_eq!(release().await, version);
    }
    let went_to = |(version, note, _): &(String, Option<String>, String)| format!("{version} {}", note.clone().unwrap_or_default());
    assert_eq!(went_to(&rollback().await), "v4 2");
    assert_eq!(went_to(&rollback().await), "v5 1", "the rollback skips the bad release before it");
    assert_eq!(rollback().await.0, "", "the first release has no predecessor");
    // The next release is bad, too. Its rollback returns to the one that ran before.
    assert_eq!(release().await, "v6");
    assert_eq!(went_to(&rollback().await), "v7 1");
    let (none, _, printed) = rollback().await;
    assert!(none.is_empty() && printed.contains("no release"), "{printed}");
    // A rollback to a named release.
    let named = platform.release(&[Path::new("rollback"), Path::new("v3")]).await;
    assert_eq!(stdout(&named), "v8\n", "{named:?}");
}

#[tokio::test]
async fn modified_release_cannot_run_or_return() {
    let platform = Platform::new().await;
    let config = platform.config(&Deploy::new().await);
    for _ in 0..2 {
        let released = platform.release(&[&platform.build(), &config]).await;
        assert!(released.status.success(), "{released:?}");
    }
    let config = platform.of("v1", "config");
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&config, "DATABASE_URL=postgres://elsewhere\n").unwrap();
    let run = platform.script("run").args(["v1", "clock=1"]).output().await.unwrap();
    let back = platform.release(&[Path::new("rollback"), Path::new("v1")]).await;
    for refused in [run, back] {
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains("v1 was changed after it was made"), "{refused:?}");
    }
    assert!(!platform.of("v3", "").exists());
}

#[tokio::test]
async fn release_runs_without_the_callers_environment() {
    let platform = Platform::new().await;
    let deploy = Deploy::new().await.with("PORT", free_port());
    let released = platform.release(&[&platform.build(), &platform.config(&deploy)]).await;
    assert!(released.status.success(), "{released:?}");
    let one_off = platform.script("run").args(["v1", "admin", "migrate", "--check"]).output().await.unwrap();
    assert!(one_off.status.success(), "{one_off:?}");

    // A shell cannot trap a signal that is ignored when it starts, as SIGINT is in background jobs.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", "bin/run", "v1", "clock=2"]).env("RELEASES", platform.0.join("releases"));
    command.env("MARKER", "of-who-started-it").env("LOG_LEVEL", "error");
    let mut running = Process::spawn(command);
    for name in ["clock.1 | ", "clock.2 | "] {
        let line = running.line("a start", |line| line.starts_with(name) && line.contains("clock is starting")).await;
        let line: serde_json::Value = serde_json::from_str(line.split_once(" | ").unwrap().1).unwrap();
        assert_eq!(line["release"], "v1", "the line is logged despite the caller's LOG_LEVEL");
        let pid = line["instance"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("of-who-started-it"));
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert!(program.starts_with(platform.0.canonicalize().unwrap()), "{program:?}");
    }
    running.signal(Signal::SIGINT);
    assert_eq!(running.exit().await.code(), Some(0));
    let drained = running.lines().iter().filter(|line| line.contains("clock has stopped")).count();
    assert_eq!(drained, 2, "{:#?}", running.lines());
}
