//! Postgres: the data and the queue.

use std::collections::HashSet;
use std::time::Duration;

use jiff_sqlx::ToSqlx;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};
use url::Url;
use utoipa::ToSchema;

use crate::config;
use crate::lifecycle::Lifecycle;

/// A time as Postgres keeps it, to the microsecond, and as the API writes it (RFC 3339, in UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(from = "jiff::Timestamp", into = "jiff::Timestamp")]
#[sqlx(transparent)]
#[schema(value_type = jiff::Timestamp)]
pub struct Timestamp(jiff_sqlx::Timestamp);

impl From<jiff::Timestamp> for Timestamp {
    fn from(time: jiff::Timestamp) -> Self {
        Self(time.to_sqlx())
    }
}

impl From<Timestamp> for jiff::Timestamp {
    fn from(time: Timestamp) -> Self {
        time.0.to_jiff()
    }
}

/// How long a caller waits for a connection: less than a request's time, so that the answer is 503 and not silence.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// After how long in the pool a connection is asked whether it is still one: outages are longer.
const RESTED: Duration = Duration::from_millis(100);

/// Attaches Postgres; connects when the first query asks.
///
/// `process` names the connections in `pg_stat_activity`.
/// Errors: The URL is none of Postgres's, which the config has ruled out.
pub fn attach(config: &config::Database, process: &str) -> sqlx::Result<PgPool> {
    Ok(PgPoolOptions::new()
        .max_connections(config.database_pool_size.get())
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A ping at each checkout would double the round trips; one that has rested may be broken, and is asked first.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| Box::pin(async move { Ok(meta.idle_for < RESTED || connection.ping().await.is_ok()) }))
        .connect_lazy_with(options(config, process)?))
}

/// Follows the URL where it stands in a file.
pub fn follow(lifecycle: &mut Lifecycle, config: &config::Database, pool: &PgPool) {
    let pool = pool.clone();
    super::follow(lifecycle, "DATABASE_URL", config, |config| &config.database_url.0, move |config| renew(pool.clone(), config));
}

async fn renew(pool: PgPool, config: config::Database) -> anyhow::Result<()> {
    let process = pool.connect_options().get_application_name().unwrap_or_default().to_owned();
    let options = options(&config, &process)?;
    options.connect().await?.close().await?;
    pool.set_connect_options(options);
    // What is in use ends with its lifetime, half an hour at most.
    for _ in 0..pool.num_idle() {
        if let Some(old) = pool.try_acquire() {
            old.close().await?;
        }
    }
    Ok(())
}

/// A connection for the probes alone: load on the pool must not make a process look ill.
pub fn for_probes(pool: &PgPool) -> PgPool {
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT).test_before_acquire(false);
    options.connect_lazy_with(pool.connect_options().as_ref().clone())
}

/// How to connect: what the URL says, and nothing from elsewhere.
/// Errors: As [`attach`].
pub fn options(config: &config::Database, process: &str) -> sqlx::Result<PgConnectOptions> {
    let url = Url::parse(config.database_url.0.expose_secret()).map_err(|_| sqlx::Error::Configuration("not a URL".into()))?;
    let mut options: PgConnectOptions = url.as_str().parse()?;
    let said = |key: &str| url.query_pairs().any(|(k, _)| k == key);
    // What the URL leaves out must not come from `PG*` variables or ~/.pgpass: the config alone decides.
    if url.password().is_none() && !said("password") {
        options = options.password("");
    }
    if url.port().is_none() && !said("port") {
        options = options.port(5432);
    }
    if !said("sslmode") && !said("ssl-mode") {
        options = options.ssl_mode(sqlx::postgres::PgSslMode::Prefer);
    }
    Ok(options.application_name(process))
}

/// The schema's migrations, which only `admin migrate` applies.
///
/// Applied migrations that this code does not know are no error: after a rollback the schema is ahead of the code.
pub fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    // sqlx's own lock is a session's, which a transaction pooler strands; `admin migrate` holds another.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
}

/// The versions of the migrations that this code has and the database has not.
/// Errors: Postgres does not answer.
pub async fn pending_migrations(pool: &PgPool) -> sqlx::Result<Vec<i64>> {
    // Not a checked query: on a new database there is no such table yet.
    let applied = sqlx::query_scalar::<_, i64>("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(pool).await;
    let applied: HashSet<i64> = match applied {
        Ok(versions) => versions.into_iter().collect(),
        Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some(UNDEFINED_TABLE) => HashSet::new(),
        Err(e) => return Err(e),
    };
    Ok(migrator().iter().map(|migration| migration.version).filter(|version| !applied.contains(version)).collect())
}

const UNDEFINED_TABLE: &str = "42P01";

/// Whether the error means that Postgres is away, so that trying again later can help.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Classes 08 connection exception, 28 refused authorization, 3D no such database, 53 insufficient resources,
        // 57 operator intervention.
        sqlx::Error::Database(e) => {
            e.code().is_some_and(|code| ["08", "28", "3D", "53", "57"].contains(&code.get(..2).unwrap_or_default()))
        }
        _ => false,
    }
}
