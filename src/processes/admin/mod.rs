//! One-off tasks (factor XII). They run from the same release and with the same config as the processes.
//!
//! Results go to stdout, and the log goes to stderr. A command reads only the config that it needs.

mod access_table;
mod account_commands;
mod config_commands;
mod console;
mod doctor;
mod health_check;
mod job_commands;
mod migrate;
mod output;
mod purge;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use output::{note, say};

use crate::config::{All, Database, Env, Problems, read};
use crate::lifecycle::EXIT_CONFIG;
use crate::processes::web;
use crate::release::COMMIT;
use crate::resources::postgres::{Limits, Pool};
use crate::telemetry::{self, Stream};

/// One-off tasks for this deploy
#[derive(Parser)]
#[command(name = "admin", version = COMMIT, after_help = "Exit status: 0 success, 1 failure or a failed check, 2 wrong usage, 78 wrong configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print tables as JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the pending migrations
    Migrate {
        /// Change nothing; exit 1 if a migration is pending
        #[arg(long, conflicts_with = "plan")]
        check: bool,
        /// Change nothing; print the SQL that would run
        #[arg(long)]
        plan: bool,
    },
    /// Print every variable with its value, its source and its meaning; secrets are redacted
    Config {
        /// Print only wrong or missing values of any program; exit 78 if there are some
        #[arg(long)]
        check: bool,
    },
    /// Print `.env.example`, which explains every variable
    Env,
    /// Print the `OpenAPI` 3.1 document of the API
    Openapi,
    /// Print who may call which route of the API and the pages
    Access,
    /// Check this deploy and suggest remedies, one line for each check; exit 1 if one fails
    Doctor,
    /// Check whether the process in this container is ready; exit 1 if it is not
    Health,
    /// Run SQL on Postgres, one statement at a time, from a terminal or a pipe
    Console {
        /// Allow statements that change data
        #[arg(long)]
        write: bool,
    },
    /// Manage accounts
    #[command(subcommand)]
    Account(account_commands::Command),
    /// List and end the sessions of an account
    #[command(subcommand)]
    Session(account_commands::SessionCommand),
    /// Show the queue, and retry or discard jobs
    Jobs {
        #[command(subcommand)]
        command: Option<job_commands::Command>,
    },
    /// Print the schedule with the last and the next tick of each line
    Schedule,
    /// Create two verified demo accounts and print their passwords; refused on a deploy with https
    Seed,
    /// Delete old data that is no longer needed, such as expired tokens and dead jobs
    Purge(purge::Arguments),
    /// Print all data that is stored about one person, as JSON
    Export { account: String },
}

/// How long a transaction of a task may take. Only the operator waits for it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_hours(1);

/// The input of every command: the environment, and the format of its result.
struct Task {
    env: Env,
    json: bool,
}

impl Task {
    fn postgres(&self) -> anyhow::Result<Pool> {
        attach(&read::<Database>(&self.env)?)
    }
}

fn attach(config: &Database) -> anyhow::Result<Pool> {
    Ok(Pool::attach(config, "admin", Limits::within(TRANSACTION_TIMEOUT))?)
}

pub fn main() -> ExitCode {
    let Arguments { command, json } = Arguments::parse();
    match run(&Task { env: Env::of_process(), json }, command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            note(format_args!("admin: {e:#}"));
            if e.is::<Problems>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs a command. Returns false if a check fails.
fn run(task: &Task, command: Command) -> anyhow::Result<bool> {
    let log = read(&task.env).map(|process| telemetry::start("admin", &process, Stream::Stderr));
    // These commands work even with a wrong config.
    if !matches!(command, Command::Config { .. } | Command::Env | Command::Openapi | Command::Access | Command::Doctor) {
        log.as_ref().map_err(Problems::clone)?;
    }
    let done = |()| true;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        match command {
            Command::Config { check: true } => Ok(read::<All>(&task.env).map(|_| true)?),
            Command::Config { check: false } => Ok(config_commands::print(task)),
            Command::Env => {
                config_commands::example();
                Ok(true)
            }
            Command::Openapi => {
                say(serde_json::to_string_pretty(&web::document()?)?);
                Ok(true)
            }
            Command::Access => {
                access_table::print(task);
                Ok(true)
            }
            Command::Migrate { check, plan } if check || plan => migrate::check(task, plan).await,
            Command::Migrate { .. } => migrate::apply(task).await.map(done),
            Command::Doctor => doctor::examine(task).await,
            Command::Health => health_check::ask(task).await,
            Command::Console { write } => console::run(task, write).await,
            Command::Account(command) => account_commands::run(task, command).await.map(done),
            Command::Session(command) => account_commands::sessions(task, command).await.map(done),
            Command::Jobs { command } => job_commands::run(task, command.unwrap_or_default()).await,
            Command::Schedule => job_commands::schedule(task).await.map(done),
            Command::Seed => account_commands::seed(task).await.map(done),
            Command::Purge(arguments) => purge::run(task, arguments).await.map(done),
            Command::Export { account } => account_commands::export(task, &account).await.map(done),
        }
    })
}
