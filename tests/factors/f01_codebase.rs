//! I. Codebase: one repository holds the code of every process and every deploy; deploys differ in config, never in code.
//!
//! Violated by a program from another commit, a build for each customer, a name that stands for a whole group of settings.

use tokio::process::Command;

use crate::support::process::programs;
use crate::support::{Deploy, Process};

/// The repository's commit; without git, what the build was told or `unknown`, as in build.rs.
fn head() -> String {
    let git = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok().filter(|output| output.status.success());
    let head = git.map(|output| String::from_utf8(output.stdout).unwrap().trim().to_owned());
    std::env::var("GIT_COMMIT").ok().filter(|commit| !commit.is_empty()).or(head).unwrap_or_else(|| "unknown".to_owned())
}

#[tokio::test]
async fn all_four_programs_say_the_repositorys_commit() {
    let deploy = Deploy::new().await;
    let web = deploy.web_unready().await;
    let mut said = vec![("web", web.get("/version").await.json::<serde_json::Value>().await.unwrap()["commit"].clone())];
    for name in ["worker", "clock"] {
        said.push((name, deploy.start(name).says("is starting").await["commit"].clone()));
    }
    // It needs no config to say so.
    let admin = Command::new(programs().join("admin")).arg("--version").env_clear().output().await.unwrap();
    said.push(("admin", String::from_utf8(admin.stdout).unwrap().trim().trim_start_matches("admin ").into()));
    let head = head();
    for (program, commit) in said {
        assert_eq!(commit, head.as_str(), "{program} was not built from this commit");
    }
}

/// Every byte of the program that a process runs, whatever became of the file that it was started from.
fn code(process: &Process) -> Vec<u8> {
    std::fs::read(format!("/proc/{}/exe", process.pid())).expect("a system with /proc")
}

#[tokio::test]
async fn two_deploys_run_the_same_bytes() {
    let development = Deploy::new().await.with("APP_ENV", "development").with("LOG_LEVEL", "debug");
    let production = Deploy::new().await.with("APP_ENV", "production").with("LOG_LEVEL", "info");
    for name in ["web", "worker", "clock"] {
        let processes = [&development, &production].map(|deploy| deploy.start(name));
        for process in &processes {
            process.says("is starting").await;
        }
        let [one, other] = processes.each_ref().map(code);
        assert!(one == other, "{name} of the two deploys is not the same program");
    }
}

#[tokio::test]
async fn no_variable_names_a_group_of_settings() {
    let output = Command::new(programs().join("admin")).args(["config", "--json"]).env_clear().output().await.unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = names.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["name"].clone()).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names.iter().map(|name| name.as_str().unwrap()) {
        let group = ["ENV", "ENVIRONMENT", "STAGE", "TIER", "PROFILE", "MODE", "CUSTOMER", "TENANT"];
        assert!(
            !name.split('_').any(|word| group.contains(&word)),
            "{name} stands for a group of settings: each must be a variable of its own"
        );
    }
}

/// A checksum of a migration, or a script with a carriage return in its first line, must not depend on whose git it was.
#[tokio::test]
async fn every_checkout_has_the_same_bytes() {
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    let prefix = format!("--prefix={}/", folder.display());
    let checkout = ["-c", "core.autocrlf=true", "checkout-index", "--all", "--force", &prefix];
    // As git for Windows is set up.
    let output = Command::new("git").args(checkout).output().await.ok().filter(|output| output.status.success() && folder.exists());
    if output.is_none() {
        println!("skipped: needs git's index");
        return;
    }
    let listed = Command::new("git").args(["ls-files", "-z", "--cached"]).output().await.unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let texts = listed
        .split_terminator('\0')
        .filter(|file| folder.join(file).extension().is_none_or(|name| name != "png") && folder.join(file).is_file());
    let changed: Vec<_> = texts.filter(|file| std::fs::read(folder.join(file)).unwrap().windows(2).any(|pair| pair == b"\r\n")).collect();
    assert!(changed.is_empty(), "a checkout with core.autocrlf=true changes {changed:#?}");
    std::fs::remove_dir_all(folder).unwrap();
}
