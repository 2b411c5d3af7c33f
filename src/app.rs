//! The state that handlers share ([`App`]) and the parts that a feature consists of ([`Feature`]). Knows no feature.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;
use sqlx::PgConnection;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::auth::password::Passwords;
use crate::auth::provider::Provider;
use crate::auth::rules::Rule;
use crate::auth::session::Sessions;
use crate::config::{Endpoint, Env, Flags, PublicUrl};
use crate::jobs::schedule::Schedule;
use crate::jobs::{EnqueueError, Notifier, Registry};
use crate::resources::cache::Cache;
use crate::resources::events::Events;
use crate::resources::postgres::{self, Pool};
use crate::resources::storage::Storage;
use crate::telemetry::feature_counters::{FeatureCounter, FeatureCounters};

/// The state that handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The attached resources and the values that are passed in instead of being global.
pub struct Parts {
    pub postgres: Pool,
    /// None if `STORAGE_URL` is unset.
    pub storage: Option<Storage>,
    pub sessions: Sessions,
    /// None if `OIDC_ISSUER` is unset.
    pub provider: Option<Provider>,
    pub passwords: Passwords,
    pub cache: Cache,
    /// The event streams of this process.
    pub events: Events,
    /// Wakes the workers after a commit that enqueued a job.
    pub notifier: Notifier,
    pub features: &'static [Feature],
    /// The features' own metrics.
    pub counters: FeatureCounters,
    /// Those of `features` that this deploy has on.
    pub on: Vec<&'static Feature>,
    /// The schedule of the core and of the features.
    pub schedule: fn() -> anyhow::Result<Vec<Schedule>>,
    /// What this deploy has turned off.
    pub flags: Flags,
    /// A page that shows the mails of this deploy.
    pub mail_viewer: Option<Endpoint>,
    /// The address of this deploy.
    pub site: PublicUrl,
    /// The time of day.
    pub now: fn() -> Timestamp,
}

impl From<Parts> for App {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// A link to a page on which people log in without a password.
pub struct LogInPage {
    pub path: &'static str,
    /// What they log in with, for people.
    pub with: String,
}

/// A feature, as one plain value. `features/mod.rs` lists the features.
///
/// A feature sets the fields that it needs and takes the rest from [`Feature::EMPTY`].
pub struct Feature {
    pub name: &'static str,
    /// Its operations, which are mounted under `/api/v1`.
    pub api: fn() -> OpenApiRouter<App>,
    /// Its HTML pages.
    pub pages: fn() -> Router<App>,
    /// Its part of the web page for people who are signed in: HTML whose `data-` attributes say which operations of the
    /// API it shows. Empty adds nothing.
    pub section: &'static str,
    /// Its part of the web page for admins, in the same form.
    pub admin_section: &'static str,
    /// Its page on which people log in without a password, if it has one.
    pub log_in: fn(&App) -> Option<LogInPage>,
    /// Whether this deploy has its routes, rules and sections. Its jobs stay, and so does what it does with its rows.
    pub is_on: fn(&Env) -> bool,
    /// The access rules of its routes. A route without a rule responds 405 to everyone.
    pub access: &'static [Rule],
    /// Adds its kinds of jobs to the registry.
    pub jobs: fn(Registry) -> Registry,
    /// The scheduled jobs that the clock enqueues for it.
    ///
    /// # Errors
    /// A cron expression is invalid or never ticks.
    pub schedule: fn() -> anyhow::Result<Vec<Schedule>>,
    /// The rows that it deletes, and their age.
    pub retention: &'static [Retention],
    /// The data that it stores about an account, as JSON. It reads them in the export's snapshot. Null adds nothing to
    /// the export.
    pub export: for<'a> fn(&'a mut PgConnection, Uuid) -> BoxFuture<'a, sqlx::Result<Value>>,
    /// Its own metrics. A handler or a job increments them where it does what they count.
    pub counters: &'static [FeatureCounter],
    /// What `admin` does for it.
    pub commands: Option<Commands>,
    /// Its scripts for `admin run`.
    pub scripts: &'static [Script],
    /// What it counts, as an object of numbers by name. It reads them in the statistics' snapshot. Null adds nothing.
    pub statistics: for<'a> fn(&'a mut PgConnection) -> BoxFuture<'a, sqlx::Result<Value>>,
    /// Runs in the transaction that changes or ends an account's password, and ends what else logs in to the account. A
    /// thief may have added it.
    pub password_changed: for<'a> fn(&'a mut PgConnection, Uuid) -> BoxFuture<'a, sqlx::Result<()>>,
    /// Runs in the transaction that deletes an account, before its rows are deleted, and enqueues the jobs that must
    /// follow.
    pub deleted: for<'a> fn(&'a mut PgConnection, Uuid) -> BoxFuture<'a, Result<(), EnqueueError>>,
}

impl Feature {
    /// A feature without any parts.
    pub const EMPTY: Self = Self {
        name: "",
        api: OpenApiRouter::new,
        pages: Router::new,
        section: "",
        admin_section: "",
        log_in: |_| None,
        is_on: |_| true,
        access: &[],
        jobs: |registry| registry,
        schedule: || Ok(Vec::new()),
        retention: &[],
        counters: &[],
        commands: None,
        scripts: &[],
        export: |_, _| async { Ok(Value::Null) }.boxed(),
        statistics: |_| async { Ok(Value::Null) }.boxed(),
        password_changed: |_, _| async { Ok(()) }.boxed(),
        deleted: |_, _| async { Ok(()) }.boxed(),
    };
}

/// A feature's commands of `admin`.
pub struct Commands {
    /// The command with its subcommands. Its name is the feature's.
    pub command: fn() -> clap::Command,
    /// Runs what was asked for.
    pub run: for<'a> fn(&'a App, &'a clap::ArgMatches) -> BoxFuture<'a, anyhow::Result<Output>>,
}

/// What a command prints.
#[derive(Default)]
pub struct Output {
    /// The columns of the table that `admin` prints.
    pub columns: &'static [&'static str],
    /// The rows. With `--json` each is a line.
    pub rows: Vec<Value>,
    /// A text after the table.
    pub text: Option<String>,
    /// Whether a check failed, so that `admin` exits with 1.
    pub failed: bool,
}

/// A change of the data that ships with a release and is made once on each deploy, such as a repair of bad records.
pub struct Script {
    /// Its name for `admin run` and in the table of those that ran. A new name is a new script.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// Makes the change in the caller's transaction and returns the number of changed rows.
    pub run: for<'a> fn(&'a mut PgConnection) -> BoxFuture<'a, sqlx::Result<u64>>,
}

/// Deletes at most `limit` rows from before a time and returns their number. Without a limit it only counts them.
pub type Purge = for<'a> fn(&'a mut PgConnection, postgres::Timestamp, Option<i64>) -> BoxFuture<'a, sqlx::Result<i64>>;

/// How long rows of one kind are kept.
pub struct Retention {
    /// The rows in words, such as `expired API tokens`.
    pub what: &'static str,
    /// The age at which the hourly job deletes them. If it is None, only `admin purge` does.
    pub age: Option<Duration>,
    /// The age below which nothing deletes them, not even `admin purge`.
    pub floor: Duration,
    pub purge: Purge,
}
