//! Postgres stores the data and the queue.

mod errors;
mod migrations;
mod purge;
mod timestamp;

use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, Postgres, Row, Transaction};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;
use url::{Host, Url};

use super::PendingCaller;
use crate::config;
use crate::lifecycle::{Heartbeat, Lifecycle};
use crate::telemetry::metrics::Metrics;

pub use errors::{is_stale, is_unavailable};
pub use migrations::{migrator, pending_migrations};
pub(crate) use purge::purge;
pub use timestamp::Timestamp;

/// How long a caller waits for a connection. It is shorter than a request's time limit, so that the response is a 503
/// in time.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection may take to answer a ping. It is longer than a busy server takes, and short enough that the
/// waiting caller can still get another connection.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for the probes' connection, which nothing else waits for.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long one attempt to connect takes at most for a caller that tries again: a process is ready within two seconds of
/// Postgres's return, although the attempt before was to a server that is gone.
pub const RECONNECT_TIMEOUT: Duration = Duration::from_millis(1200);

/// How long a connection may be idle in the pool before it is pinged at its next use. Outages last longer than this.
const PING_AFTER_IDLE: Duration = Duration::from_millis(100);

/// How long after a failure of Postgres every connection is pinged when it is taken and returned. It is longer than any
/// request or statement may hang on a connection.
const DOUBT_PERIOD: Duration = Duration::from_mins(1);

/// The connections that one process holds.
#[derive(Clone)]
pub struct Pool {
    connections: PgPool,
    /// Connections that are older than this beat are closed.
    renewed: Heartbeat,
    /// When Postgres last failed to answer.
    doubted: Heartbeat,
    /// Callers that wait for a connection.
    pending: Arc<AtomicUsize>,
    limits: Limits,
}

/// Time limits of Postgres for a caller. A single statement has the role's limits, which `admin migrate` sets. A
/// transaction sets its own limits, because sessions cannot keep settings behind a pooler in transaction mode.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub statement: Duration,
    pub lock: Duration,
    /// How long a transaction may wait for its client. Otherwise a client that vanished would keep its locks.
    pub idle: Duration,
}

impl Limits {
    /// The limits for a caller that itself times out after `time`. A slow statement fails before that, so the caller
    /// learns why.
    pub fn within(time: Duration) -> Self {
        Self { statement: time * 9 / 10, lock: time * 9 / 20, idle: time + Duration::from_secs(5) }
    }

    /// The settings by name, in milliseconds.
    pub fn settings(self) -> [(&'static str, u128); 3] {
        // Zero would mean no limit.
        let millis = |limit: Duration| limit.as_millis().max(1);
        [
            ("statement_timeout", millis(self.statement)),
            ("lock_timeout", millis(self.lock)),
            ("idle_in_transaction_session_timeout", millis(self.idle)),
        ]
    }
}

impl Pool {
    /// Attaches Postgres. It connects at the first query. `process` names the connections in `pg_stat_activity`, and
    /// `limits` apply to its transactions.
    ///
    /// # Errors
    /// The URL is not a Postgres URL, which the config rules out.
    pub fn attach(config: &config::Database, process: &str, limits: Limits) -> sqlx::Result<Self> {
        let options = options(config, process)?;
        for unknown in &config.database_url.unknown {
            warn!("ignoring the unknown parameter {unknown} of DATABASE_URL");
        }
        Ok(Self::new(config.database_pool_size.get(), options, Heartbeat::default(), ACQUIRE_TIMEOUT, PING_TIMEOUT, limits))
    }

    /// A separate connection for the probes, so that load on the pool cannot fail them.
    pub fn for_probes(&self) -> Self {
        Self::new(1, self.connect_options().as_ref().clone(), self.renewed.clone(), RECONNECT_TIMEOUT, PROBE_TIMEOUT, self.limits)
    }

    /// The same connections, with other limits for transactions.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    fn new(size: u32, options: PgConnectOptions, renewed: Heartbeat, acquire: Duration, limit: Duration, limits: Limits) -> Self {
        let (before, after, doubted) = (renewed.clone(), renewed.clone(), Heartbeat::default());
        let (doubt_before, doubt_after) = (doubted.clone(), doubted.clone());
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(acquire)
            // A ping at each checkout would double the round trips. Only a connection that was idle may be broken, so
            // it is pinged.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let (renewed, asked) = (before.clone(), meta.idle_for >= PING_AFTER_IDLE || doubt_before.age() < DOUBT_PERIOD);
                Box::pin(async move { Ok(meta.age < renewed.age() && (!asked || serves(connection, &renewed, limit).await)) })
            })
            // The pool's own ping has no time limit. Behind a dead network it would occupy the connection's place for a
            // quarter of an hour. So a ping with a limit comes first after a recent failure, and always on the probes'
            // connection.
            .after_release(move |connection, meta| {
                let (renewed, asked) = (after.clone(), limit == PROBE_TIMEOUT || doubt_after.age() < DOUBT_PERIOD);
                Box::pin(async move { Ok(meta.age < renewed.age() && (!asked || serves(connection, &renewed, limit).await)) })
            });
        Self { connections: pool.connect_lazy_with(options), renewed, doubted, pending: Arc::default(), limits }
    }

    /// Records that Postgres did not answer.
    pub fn doubt(&self) {
        self.doubted.beat();
    }

    /// Examines an error. If it affects every connection, all of them are replaced.
    pub fn note(&self, error: &sqlx::Error) {
        if errors::is_read_only(error) || is_stale(error) {
            self.replace();
        }
    }

    /// Replaces every existing connection.
    pub fn replace(&self) {
        self.doubted.beat();
        self.renewed.beat();
    }

    /// Runs a query with a time limit. It gets at least two seconds, because a query that always gave up while connecting
    /// would never succeed.
    ///
    /// # Errors
    /// The query fails or times out.
    pub async fn within<T>(&self, limit: Duration, query: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
        let answer = timeout(limit.max(PING_TIMEOUT), query).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        answer.inspect_err(|error| self.note(error))
    }

    /// Counts the connections whenever the metrics are read.
    pub fn count(&self, metrics: &Metrics) {
        let pool = self.clone();
        metrics.sample(move |metrics| {
            let (all, idle) = (pool.size() as usize, pool.num_idle());
            metrics.pool("postgres", all.saturating_sub(idle), idle, pool.pending.load(Ordering::Relaxed));
        });
    }

    /// Follows changes of the URL if it is in a file.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Database) {
        let pool = self.clone();
        super::follow(
            lifecycle,
            "DATABASE_URL",
            config,
            |config| vec![&config.database_url.text],
            move |config| pool.clone().renew(config),
        );
    }

    async fn renew(self, config: config::Database) -> anyhow::Result<()> {
        let process = self.connect_options().get_application_name().unwrap_or_default().to_owned();
        let options = options(&config, &process)?;
        options.connect().await?.close().await?;
        self.set_connect_options(options);
        self.renewed.beat();
        // Connections in use are closed when they are returned.
        while let Some(old) = self.try_acquire() {
            old.close().await?;
        }
        Ok(())
    }

    /// Takes a connection for a request.
    ///
    /// # Errors
    /// Postgres is unavailable, or no connection became free in time.
    pub async fn acquire(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.while_refused(|| self.connections.acquire()).await
    }

    /// Begins a transaction with the limits of this handle.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.begin_as("BEGIN").await
    }

    /// Begins a read-only transaction that sees one state of the data throughout.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub async fn snapshot(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.begin_as("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    async fn begin_as(&self, begin: &str) -> sqlx::Result<Transaction<'static, Postgres>> {
        let mut statements = begin.to_owned();
        for (name, millis) in self.limits.settings() {
            // Writing to a string cannot fail.
            let _ = write!(statements, "; SET LOCAL {name} = {millis}");
        }
        self.while_refused(|| async {
            let (connections, statements) = (self.connections.clone(), AssertSqlSafe(statements.clone()));
            // All statements in one round trip. A task finishes it even if the caller is dropped meanwhile: sqlx 0.9.0 would
            // return the connection to the pool with an open transaction (launchbadge/sqlx#4393).
            let begun = tokio::spawn(async move { connections.begin_with(statements).await });
            begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
        })
        .await
    }

    /// Retries while the password is refused, for as long as a caller waits, because the password's file may be about
    /// to change.
    async fn while_refused<T, F: Future<Output = sqlx::Result<T>>>(&self, take: impl Fn() -> F) -> sqlx::Result<T> {
        let _waiting = PendingCaller::new(&self.pending);
        let started = Instant::now();
        loop {
            // Boxed, because otherwise every request's future would include the 4 KB of connecting.
            match Box::pin(take()).await {
                // Class 28: invalid authorization.
                Err(sqlx::Error::Database(e))
                    if e.code().is_some_and(|code| code.starts_with("28")) && started.elapsed() < ACQUIRE_TIMEOUT =>
                {
                    sleep(Duration::from_millis(100)).await;
                }
                taken => return taken,
            }
        }
    }
}

impl Deref for Pool {
    type Target = PgPool;

    fn deref(&self) -> &PgPool {
        &self.connections
    }
}

/// Whether a connection answers and accepts writes. After a failover the old primary may still be reachable. If one
/// connection fails this, the others of its age probably fail too, so they are closed as well.
async fn serves(connection: &mut PgConnection, renewed: &Heartbeat, limit: Duration) -> bool {
    match timeout(limit, is_read_only(connection)).await {
        Ok(Ok(false)) => true,
        Ok(Err(_)) => false,
        Ok(Ok(true)) => {
            renewed.beat();
            false
        }
        Err(_) => {
            // The probes' connection times out too soon to conclude anything about the others.
            if limit > PROBE_TIMEOUT {
                renewed.beat();
            }
            false
        }
    }
}

/// Whether the server is read-only: it is a standby or is configured so.
///
/// # Errors
/// Postgres is unavailable.
pub async fn is_read_only(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // The simple protocol, which prepares no statement.
    let row = sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection).await?;
    Ok(row.try_get::<&str, _>(0)? == "on")
}

/// The options to connect with. They come from the URL alone.
///
/// # Errors
/// As [`Pool::attach`].
pub fn options(config: &config::Database, process: &str) -> sqlx::Result<PgConnectOptions> {
    let url = Url::parse(config.database_url.url.expose_secret()).map_err(|_| sqlx::Error::Configuration("not a URL".into()))?;
    let mut options: PgConnectOptions = url.as_str().parse()?;
    let said = |key: &str| url.query_pairs().any(|(k, _)| k == key);
    if let Some(Host::Ipv6(ip)) = url.host() {
        options = options.host(&ip.to_string());
    } else if let Some(ip) = url.host_str().and_then(|host| host.strip_prefix('[')?.strip_suffix(']')) {
        options = options.host(ip);
    }
    // The URL's missing parts must not come from `PG*` variables or ~/.pgpass, because the config alone decides.
    if url.password().is_none() && !said("password") {
        options = options.password("");
    }
    if url.port().is_none() && !said("port") {
        options = options.port(5432);
    }
    if !said("sslmode") && !said("ssl-mode") {
        options = options.ssl_mode(sqlx::postgres::PgSslMode::Prefer);
    }
    Ok(options.application_name(process))
}
