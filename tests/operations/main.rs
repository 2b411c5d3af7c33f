//! An operator's tasks, tested with the built programs: the `admin` commands, backups, releases, and `bin/dev`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod account_commands;
mod backup;
mod bin_dev;
mod config;
mod console;
mod data;
mod doctor;
mod previous;
mod release;
mod scripts;

use std::process::Output;

use serde_json::Value;
use sqlx::PgConnection;
use tokio::process::Command;

use crate::support::balancer::has;
use crate::support::process::programs;
use crate::support::{Deploy, EVENT_TIMEOUT};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs `admin`, which must succeed, and returns its output.
async fn done(deploy: &Deploy, arguments: &[&str]) -> String {
    let output = deploy.admin(arguments).await;
    assert!(output.status.success(), "admin {arguments:?}: {output:?}");
    stdout(&output)
}

/// Runs `admin … --json`, which must succeed, and returns the rows.
async fn rows(deploy: &Deploy, arguments: &[&str]) -> Vec<Value> {
    objects(&done(deploy, &[arguments, &["--json"]].concat()).await)
}

fn objects(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Runs `admin` on a terminal and types a line. Returns `None` if util-linux is missing.
async fn on_a_terminal(deploy: &Deploy, arguments: &str, typed: &str) -> Option<String> {
    if !has("script") {
        return None;
    }
    let line = format!("{} {arguments}", programs().join("admin").display());
    let mut command = Command::new("sh");
    command.args(["-c", "(sleep 1; echo \"$TYPED\"; sleep 1) | script --quiet --return --command \"$LINE\" /dev/null"]);
    // TERM may be unset where the tests run.
    command.envs(&deploy.environment).env("LINE", line).env("TYPED", typed).env("TERM", "xterm");
    let output = tokio::time::timeout(EVENT_TIMEOUT, command.output()).await.unwrap().unwrap();
    Some(stdout(&output))
}

/// Runs any SQL statements.
async fn sql(database: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(database).await.unwrap();
}

async fn count(database: &mut PgConnection, from: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {from}"))).fetch_one(database).await.unwrap()
}

/// The actions of the audit trail, oldest first.
async fn trail(deploy: &Deploy) -> Vec<String> {
    sqlx::query_scalar("SELECT action FROM audit_events ORDER BY id").fetch_all(&mut deploy.database().await).await.unwrap()
}
