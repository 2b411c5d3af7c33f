//! `admin config` and `admin env`: what this deploy is configured to be, and what can be configured.

use std::collections::HashSet;

use serde_json::json;

use super::Task;
use super::output::say;
use crate::config::{All, Clock, Section, Variable, Web, Worker};

/// Prints every variable of every program; false if one of the values that are there is wrong.
///
/// A variable that only another process type needs may be missing here, so that is told and is no failure.
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

/// Prints `.env.example`: what every variable means, who reads it, and its default or an example.
pub fn example() {
    say(HEAD);
    for variable in every() {
        let reads = |variables: Vec<Variable>| variables.iter().any(|read| read.name == variable.name);
        let readers = [("web", Web::variables()), ("worker", Worker::variables()), ("clock", Clock::variables())];
        let readers: Vec<_> = readers.into_iter().filter_map(|(program, variables)| reads(variables).then_some(program)).collect();
        let readers = if readers.is_empty() { "every program".to_owned() } else { readers.join(", ") };
        let needed = if variable.required { ", which need it" } else { "" };
        // What is required has an example in its meaning, the first that is marked as code.
        let sample = if variable.required { variable.meaning.split('`').nth(1) } else { variable.default };
        say(format_args!("\n# {}.\n# Read by {readers}{needed}.\n#{}={}", variable.meaning, variable.name, sample.unwrap_or_default()));
    }
}

const HEAD: &str = "\
# Every variable that a program reads, with its default or an example. `admin env` writes this file from src/config.rs.
# `bin/dev` sets what is missing and reads a file `.env` beside this one; the programs themselves read no file,
# except that NAME_FILE may give the path of a file that holds the value of a secret NAME, and is followed when it changes (but for the collector's headers).
# Durations read 250ms, 30s, 5m, 12h, 14d. Sizes read 512KiB, 100MiB, 1GiB.";

/// Every variable once, in the order in which the code tells them.
fn every() -> impl Iterator<Item = Variable> {
    let mut seen = HashSet::new();
    All::variables().into_iter().filter(move |variable| seen.insert(variable.name.clone()))
}
