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
use crate::auth::rules::Rule;
use crate::auth::session::Sessions;
use crate::config::PublicUrl;
use crate::jobs::schedule::Schedule;
use crate::jobs::{EnqueueError, Notifier, Registry};
use crate::resources::postgres::{self, Pool};

/// The state that handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The attached resources and the values that are passed in instead of being global.
pub struct Parts {
    pub postgres: Pool,
    pub sessions: Sessions,
    pub passwords: Passwords,
    /// Wakes the workers after a commit that enqueued a job.
    pub notifier: Notifier,
    pub features: &'static [Feature],
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

/// A feature, as one plain value. `features/mod.rs` lists the features.
///
/// A feature sets the fields that it needs and takes the rest from [`Feature::EMPTY`].
pub struct Feature {
    pub name: &'static str,
    /// Its operations, which are mounted under `/api/v1`.
    pub api: fn() -> OpenApiRouter<App>,
    /// Its HTML pages.
    pub pages: fn() -> Router<App>,
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
        access: &[],
        jobs: |registry| registry,
        schedule: || Ok(Vec::new()),
        retention: &[],
        export: |_, _| async { Ok(Value::Null) }.boxed(),
        deleted: |_, _| async { Ok(()) }.boxed(),
    };
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
