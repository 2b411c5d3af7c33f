//! SQL by hand: through a pipe here, on a terminal for people.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::process::programs;
use crate::support::{Deploy, PATIENCE};
use crate::{count, done, stderr, stdout, trail};

/// Runs `admin console` with something to read.
async fn ask(deploy: &Deploy, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(programs().join("admin"));
    command.arg("console").args(arguments).env_clear().envs(&deploy.environment).kill_on_drop(true);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_statement_is_answered_with_a_table_or_with_json() {
    let deploy = Deploy::new().await;
    let answer = ask(&deploy, &[], "SELECT 1 AS one, NULL AS nothing, '{a,b}'::text[] AS list").await;
    assert_eq!((stdout(&answer).as_str(), answer.status.code()), ("one  nothing  list\n1             {a,b}\n", Some(0)), "{answer:?}");
    let answer = ask(&deploy, &["--json"], "SELECT 1 AS one,\n  NULL AS nothing;\nSHOW statement_timeout;\n").await;
    let rows: Vec<Value> = stdout(&answer).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows, [json!({ "one": "1", "nothing": null }), json!({ "statement_timeout": "30s" })]);
    let many = ask(&deploy, &[], "SELECT generate_series(1, 100000) AS n;\nSELECT 'and on' AS next;").await;
    assert_eq!(stdout(&many).lines().count(), 1001 + 2, "as many rows as fit, and the next statement");
    assert!(stderr(&many).contains("only the first 1000 rows"), "{}", stderr(&many));
}

#[tokio::test]
async fn nothing_can_be_changed_unless_it_was_asked_for_and_then_it_is_in_the_trail() {
    let deploy = Deploy::new().await;
    done(&deploy, &["account", "create", "ada@example.com"]).await;
    for attempt in [
        "DELETE FROM accounts;",
        "COMMIT; DELETE FROM accounts;",
        "SET TRANSACTION READ WRITE; DELETE FROM accounts;",
        "SET TRANSACTION READ WRITE;\nDELETE FROM accounts;",
        "SET default_transaction_read_only = off;\nDELETE FROM accounts;",
        "COMMIT;\nDELETE FROM accounts;",
        "WITH gone AS (DELETE FROM accounts RETURNING id) SELECT * FROM gone;",
    ] {
        let answer = ask(&deploy, &[], attempt).await;
        assert_eq!(answer.status.code(), Some(1), "{attempt}: {answer:?}");
        assert_eq!(count(&mut deploy.database().await, "accounts").await, 1, "{attempt}");
    }
    let answer = ask(&deploy, &["--write"], "UPDATE accounts SET digest = false").await;
    assert_eq!((stdout(&answer).as_str(), answer.status.code()), ("1 row(s)\n", Some(0)), "{answer:?}");
    assert_eq!(count(&mut deploy.database().await, "accounts WHERE NOT digest").await, 1);
    assert_eq!(trail(&deploy).await, ["account_created", "console_opened"]);
}

#[tokio::test]
async fn an_error_does_not_end_it_and_is_told_in_the_end() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "debug");
    let answer = ask(&deploy, &[], "SELEC;\nSELECT 'ada@example.com' AS address;\n").await;
    assert_eq!(answer.status.code(), Some(1));
    assert_eq!(stdout(&answer), "address\nada@example.com\n");
    let told = stderr(&answer);
    assert!(told.contains("error: ") && told.contains("syntax error"), "{told}");
    assert!(!told.contains("ada@"), "what is typed and what is found stays out of the log: {told}");
}
