//! Redis: the sessions.
//!
//! Requests share a few multiplexed connections. The pool pings at each checkout, so a connection is checked out once
//! and kept until it breaks; a signed-in request then costs one round trip.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, ErrorKind, FromRedisValue, Pipeline, RedisError, cmd};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::instrument;

use super::Waiting;
use crate::config;
use crate::lifecycle::Lifecycle;
use crate::telemetry::metrics::Metrics;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connect may take: who waits for it is to have the time for another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long nobody tries again after that.
const IN_VAIN: Duration = Duration::from_millis(500);

/// How long a connection may take to show that it is still one.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Why Redis gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection to Redis: {0}")]
    Connect(#[from] PoolError),
    #[error("Redis: {0}")]
    Command(#[from] RedisError),
}

/// A handle on Redis, cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    pool: RwLock<Pool>,
    slots: Vec<Mutex<Slot>>,
    turn: AtomicUsize,
    /// Callers who wait for a connection.
    pending: Arc<AtomicUsize>,
}

/// A shared connection, and how many there were before it.
#[derive(Default)]
struct Slot {
    generation: u64,
    /// When connecting last took its whole time for nothing.
    in_vain: Option<Instant>,
    connection: Option<deadpool_redis::Connection>,
}

impl Redis {
    /// Attaches Redis; connects when the first command asks.
    ///
    /// # Errors
    /// The URL is none of Redis's, which the config has ruled out.
    pub fn attach(config: &config::Redis) -> anyhow::Result<Self> {
        let slots = (0..config.redis_pool_size.get()).map(|_| Mutex::default()).collect();
        Ok(Self(Arc::new(Shared { pool: RwLock::new(pool(config)?), slots, turn: AtomicUsize::new(0), pending: Arc::default() })))
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
        super::follow(lifecycle, "REDIS_URL", config, |config| &config.redis_url.0, move |config| redis.clone().renew(config));
    }

    async fn renew(self, config: config::Redis) -> anyhow::Result<()> {
        let pool = pool(&config)?;
        drop(pool.get().await?);
        *self.0.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
        for slot in &self.0.slots {
            // Who uses the old one has a handle of its own, until its answer is there.
            slot.lock().await.connection = None;
        }
        Ok(())
    }

    /// Whether Redis answers. A connection on which it does not is seldom alone, so all are made anew then.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&self) -> Result<(), Error> {
        let slot = self.next();
        let (generation, mut connection) = self.connect(slot).await?;
        let ping = cmd("PING");
        let Ok(answer) = timeout(PING_TIMEOUT, ping.query_async::<()>(&mut connection)).await else {
            // Who holds a lock is connecting anew already.
            for mut slot in self.0.slots.iter().filter_map(|slot| slot.try_lock().ok()) {
                slot.connection.take().map(deadpool_redis::Connection::take);
            }
            return Err(RedisError::from((ErrorKind::Io, "no answer in time")).into());
        };
        if answer.as_ref().is_err_and(is_broken) {
            discard(slot, generation).await;
        }
        Ok(answer?)
    }

    /// Requests take turns.
    fn next(&self) -> &Mutex<Slot> {
        &self.0.slots[self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.slots.len()]
    }

    /// Runs the commands in one round trip, and once more on a new connection where the old one proved broken:
    /// commands must therefore bear being run twice.
    ///
    /// # Errors
    /// Redis is away, too slow, or refuses a command.
    #[instrument(name = "redis", level = "debug", skip_all, fields(otel.kind = "client"))]
    pub async fn run<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let slot = self.next();
        let mut retried = false;
        loop {
            let (generation, mut connection) = self.connect(slot).await?;
            match commands.query_async(&mut connection).await {
                Err(e) if is_broken(&e) => {
                    discard(slot, generation).await;
                    if retried {
                        return Err(e.into());
                    }
                    retried = true;
                }
                result => return Ok(result?),
            }
        }
    }

    async fn connect(&self, slot: &Mutex<Slot>) -> Result<(u64, MultiplexedConnection), Error> {
        let _waiting = Waiting::new(&self.0.pending);
        let mut slot = slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.generation, MultiplexedConnection::clone(connection)));
        }
        // Who waited while another tried has waited enough: behind a network that says nothing, turns of a second each would
        // keep all but the first few until their time is over.
        if slot.in_vain.is_some_and(|at| at.elapsed() < IN_VAIN) {
            return Err(RedisError::from((ErrorKind::Io, "no connection a moment ago")).into());
        }
        let started = Instant::now();
        // Boxed, or every request would carry the 7 KB that connecting takes.
        let taken = Box::pin(self.take()).await;
        slot.in_vain = (taken.is_err() && started.elapsed() >= CONNECT_TIMEOUT / 2).then(Instant::now);
        let connection = taken?;
        let shared = MultiplexedConnection::clone(&connection);
        slot.connection = Some(connection);
        slot.generation += 1;
        Ok((slot.generation, shared))
    }

    async fn take(&self) -> Result<deadpool_redis::Connection, Error> {
        let started = Instant::now();
        loop {
            let pool = self.0.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
            match pool.get().await {
                // The file that holds the password may be about to change.
                Err(PoolError::Backend(e)) if e.kind() == ErrorKind::AuthenticationFailed && started.elapsed() < PATIENCE => {
                    sleep(Duration::from_millis(100)).await;
                }
                taken => return Ok(taken?),
            }
        }
    }
}

fn pool(config: &config::Redis) -> anyhow::Result<Pool> {
    let patience = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(Some(PATIENCE));
    let manager = Manager::new_with_config(config.redis_url.0.expose_secret(), patience)?;
    let pool = Pool::builder(manager)
        .max_size(config.redis_pool_size.get() as usize)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(PATIENCE))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .recycle_timeout(Some(PATIENCE));
    Ok(pool.build()?)
}

/// Takes a broken connection out of its slot and of the pool, unless somebody else has replaced it already.
async fn discard(slot: &Mutex<Slot>, generation: u64) {
    let mut slot = slot.lock().await;
    if slot.generation == generation
        && let Some(broken) = slot.connection.take()
    {
        drop(deadpool_redis::Connection::take(broken));
    }
}

/// Whether the connection, rather than the command, is at fault. A late answer counts: behind a dead peer all are late.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error() || error.is_connection_dropped() || error.is_timeout() || error.is_unrecoverable_error()
}
