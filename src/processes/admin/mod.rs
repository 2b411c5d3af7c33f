//! One-off tasks (factor XII), run from the same release and with the same config as the processes.
//!
//! Results go to stdout and the log to stderr. A command reads only the config that it needs.

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
#[command(name = "admin", version = COMMIT, after_help = "Exit status: 0 done, 1 failed or a check says no, 2 wrong usage, 78 wrong configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Tables as one JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the migrations that are pending
    Migrate {
        /// Change nothing; exit 1 if something is pending
        #[arg(long, conflicts_with = "plan")]
        check: bool,
        /// Change nothing; print the SQL that would run
        #[arg(long)]
        plan: bool,
    },
    /// Print every variable, what it means and where its value comes from; secrets are redacted
    Config {
        /// Print only what is wrong or missing for any program, and then exit 78
        #[arg(long)]
        check: bool,
    },
    /// Print `.env.example`, which explains every variable
    Env,
    /// Print the document that describes the API, in the format of `OpenAPI` 3.1
    Openapi,
    /// Print who may do what with the API and the pages
    Access,
    /// Check this deploy: one line for each check, and what to do; exit 1 if one fails
    Doctor,
    /// Ask the process in this container whether it is ready; exit 1 if it is not
    Health,
    /// Ask Postgres in SQL, a statement at a time, from a terminal or a pipe
    Console {
        /// Allow changes
        #[arg(long)]
        write: bool,
    },
    /// Look after accounts
    #[command(subcommand)]
    Account(account_commands::Command),
    /// See where an account is logged in, and end that
    #[command(subcommand)]
    Session(account_commands::SessionCommand),
    /// Look at the queue, and after the jobs that are dead
    Jobs {
        #[command(subcommand)]
        command: Option<job_commands::Command>,
    },
    /// Print what happens by itself: its last tick and its next
    Schedule,
    /// Make two verified demo accounts and print their passwords; refused on a deploy with https
    Seed,
    /// Delete what is old and done with, such as expired tokens and dead jobs
    Purge(purge::Arguments),
    /// Print all that is kept of one person, as JSON
    Export { account: String },
}

/// How long a transaction of a task may work: nobody waits for it but the operator.
const TRANSACTION_TIMEOUT: Duration = Duration::from_hours(1);

/// What every command has: the environment, and how its result is wanted.
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

/// Runs a command; false is a check's no.
fn run(task: &Task, command: Command) -> anyhow::Result<bool> {
    let log = read(&task.env).map(|process| telemetry::start("admin", &process, Stream::Stderr));
    // These work with any config, right or wrong.
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
