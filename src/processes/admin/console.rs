//! `admin console`: runs SQL on this deploy's Postgres. The history is kept only in memory.

use std::io::IsTerminal;

use futures_util::TryStreamExt;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Column, ConnectOptions, Connection, Executor, PgConnection, Row, SqlSafeStr, ValueRef};

use super::Task;
use super::output::{note, say};
use crate::auth::By;
use crate::auth::audit::{self, Action};

/// How many rows of a result are shown at most.
const MAX_ROWS: usize = 1000;

/// What a line that begins with a backslash may say.
const HELP: &str = "\\d         list the tables with their rows, as Postgres estimates them
\\d NAME    list the columns and the indexes of a table
A statement ends with a semicolon at the end of a line.";

const TABLES: &str = "SELECT relname AS table, greatest(reltuples, 0)::bigint AS rows, obj_description(oid) AS meaning
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname";

/// The columns of a table, then its indexes. The name stands in for `{table}`.
const COLUMNS: &str = "SELECT column_name AS column, data_type AS type, is_nullable AS nullable, column_default AS default
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{table}'
    UNION ALL SELECT indexname, indexdef, NULL, NULL FROM pg_indexes WHERE schemaname = 'public' AND tablename = '{table}'";

/// Reads and runs statements, each of which ends with a semicolon at the end of a line. Returns false if a statement
/// from a pipe failed.
pub async fn run(task: &Task, write: bool) -> anyhow::Result<bool> {
    let pool = task.postgres()?;
    if write {
        audit::record(&*pool, Action::CONSOLE_OPENED, None, By::OPERATOR).await?;
    }
    // Statements must not appear in the log.
    let mut connection = pool.connect_options().as_ref().clone().disable_statement_logging().connect().await?;
    let begin = begin(&mut connection, write).await?;
    let (mut editor, terminal) = (DefaultEditor::new()?, std::io::stdin().is_terminal());
    let (mut well, mut ended, mut statement) = (true, false, String::new());
    while !ended {
        let is_first = statement.is_empty();
        let prompt = if statement.is_empty() { "sql> " } else { "...> " };
        match editor.readline(if terminal { prompt } else { "" }) {
            Ok(line) => statement.push_str(&format!("{line}\n")),
            Err(ReadlineError::Interrupted) => statement.clear(),
            Err(ReadlineError::Eof) => ended = true,
            Err(e) => return Err(e.into()),
        }
        if is_first && statement.starts_with('\\') {
            match described(&std::mem::take(&mut statement)) {
                Some(query) => answer(task, &mut connection, query, begin).await?,
                None => say(HELP),
            }
            continue;
        }
        if statement.trim().is_empty() || !(ended || statement.trim_end().ends_with(';')) {
            continue;
        }
        let statement = std::mem::take(&mut statement);
        let _ = editor.add_history_entry(statement.trim_end());
        match answer(task, &mut connection, statement, begin).await {
            Err(sqlx::Error::Database(e)) => {
                well = false;
                note(format_args!("error: {e}"));
            }
            // After any other error the connection cannot be used.
            result => result?,
        }
    }
    Ok(well || terminal)
}

/// The query for a line that begins with a backslash, or None if the line asks for help.
fn described(line: &str) -> Option<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match words[..] {
        ["\\d"] => Some(TABLES.to_owned()),
        ["\\d", table] if is_name(table) => Some(COLUMNS.replace("{table}", table)),
        _ => None,
    }
}

/// The statement that begins a console's transactions. A console that only reads takes the role `pg_read_all_data` if
/// it may. Otherwise a superuser could run programs on the server, even in a read-only transaction, and the console
/// prints a warning.
async fn begin(connection: &mut PgConnection, write: bool) -> sqlx::Result<&'static str> {
    let user = sqlx::query!(
        r#"SELECT rolsuper AS "superuser!", pg_has_role(rolname, 'pg_read_all_data', 'MEMBER') AS "reader!"
           FROM pg_roles WHERE rolname = current_user"#
    );
    let user = user.fetch_one(&mut *connection).await?;
    if !write && user.reader {
        return Ok("BEGIN READ ONLY; SET LOCAL ROLE pg_read_all_data");
    }
    if user.superuser {
        note("warning: this database user is a superuser, so a statement can run programs on the database server");
    }
    Ok(if write { "BEGIN READ WRITE" } else { "BEGIN READ ONLY" })
}

/// Runs one statement in its own transaction and prints its rows.
async fn answer(task: &Task, connection: &mut PgConnection, statement: String, begin: &'static str) -> sqlx::Result<()> {
    // Refuses several statements at once. The first could end the read-only transaction, and the next could write.
    connection.prepare(AssertSqlSafe(statement.clone()).into_sql_str()).await?;
    let mut transaction = connection.begin_with(begin).await?;
    transaction.execute("SET LOCAL statement_timeout = '30s'").await?;
    let (mut columns, mut rows, mut affected) = (Vec::new(), Vec::new(), 0);
    // The simple protocol returns every type as text.
    let mut answer = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_many(&mut *transaction);
    while let Some(part) = answer.try_next().await? {
        match part {
            sqlx::Either::Left(done) => affected = done.rows_affected(),
            sqlx::Either::Right(_) if rows.len() == MAX_ROWS => {
                note(format_args!("only the first {MAX_ROWS} rows are shown"));
                break;
            }
            sqlx::Either::Right(row) => {
                columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
                let value = |i| row.try_get_raw(i).ok().filter(|value| !value.is_null()).and_then(|value| value.as_str().ok());
                rows.push(
                    columns.iter().enumerate().map(|(i, column)| (column.clone(), Value::from(value(i)))).collect::<Map<_, _>>().into(),
                );
            }
        }
    }
    drop(answer);
    transaction.commit().await?;
    if columns.is_empty() {
        say(format_args!("{affected} row(s)"));
    } else {
        task.rows(&columns.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    }
    Ok(())
}
