//! V. Build, release, run: a build is code and nothing else. A release adds config and an id. A run changes neither.
//!
//! Violated by a value that is compiled in, a program that writes to its own folder, or a start that also migrates.

use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;
use tokio::process::Command;

use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, Process};

const TYPES: [&str; 3] = ["web", "worker", "clock"];

/// One build makes many releases: they differ in config alone.
#[tokio::test]
async fn each_release_reports_its_own_id() {
    for id in [Some("v41"), Some("v42"), None] {
        let deploy = Deploy::new().await;
        let deploy = if let Some(id) = id { deploy.with("RELEASE_VERSION", id) } else { deploy };
        let (web, worker, clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
        let said: Value = web.get("/version").await.json().await.unwrap();
        assert_eq!(said["release"], Value::from(id), "/version");
        Person::verified(&deploy, &web).await;
        clock.says("is new").await;
        for process in [web.process, worker, clock] {
            assert!(process.log().len() > 1);
            for line in process.log() {
                assert_eq!(line["release"], Value::from(id), "{line}");
            }
        }
    }
}

/// The variables that the compiler read when it last built the library of all programs. The compiler records them itself, to
/// know when to rebuild.
fn variables_read_by_the_build() -> Vec<String> {
    let files = std::fs::read_dir(programs().join("deps")).unwrap().map(|file| file.unwrap().path());
    // Checks and tests of the library leave records too, but no `.rlib`.
    let notes = files.filter(|file| file.extension().is_some_and(|extension| extension == "d")).filter(|file| {
        let name = file.file_stem().unwrap().to_str().unwrap();
        name.starts_with("app-") && file.with_file_name(format!("lib{name}.rlib")).exists()
    });
    let newest = notes.max_by_key(|file| file.metadata().unwrap().modified().unwrap()).expect("the compiler's record");
    let notes = std::fs::read_to_string(newest).unwrap();
    assert!(notes.contains("src/release.rs"), "the record belongs to the library");
    notes.lines().filter_map(|line| line.strip_prefix("# env-dep:")?.split('=').next().map(str::to_owned)).collect()
}

#[test]
fn build_reads_only_commit_from_environment() {
    let mut others = variables_read_by_the_build();
    // The second is the package's name, which cargo sets itself.
    others.retain(|name| !["BUILD_COMMIT", "CARGO_PKG_NAME"].contains(&name.as_str()));
    assert!(others.is_empty(), "the build reads {others:?} from the environment of the build machine");
}

/// Name, size and modification time of each file.
fn listing(folder: &Path) -> Vec<(String, u64, SystemTime)> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| (file.as_ref().unwrap().file_name(), file.unwrap().metadata().unwrap()));
    let mut files: Vec<_> = files.map(|(name, about)| (name.into_string().unwrap(), about.len(), about.modified().unwrap())).collect();
    files.sort();
    files
}

/// The number of programs in the folder that contain a text.
async fn programs_containing(folder: &Path, text: &str) -> usize {
    let mut grep = Command::new("grep");
    grep.args(["--text", "--files-with-matches", "--fixed-strings", "--regexp", text]).args(TYPES).arg("admin").current_dir(folder);
    String::from_utf8(grep.output().await.unwrap().stdout).unwrap().lines().count()
}

#[tokio::test]
async fn programs_hold_no_config_and_stay_unchanged() {
    use std::os::unix::fs::PermissionsExt;
    // Beside the programs, so that hard links work.
    let folder = programs().join(format!("release-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    for name in TYPES.into_iter().chain(["admin"]) {
        std::fs::hard_link(programs().join(name), folder.join(name)).unwrap();
    }
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    let before = listing(&folder);

    let planted = format!("planted-{}", uuid::Uuid::new_v4().simple());
    let deploy = Deploy::new().await.with("RELEASE_VERSION", &planted).with("PUBLIC_URL", format!("http://{planted}.example"));
    let deploy = deploy.with("MAIL_FROM", format!("{planted}@example.com"));
    let start = |name: &str| {
        let mut command = Command::new(folder.join(name));
        command.current_dir(&folder).env_clear().envs(&deploy.environment);
        Process::spawn(command)
    };
    let (web, worker, clock) = (Web::of(start("web")).await, start("worker"), start("clock"));
    web.process.says("ready").await;
    Person::verified(&deploy, &web).await;
    clock.says("is new").await;
    // Root can write to a read-only folder, so the listing is compared, too.
    assert_eq!(listing(&folder), before, "a process wrote to its own folder");
    let commit = web.get("/version").await.json::<Value>().await.unwrap()["commit"].as_str().unwrap().to_owned();
    assert_eq!(programs_containing(&folder, &commit).await, 4, "the programs contain their commit");
    assert_eq!(programs_containing(&folder, &planted).await, 0, "the programs contain no config");
    drop((web, worker, clock));
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn startup_leaves_an_empty_database_empty() {
    let deploy = Deploy::unmigrated().await;
    let web = deploy.web_unready().await;
    let (worker, clock) = (deploy.start("worker"), deploy.start("clock"));
    for process in [&web.process, &worker, &clock] {
        process.says("not ready: postgres").await;
    }
    assert_eq!(web.get("/readyz").await.status(), 503);
    let made = "SELECT count(*) FROM pg_class WHERE relnamespace NOT IN \
                (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_%' OR nspname = 'information_schema')";
    let made = sqlx::query_scalar::<_, i64>(made).fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(made, 0, "a start created a table, which only `admin migrate` may do");
}
