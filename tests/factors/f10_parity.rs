//! X. Dev/prod parity: one command runs the same programs with the same kinds of services in development.
//!
//! Violated by a substitute for a service, a second version pin, or a separate development server.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::process::Command;

use crate::support::dev::Dev;
use crate::support::process::procfile;

#[tokio::test]
async fn bin_dev_runs_the_first_five_minutes() {
    let dev = Dev::start(&["web=2"]).await;
    let processes = dev.processes();
    for (name, count) in [("web", 2), ("worker", 1), ("clock", 1)] {
        let (command, running) = (procfile(name), processes.iter().map(|line| line.trim()));
        assert_eq!(running.filter(|line| *line == command).count(), count, "bin/dev runs the Procfile's `{command}`: {processes:#?}");
    }
    let page = std::fs::read_to_string("docs/first-five-minutes.md").unwrap();
    let commands: String = page.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
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
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let what = || format!("{commands}\n{printed}\n{}\n{:#?}", String::from_utf8_lossy(&output.stderr), dev.process.lines());
    assert!(output.status.success(), "{}", what());
    assert!(printed.contains("@example.com"), "{printed}");
    assert!(printed.contains(r#""name":"laptop""#), "{printed}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// The commands of the Procfile, without the names.
fn commands() -> BTreeSet<String> {
    let text = std::fs::read_to_string("Procfile").unwrap();
    text.lines().filter_map(|line| line.split_once(": ")).map(|(_, command)| command.to_owned()).collect()
}

#[test]
fn image_and_compose_run_procfile_commands() {
    let words = |list: &str| list.replace(['[', ']', ',', '"'], " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let compose = std::fs::read_to_string("docker-compose.yml").unwrap();
    let ours = compose.split("\n\n").filter(|service| service.contains("<<: *app"));
    let run = ours.map(|service| words(service.split("command:").nth(1).unwrap().lines().next().unwrap()));
    assert_eq!(run.collect::<BTreeSet<_>>(), commands(), "docker-compose.yml");

    let dockerfile = std::fs::read_to_string("Dockerfile").unwrap();
    // One program, and a link for each name.
    let installed = dockerfile.split("RUN for name in ").nth(1).unwrap().split(';').next().unwrap();
    let programs: BTreeSet<_> = commands().iter().map(|command| command.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(
        installed.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>(),
        programs,
        "the image contains exactly these programs"
    );
    let default = words(dockerfile.rsplit("\nCMD ").next().unwrap());
    assert!(commands().contains(&default), "the image runs `{default}`");
}

#[test]
fn service_versions_match_the_compose_pins() {
    let compose = std::fs::read_to_string("docker-compose.yml").unwrap();
    let pins: Vec<_> = compose.lines().filter_map(|line| line.trim().strip_prefix("image: ")?.split_once(':')).collect();
    assert_eq!(pins.iter().map(|(image, _)| *image).collect::<Vec<_>>(), ["postgres", "redis", "chrislusf/seaweedfs", "haproxy"]);
    let tracked = std::process::Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]).output().unwrap();
    let tracked = String::from_utf8(tracked.stdout).unwrap();
    assert!(tracked.lines().any(|file| file == "docs/operations.md"), "git lists the files");
    // The workshop's patches break the rule on purpose.
    for file in tracked.lines().filter(|file| !file.starts_with("workshop/")) {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        for (image, pin) in &pins {
            let name = format!("{image}:");
            for (at, _) in text.match_indices(&name) {
                let version = text[at + name.len()..].split(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c)).next().unwrap();
                // After a host name comes a port, not a version.
                let is_host = ["//", "@"].iter().any(|before| text[..at].ends_with(before));
                let is_version = version.starts_with(|c: char| c.is_ascii_digit()) && !is_host;
                assert!(!is_version || version == *pin, "{file} names {image}:{version}, docker-compose.yml pins {image}:{pin}");
            }
        }
    }
}

#[test]
fn no_crate_replaces_a_backing_service() {
    // The crates that are built, for the tests too. The lock file also names crates that are never built.
    let mut cargo = std::process::Command::new("cargo");
    let tree = cargo.args(["tree", "--frozen", "--all-features", "--edges", "normal,build,dev", "--prefix", "none"]).output().unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(["sqlx-postgres", "deadpool-redis", "lettre"].iter().all(|name| crates.contains(name)), "{crates:?}");
    let names = ["sqlite", "duckdb", "mock", "fake", "mini-redis", "redis-test", "embedded"];
    let stand_ins: Vec<_> = crates.iter().filter(|name| names.iter().any(|stand_in| name.contains(stand_in))).collect();
    assert_eq!(stand_ins, Vec::<&&str>::new());
}
