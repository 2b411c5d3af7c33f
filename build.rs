//! Compiles the commit into the programs (factor I): `GIT_COMMIT`, Heroku's `SOURCE_VERSION`, or the commit that git has
//! checked out.

use std::process::Command;

fn main() {
    let variables = ["GIT_COMMIT", "SOURCE_VERSION"];
    for name in variables {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // `logs/HEAD` changes with every commit and checkout. Before the first commit there is only `refs/heads`, which that
    // commit changes.
    let path = |name| git(&["rev-parse", "--git-path", name]).filter(|path| std::path::Path::new(path).exists());
    if let Some(path) = path("logs/HEAD").or_else(|| path("refs/heads")) {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    // Packing the relocations makes a static program half a megabyte smaller.
    if std::env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.split(',').any(|feature| feature == "crt-static")) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    // `migrate!` embeds the migrations.
    println!("cargo:rerun-if-changed=migrations");
    let said = variables.iter().find_map(|name| std::env::var(name).ok().filter(|commit| !commit.is_empty()));
    let commit = said.or_else(|| git(&["rev-parse", "HEAD"])).or_else(from_files).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Reads the commit from git's files, because the build of an image has no git program.
fn from_files() -> Option<String> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!(".git/{name}")).ok()?;
        // Only for files that exist: a missing one would cause a rebuild every time.
        println!("cargo:rerun-if-changed=.git/{name}");
        Some(text)
    };
    let head = read("HEAD")?;
    let Some(reference) = head.trim().strip_prefix("ref: ") else { return Some(head.trim().to_owned()) };
    let packed = || Some(read("packed-refs")?.lines().find_map(|line| line.strip_suffix(reference))?.trim().to_owned());
    read(reference).map(|commit| commit.trim().to_owned()).or_else(packed)
}
