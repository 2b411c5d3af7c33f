//! Redis stores sessions, rate limits and cached values.
//!
//! Requests share a few multiplexed connections. The pool pings at each checkout, so this module checks a connection
//! out once and keeps it until it fails. A signed-in request then costs one round trip.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deadpool_redis::redis::aio::{MultiplexedConnection, PubSub};
use deadpool_redis::redis::{AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, Pipeline, RedisError, pipe};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::instrument;

use super::PendingCaller;
use crate::config;
use crate::lifecycle::{Heartbeat, Lifecycle};
use crate::telemetry::metrics::Metrics;

/// How long a response to a command may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take. It leaves the caller time for a second attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long no caller tries again after an attempt to connect timed out. If the network drops packets, the callers would
/// otherwise take turns of a second each, and all of their requests would time out.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// How long a response to a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Error codes of a server that cannot run the command now or is not the right one. A retry or another server can help.
const RETRYABLE_CODES: [&str; 12] = [
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

/// Error codes of a server that is not the primary, or no longer. Every connection to it must be replaced.
const NOT_PRIMARY_CODES: [&str; 2] = ["MASTERDOWN", "READONLY"];

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection to Redis: {0}")]
    Connect(#[from] PoolError),
    #[error("Redis: {0}")]
    Command(#[from] RedisError),
}

impl Error {
    /// Whether Redis is unavailable, so that a retry can help. Otherwise the command itself is wrong.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Command(error) => is_broken(error) || has_code(error, &RETRYABLE_CODES),
        }
    }
}

/// A handle on Redis. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    pool: RwLock<Pool>,
    /// Makes connections that are not of the pool.
    client: RwLock<Client>,
    slots: Vec<Mutex<Slot>>,
    turn: AtomicUsize,
    /// Incremented when a connection fails. Connections of an earlier generation are replaced at their next use.
    generation: AtomicU64,
    /// Beats at each new connection.
    connected: Heartbeat,
    /// Callers that wait for a connection.
    pending: Arc<AtomicUsize>,
}

/// Holds one shared connection.
#[derive(Default)]
struct Slot {
    connection: Option<(u64, deadpool_redis::Connection)>,
    /// When an attempt to connect last timed out.
    timed_out: Option<Instant>,
}

impl Redis {
    /// Attaches Redis. It connects at the first command.
    ///
    /// # Errors
    /// The URL is not a Redis URL, which the config rules out.
    pub fn attach(config: &config::Redis) -> anyhow::Result<Self> {
        let slots = (0..config.redis_pool_size.get()).map(|_| Mutex::default()).collect();
        let (turn, generation, connected, pending) = (AtomicUsize::new(0), AtomicU64::new(0), Heartbeat::default(), Arc::default());
        let client = client(config)?;
        let (pool, client) = (RwLock::new(pool(&client, config)?), RwLock::new(client));
        Ok(Self(Arc::new(Shared { pool, client, slots, turn, generation, connected, pending })))
    }

    /// Counts the connections whenever the metrics are read. Requests share them, so every open connection counts as
    /// used.
    pub fn count(&self, metrics: &Metrics) {
        let redis = self.clone();
        metrics.sample(move |metrics| {
            let status = redis.0.pool.read().unwrap_or_else(PoisonError::into_inner).status();
            metrics.pool("redis", status.size - status.available, status.available, redis.0.pending.load(Ordering::Relaxed));
        });
    }

    /// Follows changes of the URL if it is in a file.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Redis) {
        let redis = self.clone();
        super::follow(lifecycle, "REDIS_URL", config, |config| vec![&config.redis_url.0], move |config| redis.clone().renew(config));
    }

    async fn renew(self, config: config::Redis) -> anyhow::Result<()> {
        let client = client(&config)?;
        let pool = pool(&client, &config)?;
        drop(pool.get().await?);
        *self.0.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        *self.0.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
        // A request that uses an old connection keeps its own handle until its response has arrived.
        self.0.generation.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Checks that Redis accepts a write and runs a script, which is what the service needs.
    ///
    /// # Errors
    /// Redis fails to do so in time.
    pub async fn check(&self) -> Result<(), Error> {
        let mut commands = pipe();
        commands.cmd("SET").arg("limit:probe").arg(1).arg("PX").arg(1000).ignore();
        commands.cmd("EVAL").arg("return redis.call('GET', KEYS[1])").arg(1).arg("limit:probe").ignore();
        self.run_within::<()>(&commands, PROBE_TIMEOUT).await
    }

    /// Runs the commands in one round trip. If the connection fails or leads to a server that is not the primary, it
    /// runs them once more on a new connection. So the commands must be safe to run twice.
    ///
    /// # Errors
    /// Redis is unavailable or too slow, or refuses a command.
    #[instrument(name = "redis", level = "debug", skip_all, fields(otel.kind = "client"))]
    pub async fn run<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        self.run_within(commands, RESPONSE_TIMEOUT).await
    }

    /// Subscribes to channels, on a connection of the caller's own.
    ///
    /// # Errors
    /// Redis is unavailable or too slow.
    pub async fn subscribe(&self, channels: &[&str]) -> Result<PubSub, Error> {
        let client = self.0.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let subscribed = timeout(RESPONSE_TIMEOUT, async {
            let mut connection = client.get_async_pubsub().await?;
            connection.subscribe(channels).await?;
            Ok::<_, RedisError>(connection)
        });
        Ok(subscribed.await.unwrap_or_else(|_| Err((ErrorKind::Io, "no response in time").into()))?)
    }

    async fn run_within<T: FromRedisValue>(&self, commands: &Pipeline, limit: Duration) -> Result<T, Error> {
        let slot = &self.0.slots[self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.slots.len()];
        let mut retried = false;
        loop {
            let (generation, mut connection) = self.connect(slot).await?;
            let answer = timeout(limit, commands.query_async(&mut connection)).await;
            let answer = answer.unwrap_or_else(|_| Err((ErrorKind::Io, "no response in time").into()));
            match answer {
                Err(e) if is_broken(&e) || has_code(&e, &NOT_PRIMARY_CODES) => {
                    // A fault of one connection mostly affects all connections to that server. The first caller to
                    // notice replaces them.
                    let _ = self.0.generation.compare_exchange(generation, generation + 1, Ordering::Relaxed, Ordering::Relaxed);
                    if std::mem::replace(&mut retried, true) {
                        return Err(e.into());
                    }
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// The slot's connection. It connects anew if the old connection is of an earlier generation.
    async fn connect(&self, slot: &Mutex<Slot>) -> Result<(u64, MultiplexedConnection), Error> {
        let _waiting = PendingCaller::new(&self.0.pending);
        let mut slot = slot.lock().await;
        let generation = self.0.generation.load(Ordering::Relaxed);
        if let Some((_, connection)) = slot.connection.as_ref().filter(|(made, _)| *made == generation) {
            return Ok((generation, MultiplexedConnection::clone(connection)));
        }
        // Removes it from the pool too, which would hand it out again.
        slot.connection.take().map(|(_, old)| deadpool_redis::Connection::take(old));
        // If another slot has connected since, the time-out says nothing about the server now.
        let outdated = |at: Instant| self.0.connected.age() < at.elapsed();
        if slot.timed_out.is_some_and(|at| at.elapsed() < CONNECT_PAUSE && !outdated(at)) {
            return Err(RedisError::from((ErrorKind::Io, "an attempt to connect timed out a moment ago")).into());
        }
        let started = Instant::now();
        // Boxed, because otherwise every request's future would include the 7 KB of connecting.
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
                // The password's file may be about to change.
                Err(PoolError::Backend(e)) if e.kind() == ErrorKind::AuthenticationFailed && started.elapsed() < RESPONSE_TIMEOUT => {
                    sleep(Duration::from_millis(100)).await;
                }
                taken => return Ok(taken?),
            }
        }
    }
}

fn client(config: &config::Redis) -> anyhow::Result<Client> {
    Ok(Client::open(config.redis_url.0.expose_secret())?)
}

fn pool(client: &Client, config: &config::Redis) -> anyhow::Result<Pool> {
    let limits = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(Some(RESPONSE_TIMEOUT));
    let manager = Manager::new_with_config(client.get_connection_info().clone(), limits)?;
    let pool = Pool::builder(manager)
        .max_size(config.redis_pool_size.get() as usize)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(RESPONSE_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(RESPONSE_TIMEOUT));
    Ok(pool.build()?)
}

/// Whether the connection is at fault, rather than the command. A late response counts, because a dead peer makes all
/// of them late.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error() || error.is_connection_dropped() || error.is_timeout() || error.is_unrecoverable_error()
}

/// Whether the server answered any command of the pipeline with one of these codes.
fn has_code(error: &RedisError, codes: &[&str]) -> bool {
    let errors = error.clone().into_server_errors();
    errors.iter().flat_map(|errors| errors.iter()).any(|(_, error)| codes.contains(&error.code()))
}
