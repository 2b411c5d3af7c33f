//! Writes the commit into the programs (factor I). `GIT_COMMIT` says it where there is no git, as in an image's build.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=GIT_COMMIT");
    // This file changes with every commit and checkout; where there is none, nothing is watched and nothing goes stale.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|path| std::path::Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    // A new migration changes what `migrate!` embeds.
    println!("cargo:rerun-if-changed=migrations");
    let said = std::env::var("GIT_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = said.or_else(|| git(&["rev-parse", "HEAD"])).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
