//! One-off tasks (factor XII), run from the same release and with the same config as the processes.
//!
//! Results go to stdout and the log to stderr. A command reads only the config that it needs.

mod account;
mod config_table;
mod doctor;
mod health;
mod jobs;
mod migrate;
mod seed;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Env, Problems};
use crate::http::session::Role;
use crate::lifecycle::EXIT_CONFIG;
use crate::release::COMMIT;
use crate::telemetry::{self, Stream};
use crate::web;

/// One-off tasks for this deploy
#[derive(Parser)]
#[command(name = "admin", version = COMMIT, after_help = "Exit status: 0 done, 1 failed or a check says no, 2 wrong usage, 78 wrong configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the migrations that are pending
    Migrate {
        /// Change nothing; exit 1 if something is pending
        #[arg(long)]
        check: bool,
    },
    /// Print every variable, what it means and where its value comes from; secrets are redacted
    Config,
    /// Print the document that describes the API, in the format of `OpenAPI` 3.1
    Openapi,
    /// Check this deploy: one line for each check, and what to do; exit 1 if one fails
    Doctor,
    /// Ask the process in this container whether it is ready; exit 1 if it is not
    Health,
    /// Look after accounts
    #[command(subcommand)]
    Account(AccountCommand),
    /// Look at the queue, and after the jobs that are dead
    Jobs {
        #[command(subcommand)]
        command: Option<jobs::Command>,
        /// One JSON object a line instead of a table
        #[arg(long, global = true)]
        json: bool,
    },
    /// Make two verified demo accounts and print their passwords; refused on a deploy with https
    Seed,
}

#[derive(Subcommand)]
enum AccountCommand {
    /// Give an account a role; its sessions end
    Grant { email: String, role: Role },
}

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&Env::of_process(), arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "admin: {e:#}");
            if e.is::<Problems>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs a command; false is a check's no.
fn run(env: &Env, command: Command) -> anyhow::Result<bool> {
    if let Command::Config = command {
        // Before anything that needs a config that is right.
        return Ok(config_table::print(env));
    }
    if let Command::Openapi = command {
        say(serde_json::to_string_pretty(&web::document()?)?);
        return Ok(true);
    }
    let (_, _log) = telemetry::start("admin", &config::read(env)?, Stream::Stderr);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Config | Command::Openapi => Ok(true),
            Command::Migrate { check: true } => migrate::check(&config::read(env)?).await,
            Command::Migrate { check: false } => migrate::apply(&config::read(env)?).await.map(|()| true),
            Command::Doctor => doctor::examine(env).await,
            Command::Health => health::ask(env).await,
            Command::Account(AccountCommand::Grant { email, role }) => {
                let (database, redis) = config::read(env)?;
                account::grant(&database, &redis, &email, role).await.map(|()| true)
            }
            Command::Jobs { command, json } => jobs::run(&config::read(env)?, command.unwrap_or_default(), json).await,
            Command::Seed => {
                let (database, site) = config::read(env)?;
                seed::plant(&database, &site).await.map(|()| true)
            }
        }
    })
}

/// Prints a line of a result. A reader that has gone away, as in `admin config | head`, is no error.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
