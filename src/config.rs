//! Every environment variable that a program reads (factor III: config).
//!
//! A section is one plain struct that `envy` fills; a field is a variable, its name in lower case, its doc comment
//! the variable's meaning, unit and default. Knows nothing of what the settings are for.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::num::NonZeroU32;
use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

mod settings;

pub use settings::{CertificateFile, DatabaseUrl, Endpoint, Lasting, LogFilter, LogFormat, Origins, PublicUrl, RedisUrl, Sampler, SmtpUrl};

section! {
    /// What every long-running process type reads.
    pub struct Process {
        /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or filter directives such as `info,sqlx=warn`
        log_level: LogFilter = "info",
        /// `json`, one object a line, or `pretty`, for people
        log_format: LogFormat = "json",
        /// The release's id, as the platform counts it; shown by `/version` and on every log line
        release_version: Option<String>,
        /// Name of this process in the log; Heroku sets it
        dyno: Option<String>,
        /// Name of this process in the log where `DYNO` is unset; most platforms set it
        hostname: Option<String>,
        /// Port of a second listener with `/metrics`, `/livez` and `/readyz`; unset opens none
        metrics_port: Option<u16>,
        /// File with the certificates of a private authority, in place of the system's: for TLS to Postgres, Redis and the mail server
        ssl_cert_file: Option<CertificateFile>,
        /// How long requests and jobs in flight may finish after SIGTERM
        drain_timeout: Duration = "25s",
        /// OpenTelemetry collector that takes traces over HTTP or HTTPS: `http://collector:4318`; unset sends none
        otel_exporter_otlp_endpoint: Option<Endpoint>,
        /// Headers for the collector, such as its key: `name=value,name=value`
        otel_exporter_otlp_headers: Option<SecretString>,
        /// Name of the service in traces; unset is the process type
        otel_service_name: Option<String>,
        /// More about this deploy in traces: `name=value,name=value`
        otel_resource_attributes: Option<String>,
        /// Which traces are sent: `always_on`, `always_off`, `traceidratio`, or one of these after `parentbased_`
        otel_traces_sampler: Option<Sampler>,
        /// The share of traces that `traceidratio` sends, from 0 to 1
        otel_traces_sampler_arg: Option<String>,
        /// Milliseconds that spans wait to be sent together
        otel_bsp_schedule_delay: Option<u16>,
    }
}

section! {
    /// The Postgres database.
    pub struct Database {
        /// Postgres database: `postgres://user:password@host:5432/name`
        database_url: DatabaseUrl,
        /// Connections to Postgres that one process may hold, and one more for its probes; a worker holds another, to hear of new jobs
        database_pool_size: NonZeroU32 = "10",
    }
}

section! {
    /// The Redis server that keeps the sessions.
    pub struct Redis {
        /// Redis: `redis://:password@host:6379/0`, or `rediss://` for TLS
        redis_url: RedisUrl,
        /// Connections to Redis that one process may hold; requests share them
        redis_pool_size: NonZeroU32 = "16",
    }
}

section! {
    /// The mail server.
    pub struct Smtp {
        /// Mail server: `smtp://host:25`, `smtps://user:password@host`, or `smtp://host:587?tls=required`
        smtp_url: SmtpUrl,
        /// Sender of every mail: `Example <hello@example.com>`
        mail_from: Mailbox,
    }
}

section! {
    /// How people reach this deploy.
    pub struct Site {
        /// Canonical address of this deploy, for links, cookies and the origin check: `https://example.com`; `https` makes cookies `Secure`
        public_url: PublicUrl,
    }
}

section! {
    /// How `web` serves.
    pub struct Http {
        /// Port that `web` listens on, on all interfaces
        port: u16 = "8080",
        /// A session's life after its last use
        session_ttl: Lasting = "14d",
        /// A session's life in all
        session_max_age: Lasting = "90d",
        /// A request's time, after which it gets 503
        request_timeout: Lasting = "10s",
        /// How long `web` keeps accepting after SIGTERM while `/readyz` already says no
        drain_delay: Duration = "0s",
        /// Log-ins, sign-ups, resets and other requests that try a password or send a mail, a minute, by client address
        rate_limit_login: NonZeroU32 = "10",
        /// Requests a minute, by session or token; by client address for who has neither
        rate_limit_requests: NonZeroU32 = "1200",
        /// How many proxies stand in front, each of which adds the address it was called from to `X-Forwarded-For`
        trusted_proxies: u16 = "0",
        /// Other sites whose pages may call the API, separated by commas: `https://app.example.com`; unset allows none
        cors_origins: Option<Origins>,
    }
}

section! {
    /// How `worker` works.
    pub struct Jobs {
        /// Jobs that one worker runs at a time
        worker_concurrency: NonZeroU32 = "10",
        /// How long a claimed job is a worker's own without a heartbeat; there is one every third of it
        job_lease: Lasting = "30s",
    }
}

group! {
    /// What `web` reads.
    pub struct Web { database: Database, redis: Redis, site: Site, http: Http }
}

group! {
    /// What `worker` reads.
    pub struct Worker { database: Database, redis: Redis, smtp: Smtp, site: Site, jobs: Jobs }
}

group! {
    /// What `clock` reads.
    pub struct Clock { database: Database }
}

group! {
    /// Every variable of every program.
    pub struct All { process: Process, web: Web, worker: Worker }
}

/// Reads a section, or a group of them.
/// Errors: All problems at once, each with the variable's name and none with its value.
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

/// What a variable means, for people.
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
    fn new<T: Setting>(field: &str, meaning: &'static str, default: &[&'static str]) -> Self {
        Self {
            name: field.to_ascii_uppercase(),
            meaning: meaning.trim(),
            default: default.first().copied(),
            required: default.is_empty() && T::absent().is_none(),
            secret: T::SECRET,
            check: |text| T::parse(text).map(drop),
        }
    }

    /// The value as it stands in the environment and where it came from, checked.
    /// Errors: What is wrong with it, in words that complete the variable's name.
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
            (Some(_), Some(_)) => Err(format!("is set, and so is {}_FILE: keep one of them", self.name)),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) if text.trim_end().is_empty() => Err("is an empty file".to_owned()),
                Ok(text) => Ok(Some((text.trim_end().to_owned(), "file"))),
                Err(e) => Err(format!("cannot be read from the file that {}_FILE names: {}", self.name, e.kind())),
            },
            (here, None) => Ok(here.or_else(|| self.default.map(|text| (text.to_owned(), "default")))),
        }
    }
}

/// The environment, read once at start.
#[derive(Clone)]
pub struct Env(BTreeMap<String, Option<String>>);

impl Env {
    /// The process's own environment. A value that is not UTF-8 is kept as a problem of its variable.
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.into_string().ok();
        Self(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)))).collect())
    }

    /// Whether a secret may stand in a file, which can change while the process runs.
    pub fn names_files(&self) -> bool {
        self.0.keys().any(|name| name.ends_with("_FILE") && name != "SSL_CERT_FILE")
    }

    fn get(&self, name: &str) -> Result<Option<String>, String> {
        match self.0.get(name) {
            Some(None) => Err("is not valid UTF-8".to_owned()),
            // Empty counts as unset, but not to the TLS library, which reads SSL_CERT_FILE itself.
            Some(Some(text)) if !text.is_empty() || name == "SSL_CERT_FILE" => Ok(Some(text.clone())),
            _ => Ok(None),
        }
    }
}

/// What is wrong with the configuration, a line for each variable.
#[derive(Debug, Clone, Default)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Adds a problem. A variable has one: what two sections share, or what is wrong and so also missing, is told once.
    fn add(&mut self, variable: &Variable, problem: impl Into<String>) {
        if self.0.iter().all(|(name, _)| *name != variable.name) {
            self.0.push((variable.name.clone(), problem.into()));
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

/// A type that a variable's text can be read as.
pub trait Setting: Sized {
    /// Whether the value must never be shown.
    const SECRET: bool = false;

    /// Reads the text; the error completes a sentence that begins with the variable's name, and never holds the text.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value when the variable is unset and has no default; none makes the variable required.
    fn absent() -> Option<Self> {
        None
    }
}

/// What `envy` fills: a deserialization that never fails, so that all problems are found at once.
struct Field<T>(Option<Result<T, String>>);

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
    fn take(self, variable: &Variable, problems: &mut Problems) -> Option<T> {
        match self.0 {
            Some(Ok(value)) => return Some(value),
            Some(Err(problem)) => problems.add(variable, problem),
            None if !variable.required => return T::absent(),
            None => problems.add(variable, format!("is missing. {}", variable.meaning)),
        }
        None
    }
}

/// The pairs that `envy` reads a section from.
fn pairs(variables: &[Variable], env: &Env, problems: &mut Problems) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for variable in variables {
        match variable.look_up(env) {
            Ok(found) => pairs.extend(found.map(|(text, _)| (variable.name.clone(), text))),
            Err(problem) => problems.add(variable, problem),
        }
    }
    pairs
}

macro_rules! section {
    ($(#[$about:meta])* pub struct $name:ident {
        $(#[doc = $meaning:literal] $field:ident: $type:ty $(= $default:literal)?,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub struct $name { $(#[doc = $meaning] pub $field: $type,)* }

        impl Section for $name {
            fn variables() -> Vec<Variable> {
                vec![$(Variable::new::<$type>(stringify!($field), $meaning, &[$($default)?]),)*]
            }

            fn read(env: &Env, problems: &mut Problems) -> Option<Self> {
                #[derive(Deserialize)]
                struct Raw { $(#[serde(default)] $field: Field<$type>,)* }
                let variables = Self::variables();
                let raw: Raw = match envy::from_iter(pairs(&variables, env, problems)) {
                    Ok(raw) => raw,
                    Err(_) => {
                        problems.0.push((stringify!($name).to_owned(), "could not be read".to_owned()));
                        return None;
                    }
                };
                let mut variables = variables.iter();
                $(let $field = raw.$field.take(variables.next()?, problems);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
}
use section;

macro_rules! group {
    ($(#[$about:meta])* pub struct $name:ident { $($field:ident: $type:ty),* }) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        pub struct $name { $(pub $field: $type,)* }

        impl Section for $name {
            fn variables() -> Vec<Variable> {
                [$(<$type>::variables(),)*].concat()
            }

            fn read(env: &Env, problems: &mut Problems) -> Option<Self> {
                $(let $field = <$type>::read(env, problems);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
}
use group;
