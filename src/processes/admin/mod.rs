//! One-off tasks (factor XII). They run from the same release and with the same config as the processes.
//!
//! Results go to stdout, and the log goes to stderr. A command reads only the config that it needs.

mod access_table;
mod account_commands;
mod attach;
mod config_commands;
mod console;
mod doctor;
mod health_check;
mod job_commands;
mod migrate;
mod output;
mod purge;
mod scripts;
mod statistics_table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use output::{note, say};
use tracing::{Instrument, error_span};
use uuid::Uuid;

use crate::app::Output;
use crate::config::{All, Database, Env, Problems, read};
use crate::features::FEATURES;
use crate::lifecycle::EXIT_CONFIG;
use crate::processes::web;
use crate::release::COMMIT;
use crate::resources::cache::Cache;
use crate::resources::postgres::{Limits, Pool};
use crate::resources::redis::Redis;
use crate::resources::storage::Storage;
use crate::telemetry::{self, Stream};

/// The arguments that every command takes.
#[derive(Args)]
struct Globals {
    /// Print tables as JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    /// Why, for the audit trail and the log
    #[arg(long, global = true)]
    reason: Option<String>,
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
    /// Count accounts and jobs by state, and what each feature counts
    Statistics,
    /// Manage the values that processes share in Redis
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print the script that completes these commands in a shell, for its startup file
    Completion { shell: clap_complete::Shell },
    /// Create two verified demo accounts and print their passwords; refused on a deploy with https
    Seed,
    /// Delete old data that is no longer needed, such as expired tokens and dead jobs
    Purge(purge::Arguments),
    /// Run a script of this release, once on each deploy, such as a repair of bad records
    Run(scripts::Arguments),
    /// Print all data that is stored about one person, as JSON
    Export { account: String },
}

#[derive(Subcommand)]
enum CacheCommand {
    /// Drop a value of this release, such as `statistics`; the next request makes it anew
    Drop { key: String },
}

const EXIT_STATUS: &str = "Exit status: 0 success, 1 failure or a failed check, 2 wrong usage, 78 wrong configuration.";

/// How long a transaction of a task may take. Only the operator waits for it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_hours(1);

/// The input of every command: the environment, and the format of its result.
struct Task {
    env: Env,
    json: bool,
    reason: Option<String>,
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
    let matches = arguments().get_matches();
    let parsed = Globals::from_arg_matches(&matches).map_err(anyhow::Error::from);
    match parsed.and_then(|Globals { json, reason }| run(&Task { env: Env::of_process(), json, reason }, &matches)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            note(format_args!("admin: {e:#}"));
            if e.is::<Problems>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

async fn drop_cached(task: &Task, key: &str) -> anyhow::Result<()> {
    let redis = Redis::attach(&read(&task.env)?)?;
    let dropped = Cache::new(redis, Uuid::new_v4).drop(key).await?;
    say(if dropped { "dropped" } else { "nothing was cached under this key" });
    Ok(())
}

/// The arguments of the core's commands and of the features'.
fn arguments() -> clap::Command {
    let admin = Command::augment_subcommands(Globals::augment_args(clap::Command::new("admin").version(COMMIT)));
    let admin = admin.about("One-off tasks for this deploy").after_help(EXIT_STATUS);
    let admin = admin.subcommand_required(true).arg_required_else_help(true);
    let features = FEATURES.iter().filter_map(|feature| feature.commands.as_ref());
    admin.subcommands(features.map(|commands| (commands.command)()))
}

/// Runs a command of a feature. Returns false if a check fails.
async fn run_of_feature(task: &Task, matches: &ArgMatches) -> anyhow::Result<bool> {
    let (name, matches) = matches.subcommand().context("a command is missing")?;
    let found = FEATURES.iter().find(|feature| feature.name == name).and_then(|feature| feature.commands.as_ref());
    let commands = found.with_context(|| format!("there is no command {name}"))?;
    let storage = Storage::attach(&read(&task.env)?, None)?;
    let Output { columns, rows, text, failed } = (commands.run)(&attach::attach_with_storage(task, storage)?, matches).await?;
    if !columns.is_empty() {
        task.rows(columns, &rows);
    }
    if let Some(text) = text {
        if task.json && !columns.is_empty() { note(text) } else { say(text) }
    }
    Ok(!failed)
}

/// Runs a command. Returns false if a check fails.
fn run(task: &Task, matches: &ArgMatches) -> anyhow::Result<bool> {
    // Another command is a feature's.
    let command = Command::from_arg_matches(matches).ok();
    let log = read(&task.env).map(|process| telemetry::start("admin", &process, &task.env, Stream::Stderr, super::connect));
    // These commands work even with a wrong config.
    if !matches!(
        command,
        Some(Command::Config { .. } | Command::Env | Command::Openapi | Command::Access | Command::Doctor | Command::Completion { .. })
    ) {
        log.as_ref().map_err(Problems::clone)?;
    }
    let done = |()| true;
    // At the level `error`, because the audit trail takes the reason from it.
    let span = error_span!("task", reason = task.reason);
    let run = async {
        let kept = telemetry::current_field("reason");
        anyhow::ensure!(kept == task.reason, "the audit trail would lose the reason without a log: set LOG_LEVEL to error or more");
        let Some(command) = command else { return run_of_feature(task, matches).await };
        match command {
            Command::Config { check: true } => Ok(read::<All>(&task.env).map(|_| true)?),
            Command::Config { check: false } => Ok(config_commands::print(task)),
            Command::Env => {
                config_commands::example();
                Ok(true)
            }
            Command::Openapi => {
                say(serde_json::to_string_pretty(&web::document(&web::on(&task.env))?)?);
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
            Command::Statistics => statistics_table::print(task).await.map(done),
            Command::Cache(CacheCommand::Drop { key }) => drop_cached(task, &key).await.map(done),
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut arguments(), "admin", &mut script);
                say(String::from_utf8(script)?.trim_end());
                Ok(true)
            }
            Command::Seed => account_commands::seed(task).await.map(done),
            Command::Purge(arguments) => purge::run(task, arguments).await.map(done),
            Command::Export { account } => account_commands::export(task, &account).await.map(done),
            Command::Run(arguments) => scripts::run(task, arguments).await.map(done),
        }
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run.instrument(span))
}
