//! What handlers reach ([`App`]), and what a feature hands over ([`Feature`]). Knows no feature.

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
use crate::resources::storage::Storage;

/// What handlers reach, cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The attached resources, and what is passed in instead of being global.
pub struct Parts {
    pub postgres: Pool,
    /// None where `STORAGE_URL` is unset.
    pub storage: Option<Storage>,
    pub sessions: Sessions,
    pub passwords: Passwords,
    /// Wakes the workers after a commit that enqueued something.
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

/// A feature: all that it brings, as one plain value. `features/mod.rs` lists the features.
///
/// A feature names what it has and takes the rest from [`Feature::EMPTY`].
pub struct Feature {
    pub name: &'static str,
    /// Its operations, mounted under `/api/v1`.
    pub api: fn() -> OpenApiRouter<App>,
    /// Its HTML pages.
    pub pages: fn() -> Router<App>,
    /// Who may do what with its routes. A route without a rule is served to nobody.
    pub access: &'static [Rule],
    /// Adds its kinds of jobs to the registry.
    pub jobs: fn(Registry) -> Registry,
    /// The jobs that the clock enqueues for it.
    ///
    /// # Errors
    /// A cron expression is invalid or never ticks.
    pub schedule: fn() -> anyhow::Result<Vec<Schedule>>,
    /// What it deletes, and after how long.
    pub retention: &'static [Retention],
    /// What it stores about an account, as JSON, read in the export's one snapshot. Null adds nothing to the export.
    pub export: for<'a> fn(&'a mut PgConnection, Uuid) -> BoxFuture<'a, sqlx::Result<Value>>,
    /// Runs in the transaction that deletes an account, before its rows are gone: enqueues what must follow.
    pub deleted: for<'a> fn(&'a mut PgConnection, Uuid) -> BoxFuture<'a, Result<(), EnqueueError>>,
}

impl Feature {
    /// A feature that brings nothing.
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

/// Deletes at most `limit` rows from before a time, and returns their number. Without a limit it only counts them.
pub type Purge = for<'a> fn(&'a mut PgConnection, postgres::Timestamp, Option<i64>) -> BoxFuture<'a, sqlx::Result<i64>>;

/// How long rows of one kind are kept.
pub struct Retention {
    /// The rows, in words: `expired API tokens`.
    pub what: &'static str,
    /// The age at which the hourly job deletes them. None leaves them to `admin purge`.
    pub age: Option<Duration>,
    /// The age below which nothing deletes them, whatever `admin purge` is given.
    pub floor: Duration,
    pub purge: Purge,
}
