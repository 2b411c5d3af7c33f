//! II. Dependencies: all that the programs are built from is declared and locked, and nothing else on the machine is needed to run them.
//!
//! Violated by a crate from a folder or a branch, a lock that does not fit, a tool of the system that must happen to be there.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use crate::support::balancer::has;
use crate::support::deploy::{Web, without_disk};
use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, Process, eventually};

#[tokio::test]
async fn the_lock_is_current_and_every_dependency_comes_from_the_registry() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // Only this platform's crates are on the machine.
    let arguments = ["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", "host-tuple"];
    let output = Command::new(cargo).args(arguments).output().await.unwrap();
    assert!(output.status.success(), "the lock does not fit: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let own = &metadata["workspace_members"];
    assert_eq!(own.as_array().unwrap().len(), 1, "one package makes every program: {own}");
    let registry = "registry+https://github.com/rust-lang/crates.io-index";
    for package in metadata["packages"].as_array().unwrap() {
        if package["id"] != own[0] {
            assert_eq!(package["source"], registry, "{} is not from the registry", package["id"]);
            continue;
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            assert_eq!(dependency["source"], registry, "{dependency} comes from a folder or a branch");
            assert_ne!(dependency["req"], "*", "{dependency} may be any version");
        }
    }
}

/// What a deploy is for: somebody signs up, is mailed a link, follows it, and is mailed another for the password.
async fn serve_somebody(deploy: &Deploy, start: impl Fn(&str) -> Process) {
    let web = Web::of(start("web")).await;
    web.process.says("ready").await;
    let (worker, clock) = (start("worker"), start("clock"));
    let ada = Person::verified(deploy, &web).await;
    assert_eq!(ada.forget().await.status(), 202);
    deploy.mail.to(&ada.email, "Set a new password").await;
    clock.says("is new").await;
    drop(worker);
}

/// A folder to be somebody's root: the programs, the shared libraries that they were linked with, and nothing else.
async fn empty_root() -> PathBuf {
    // Beside the programs, so that a link to them is enough.
    let root = programs().join(format!("root-{}", uuid::Uuid::new_v4().simple()));
    let place = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        if !to.exists() && std::fs::hard_link(from, &to).is_err() {
            std::fs::copy(from, &to).unwrap();
        }
    };
    for name in ["web", "worker", "clock", "admin"] {
        let program = programs().join(name);
        place(&program, name);
        let linked = Command::new("ldd").arg(&program).output().await.unwrap();
        let linked = String::from_utf8(linked.stdout).unwrap();
        for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
            place(&std::fs::canonicalize(library).unwrap(), library);
        }
    }
    root
}

#[tokio::test]
async fn in_an_empty_root_and_with_nothing_but_their_config_they_serve() {
    if !has("ldd") || !without_disk() {
        return;
    }
    let (deploy, root) = (Deploy::new().await, empty_root().await);
    let command = |program: &str| {
        let mut command = Command::new("unshare");
        command.arg("--root").arg(&root).arg(format!("/{program}")).env_clear().envs(&deploy.environment).kill_on_drop(true);
        command
    };
    serve_somebody(&deploy, |name| Process::spawn(command(name))).await;
    let doctor = command("admin").arg("doctor").output().await.unwrap();
    assert!(doctor.status.success(), "{doctor:?}");
    std::fs::remove_dir_all(root).unwrap();
}

#[tokio::test]
async fn they_start_no_other_program() {
    if !has("strace") {
        return;
    }
    let deploy = Deploy::new().await;
    let trace = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&trace).unwrap();
    let traced = |name: &str| {
        let mut command = Command::new("strace");
        // Detached, so that the program is our own child and ends with us; by seccomp, which stops it at nothing else.
        command.args(["-D", "-f", "--seccomp-bpf", "-e", "trace=execve,execveat", "-o"]).arg(trace.join(name)).arg(programs().join(name));
        command.env_clear().envs(&deploy.environment);
        Process::spawn(command)
    };
    serve_somebody(&deploy, traced).await;
    for name in ["web", "worker", "clock"] {
        // What it wrote last is there when it has seen the end.
        let trace = eventually("the end of the trace", async || {
            std::fs::read_to_string(trace.join(name)).ok().filter(|trace| trace.contains("+++ killed by SIGKILL"))
        });
        let trace = trace.await;
        let started: Vec<_> = trace.lines().filter(|line| line.contains("execve")).collect();
        assert_eq!(started.len(), 1, "{name} starts other programs: {started:#?}");
        assert!(started[0].contains(&format!("/{name}\"")), "{started:?}");
    }
    std::fs::remove_dir_all(trace).unwrap();
}
