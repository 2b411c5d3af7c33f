//! Sessions live in Redis (factor VI), because any process may serve the next request.
//!
//! A cookie holds 256 random bits. Redis stores only their hash, so that reading Redis reveals no session.
//! `session:{hash}` is the session. `sessions:{account}` is the set of an account's hashes, sorted by the time of their
//! log-in.

use std::sync::LazyLock;
use std::time::Duration;

use axum::Extension;
use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use deadpool_redis::redis::pipe;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cookie::Cookie;
use super::rules::Role;
use super::secret;
use crate::config::{self, PublicUrl};
use crate::http::{Problem, limits};
use crate::resources::redis::{self, Redis};

/// A session as Redis stores it. The guard adds it to a request if the rule requires a session.
#[derive(Debug, Clone, Serialize, Deserialize, FromRequestParts)]
#[from_request(via(Extension))]
pub struct Session {
    pub account_id: Uuid,
    /// The account's epoch at log-in. If the account's epoch is higher now, the session has ended.
    pub epoch: i32,
    /// Only version 0.1.0 reads it. This version reads the role from Postgres.
    pub role: Role,
    pub created_at: Timestamp,
    /// When the password was last entered. None in sessions of version 0.1.0.
    #[serde(default)]
    pub confirmed_at: Option<Timestamp>,
    /// The `User-Agent` of the program that logged in.
    pub user_agent: Option<String>,
    /// The last part of the Redis key.
    #[serde(skip)]
    pub hash: String,
}

/// A new session's id. Only the cookie may contain it.
pub struct SessionId(String);

/// The script that finds a session, renews its TTL and counts the request, in the named bucket or in the account's.
static FIND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "local data = redis.call('GETEX', KEYS[1], 'PX', ARGV[2])
         if not data then return false end
         local bucket = ARGV[3] ~= '' and ARGV[3] or 'account:' .. cjson.decode(data).account_id
         local function count() {} end
         return {{ data, count() }}",
        limits::count("'limit:' .. bucket", "ARGV[1]")
    )
});

/// How many sessions an account may have. Without a limit, one account could fill the store.
const MAX_SESSIONS: isize = 100;

/// The store of sessions.
#[derive(Clone)]
pub struct Sessions {
    pub redis: Redis,
    ttl: Duration,
    max_age: Duration,
    cookie: Cookie,
    now: fn() -> Timestamp,
}

impl Sessions {
    pub fn new(redis: Redis, config: &config::Http, site: &PublicUrl, now: fn() -> Timestamp) -> Self {
        let cookie = Cookie::new(site, "__Host-id", "id");
        Self { redis, ttl: config.session_ttl.0, max_age: config.session_max_age.0, cookie, now }
    }

    /// Starts a session, sets its `hash` and returns its id for [`Self::cookie`]. If the account has too many sessions,
    /// the oldest end.
    ///
    /// # Errors
    /// Redis is unavailable, or the system has no randomness.
    pub async fn start(&self, session: Session) -> Result<(SessionId, Session), Problem> {
        let id = secret::mint().map_err(Problem::internal)?;
        let session = Session { hash: hash(&id), ..session };
        let data = serde_json::to_string(&session).map_err(Problem::internal)?;
        let set = set_key(session.account_id);
        let mut commands = pipe();
        commands.cmd("SET").arg(key(&session.hash)).arg(data).arg("PX").arg(millis(self.ttl.min(self.max_age))).ignore();
        let born = session.created_at.as_millisecond();
        commands.zadd(&set, &session.hash, born).ignore();
        // Removes sessions that have exceeded their maximum age from the set.
        commands.cmd("ZREMRANGEBYSCORE").arg(&set).arg("-inf").arg(born.saturating_sub_unsigned(millis(self.max_age))).ignore();
        commands.cmd("PEXPIRE").arg(&set).arg(millis(self.max_age)).ignore();
        commands.zrange(&set, 0, -MAX_SESSIONS - 1);
        let (beyond,): (Vec<String>,) = self.redis.run(commands.atomic()).await?;
        if !beyond.is_empty() {
            self.thin_out(session.account_id).await?;
        }
        Ok((SessionId(id), session))
    }

    /// Removes expired sessions from an account's set and ends the oldest ones if there are still too many.
    async fn thin_out(&self, account_id: Uuid) -> Result<(), redis::Error> {
        let hashes = members(&self.redis, account_id).await?;
        let live = self.are_stored(&hashes).await?;
        let mut beyond = live.iter().filter(|live| **live).count().saturating_sub(MAX_SESSIONS.unsigned_abs());
        let mut commands = pipe();
        for (hash, live) in hashes.iter().zip(live) {
            if !live || beyond > 0 {
                beyond -= usize::from(live);
                commands.del(key(hash)).ignore().zrem(set_key(account_id), hash).ignore();
            }
        }
        self.redis.run(commands.atomic()).await
    }

    /// Finds a session, renews its TTL and counts the request, all in one round trip. The request counts in `bucket`,
    /// or in the account's own bucket, which allows `a_minute`. None if there is no such session or it is too old.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn find(
        &self,
        id: &str,
        bucket: Option<(String, u32)>,
        a_minute: u32,
    ) -> Result<Option<(Session, limits::Answer, u32)>, redis::Error> {
        let hash = hash(id);
        let (bucket, a_minute) = bucket.unwrap_or_else(|| (String::new(), a_minute));
        let mut commands = pipe();
        commands.cmd("EVAL").arg(&*FIND).arg(1).arg(key(&hash)).arg(a_minute).arg(millis(self.ttl)).arg(bucket);
        let (found,): (Option<(String, limits::Answer)>,) = self.redis.run(&commands).await?;
        let session = found.and_then(|(data, answer)| Some((serde_json::from_str::<Session>(&data).ok()?, answer)));
        let age = |session: &Session| (self.now)().duration_since(session.created_at).unsigned_abs();
        let session = session.filter(|(session, _)| age(session) < self.max_age);
        Ok(session.map(|(session, answer)| (Session { hash, ..session }, answer, a_minute)))
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// Records that the password has just been entered in this session.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn confirm(&self, session: Session) -> Result<(), Problem> {
        let session = Session { confirmed_at: Some((self.now)()), ..session };
        let data = serde_json::to_string(&session).map_err(Problem::internal)?;
        let mut commands = pipe();
        // XX: a session that has ended meanwhile is not created again.
        commands.cmd("SET").arg(key(&session.hash)).arg(data).arg("XX").arg("KEEPTTL").ignore();
        Ok(self.redis.run(&commands).await?)
    }

    /// An account's sessions with the time of their last use, the oldest first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list(&self, account_id: Uuid) -> Result<Vec<(Session, Timestamp)>, redis::Error> {
        let hashes = members(&self.redis, account_id).await?;
        let mut commands = pipe();
        for hash in &hashes {
            commands.get(key(hash)).pttl(key(hash));
        }
        let answers: Vec<(Option<String>, i64)> = if hashes.is_empty() { Vec::new() } else { self.redis.run(&commands).await? };
        let mut sessions: Vec<_> = hashes
            .into_iter()
            .zip(answers)
            .filter_map(|(hash, (data, left))| {
                let session = Session { hash, ..serde_json::from_str(&data?).ok()? };
                // Each use renews the TTL, so the missing part of it is the time since the last use.
                let idle = self.ttl.saturating_sub(Duration::from_millis(u64::try_from(left).ok()?));
                let last_used = (self.now)().checked_sub(idle).ok()?.max(session.created_at);
                Some((session, last_used))
            })
            .collect();
        sessions.sort_by(|(a, _), (b, _)| (a.created_at, &a.hash).cmp(&(b.created_at, &b.hash)));
        Ok(sessions)
    }

    /// Whether each of these sessions is still stored, by its hash.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn are_stored(&self, hashes: impl IntoIterator<Item = &String>) -> Result<Vec<bool>, redis::Error> {
        let mut commands = pipe();
        for hash in hashes {
            commands.exists(key(hash));
        }
        self.redis.run(&commands).await
    }

    /// Ends one session of an account by its hash. Returns whether the account had it.
    ///
    /// # Errors
    /// Redis is unavailable, and the session has not ended.
    pub async fn end(&self, account_id: Uuid, hash: &str) -> Result<bool, redis::Error> {
        let mut ask = pipe();
        ask.cmd("ZSCORE").arg(set_key(account_id)).arg(hash);
        let (born,): (Option<f64>,) = self.redis.run(&ask).await?;
        if born.is_some() {
            end(&self.redis, account_id, hash).await?;
        }
        Ok(born.is_some())
    }

    /// Ends the session that a request's cookie names, if there is one.
    ///
    /// # Errors
    /// Redis is unavailable, and the session has not ended.
    pub async fn end_of(&self, headers: &HeaderMap) -> Result<(), redis::Error> {
        let Some(hash) = self.id_in(headers).map(hash) else { return Ok(()) };
        let mut commands = pipe();
        commands.cmd("GETDEL").arg(key(&hash));
        let (data,): (Option<String>,) = self.redis.run(&commands).await?;
        let Some(session) = data.and_then(|data| serde_json::from_str::<Session>(&data).ok()) else { return Ok(()) };
        let mut commands = pipe();
        commands.zrem(set_key(session.account_id), &hash).ignore();
        self.redis.run(&commands).await
    }

    /// The `Set-Cookie` value that stores a session in the browser.
    pub fn cookie(&self, id: &SessionId) -> Result<HeaderValue, Problem> {
        self.cookie.set(&id.0, self.max_age)
    }

    /// The `Set-Cookie` value that removes the session from the browser.
    pub fn no_cookie(&self) -> Result<HeaderValue, Problem> {
        self.cookie.remove()
    }

    /// The id in a request's cookie.
    pub fn id_in<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        self.cookie.find(headers)
    }
}

/// Ends every session of an account that began before `epoch`.
///
/// # Errors
/// Redis is unavailable. Some of the sessions may have ended.
pub async fn end_before(redis: &Redis, account_id: Uuid, epoch: i32) -> Result<(), redis::Error> {
    for hash in members(redis, account_id).await? {
        let mut get = pipe();
        get.get(key(&hash));
        let (data,): (Option<String>,) = redis.run(&get).await?;
        let stays = data.and_then(|data| serde_json::from_str::<Session>(&data).ok()).is_some_and(|session| session.epoch >= epoch);
        if !stays {
            end(redis, account_id, &hash).await?;
        }
    }
    Ok(())
}

/// Deletes the session and its entry in the set together. Otherwise a live session could be missing from the list, and
/// nobody could end it.
async fn end(redis: &Redis, account_id: Uuid, hash: &str) -> Result<(), redis::Error> {
    let mut commands = pipe();
    commands.del(key(hash)).ignore().zrem(set_key(account_id), hash).ignore();
    redis.run(commands.atomic()).await
}

async fn members(redis: &Redis, account_id: Uuid) -> Result<Vec<String>, redis::Error> {
    let mut commands = pipe();
    commands.zrange(set_key(account_id), 0, -1);
    let (hashes,) = redis.run(&commands).await?;
    Ok(hashes)
}

/// The hash of a session's id, as Redis stores it.
pub fn hash(id: &str) -> String {
    URL_SAFE_NO_PAD.encode(secret::hash(id))
}

fn key(hash: &str) -> String {
    format!("session:{hash}")
}

fn set_key(account_id: Uuid) -> String {
    format!("sessions:{account_id}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}
