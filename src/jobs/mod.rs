//! Jobs: work that one process enqueues and another runs (factors VIII and IX).
//!
//! The queue is a table in the same database as the data, so that a change and the job that follows from it commit
//! together. `enqueue` fills the queue. `runner` works it off with `queue`, `lease` and `execution`. `schedule`
//! enqueues jobs by the time of day. `operator` is what people do to the queue. Knows no feature.

mod enqueue;
mod execution;
mod lease;
pub mod operator;
pub mod queue;
pub mod runner;
pub mod schedule;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::PublicUrl;
use crate::resources::postgres::Pool;
use crate::resources::redis::Redis;
use crate::resources::smtp::{self, Mailer};
use crate::resources::storage::Storage;
use crate::telemetry::feature_counters::FeatureCounters;
use enqueue::MAX_PAYLOAD_BYTES;

pub use enqueue::{CHANNEL, EnqueueError, Enqueued, Notifier, Wake, enqueue, enqueue_at, enqueue_many, withdraw};

/// A kind of job. The type itself is the payload, and `run` is the work.
///
/// ```ignore
/// #[derive(Serialize, Deserialize)]
/// pub struct Greet { account_id: Uuid }              // ids, never secrets: payloads are stored
///
/// impl Job for Greet {
///     const KIND: &'static str = "greet";             // stored too: a new name is a new kind
///     async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
///         context.mailer.send(greeting(self.account_id)).await?;   // may happen again after a crash
///         Ok(())                                      // the job is deleted
///     }
/// }
/// ```
///
/// A job runs at least once: if a worker is killed after the work and before the deletion, the job runs again.
/// So `run` must be idempotent. Check first whether the work is already done, or do it in the transaction that
/// [`JobContext::complete`] ends the job in.
/// A long job works in steps. It saves its position after each step ([`JobContext::save`]), starts from the saved
/// position, and stops between two steps when [`JobContext::draining`] is true.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name under which the queue stores it.
    const KIND: &'static str;
    /// How many attempts it has before it is dead. With the backoff, 20 attempts outlast an outage of some seven hours.
    const MAX_ATTEMPTS: i32 = 20;
    /// Which jobs are claimed first.
    const PRIORITY: Priority = Priority::Usual;
    /// How long one attempt may take.
    const TIMEOUT: Duration = Duration::from_mins(1);

    /// Only one job of this kind with the same key waits or runs at a time. Put a version or a tick into the key.
    /// Otherwise new work counts as a duplicate of old work and is lost.
    fn unique_key(&self) -> Option<String> {
        None
    }

    fn run(&self, context: &mut JobContext) -> impl Future<Output = Result<(), JobError>> + Send;
}

/// How soon jobs of a kind are claimed, before or after those of other kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits for the job, or something is unsafe until it is done.
    Awaited,
    Usual,
    /// Jobs that come in large numbers, such as a digest for every account.
    Bulk,
}

/// Why an attempt failed. `?` turns any error into a `Retry`, except a permanently refused mail, which becomes `GiveUp`.
#[derive(Debug)]
pub enum JobError {
    /// A retry can help.
    Retry(anyhow::Error),
    /// A retry cannot help. The job is dead at once.
    GiveUp(anyhow::Error),
    /// The job is too early. It waits this long and has not used an attempt.
    Later(Duration),
}

impl JobError {
    /// The worker drains. Another worker may run the job at once, from its saved position.
    pub const DRAINED: Self = Self::Later(Duration::ZERO);
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref::<smtp::Error>() {
            Some(smtp::Error::Refused(_)) => Self::GiveUp(error),
            _ => Self::Retry(error),
        }
    }
}

/// The resources that jobs use.
#[derive(Clone)]
pub struct Resources {
    pub postgres: Pool,
    pub redis: Redis,
    /// None if `STORAGE_URL` is unset.
    pub storage: Option<Storage>,
    pub mailer: Mailer,
    pub site: PublicUrl,
    pub notifier: Notifier,
    /// The features' own metrics.
    pub counters: FeatureCounters,
    /// A single permit for work that takes hundreds of megabytes, so that it runs one at a time, whatever
    /// `WORKER_CONCURRENCY` is.
    pub heavy: Arc<Semaphore>,
}

/// The error if the worker no longer holds the job.
const LEASE_EXPIRED: &str = "the lease expired, so another worker has the job";

/// What a running job has access to.
pub struct JobContext {
    /// A pool whose transactions may take as long as the job.
    pub postgres: Pool,
    resources: Arc<Resources>,
    id: i64,
    token: uuid::Uuid,
    progress: Option<serde_json::Value>,
    soft: CancellationToken,
    completed: bool,
}

impl std::ops::Deref for JobContext {
    type Target = Resources;

    fn deref(&self) -> &Resources {
        &self.resources
    }
}

impl JobContext {
    /// The job's id in the queue. It is the same at each attempt.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The position that an earlier attempt saved last, if any.
    ///
    /// # Errors
    /// Another release saved it as another type.
    pub fn progress<P: DeserializeOwned>(&self) -> anyhow::Result<Option<P>> {
        let progress = self.progress.as_ref().map(P::deserialize).transpose();
        progress.map_err(|e| anyhow::anyhow!("the saved progress does not parse: {e}"))
    }

    /// Saves the position of the job. The position survives a drain, a crash and a retry, and the next attempt starts from
    /// it. Saving a new position resets the attempts to zero. A job that saves the same position again and fails uses up
    /// its attempts.
    ///
    /// # Errors
    /// The lease expired and another worker has the job, which continues from the position saved before. Or Postgres is
    /// unavailable.
    pub async fn save<P: Serialize + Sync>(&self, progress: &P) -> anyhow::Result<()> {
        self.save_in(&mut *self.postgres.acquire().await?, progress).await
    }

    /// Saves the position in the caller's transaction, so that it commits together with the transaction's changes.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub async fn save_in<P: Serialize + Sync>(&self, transaction: &mut PgConnection, progress: &P) -> anyhow::Result<()> {
        let progress = serde_json::to_value(progress)?;
        let size = progress.to_string().len();
        anyhow::ensure!(
            size <= MAX_PAYLOAD_BYTES,
            "the progress has {size} bytes, more than {MAX_PAYLOAD_BYTES}: store the data in a table and save its id"
        );
        anyhow::ensure!(queue::save(transaction, self.id, self.token, &progress).await?, LEASE_EXPIRED);
        Ok(())
    }

    /// Whether this worker drains. A long job then saves its position and returns [`JobError::DRAINED`], and another worker
    /// continues it.
    pub fn draining(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Completes the job in the caller's transaction, so that the transaction's changes happen exactly once.
    /// Only the commit may follow.
    ///
    /// # Errors
    /// The lease expired and another worker has the job. Roll back.
    pub async fn complete(&mut self, transaction: &mut PgConnection) -> anyhow::Result<()> {
        anyhow::ensure!(queue::complete(transaction, self.id, self.token).await?, LEASE_EXPIRED);
        self.completed = true;
        Ok(())
    }
}

type Handler = for<'a> fn(&'a serde_json::Value, &'a mut JobContext) -> BoxFuture<'a, Result<(), JobError>>;

type EnqueueParsed = for<'a> fn(&'a mut PgConnection, serde_json::Value) -> BoxFuture<'a, anyhow::Result<Enqueued>>;

struct Kind {
    handler: Handler,
    priority: Priority,
    timeout: Duration,
    enqueue: EnqueueParsed,
}

/// The kinds of jobs that a worker can run.
#[derive(Default)]
pub struct Registry(BTreeMap<&'static str, Kind>);

impl Registry {
    /// Adds a kind.
    pub fn with<J: Job>(mut self) -> Self {
        self.0.insert(J::KIND, Kind { handler: handle::<J>, priority: J::PRIORITY, timeout: J::TIMEOUT, enqueue: enqueue_parsed::<J> });
        self
    }

    /// Enqueues a job whose kind and payload are known only at run time.
    ///
    /// # Errors
    /// The kind is unknown, or the payload does not fit the kind. Otherwise as [`enqueue`].
    pub async fn enqueue(&self, connection: &mut PgConnection, kind: &str, payload: serde_json::Value) -> anyhow::Result<Enqueued> {
        let Some(known) = self.0.get(kind) else {
            anyhow::bail!("there is no kind {kind}; the kinds are: {}", self.kinds().join(", "));
        };
        (known.enqueue)(connection, payload).await
    }

    fn kinds(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }

    /// The kinds with these names, or all.
    ///
    /// # Errors
    /// A name is not a kind. The message completes a sentence that begins with the variable's name.
    pub fn choose(&self, names: Option<&[String]>) -> Result<Vec<String>, String> {
        let all = self.kinds();
        let Some(names) = names else { return Ok(all) };
        match names.iter().find(|name| !all.contains(name)) {
            Some(unknown) => Err(format!("names {unknown}, which is not a kind; the kinds are: {}", all.join(", "))),
            None => Ok(names.to_vec()),
        }
    }

    /// How soon jobs of a kind are claimed. A lower rank comes first.
    fn rank(&self, kind: &str) -> i32 {
        self.0.get(kind).map_or(Priority::Usual, |kind| kind.priority) as i32
    }
}

fn handle<'a, J: Job>(payload: &'a serde_json::Value, context: &'a mut JobContext) -> BoxFuture<'a, Result<(), JobError>> {
    async move {
        let job = J::deserialize(payload).map_err(|e| anyhow::anyhow!("the payload does not parse: {e}"))?;
        job.run(context).await
    }
    .boxed()
}

fn enqueue_parsed<J: Job>(connection: &mut PgConnection, payload: serde_json::Value) -> BoxFuture<'_, anyhow::Result<Enqueued>> {
    async move {
        let job = J::deserialize(payload).map_err(|e| anyhow::anyhow!("the payload does not fit the kind {}: {e}", J::KIND))?;
        Ok(enqueue(connection, &job).await?)
    }
    .boxed()
}

/// How long after its start a worker first runs checks that can wait. Connecting is most of a start, and the checks
/// would need two more connections.
const FIRST_CHECK_DELAY: Duration = Duration::from_millis(500);
