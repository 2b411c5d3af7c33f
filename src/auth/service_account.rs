//! Accounts of kind service: programs that authenticate with access tokens of an issuer. They have no mail, no password
//! and no session.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tokio::time::Instant;
use tracing::instrument;
use uuid::Uuid;

use super::rules::Role;
use crate::http::Result;
use crate::resources::postgres::Pool;

/// How long a process uses what it knows of a service. A suspended one may still be admitted for this long.
const CACHE_TTL: Duration = Duration::from_secs(5);

/// How many services a process caches.
const CACHE_CAPACITY: usize = 1_000;

/// A service that is not suspended.
#[derive(Debug, Clone)]
pub struct Service {
    pub account_id: Uuid,
    pub scopes: Vec<String>,
    pub role: Role,
    /// The account's epoch.
    pub epoch: i32,
}

/// Whom a service account belongs to, as operators see it.
#[derive(Debug, Serialize)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
    pub scopes: Vec<String>,
}

/// The services that a process has seen lately.
pub struct Services {
    postgres: Pool,
    known: Mutex<HashMap<String, (Instant, Service)>>,
}

impl Services {
    pub fn new(postgres: Pool) -> Self {
        Self { postgres, known: Mutex::default() }
    }

    /// The service with this subject of the one issuer, at most five seconds old. None if there is none, or if it is
    /// suspended.
    ///
    /// # Errors
    /// 503: Postgres is unavailable.
    pub async fn find(&self, issuer: &str, subject: &str) -> Result<Option<Service>> {
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(subject).cloned();
        if let Some((at, service)) = known
            && now < at + CACHE_TTL
        {
            return Ok(Some(service));
        }
        let found = find(&mut *self.postgres.acquire().await?, issuer, subject).await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHE_CAPACITY {
            known.clear();
        }
        match &found {
            Some(service) => drop(known.insert(subject.to_owned(), (now, service.clone()))),
            None => drop(known.remove(subject)),
        }
        Ok(found)
    }
}

#[instrument(name = "postgres service_accounts find", level = "debug", skip_all)]
async fn find(executor: impl PgExecutor<'_>, issuer: &str, subject: &str) -> sqlx::Result<Option<Service>> {
    let found = sqlx::query_as!(
        Service,
        r#"SELECT account_id, scopes, role AS "role: Role", session_epoch AS epoch
           FROM service_accounts JOIN accounts ON accounts.id = account_id
           WHERE issuer = $1 AND subject = $2 AND suspended_at IS NULL"#,
        issuer,
        subject
    );
    found.fetch_optional(executor).await
}

/// The identity of a service account. None if the account is a person's.
#[instrument(name = "postgres service_accounts identity", level = "debug", skip_all)]
pub async fn identity(executor: impl PgExecutor<'_>, account_id: Uuid) -> sqlx::Result<Option<Identity>> {
    let found = sqlx::query_as!(Identity, "SELECT issuer, subject, scopes FROM service_accounts WHERE account_id = $1", account_id);
    found.fetch_optional(executor).await
}

/// Gives the account of a service other scopes, and returns its id. None if there is no such service.
#[instrument(name = "postgres service_accounts set_scopes", level = "debug", skip_all)]
pub async fn set_scopes(connection: &mut PgConnection, issuer: &str, subject: &str, scopes: &[String]) -> sqlx::Result<Option<Uuid>> {
    let changed = sqlx::query_scalar!(
        "UPDATE service_accounts SET scopes = $3 WHERE issuer = $1 AND subject = $2 RETURNING account_id",
        issuer,
        subject,
        scopes
    );
    changed.fetch_optional(connection).await
}

/// Creates the account of a service. `unusable` is the hash of no password.
///
/// Its row in `accounts` is one that earlier releases understand. The address counts as verified, because operations that
/// write demand it. No mail reaches it: no server is responsible for `.invalid` (RFC 2606), and the mailer refuses it.
#[instrument(name = "postgres service_accounts create", level = "debug", skip_all)]
pub async fn create(connection: &mut PgConnection, issuer: &str, subject: &str, scopes: &[String], unusable: &str) -> sqlx::Result<Uuid> {
    let id = Uuid::now_v7();
    sqlx::query!(
        "INSERT INTO accounts (id, email, password_hash, digest, verified_at) VALUES ($1, $2, $3, false, now())",
        id,
        format!("{}@service.invalid", id.simple()),
        unusable
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("INSERT INTO service_accounts (account_id, issuer, subject, scopes) VALUES ($1, $2, $3, $4)", id, issuer, subject, scopes)
        .execute(connection)
        .await?;
    Ok(id)
}
