//! The standing of an account: whether its sessions still hold, and its role.
//!
//! Ending a session deletes it in Redis, but the deletion may be late or lost. So a process also asks Postgres, and
//! caches the answer for five seconds.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::instrument;
use uuid::Uuid;

use super::rules::Role;
use crate::http::Result;
use crate::resources::postgres::Pool;

/// How long a process uses a cached standing. An ended session may still be admitted for this long.
const CACHE_TTL: Duration = Duration::from_secs(5);

/// How many accounts a process caches, at some 100 bytes each.
const CACHE_CAPACITY: usize = 10_000;

/// The columns that decide whether a session holds.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Sessions of an earlier epoch have been ended.
    pub epoch: i32,
    pub role: Role,
    pub suspended: bool,
}

/// The cached standings of a process.
pub struct Standings {
    postgres: Pool,
    known: Mutex<HashMap<Uuid, (Instant, Standing)>>,
}

impl Standings {
    pub fn new(postgres: Pool) -> Self {
        Self { postgres, known: Mutex::default() }
    }

    /// The standing of an account, at most five seconds old. None if there is no such account.
    ///
    /// `epoch` is that of the session. If it is newer than the cached one, the cache is outdated.
    ///
    /// # Errors
    /// 503: the cache is outdated and Postgres is unavailable.
    pub async fn of(&self, account_id: Uuid, epoch: i32) -> Result<Option<Standing>> {
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&account_id).copied();
        if let Some((at, standing)) = known
            && now < at + CACHE_TTL
            && standing.epoch >= epoch
        {
            return Ok(Some(standing));
        }
        let found = self.ask(account_id).await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHE_CAPACITY {
            known.retain(|_, (at, _)| now < *at + CACHE_TTL);
        }
        if known.len() >= CACHE_CAPACITY {
            known.clear();
        }
        match found {
            Some(standing) => drop(known.insert(account_id, (now, standing))),
            None => drop(known.remove(&account_id)),
        }
        Ok(found)
    }

    #[instrument(name = "postgres accounts standing", level = "debug", skip_all)]
    async fn ask(&self, account_id: Uuid) -> Result<Option<Standing>> {
        let found = sqlx::query_as!(
            Standing,
            r#"SELECT session_epoch AS epoch, role AS "role: Role", suspended_at IS NOT NULL AS "suspended!" FROM accounts WHERE id = $1"#,
            account_id
        );
        Ok(found.fetch_optional(&mut *self.postgres.acquire().await?).await?)
    }
}
