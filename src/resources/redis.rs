//! Redis: the sessions.
//!
//! Requests share a few multiplexed connections. The pool pings at each checkout, so a connection is checked out once
//! and kept until it breaks; a signed-in request then costs one round trip.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, FromRedisValue, Pipeline, RedisError};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;

use crate::config;
use crate::lifecycle::Lifecycle;

/// How long a connect, and how long an answer, may take.
const PATIENCE: Duration = Duration::from_secs(2);

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
}

/// A shared connection, and how many there were before it.
#[derive(Default)]
struct Slot {
    generation: u64,
    connection: Option<deadpool_redis::Connection>,
}

impl Redis {
    /// Attaches Redis; connects when the first command asks.
    /// Errors: The URL is none of Redis's, which the config has ruled out.
    pub fn attach(config: &config::Redis) -> anyhow::Result<Self> {
        let slots = (0..config.redis_pool_size.get()).map(|_| Mutex::default()).collect();
        Ok(Self(Arc::new(Shared { pool: RwLock::new(pool(config)?), slots, turn: AtomicUsize::new(0) })))
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

    /// Runs the commands in one round trip, and once more on a new connection where the old one proved broken:
    /// commands must therefore bear being run twice.
    /// Errors: Redis is away, too slow, or refuses a command.
    pub async fn run<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let slot = &self.0.slots[self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.slots.len()];
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
        let mut slot = slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.generation, MultiplexedConnection::clone(connection)));
        }
        let pool = self.0.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let connection = pool.get().await?;
        let shared = MultiplexedConnection::clone(&connection);
        slot.connection = Some(connection);
        slot.generation += 1;
        Ok((slot.generation, shared))
    }
}

fn pool(config: &config::Redis) -> anyhow::Result<Pool> {
    let patience = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let manager = Manager::new_with_config(config.redis_url.0.expose_secret(), patience)?;
    let pool = Pool::builder(manager)
        .max_size(config.redis_pool_size.get() as usize)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(PATIENCE))
        .create_timeout(Some(PATIENCE))
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
