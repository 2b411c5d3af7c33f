//! `admin console`, which runs SQL by hand. The tests use a pipe, people a terminal.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::process::programs;
use crate::support::{Deploy, EVENT_TIMEOUT};
use crate::{count, done, stderr, stdout, trail};

/// Runs `admin console` with this input.
async fn ask(deploy: &Deploy, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(programs().join("admin"));
    command.arg("console").args(arguments).env_clear().envs(&deploy.environment).kill_on_drop(true);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    tokio::time::timeout(EVENT_TIMEOUT, child.wait_with_output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn console_prints_a_table_or_json() {
    let deploy = Deploy::new().await;
    let answer = ask(&deploy, &[], "SELECT 1 AS one, NULL AS nothing, '{a,b}'::text[] AS list").await;
    assert_eq!((stdout(&answer).as_str(), answer.status.code()), ("one  nothing  list\n1             {a,b}\n", Some(0)), "{answer:?}");
    let answer = ask(&deploy, &["--json"], "SELECT 1 AS one,\n  NULL AS nothing;\nSHOW statement_timeout;\n").await;
    let rows: Vec<Value> = stdout(&answer).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows, [json!({ "one": "1", "nothing": null }), json!({ "statement_timeout": "30s" })]);
    let many = ask(&deploy, &[], "SELECT generate_series(1, 100000) AS n;\nSELECT 'and on' AS next;").await;
    assert_eq!(stdout(&many).lines().count(), 1001 + 2, "the output is limited, and the next statement runs");
    assert!(stderr(&many).contains("only the first 1000 rows"), "{}", stderr(&many));
}

#[tokio::test]
async fn console_writes_need_flag_and_are_audited() {
    let deploy = Deploy::new().await;
    done(&deploy, &["account", "invite", "ada@example.com"]).await;
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
    assert_eq!(trail(&deploy).await, ["account_invited", "console_opened"]);
}

/// Its exit status is 1 in the end.
#[tokio::test]
async fn console_continues_after_an_error() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "debug");
    let answer = ask(&deploy, &[], "SELEC;\nSELECT 'ada@example.com' AS address;\n").await;
    assert_eq!(answer.status.code(), Some(1));
    assert_eq!(stdout(&answer), "address\nada@example.com\n");
    let printed = stderr(&answer);
    assert!(printed.contains("error: ") && printed.contains("syntax error"), "{printed}");
    assert!(!printed.contains("ada@"), "neither statements nor results are logged: {printed}");
}

#[tokio::test]
async fn superuser_console_reads_with_limited_role() {
    let deploy = Deploy::new().await;
    let run = "COPY (SELECT 1) TO PROGRAM 'true';\n";
    let reading = ask(&deploy, &[], run).await;
    assert_eq!(reading.status.code(), Some(1), "{reading:?}");
    assert!(stderr(&reading).contains("to COPY to or from an external program"), "{reading:?}");
    let who = ask(&deploy, &[], "SELECT current_user AS who;\nSELECT count(*) FROM accounts;\n").await;
    assert_eq!((stdout(&who).as_str(), stderr(&who).as_str()), ("who\npg_read_all_data\ncount\n0\n", ""));
    // A role that one statement sets does not apply to the next.
    let taken = ask(&deploy, &[], &format!("SET ROLE postgres;\n{run}")).await;
    assert!(stderr(&taken).contains("to COPY to or from an external program"), "{taken:?}");
    // A writing console keeps the user's own role, and warns that it is a superuser.
    let writing = ask(&deploy, &["--write"], "SELECT current_user AS who;\n").await;
    assert_eq!(stdout(&writing), "who\npostgres\n");
    assert_eq!(stderr(&writing).lines().filter(|line| line.contains("is a superuser")).count(), 1, "{writing:?}");
}

#[tokio::test]
async fn ordinary_user_console_keeps_its_role() {
    let deploy = Deploy::new().await;
    let user = format!("reader_{}", uuid::Uuid::new_v4().simple());
    let grants = format!("CREATE ROLE {user} LOGIN PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}");
    crate::sql(&mut deploy.database().await, &grants).await;
    let mut url = url::Url::parse(&deploy.environment["DATABASE_URL"]).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("x")).unwrap();
    let answer = ask(&deploy.clone_with("DATABASE_URL", url.as_str()), &[], "SELECT current_user AS who, count(*) FROM accounts").await;
    assert!(stdout(&answer).contains(&user) && answer.status.success(), "{answer:?}");
    assert_eq!(stderr(&answer), "", "an ordinary user causes no warning");
    crate::sql(&mut deploy.database().await, &format!("DROP OWNED BY {user}; DROP ROLE {user}")).await;
}

#[tokio::test]
async fn console_describes_the_tables() {
    let deploy = Deploy::new().await;
    let printed = stdout(&ask(&deploy, &[], "\\d\n\\d jobs\n\\d x'; DROP TABLE jobs\n").await);
    for text in [
        "accounts",
        "audit_events",
        "unique_key",
        "timestamp with time zone",
        "CREATE UNIQUE INDEX jobs_unique_key",
        "A statement ends with",
    ] {
        assert!(printed.contains(text), "{text}: {printed}");
    }
}
