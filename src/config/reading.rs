//! Reads variables into sections. It reports all problems at once, and no problem shows a value.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::{Deserialize, Deserializer};

/// Reads a section or a group of sections.
///
/// # Errors
/// Every problem, with the variable's name and without its value.
pub fn read<S: Section>(env: &Env) -> Result<S, Problems> {
    let mut problems = Problems::default();
    S::read(env, &mut problems).filter(|_| problems.0.is_empty()).ok_or(problems)
}

/// A set of variables that are read together.
pub trait Section: Sized {
    fn variables() -> Vec<Variable>;
    fn read(env: &Env, problems: &mut Problems) -> Option<Self>;
}

impl<A: Section, B: Section> Section for (A, B) {
    fn variables() -> Vec<Variable> {
        [A::variables(), B::variables()].concat()
    }

    fn read(env: &Env, problems: &mut Problems) -> Option<Self> {
        let (a, b) = (A::read(env, problems), B::read(env, problems));
        Some((a?, b?))
    }
}

/// A variable and its description for people.
#[derive(Debug, Clone)]
pub struct Variable {
    pub name: String,
    pub meaning: &'static str,
    pub default: Option<&'static str>,
    pub required: bool,
    pub secret: bool,
    check: fn(&str) -> Result<(), String>,
}

impl Variable {
    pub(super) fn new<T: Setting>(field: &str, meaning: &'static str, default: &[&'static str]) -> Self {
        Self {
            name: field.to_ascii_uppercase(),
            meaning: meaning.trim(),
            default: default.first().copied(),
            required: default.is_empty() && T::absent().is_none(),
            secret: T::SECRET,
            check: |text| T::parse(text).map(drop),
        }
    }

    /// The validated value and where it comes from.
    ///
    /// # Errors
    /// The problem with the value. The text completes a sentence that begins with the variable's name.
    pub fn find(&self, env: &Env) -> Result<Option<(String, &'static str)>, String> {
        let found = self.look_up(env)?;
        if let Some((text, _)) = &found {
            (self.check)(text)?;
        }
        Ok(found)
    }

    fn look_up(&self, env: &Env) -> Result<Option<(String, &'static str)>, String> {
        let here = env.get(&self.name)?.map(|text| (text, "environment"));
        let file = if self.secret { env.get(&format!("{}_FILE", self.name))? } else { None };
        match (here, file) {
            (Some(_), Some(_)) => Err(format!("is set, and so is {}_FILE: set only one of them", self.name)),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) if text.trim_end().is_empty() => Err("is an empty file".to_owned()),
                Ok(text) => Ok(Some((text.trim_end().to_owned(), "file"))),
                Err(e) => Err(format!("cannot be read from the file that {}_FILE names: {}", self.name, e.kind())),
            },
            (here, None) => Ok(here.or_else(|| self.default.map(|text| (text.to_owned(), "default")))),
        }
    }
}

/// The environment, which is read once at the start.
#[derive(Clone)]
pub struct Env(BTreeMap<String, Option<String>>);

impl Env {
    /// Reads the process's environment. A value that is not UTF-8 becomes a problem of its variable.
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.into_string().ok();
        Self(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)))).collect())
    }

    /// Whether a secret may be in a file, which can change while the process runs.
    pub fn names_files(&self) -> bool {
        self.0.keys().any(|name| name.ends_with("_FILE") && name != "SSL_CERT_FILE" && !name.ends_with("_TOKEN_FILE"))
    }

    fn get(&self, name: &str) -> Result<Option<String>, String> {
        match self.0.get(name) {
            Some(None) => Err("is not valid UTF-8".to_owned()),
            // An empty value counts as unset. SSL_CERT_FILE is an exception, because the TLS library reads it itself.
            Some(Some(text)) if !text.is_empty() || name == "SSL_CERT_FILE" => Ok(Some(text.clone())),
            _ => Ok(None),
        }
    }
}

/// The problems of the configuration, one for each variable.
#[derive(Debug, Clone, Default)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// A problem that only the process itself can detect.
    pub fn of(variable: &str, problem: impl Into<String>) -> Self {
        Self(vec![(variable.to_owned(), problem.into())])
    }

    /// Adds a problem, unless the variable already has one. Two sections may share a variable, and an invalid value
    /// also counts as missing.
    fn add(&mut self, variable: &Variable, problem: impl Into<String>) {
        if self.0.iter().all(|(name, _)| *name != variable.name) {
            self.0.push((variable.name.clone(), problem.into()));
        }
    }

    /// Adds a problem with a variable of the section `S` that another one requires.
    pub(super) fn require<S: Section>(&mut self, name: &str, problem: &str) {
        if let Some(variable) = S::variables().iter().find(|variable| variable.name == name) {
            self.add(variable, problem);
        }
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s); see .env.example", self.0.len())?;
        self.0.iter().try_for_each(|(name, problem)| write!(f, "\n  {name} {problem}"))
    }
}

impl std::error::Error for Problems {}

/// A type that a variable's text can be parsed into.
pub trait Setting: Sized {
    /// Whether the value must never be shown.
    const SECRET: bool = false;

    /// Parses the text. The error completes a sentence that begins with the variable's name and never contains the text.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value if the variable is unset and has no default. None makes the variable required.
    fn absent() -> Option<Self> {
        None
    }
}

/// A field that `envy` fills. Its deserialization never fails, so that all problems are found at once.
pub(super) struct Field<T>(Option<Result<T, String>>);

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Setting> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Some(T::parse(&String::deserialize(deserializer)?))))
    }
}

impl<T: Setting> Field<T> {
    pub(super) fn take(self, variable: &Variable, problems: &mut Problems) -> Option<T> {
        match self.0 {
            Some(Ok(value)) => return Some(value),
            Some(Err(problem)) => problems.add(variable, problem),
            None if !variable.required => return T::absent(),
            None => problems.add(variable, format!("is missing. {}", variable.meaning)),
        }
        None
    }
}

/// Fills the raw form of a section. An invalid value does not make it fail.
pub(super) fn fill<R: for<'de> Deserialize<'de>>(section: &str, variables: &[Variable], env: &Env, problems: &mut Problems) -> Option<R> {
    let mut pairs = Vec::new();
    for variable in variables {
        match variable.look_up(env) {
            Ok(found) => pairs.extend(found.map(|(text, _)| (variable.name.clone(), text))),
            Err(problem) => problems.add(variable, problem),
        }
    }
    let filled = envy::from_iter(pairs);
    if filled.is_err() {
        problems.0.push((section.to_owned(), "could not be read".to_owned()));
    }
    filled.ok()
}

macro_rules! section {
    ($(#[$about:meta])* pub struct $name:ident {
        $(#[doc = $meaning:literal] $field:ident: $type:ty $(= $default:literal)?,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub struct $name { $(#[doc = $meaning] pub $field: $type,)* }

        impl $crate::config::Section for $name {
            fn variables() -> Vec<$crate::config::Variable> {
                vec![$($crate::config::Variable::new::<$type>(stringify!($field), $meaning, &[$($default)?]),)*]
            }

            fn read(env: &$crate::config::Env, problems: &mut $crate::config::Problems) -> Option<Self> {
                #[derive(serde::Deserialize)]
                struct Raw { $(#[serde(default)] $field: $crate::config::reading::Field<$type>,)* }
                let variables = Self::variables();
                let raw: Raw = $crate::config::reading::fill(stringify!($name), &variables, env, problems)?;
                let mut variables = variables.iter();
                $(let $field = raw.$field.take(variables.next()?, problems);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
}
pub(super) use section;

macro_rules! group {
    ($(#[$about:meta])* pub struct $name:ident { $($field:ident: $type:ty),* }) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub struct $name { $(pub $field: $type,)* }

        impl $crate::config::Section for $name {
            fn variables() -> Vec<$crate::config::Variable> {
                [$(<$type>::variables(),)*].concat()
            }

            fn read(env: &$crate::config::Env, problems: &mut $crate::config::Problems) -> Option<Self> {
                $(let $field = <$type>::read(env, problems);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
}
pub(super) use group;
