//! Rate limits, counted in Redis so that they apply across all processes (factor VI).
//!
//! A full bucket allows a minute's worth of requests at once and then refills steadily. The algorithm is GCRA: it
//! stores one number for each bucket, and has no window whose edge lets twice as many requests through.

use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue};
use deadpool_redis::redis::{Pipeline, pipe};

use super::problem::{Problem, Result};

/// The stored number is the time, in microseconds, at which the bucket is full again. If that is in more than a minute, the
/// server's clock was set back, and the bucket counts as full.
const COUNT: &str = "
    local time, minute, key = redis.call('TIME'), 60000000, $key
    local now, share = time[1] * 1000000 + time[2], minute / $a_minute
    local full = tonumber(redis.call('GET', key) or now)
    if full < now or full > now + minute + 1 then full = now end
    local wait = full + share - minute - now
    if wait > 1 then return { 0, 0, math.ceil(wait / 1000), math.ceil((full - now) / 1000) } end
    full = full + share
    redis.call('SET', key, string.format('%.0f', full), 'PX', math.max(math.ceil((full - now) / 1000), 1))
    return { 1, math.floor((minute - (full - now)) / share + 0.001), 0, math.ceil((full - now) / 1000) }";

/// The script's result: whether the request may pass, how many more may pass now, and the milliseconds until the next
/// one may and until the bucket is full.
pub type Answer = (bool, u32, u64, u64);

/// A Lua script, or the body of a Lua function, that counts a request. `key` and `a_minute` are Lua expressions.
pub fn count(key: &str, a_minute: &str) -> String {
    COUNT.replace("$key", key).replace("$a_minute", a_minute)
}

/// The command that counts a request and returns an [`Answer`]. It sends the whole script, unlike `redis::Script`: a server that
/// has just taken over does not know scripts by their hashes, and the request would need a second round trip.
pub fn ask(bucket: &str, a_minute: u32) -> Pipeline {
    static SCRIPT: LazyLock<String> = LazyLock::new(|| count("KEYS[1]", "ARGV[1]"));
    let mut commands = pipe();
    commands.cmd("EVAL").arg(&*SCRIPT).arg(1).arg(format!("limit:{bucket}")).arg(a_minute);
    commands
}

/// The state of a bucket after a request.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    a_minute: u32,
    left: u32,
    full_s: u64,
}

impl Budget {
    /// # Errors
    /// 429: the bucket is empty.
    pub fn of((passes, left, retry_ms, full_ms): Answer, a_minute: u32) -> Result<Self> {
        let budget = Self { a_minute, left, full_s: full_ms.div_ceil(1000) };
        if passes {
            return Ok(budget);
        }
        let wait = retry_ms.div_ceil(1000);
        let detail = format!("Too many requests: the limit is {a_minute} a minute. Retry in {wait} s.");
        let mut problem = Problem::too_many(detail, wait);
        problem.headers.extend(budget.headers());
        Err(problem)
    }

    /// The headers of draft-ietf-httpapi-ratelimit-headers-10: the requests left, and the seconds until the bucket is
    /// full.
    pub fn headers(self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let texts = [
            (HeaderName::from_static("ratelimit-policy"), format!("\"minute\";q={};w=60", self.a_minute)),
            (HeaderName::from_static("ratelimit"), format!("\"minute\";r={};t={}", self.left, self.full_s)),
        ];
        // Digits and punctuation are always valid in a header.
        texts.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?)))
    }
}
