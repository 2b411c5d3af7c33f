//! `bin/bench build`: how long a developer waits for builds. The yardstick of a clean build is a build of the dependencies
//! that every program of this kind needs (axum, sqlx, tokio, deadpool-redis). The yardstick of a rebuild is a file that no
//! other file depends on.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod report;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime};

use report::{Report, median, spread};

const ROUNDS: usize = 5;
/// A file of the library, after which all programs are built, and one that is a program's alone.
const TOUCHED: &str = "src/http/mod.rs";
const ALONE: &str = "bin/clock.rs";

fn main() {
    let scratch = std::env::var("SCRATCH").expect("run it with bin/bench");
    let mut report = Report::default();

    let needed = ["--package", "axum", "--package", "sqlx", "--package", "tokio", "--package", "deadpool-redis"];
    let needed = cargo(&format!("{scratch}/needed"), &needed);
    let target = format!("{scratch}/target");
    let debug = cargo(&target, &[]);
    report.figure("axum, sqlx, tokio, deadpool-redis, clean debug build, s", format!("{needed:.0}"));
    report.figure("clean debug build, s", format!("{debug:.0}"));
    report.reach("   of what those four take", debug / needed, debug / needed <= 2.9, "2.9");

    let (mut alone, mut touched) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(rebuild(&target, ALONE));
        touched.push(rebuild(&target, TOUCHED));
    }
    report.figure(&format!("{ALONE} touched, s"), format!("{:.1}", median(&alone)));
    report.reach(&format!("{TOUCHED} touched, all programs built, s"), median(&touched), median(&touched) <= 3.0, "3");
    report.figure("   of five", spread(&touched, 1));

    report.figure("clean release build, s", format!("{:.0}", cargo(&target, &["--release"])));

    let output = Command::new("bin/test").arg("suite").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
    let seconds = said.lines().rev().find_map(|line| line.strip_prefix("passed, ")?.split(' ').next());
    report.figure("every test, after the build, s", seconds.expect("bin/test says how long it took").to_owned());
    report.finish("build");
}

/// Seconds of a build into a target folder.
fn cargo(target: &str, arguments: &[&str]) -> f64 {
    let started = Instant::now();
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--quiet"]).args(arguments).env("CARGO_TARGET_DIR", target);
    // Queries are checked against .sqlx, as for everybody.
    assert!(command.env_remove("DATABASE_URL").status().unwrap().success());
    started.elapsed().as_secs_f64()
}

/// Seconds of a build after one file was touched.
#[expect(clippy::disallowed_methods, reason = "as an editor that saves a file")]
fn rebuild(target: &str, file: &str) -> f64 {
    File::open(Path::new(file)).unwrap().set_modified(SystemTime::now()).unwrap();
    cargo(target, &[])
}
