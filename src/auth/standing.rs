//! The standing of an account: whether its sessions still hold, and its role.
//!
//! Ending a session deletes it in Redis, but the deletion may be late or lost. So a process also asks Postgres, and
//! caches the answer for five seconds.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, instrument};
use uuid::Uuid;

use super::rules::Role;
use super::session::Sessions;
use crate::http::Result;
use crate::resources::events::Events;
use crate::resources::postgres::Pool;

/// How long a process uses a cached standing. An ended session may still be admitted for this long.
const CACHE_TTL: Duration = Duration::from_secs(5);

/// How often a process looks whether the sessions of its event streams still hold, and for how many at a time.
const WATCH_INTERVAL: Duration = Duration::from_secs(4);
const WATCHED_AT_A_TIME: usize = 500;

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

/// Ends the event streams of sessions that have ended, within five seconds. While Redis or Postgres is unavailable the
/// streams stay, because they carry no data.
///
/// # Errors
/// None.
pub async fn watch(events: Events, sessions: Sessions, postgres: Pool, soft: CancellationToken) -> anyhow::Result<()> {
    while soft.run_until_cancelled(sleep(WATCH_INTERVAL)).await.is_some() {
        if let Err(problem) = end_streams(&events, &sessions, &postgres).await {
            debug!("the sessions of event streams cannot be checked now: {problem:?}");
        }
    }
    Ok(())
}

async fn end_streams(events: &Events, sessions: &Sessions, postgres: &Pool) -> Result<()> {
    let mut ended = HashSet::new();
    for subscribers in events.subscribers().chunks(WATCHED_AT_A_TIME) {
        let stored = sessions.are_stored(subscribers.iter().map(|subscriber| &subscriber.session)).await?;
        let accounts: Vec<Uuid> = subscribers.iter().map(|subscriber| subscriber.account_id).collect();
        let epochs = epochs(&accounts, postgres).await?;
        for (subscriber, stored) in subscribers.iter().zip(stored) {
            let holds = stored && epochs.get(&subscriber.account_id).is_some_and(|epoch| *epoch <= subscriber.epoch);
            if !holds {
                ended.insert(subscriber.session.clone());
            }
        }
    }
    events.retain(|subscriber| !ended.contains(&subscriber.session));
    Ok(())
}

/// The epochs of those of the accounts that exist and are not suspended.
async fn epochs(accounts: &[Uuid], postgres: &Pool) -> Result<HashMap<Uuid, i32>> {
    let found = sqlx::query!("SELECT id, session_epoch FROM accounts WHERE id = ANY($1) AND suspended_at IS NULL", accounts);
    let found = found.fetch_all(&mut *postgres.acquire().await?).await?;
    Ok(found.into_iter().map(|account| (account.id, account.session_epoch)).collect())
}
