//! II. Dependencies: every dependency is declared and locked, and the programs need nothing else on the machine.
//!
//! Violated by a crate from a folder or a branch, an outdated lock file, or a system tool that must happen to be installed.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use crate::support::balancer::has;
use crate::support::deploy::{Web, without_disk};
use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, Process, eventually};

#[tokio::test]
async fn lockfile_is_current_and_registry_only() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // Only this platform's crates are downloaded.
    let arguments = ["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", "host-tuple"];
    let output = Command::new(cargo).args(arguments).output().await.unwrap();
    assert!(output.status.success(), "Cargo.lock is out of date: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let own = &metadata["workspace_members"];
    assert_eq!(own.as_array().unwrap().len(), 1, "one package builds every program: {own}");
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

/// Uses the whole deploy: a user signs up, verifies the address, and requests a password reset. Both links arrive by mail.
async fn use_every_process(deploy: &Deploy, start: impl Fn(&str) -> Process) {
    let web = Web::of(start("web")).await;
    web.process.says("ready").await;
    let (worker, clock) = (start("worker"), start("clock"));
    let ada = Person::verified(deploy, &web).await;
    assert_eq!(ada.request_reset().await.status(), 202);
    deploy.mail.to(&ada.email, "Set a new password").await;
    clock.says("is new").await;
    drop(worker);
}

/// The certificates of public authorities.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A root folder that holds only the programs, their shared libraries and, as in the image, the certificates.
async fn empty_root() -> PathBuf {
    // Beside the programs, so that hard links work.
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
    // The file may be a symbolic link.
    place(&std::fs::canonicalize(CERTIFICATES).unwrap(), CERTIFICATES);
    root
}

#[tokio::test]
async fn programs_serve_in_an_empty_root() {
    if !has("ldd") || !without_disk() {
        return;
    }
    let (deploy, root) = (Deploy::new().await, empty_root().await);
    let command = |program: &str| {
        let mut command = Command::new("unshare");
        command.arg("--root").arg(&root).arg(format!("/{program}")).env_clear().envs(&deploy.environment).kill_on_drop(true);
        command
    };
    use_every_process(&deploy, |name| Process::spawn(command(name))).await;
    let doctor = command("admin").arg("doctor").output().await.unwrap();
    assert!(doctor.status.success(), "{doctor:?}");
    std::fs::remove_dir_all(root).unwrap();
}

#[tokio::test]
async fn programs_start_no_other_program() {
    if !has("strace") {
        return;
    }
    let deploy = Deploy::new().await;
    let trace = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&trace).unwrap();
    let traced = |name: &str| {
        let mut command = Command::new("strace");
        // -D makes the program our own child, which ends with the test. Seccomp stops it at no other system call.
        command.args(["-D", "-f", "--seccomp-bpf", "-e", "trace=execve,execveat", "-o"]).arg(trace.join(name)).arg(programs().join(name));
        command.env_clear().envs(&deploy.environment);
        Process::spawn(command)
    };
    use_every_process(&deploy, traced).await;
    for name in ["web", "worker", "clock"] {
        // The trace is complete once strace has recorded the end.
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
