//! Postgres: the data and the queue.

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

use super::Waiting;
use crate::config;
use crate::lifecycle::{Lifecycle, Pulse};
use crate::telemetry::metrics::Metrics;

pub use errors::{is_stale, is_unavailable};
pub use migrations::{migrator, pending_migrations};
pub(crate) use purge::purge;
pub use timestamp::Timestamp;

/// How long a caller waits for a connection: less than a request's time, so that the answer is 503 and not silence.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection may take to show that it is still one: longer than a busy server takes, and short enough that
/// who waits for it can still have another.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for the probes' connection, on which nothing else waits.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// After how long in the pool a connection is asked whether it is still one: outages are longer.
const RESTED: Duration = Duration::from_millis(100);

/// How long after Postgres was seen not to answer connections are asked as they come back too: longer than any request
/// or statement may hang on one.
const DOUBT: Duration = Duration::from_mins(1);

/// The connections that one process holds.
#[derive(Clone)]
pub struct Pool {
    connections: PgPool,
    /// Connections that are older than this beat are let go.
    renewed: Pulse,
    /// When Postgres was last seen not to answer.
    doubted: Pulse,
    /// Callers who wait for one.
    pending: Arc<AtomicUsize>,
    limits: Limits,
}

/// How long Postgres may work for a caller. A single statement has the role's limits, which `admin migrate` sets; a
/// transaction sets its own, since a pooler in transaction mode lets a session keep none.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub statement: Duration,
    pub lock: Duration,
    /// How long a transaction may wait for its client: a client that vanished would keep what it locked.
    pub idle: Duration,
}

impl Limits {
    /// The limits for a caller that is itself given up after a time, and hears of a slow statement before.
    pub fn within(time: Duration) -> Self {
        Self { statement: time * 9 / 10, lock: time * 9 / 20, idle: time + Duration::from_secs(5) }
    }

    /// The settings by name, in milliseconds.
    pub fn settings(self) -> [(&'static str, u128); 3] {
        // Zero would be none.
        let millis = |limit: Duration| limit.as_millis().max(1);
        [
            ("statement_timeout", millis(self.statement)),
            ("lock_timeout", millis(self.lock)),
            ("idle_in_transaction_session_timeout", millis(self.idle)),
        ]
    }
}

impl Pool {
    /// Attaches Postgres; connects when the first query asks. `process` names the connections in `pg_stat_activity`, and
    /// `limits` are those of its transactions.
    ///
    /// # Errors
    /// The URL is none of Postgres's, which the config has ruled out.
    pub fn attach(config: &config::Database, process: &str, limits: Limits) -> sqlx::Result<Self> {
        let options = options(config, process)?;
        for unknown in &config.database_url.unknown {
            warn!("DATABASE_URL has the parameter {unknown}, which means nothing here");
        }
        Ok(Self::new(config.database_pool_size.get(), options, Pulse::default(), ACQUIRE_TIMEOUT, PING_TIMEOUT, limits))
    }

    /// A connection for the probes alone: load on the pool must not make a process look ill.
    pub fn for_probes(&self) -> Self {
        Self::new(1, self.connect_options().as_ref().clone(), self.renewed.clone(), ACQUIRE_TIMEOUT / 2, PROBE_TIMEOUT, self.limits)
    }

    /// The same connections, with other limits for transactions.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    fn new(size: u32, options: PgConnectOptions, renewed: Pulse, acquire: Duration, limit: Duration, limits: Limits) -> Self {
        let (before, after, doubted) = (renewed.clone(), renewed.clone(), Pulse::default());
        let (doubt_before, doubt_after) = (doubted.clone(), doubted.clone());
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(acquire)
            // A question at each checkout would double the round trips. One that has rested may be broken, and is asked first.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let (renewed, asked) = (before.clone(), meta.idle_for >= RESTED || doubt_before.age() < DOUBT);
                Box::pin(async move { Ok(meta.age < renewed.age() && (!asked || serves(connection, &renewed, limit).await)) })
            })
            // The pool's own ping has no limit: behind a dead network it would keep the place for a quarter of an hour. Where
            // there is reason to doubt, one with a limit comes first; the probes' connection is always doubted.
            .after_release(move |connection, meta| {
                let (renewed, asked) = (after.clone(), limit == PROBE_TIMEOUT || doubt_after.age() < DOUBT);
                Box::pin(async move { Ok(meta.age < renewed.age() && (!asked || serves(connection, &renewed, limit).await)) })
            });
        Self { connections: pool.connect_lazy_with(options), renewed, doubted, pending: Arc::default(), limits }
    }

    /// Notes that Postgres did not answer.
    pub fn doubt(&self) {
        self.doubted.beat();
    }

    /// Notes an error that tells something of the connections: where it is true of all, all are replaced.
    pub fn note(&self, error: &sqlx::Error) {
        if errors::is_read_only(error) || is_stale(error) {
            self.replace();
        }
    }

    /// Has every connection that there is by now replaced.
    pub fn replace(&self) {
        self.doubted.beat();
        self.renewed.beat();
    }

    /// The answer to a query that comes within a limit, but for one that has to connect first: giving up in the midst of
    /// that, again and again, would never have a connection.
    ///
    /// # Errors
    /// The query's own, or that no answer came.
    pub async fn within<T>(&self, limit: Duration, query: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
        let answer = timeout(limit.max(PING_TIMEOUT), query).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        answer.inspect_err(|error| self.note(error))
    }

    /// Has the connections counted whenever the metrics are read.
    pub fn count(&self, metrics: &Metrics) {
        let pool = self.clone();
        metrics.sample(move |metrics| {
            let (all, idle) = (pool.size() as usize, pool.num_idle());
            metrics.pool("postgres", all.saturating_sub(idle), idle, pool.pending.load(Ordering::Relaxed));
        });
    }

    /// Follows the URL where it stands in a file.
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
        // What is in use is let go when it comes back.
        while let Some(old) = self.try_acquire() {
            old.close().await?;
        }
        Ok(())
    }

    /// Takes a connection for a request.
    ///
    /// # Errors
    /// Postgres is away, or has no connection free.
    pub async fn acquire(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.while_refused(|| self.connections.acquire()).await
    }

    /// Begins a transaction, under the limits of this handle.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.begin_as("BEGIN").await
    }

    /// Begins a transaction that only reads, and sees one state of the data from its beginning to its end.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub async fn snapshot(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.begin_as("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    async fn begin_as(&self, begin: &str) -> sqlx::Result<Transaction<'static, Postgres>> {
        let mut statements = begin.to_owned();
        for (name, millis) in self.limits.settings() {
            // Writing to a string does not fail.
            let _ = write!(statements, "; SET LOCAL {name} = {millis}");
        }
        // One round trip for all.
        self.while_refused(|| self.connections.begin_with(AssertSqlSafe(statements.clone()))).await
    }

    /// Tries again while a password is refused, for as long as a caller waits: the file that holds it may be about to change.
    async fn while_refused<T, F: Future<Output = sqlx::Result<T>>>(&self, take: impl Fn() -> F) -> sqlx::Result<T> {
        let _waiting = Waiting::new(&self.pending);
        let started = Instant::now();
        loop {
            // Boxed, or every request would carry the 4 KB that connecting takes, from its beginning to its end.
            match Box::pin(take()).await {
                // Class 28: refused authorization.
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

/// Whether a connection answers, and takes writes: after a failover the old primary may be reachable still. One that does
/// not is seldom alone, and the others of its age are let go too.
async fn serves(connection: &mut PgConnection, renewed: &Pulse, limit: Duration) -> bool {
    match timeout(limit, is_read_only(connection)).await {
        Ok(Ok(false)) => true,
        Ok(Err(_)) => false,
        Ok(Ok(true)) => {
            renewed.beat();
            false
        }
        Err(_) => {
            // The probes' own is given up too soon to tell of the others.
            if limit > PROBE_TIMEOUT {
                renewed.beat();
            }
            false
        }
    }
}

/// Whether the server takes no writes: it is a standby, or was told so.
///
/// # Errors
/// Postgres does not answer.
pub async fn is_read_only(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // By the simple protocol, which prepares nothing.
    let row = sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection).await?;
    Ok(row.try_get::<&str, _>(0)? == "on")
}

/// How to connect: what the URL says, and nothing from elsewhere.
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
    // What the URL leaves out must not come from `PG*` variables or ~/.pgpass: the config alone decides.
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
