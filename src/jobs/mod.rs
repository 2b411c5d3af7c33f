//! Jobs: work that a process asks for and another does (factors VIII and IX).
//!
//! The queue is a table beside the data, so that data and the job that follows from it commit together.
//! `enqueue` fills it, `runner` works it off with `queue`, `lease` and `execution`, `schedule` turns the time of day into jobs.
//! Knows no feature.

mod enqueue;
mod execution;
mod lease;
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
use enqueue::PAYLOAD_LIMIT;

pub use enqueue::{CHANNEL, EnqueueError, Enqueued, Notifier, Wake, enqueue, enqueue_at, enqueue_many};

/// A kind of job: its payload is the type itself, what it does is `run`.
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
/// A job runs at least once: a worker that is killed after the work and before the deletion leaves it to be run again.
/// So `run` must be idempotent: look first whether the work is done already, or do it in the transaction that
/// [`JobContext::complete`] makes the job's last. One that takes long goes in steps: it saves where it is after each
/// ([`JobContext::save`]), begins where it was saved, and stops between two when [`JobContext::draining`] says so.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name under which the queue stores it.
    const KIND: &'static str;
    /// How often it is started before it is given up: some seven hours, in which what it needs may be away.
    const MAX_ATTEMPTS: i32 = 20;
    /// Who is claimed first.
    const PRIORITY: Priority = Priority::Usual;
    /// How long one attempt may take.
    const TIMEOUT: Duration = Duration::from_mins(1);

    /// Of the jobs of this kind with the same key only one waits or runs at a time. The key names the work with its
    /// version or its tick, or new work would be lost to old.
    fn unique_key(&self) -> Option<String> {
        None
    }

    fn run(&self, context: &mut JobContext) -> impl Future<Output = Result<(), JobError>> + Send;
}

/// How soon jobs of a kind are claimed, whatever waits of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits for it, or something is unsafe until it is done.
    Awaited,
    Usual,
    /// Much of it at a time, such as a digest for everybody.
    Bulk,
}

/// Why an attempt failed. `?` makes a `Retry` of any error, but for a mail that was refused for good.
#[derive(Debug)]
pub enum JobError {
    /// Trying again can help.
    Retry(anyhow::Error),
    /// Trying again is useless: the job is given up at once.
    GiveUp(anyhow::Error),
    /// It is too early: the job waits so long, and has spent no attempt.
    Later(Duration),
}

impl JobError {
    /// The worker drains: another takes the job up at once, where it was saved.
    pub const PUT_DOWN: Self = Self::Later(Duration::ZERO);
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

/// What jobs reach of the world.
#[derive(Clone)]
pub struct Resources {
    pub postgres: Pool,
    pub redis: Redis,
    /// None where `STORAGE_URL` is unset.
    pub storage: Option<Storage>,
    pub mailer: Mailer,
    pub site: PublicUrl,
    pub notifier: Notifier,
    /// One place for work that takes hundreds of megabytes: it goes one at a time, whatever `WORKER_CONCURRENCY` is.
    pub heavy: Arc<Semaphore>,
}

/// What a job says that is no longer the worker's.
const LOST: &str = "the lease was lost, so another worker has the job";

/// A running job's surroundings.
pub struct JobContext {
    /// Its transactions may work for as long as the job.
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
    /// The job's id in the queue, the same at each attempt.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Where an earlier attempt has come to: what it saved last, if it saved anything.
    ///
    /// # Errors
    /// It was saved as another type, by another release.
    pub fn progress<P: DeserializeOwned>(&self) -> anyhow::Result<Option<P>> {
        let progress = self.progress.as_ref().map(P::deserialize).transpose();
        progress.map_err(|e| anyhow::anyhow!("the progress does not parse: {e}"))
    }

    /// Saves where the job has come to. It is kept over a drain, a crash and a retry, and the next attempt begins there. Who
    /// saves another place than the last has spent no attempt; who saves the same one again and fails, spends them.
    ///
    /// # Errors
    /// The lease was lost to another worker, which goes on from what was saved before; or Postgres is unavailable.
    pub async fn save<P: Serialize + Sync>(&self, progress: &P) -> anyhow::Result<()> {
        self.save_in(&mut *self.postgres.acquire().await?, progress).await
    }

    /// The same in the caller's transaction: what the transaction changes and the place that is saved belong together.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub async fn save_in<P: Serialize + Sync>(&self, transaction: &mut PgConnection, progress: &P) -> anyhow::Result<()> {
        let progress = serde_json::to_value(progress)?;
        let size = progress.to_string().len();
        anyhow::ensure!(size <= PAYLOAD_LIMIT, "the progress has {size} bytes, more than {PAYLOAD_LIMIT}: store the data and save its id");
        anyhow::ensure!(queue::save(transaction, self.id, self.token, &progress).await?, LOST);
        Ok(())
    }

    /// Whether this worker drains. A long job then saves where it is and ends with [`JobError::PUT_DOWN`], and another worker
    /// takes it up.
    pub fn draining(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Makes the job's end part of the caller's transaction: what the transaction changes then happens exactly once.
    /// Nothing may follow it but the commit.
    ///
    /// # Errors
    /// The lease was lost to another worker: roll back, the other does the work.
    pub async fn complete(&mut self, transaction: &mut PgConnection) -> anyhow::Result<()> {
        anyhow::ensure!(queue::complete(transaction, self.id, self.token).await?, LOST);
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

/// The kinds that a worker knows.
#[derive(Default)]
pub struct Registry(BTreeMap<&'static str, Kind>);

impl Registry {
    /// Adds a kind.
    pub fn with<J: Job>(mut self) -> Self {
        self.0.insert(J::KIND, Kind { handler: handle::<J>, priority: J::PRIORITY, timeout: J::TIMEOUT, enqueue: enqueue_parsed::<J> });
        self
    }

    /// Enqueues a job whose kind and payload are known only now.
    ///
    /// # Errors
    /// The kind is unknown, the payload is not one of its, or as [`enqueue`].
    pub async fn enqueue(&self, connection: &mut PgConnection, kind: &str, payload: serde_json::Value) -> anyhow::Result<Enqueued> {
        let Some(known) = self.0.get(kind) else {
            anyhow::bail!("there is no kind {kind}; there are: {}", self.kinds().join(", "));
        };
        (known.enqueue)(connection, payload).await
    }

    fn kinds(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }

    /// The kinds with these names, or all.
    ///
    /// # Errors
    /// A name is none of them, in words.
    pub fn choose(&self, names: Option<&[String]>) -> Result<Vec<String>, String> {
        let all = self.kinds();
        let Some(names) = names else { return Ok(all) };
        match names.iter().find(|name| !all.contains(name)) {
            Some(unknown) => Err(format!("names {unknown}, which is no kind; there are: {}", all.join(", "))),
            None => Ok(names.to_vec()),
        }
    }

    /// How soon jobs of a kind are claimed: the lower, the sooner.
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
        let job = J::deserialize(payload).map_err(|e| anyhow::anyhow!("the payload is none of a {} job: {e}", J::KIND))?;
        Ok(enqueue(connection, &job).await?)
    }
    .boxed()
}

/// When a worker first looks for what can wait: connecting is most of its start, and this would have it connect twice more.
const FIRST_LOOK: Duration = Duration::from_millis(500);
