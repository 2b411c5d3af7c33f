//! A cache in Redis that all processes share. One of them makes a value, while the others use the old one or wait a
//! little.
//!
//! Redis alone decides who makes a value and how long it lives, so the clocks of the processes do not matter. A caller
//! always gets a value: if Redis is unavailable, slow or full, it makes its own.

use std::pin::pin;
use std::time::Duration;

use deadpool_redis::redis::{FromRedisValue, pipe};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;
use uuid::Uuid;

use super::redis::Redis;
use crate::release::COMMIT;
use crate::telemetry::metrics::{Labels, Metrics};

/// How long a maker keeps the others from making the same value. It renews the lease while it works, so this is how long
/// a killed maker delays them.
const LEASE: Duration = Duration::from_secs(1);

/// How long a caller waits for the value of another process before it makes its own. The lease of a killed maker ends
/// before that.
const WAIT_LIMIT: Duration = Duration::from_secs(2);

/// How often a waiting caller looks for the value.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a command may take, including a new connection. A healthy Redis needs a millisecond.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);

/// The largest value that is stored. Redis needs its memory for the sessions.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// How many values a process makes at a time. The pool to Postgres may have only four connections, and other requests
/// need some.
const MAX_MAKERS: usize = 2;

/// Returns the value if there is one, whether it is fresh, and whether the caller shall make the next one. A value stays
/// for a lifetime after it was fresh.
const LOOK: &str = "
    local value = redis.call('GET', KEYS[1])
    if value and redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) then return { value, 1, 0 } end
    local leased = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[3]) or redis.call('GET', KEYS[2]) == ARGV[1]
    return { value, 0, leased and 1 or 0 }";

const RENEW: &str = "if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end";

/// Stores the value, unless it is empty, and ends the lease. A maker that has lost its lease stores nothing.
const STORE: &str = "
    if redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
    if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
    redis.call('DEL', KEYS[2])";

/// The cache, as one process uses it.
pub struct Cache {
    redis: Redis,
    makers: Semaphore,
    requests: Family<Labels<1>, Counter>,
    random: fn() -> Uuid,
}

impl Cache {
    pub fn new(redis: Redis, random: fn() -> Uuid) -> Self {
        Self { redis, makers: Semaphore::new(MAX_MAKERS), requests: Family::default(), random }
    }

    /// Shows in the metrics what became of the requests.
    pub fn count(&self, metrics: &Metrics) {
        metrics.cache(self.requests.clone());
    }

    /// Returns the cached value, or makes and stores one. A value is fresh for `ttl`, less up to a fifth of it at random,
    /// so that values that were made together do not all end together. It is kept for `ttl` more, for callers that come
    /// while the next one is made.
    ///
    /// The number of keys must be bounded, because Redis evicts nothing. `make` must not use the cache itself: it holds
    /// one of the `MAX_MAKERS` places.
    ///
    /// # Errors
    /// Only those of `make`, which are not cached.
    pub async fn get_or<T, E, F>(&self, key: &str, ttl: Duration, make: impl FnOnce() -> F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        let (key, token, started) = (Key::new(key), (self.random)().to_string(), Instant::now());
        let mut waited = false;
        while let Ok((value, fresh, leased)) = self.look(&key, &token, ttl).await {
            if leased {
                return self.make_for_all(&key, &token, ttl, make()).await;
            }
            // Other code of the same commit may have stored something else.
            match value.and_then(|text| serde_json::from_str(&text).ok()) {
                Some(value) => {
                    self.requests(if !fresh {
                        "stale"
                    } else if waited {
                        "waited"
                    } else {
                        "hit"
                    });
                    return Ok(value);
                }
                None if !fresh && started.elapsed() < WAIT_LIMIT => sleep(LOOK_INTERVAL).await,
                None => break,
            }
            waited = true;
        }
        let made = self.make(make()).await;
        self.requests(if made.is_ok() { "alone" } else { "failed" });
        made
    }

    /// Drops a value of this release, so that the next caller makes it anew. Returns whether there was one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn drop(&self, key: &str) -> anyhow::Result<bool> {
        let mut commands = pipe();
        commands.del(Key::new(key).value);
        let (dropped,): (i64,) = self.redis.run(&commands).await?;
        Ok(dropped == 1)
    }

    /// Makes a value under the lease and stores it.
    async fn make_for_all<T: Serialize, E>(
        &self,
        key: &Key,
        token: &str,
        ttl: Duration,
        making: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut making = pin!(self.make(making));
        let made = loop {
            let renew = async {
                sleep(LEASE / 3).await;
                // A lease that is lost costs at most a second value.
                let _ = self.run::<()>(RENEW, key, &[token, &millis(LEASE)]).await;
            };
            tokio::select! {
                made = &mut making => break made,
                () = renew => {}
            }
        };
        let text = made.as_ref().ok().and_then(|value| serde_json::to_string(value).ok());
        let text = text.filter(|text| text.len() <= MAX_VALUE_BYTES);
        self.requests(if made.is_err() {
            "failed"
        } else if text.is_none() {
            "too_large"
        } else {
            "made"
        });
        let share = f64::from((self.random)().as_fields().0) / f64::from(u32::MAX);
        // Fresh for a lifetime of at most `ttl`, and kept for `ttl` more.
        let kept = ttl.mul_f64(2.0 - share / 5.0);
        let _ = self.run::<()>(STORE, key, &[token, &text.unwrap_or_default(), &millis(kept)]).await;
        made
    }

    async fn make<M>(&self, making: impl Future<Output = M>) -> M {
        // The semaphore is never closed.
        let _permit = self.makers.acquire().await;
        making.await
    }

    async fn look(&self, key: &Key, token: &str, ttl: Duration) -> anyhow::Result<(Option<String>, bool, bool)> {
        self.run(LOOK, key, &[token, &millis(ttl), &millis(LEASE)]).await
    }

    /// Runs a script. Running it twice changes nothing.
    async fn run<T: FromRedisValue>(&self, script: &str, key: &Key, arguments: &[&str]) -> anyhow::Result<T> {
        let mut commands = pipe();
        commands.cmd("EVAL").arg(script).arg(2).arg(&key.value).arg(&key.lease).arg(arguments);
        // The time limit is not the connection's, so a slow answer does not end a connection that sessions use.
        let answer = timeout(COMMAND_TIMEOUT, self.redis.run::<(T,)>(&commands)).await.map_err(anyhow::Error::from);
        let answer = answer.and_then(|answer| Ok(answer?.0));
        answer.inspect_err(|e| debug!(error = format!("{e:#}"), "the cache does without Redis: {e:#}"))
    }

    fn requests(&self, outcome: &str) {
        self.requests.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }
}

/// The keys of a value in Redis. They name the commit, so that no release reads the values of another.
struct Key {
    value: String,
    lease: String,
}

impl Key {
    fn new(key: &str) -> Self {
        let value = format!("cache:{COMMIT}:{key}");
        Self { lease: format!("{value}:lease"), value }
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
