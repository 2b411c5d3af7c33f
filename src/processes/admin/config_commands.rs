//! `admin config` and `admin env`: this deploy's config, and every variable that there is.

use std::collections::HashSet;

use serde_json::json;

use super::Task;
use super::output::say;
use crate::config::{All, Clock, Section, Variable, Web, Worker};

/// Prints every variable of every program. Returns false if a value is wrong.
///
/// A missing variable is shown but is not a failure, because only another process type may need it.
pub fn print(task: &Task) -> bool {
    let mut right = true;
    for variable in every() {
        let found = variable.find(&task.env);
        right &= found.is_ok();
        let value = match &found {
            Ok(Some(_)) if variable.secret => "[redacted]",
            Ok(Some((text, _))) => text,
            Ok(None) if variable.required => "missing",
            Ok(None) => "unset",
            Err(problem) => &format!("WRONG: {problem}"),
        };
        let origin = found.as_ref().ok().and_then(|found| Some(found.as_ref()?.1));
        if task.json {
            say(json!({ "name": variable.name, "value": value, "origin": origin, "meaning": variable.meaning }));
        } else {
            let origin = origin.map(|origin| format!("  ({origin})")).unwrap_or_default();
            say(format_args!("{:<19} {value}{origin}\n{:<19} {}", variable.name, "", variable.meaning));
        }
    }
    right
}

/// Prints `.env.example`: every variable with its description, the programs that read it, and its default or an example.
pub fn example() {
    say(HEADER);
    for variable in every() {
        let reads = |variables: Vec<Variable>| variables.iter().any(|read| read.name == variable.name);
        let readers = [("web", Web::variables()), ("worker", Worker::variables()), ("clock", Clock::variables())];
        let readers: Vec<_> = readers.into_iter().filter_map(|(program, variables)| reads(variables).then_some(program)).collect();
        let readers = if readers.is_empty() { "every program".to_owned() } else { readers.join(", ") };
        let needed = if variable.required { ", which need it" } else { "" };
        // The first code in a required variable's description is an example.
        let sample = if variable.required { variable.meaning.split('`').nth(1) } else { variable.default };
        say(format_args!("\n# {}.\n# Read by {readers}{needed}.\n#{}={}", variable.meaning, variable.name, sample.unwrap_or_default()));
    }
}

const HEADER: &str = "\
# Every variable that a program reads, with its default or an example. `admin env` writes this file from src/config/.
# `admin` reads every variable. `bin/dev` sets missing variables and reads a file `.env` beside this one. The programs themselves do not read it.
# NAME_FILE may give the path of a file with the value of the secret NAME. The programs follow changes of the file.
# Durations are written 250ms, 30s, 5m, 12h, 14d. Sizes are written 512KiB, 100MiB, 1GiB.";

/// Every variable once, in the order of the code.
fn every() -> impl Iterator<Item = Variable> {
    let mut seen = HashSet::new();
    All::variables().into_iter().filter(move |variable| seen.insert(variable.name.clone()))
}
