//! Redis: sessions and limits.
//!
//! Requests share a few multiplexed connections. The pool pings at each checkout, so a connection is checked out once and
//! kept until it fails. A signed-in request then costs one round trip.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, ErrorKind, FromRedisValue, Pipeline, RedisError, pipe};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::instrument;

use super::Waiting;
use crate::config;
use crate::lifecycle::{Lifecycle, Pulse};
use crate::telemetry::metrics::Metrics;

/// How long a response may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connect may take. It leaves its caller the time for a second one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long after a connect that timed out nobody tries again. Behind a network that drops packets, callers that took
/// turns of a second each would all wait until their request's time is over.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// How long a probe's response may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// The server is there and does what it is asked, but not here or not now: another peer or a later try can help.
const NOT_NOW: [&str; 12] = [
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGPASS",
];

/// The peer is not, or no longer, the primary: every connection to it must go.
const WRONG_PEER: [&str; 2] = ["MASTERDOWN", "READONLY"];

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection to Redis: {0}")]
    Connect(#[from] PoolError),
    #[error("Redis: {0}")]
    Command(#[from] RedisError),
}

impl Error {
    /// Whether Redis is unavailable, so that a later try can help. Else the command itself is wrong.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Command(error) => is_broken(error) || has_code(error, &NOT_NOW),
        }
    }
}

/// A handle on Redis, cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    pool: RwLock<Pool>,
    slots: Vec<Mutex<Slot>>,
    turn: AtomicUsize,
    /// Raised when a connection fails: those from before are replaced at their next use.
    generation: AtomicU64,
    /// Beats with each connection that came about.
    connected: Pulse,
    /// Callers that wait for a connection.
    pending: Arc<AtomicUsize>,
}

/// The place of a shared connection.
#[derive(Default)]
struct Slot {
    connection: Option<(u64, deadpool_redis::Connection)>,
    /// When connecting last timed out.
    timed_out: Option<Instant>,
}

impl Redis {
    /// Attaches Redis, which connects at the first command.
    ///
    /// # Errors
    /// The URL is not one of Redis, which the config has ruled out.
    pub fn attach(config: &config::Redis) -> anyhow::Result<Self> {
        let slots = (0..config.redis_pool_size.get()).map(|_| Mutex::default()).collect();
        let (turn, generation, connected, pending) = (AtomicUsize::new(0), AtomicU64::new(0), Pulse::default(), Arc::default());
        Ok(Self(Arc::new(Shared { pool: RwLock::new(pool(config)?), slots, turn, generation, connected, pending })))
    }

    /// Has the connections counted whenever the metrics are read. Requests share them, so one that is there is used.
    pub fn count(&self, metrics: &Metrics) {
        let redis = self.clone();
        metrics.sample(move |metrics| {
            let status = redis.0.pool.read().unwrap_or_else(PoisonError::into_inner).status();
            metrics.pool("redis", status.size - status.available, status.available, redis.0.pending.load(Ordering::Relaxed));
        });
    }

    /// Follows the URL where it stands in a file.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Redis) {
        let redis = self.clone();
        super::follow(lifecycle, "REDIS_URL", config, |config| vec![&config.redis_url.0], move |config| redis.clone().renew(config));
    }

    async fn renew(self, config: config::Redis) -> anyhow::Result<()> {
        let pool = pool(&config)?;
        drop(pool.get().await?);
        *self.0.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
        // A request that uses an old connection has a handle of its own until its response is there.
        self.0.generation.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tests what the service needs of Redis: that it takes a write and runs a script.
    ///
    /// # Errors
    /// It does not, or not in time.
    pub async fn check(&self) -> Result<(), Error> {
        let mut commands = pipe();
        commands.cmd("SET").arg("limit:probe").arg(1).arg("PX").arg(1000).ignore();
        commands.cmd("EVAL").arg("return redis.call('GET', KEYS[1])").arg(1).arg("limit:probe").ignore();
        self.run_within::<()>(&commands, PROBE_TIMEOUT).await
    }

    /// Runs the commands in one round trip, and once more on a new connection where the old one failed or was to a server
    /// that is not the primary. So commands must bear being run twice.
    ///
    /// # Errors
    /// Redis is unavailable, too slow, or refuses a command.
    #[instrument(name = "redis", level = "debug", skip_all, fields(otel.kind = "client"))]
    pub async fn run<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        self.run_within(commands, RESPONSE_TIMEOUT).await
    }

    async fn run_within<T: FromRedisValue>(&self, commands: &Pipeline, limit: Duration) -> Result<T, Error> {
        let slot = &self.0.slots[self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.slots.len()];
        let mut retried = false;
        loop {
            let (generation, mut connection) = self.connect(slot).await?;
            let answer = timeout(limit, commands.query_async(&mut connection)).await;
            let answer = answer.unwrap_or_else(|_| Err((ErrorKind::Io, "no response in time").into()));
            match answer {
                Err(e) if is_broken(&e) || has_code(&e, &WRONG_PEER) => {
                    // What breaks one connection mostly breaks all to that server. The first to notice replaces them.
                    let _ = self.0.generation.compare_exchange(generation, generation + 1, Ordering::Relaxed, Ordering::Relaxed);
                    if std::mem::replace(&mut retried, true) {
                        return Err(e.into());
                    }
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// The slot's connection, a new one where the old one is of an earlier generation.
    async fn connect(&self, slot: &Mutex<Slot>) -> Result<(u64, MultiplexedConnection), Error> {
        let _waiting = Waiting::new(&self.0.pending);
        let mut slot = slot.lock().await;
        let generation = self.0.generation.load(Ordering::Relaxed);
        if let Some((_, connection)) = slot.connection.as_ref().filter(|(made, _)| *made == generation) {
            return Ok((generation, MultiplexedConnection::clone(connection)));
        }
        // Out of the pool too, where it would be handed out again.
        slot.connection.take().map(|(_, old)| deadpool_redis::Connection::take(old));
        // Another slot has connected since: what was true a moment ago no longer is.
        let outdated = |at: Instant| self.0.connected.age() < at.elapsed();
        if slot.timed_out.is_some_and(|at| at.elapsed() < CONNECT_PAUSE && !outdated(at)) {
            return Err(RedisError::from((ErrorKind::Io, "no connection a moment ago")).into());
        }
        let started = Instant::now();
        // Boxed, or every request would carry the 7 KB that connecting takes.
        let mut taken = Box::pin(self.take()).await;
        if taken.is_err() && outdated(started) {
            taken = Box::pin(self.take()).await;
        }
        slot.timed_out = (taken.is_err() && started.elapsed() >= CONNECT_TIMEOUT / 2).then(Instant::now);
        let connection = taken?;
        self.0.connected.beat();
        let shared = MultiplexedConnection::clone(&connection);
        slot.connection = Some((generation, connection));
        Ok((generation, shared))
    }

    async fn take(&self) -> Result<deadpool_redis::Connection, Error> {
        let started = Instant::now();
        loop {
            let pool = self.0.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
            match pool.get().await {
                // The file that holds the password may be about to change.
                Err(PoolError::Backend(e)) if e.kind() == ErrorKind::AuthenticationFailed && started.elapsed() < RESPONSE_TIMEOUT => {
                    sleep(Duration::from_millis(100)).await;
                }
                taken => return Ok(taken?),
            }
        }
    }
}

fn pool(config: &config::Redis) -> anyhow::Result<Pool> {
    let limits = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(Some(RESPONSE_TIMEOUT));
    let manager = Manager::new_with_config(config.redis_url.0.expose_secret(), limits)?;
    let pool = Pool::builder(manager)
        .max_size(config.redis_pool_size.get() as usize)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(RESPONSE_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(RESPONSE_TIMEOUT));
    Ok(pool.build()?)
}

/// Whether the connection, rather than the command, is at fault. A late response counts: behind a dead peer all are late.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error() || error.is_connection_dropped() || error.is_timeout() || error.is_unrecoverable_error()
}

/// Whether the server answered with one of these codes, to any command of a pipeline.
fn has_code(error: &RedisError, codes: &[&str]) -> bool {
    let errors = error.clone().into_server_errors();
    errors.iter().flat_map(|errors| errors.iter()).any(|(_, error)| codes.contains(&error.code()))
}
