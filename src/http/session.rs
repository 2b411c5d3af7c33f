//! Sessions in Redis (factor VI: a process keeps nothing): the next request may meet another process.
//!
//! A cookie holds 256 random bits; Redis knows only their hash, so that a look into Redis opens no session.
//! `session:{hash}` is the session, `sessions:{account}` the set of an account's hashes.

use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use deadpool_redis::redis::pipe;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::problem::Problem;
use crate::config::{self, PublicUrl};
use crate::resources::redis::{self, Redis};

/// What Redis keeps of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    pub account_id: Uuid,
    /// The account's epoch at log-in; a session of an older epoch has been ended.
    pub epoch: i32,
    pub created_at: Timestamp,
    /// The Redis key's last part.
    #[serde(skip)]
    pub hash: String,
}

/// A new session's id, which only its cookie may hold.
pub struct SessionId(String);

/// The store of sessions.
#[derive(Clone)]
pub struct Sessions {
    redis: Redis,
    ttl: Duration,
    max_age: Duration,
    cookie: &'static str,
    attributes: &'static str,
    now: fn() -> Timestamp,
}

impl Sessions {
    pub fn new(redis: Redis, config: &config::Http, site: &PublicUrl, now: fn() -> Timestamp) -> Self {
        // `__Host-` makes the browser refuse a cookie that another host or plain http set (RFC 6265bis, 4.1.3.2).
        let (cookie, attributes) = if site.is_https() {
            ("__Host-id", "HttpOnly; SameSite=Lax; Path=/; Secure")
        } else {
            ("id", "HttpOnly; SameSite=Lax; Path=/")
        };
        Self { redis, ttl: config.session_ttl, max_age: config.session_max_age, cookie, attributes, now }
    }

    /// Starts a session and gives its id, for [`Self::cookie`].
    ///
    /// # Errors
    /// Redis is away, or the system has no randomness.
    pub async fn start(&self, account_id: Uuid, epoch: i32) -> Result<(SessionId, Session), Problem> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|e| Problem::internal(anyhow::anyhow!("no randomness: {e}")))?;
        let id = URL_SAFE_NO_PAD.encode(bytes);
        let session = Session { account_id, epoch, created_at: (self.now)(), hash: hash(&id) };
        let data = serde_json::to_string(&session).map_err(Problem::internal)?;
        let set = set_key(account_id);
        let mut commands = pipe();
        commands.cmd("SET").arg(key(&session.hash)).arg(data).arg("PX").arg(millis(self.ttl.min(self.max_age))).ignore();
        commands.sadd(&set, &session.hash).ignore();
        commands.cmd("PEXPIRE").arg(&set).arg(millis(self.max_age)).ignore();
        self.redis.run::<()>(commands.atomic()).await?;
        Ok((SessionId(id), session))
    }

    /// Finds a session by its id and gives it a new lease of life, in one round trip.
    ///
    /// # Errors
    /// Redis is away; that is not the same as no session.
    pub async fn find(&self, id: &str) -> Result<Option<Session>, redis::Error> {
        let hash = hash(id);
        let mut commands = pipe();
        commands.cmd("GETEX").arg(key(&hash)).arg("PX").arg(millis(self.ttl));
        let (data,): (Option<String>,) = self.redis.run(&commands).await?;
        let session = data.and_then(|data| serde_json::from_str::<Session>(&data).ok());
        let age = |session: &Session| (self.now)().duration_since(session.created_at);
        Ok(session.filter(|session| age(session).unsigned_abs() < self.max_age).map(|session| Session { hash, ..session }))
    }

    /// Ends one session.
    ///
    /// # Errors
    /// Redis is away, and the session goes on.
    pub async fn end(&self, session: &Session) -> Result<(), redis::Error> {
        let mut commands = pipe();
        commands.del(key(&session.hash)).ignore().srem(set_key(session.account_id), &session.hash).ignore();
        self.redis.run(commands.atomic()).await
    }

    /// The `Set-Cookie` value that hands a session to the browser.
    pub fn cookie(&self, id: &SessionId) -> Result<HeaderValue, Problem> {
        self.set_cookie(&id.0, self.max_age.as_secs())
    }

    /// The `Set-Cookie` value that takes the session from the browser.
    pub fn no_cookie(&self) -> Result<HeaderValue, Problem> {
        self.set_cookie("", 0)
    }

    fn set_cookie(&self, value: &str, max_age: u64) -> Result<HeaderValue, Problem> {
        let mut cookie: HeaderValue =
            format!("{}={value}; {}; Max-Age={max_age}", self.cookie, self.attributes).parse().map_err(Problem::internal)?;
        cookie.set_sensitive(true);
        Ok(cookie)
    }

    fn id_of<'a>(&self, parts: &'a Parts) -> Option<&'a str> {
        parts
            .headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(name, value)| (name == self.cookie).then_some(value))
    }
}

/// Ends every session of an account that began before `epoch`.
///
/// # Errors
/// Redis is away; some sessions may have ended.
pub async fn end_before(redis: &Redis, account_id: Uuid, epoch: i32) -> Result<(), redis::Error> {
    let set = set_key(account_id);
    let mut members = pipe();
    members.smembers(&set);
    let (hashes,): (Vec<String>,) = redis.run(&members).await?;
    for hash in hashes {
        let mut get = pipe();
        get.get(key(&hash));
        let (data,): (Option<String>,) = redis.run(&get).await?;
        let stays = data.and_then(|data| serde_json::from_str::<Session>(&data).ok()).is_some_and(|session| session.epoch >= epoch);
        if !stays {
            let mut end = pipe();
            end.del(key(&hash)).ignore().srem(&set, &hash).ignore();
            redis.run::<()>(end.atomic()).await?;
        }
    }
    Ok(())
}

fn hash(id: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(id))
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

/// The caller's session; 401 without one, 503 when Redis cannot say.
impl<S: Send + Sync> FromRequestParts<S> for Session
where
    Sessions: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let session = <Self as OptionalFromRequestParts<S>>::from_request_parts(parts, state).await?;
        session.ok_or_else(Problem::unauthenticated)
    }
}

/// The caller's session, if there is one.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Session
where
    Sessions: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Problem> {
        let sessions = Sessions::from_ref(state);
        let Some(id) = sessions.id_of(parts) else { return Ok(None) };
        let session = sessions.find(id).await?;
        if let Some(session) = &session {
            tracing::Span::current().record("account_id", tracing::field::display(session.account_id));
        }
        Ok(session)
    }
}
