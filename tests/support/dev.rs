//! `bin/dev`, as a developer runs it.

use tokio::process::Command;

use super::{Process, free_port};

/// `bin/dev` with its own services and ports, so that it does not disturb another one on this machine.
pub struct Dev {
    pub process: Process,
    pub folder: String,
    pub port: u16,
    /// The address of its mail sink's page.
    pub page: String,
}

impl Dev {
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[]).await
    }

    /// The same with additional variables.
    pub async fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        // Build first, because on a busy machine this may exceed the timeout below.
        let built = typed("cargo").args(["build", "--locked", "--quiet", "--bins", "--example", "mail", "--example", "s3"]).status().await;
        assert!(built.expect("cargo runs").success());
        let folder = format!(".local/dev-{}.throwaway", uuid::Uuid::new_v4().simple());
        let port = two_free_ports();
        let mut command = bin_dev(arguments);
        command.env("DEV_DIR", &folder).env("PORT", port.to_string()).envs(variables.iter().copied());
        let process = Process::spawn(command);
        let page = process.line("the mail sink", |line| line.starts_with("mail.1 | takes mail at")).await;
        let page = page.rsplit(' ').next().expect("an address").to_owned();
        for web in ["web.1 |", "web.2 |"].iter().take(if arguments.contains(&"web=2") { 2 } else { 1 }) {
            process.line("readiness", |line| line.starts_with(web) && line.contains("\"ready\"")).await;
        }
        Self { process, folder, port, page }
    }

    /// The command lines of this run's processes. They have the folder in their command line or environment.
    pub fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("a system with /proc").filter_map(Result::ok) {
            let read = |name: &str| String::from_utf8_lossy(&std::fs::read(entry.path().join(name)).unwrap_or_default()).replace('\0', " ");
            let (line, environment) = (read("cmdline"), read("environ"));
            if line.contains(&self.folder) || environment.contains(&format!("DEV_DIR={}", self.folder)) {
                found.push(line);
            }
        }
        found
    }
}

pub fn bin_dev(arguments: &[&str]) -> Command {
    // A shell cannot trap a signal that is ignored when it starts, as SIGINT is in background jobs.
    let mut command = typed("env");
    command.args(["--default-signal=INT", "bin/dev"]);
    // Ignore the developer's `.env`.
    command.args(arguments).env_remove("CI").env("ENV_FILE", "/dev/null");
    for name in ["DATABASE_URL_FILE", "REDIS_URL_FILE", "SMTP_URL_FILE"] {
        command.env_remove(name);
    }
    command
}

/// A command without the variables that `cargo test` adds, which would make cargo rebuild.
fn typed(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CARGO_")) {
        if !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command.env_remove("OUT_DIR");
    command
}

fn two_free_ports() -> u16 {
    loop {
        let (first, second) = (free_port(), free_port());
        if second == first + 1 {
            return first;
        }
    }
}
