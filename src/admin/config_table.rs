//! `admin config`: what this deploy is configured to be.

use std::collections::HashSet;

use super::say;
use crate::config::{All, Env, Section};

/// Prints every variable of every program; false if one of the values that are there is wrong.
///
/// A variable that only another process type needs may be missing here, so that is told and is no failure.
pub fn print(env: &Env) -> bool {
    let mut right = true;
    let mut seen = HashSet::new();
    for variable in All::variables() {
        if !seen.insert(variable.name.clone()) {
            continue;
        }
        let value = match variable.find(env) {
            Ok(Some((_, origin))) if variable.secret => format!("[redacted]  ({origin})"),
            Ok(Some((text, origin))) => format!("{text}  ({origin})"),
            Ok(None) if variable.required => "missing".to_owned(),
            Ok(None) => "unset".to_owned(),
            Err(problem) => {
                right = false;
                format!("WRONG: {problem}")
            }
        };
        say(format_args!("{:<19} {value}\n{:<19} {}", variable.name, "", variable.meaning));
    }
    right
}
