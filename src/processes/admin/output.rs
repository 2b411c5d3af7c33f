//! Prints results on stdout, as tables for people or, with `--json`, as one object a line for programs.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde_json::Value;

use super::Task;

/// Prints a line of a result. A closed pipe, as in `admin config | head`, is not an error.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a message for people on stderr. It is not part of the result.
pub fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Task {
    /// Prints rows as a table with these columns, or with `--json` each row with all of its fields as a line of JSON.
    pub fn rows(&self, columns: &[&str], rows: &[Value]) {
        if self.json {
            return rows.iter().for_each(say);
        }
        let terminal = std::io::stdout().is_terminal();
        let cell = |row: &Value, column: &&str| text(&row[*column], if terminal { 60 } else { usize::MAX });
        let mut lines: Vec<Vec<String>> = vec![columns.iter().map(ToString::to_string).collect()];
        lines.extend(rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<_> = (0..columns.len()).map(width).collect();
        for (number, line) in lines.iter().enumerate() {
            let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            // https://no-color.org: any value that is not empty counts.
            let bold = number == 0 && terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let (start, end) = if bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            say(format_args!("{start}{}{end}", cells.join("  ").trim_end()));
        }
    }
}

/// A value on one line. Control characters become spaces, so that data cannot control the terminal.
fn text(value: &Value, limit: usize) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect(),
        value => value.to_string(),
    }
}
