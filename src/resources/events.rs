//! Events for the open streams of an account: something of a feature has changed. Any process may publish one, and
//! Redis carries it to every `web`, which holds one subscription for all of its streams.
//!
//! An event carries an id and no data. A client that gets one asks the API. Redis does not store events, so a stream
//! that may have missed some gets an event that says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_redis::redis::pipe;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::redis::Redis;
use crate::lifecycle::Heartbeat;
use crate::telemetry::metrics::Metrics;

/// The channel in Redis that every `web` subscribes to.
const CHANNEL: &str = "events";

/// How long publishing may take. The event is lost then, and nothing else.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a process sends itself a message, and how long it waits for one before it subscribes anew. Otherwise a
/// subscription to a server that is no longer the primary would stay silent for good.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const SILENCE_LIMIT: Duration = Duration::from_secs(7);

/// The pause between two attempts to subscribe.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How many events may wait for a client that does not read. It is cut off then.
const MAX_WAITING: usize = 64;

/// How many streams an account, and all accounts together, may have in one process.
const MAX_STREAMS_PER_ACCOUNT: usize = 10;
const MAX_STREAMS: usize = 3000;

/// Something of an account has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub account_id: Uuid,
    /// The feature's name.
    pub feature: String,
    /// The id of what has changed.
    pub id: Uuid,
}

/// Publishes an event, after the change has committed. If Redis is unavailable, the event is lost.
pub async fn publish(redis: &Redis, account_id: Uuid, feature: &str, id: Uuid) {
    let event = Event { account_id, feature: feature.to_owned(), id };
    let sent = async {
        let mut commands = pipe();
        commands.publish(CHANNEL, serde_json::to_string(&event)?).ignore();
        anyhow::Ok(redis.run::<()>(&commands).await?)
    };
    if let Err(e) = timeout(PUBLISH_TIMEOUT, sent).await.unwrap_or_else(|late| Err(late.into())) {
        debug!(error = format!("{e:#}"), "an event is lost: {e:#}");
    }
}

/// What a stream gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Changed(Event),
    /// Events may have been lost.
    Resync,
}

/// The session that a stream belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    pub account_id: Uuid,
    /// The hash of the session's id.
    pub session: String,
    pub epoch: i32,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the account has {MAX_STREAMS_PER_ACCOUNT} streams in this process")]
    Account,
    #[error("this process has {MAX_STREAMS} streams")]
    Process,
}

/// The open streams of this process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Streams>>);

#[derive(Default)]
struct Streams {
    of: HashMap<Uuid, Vec<(Subscriber, Sender<Message>)>>,
    /// Whether the process drains. New streams then end at once.
    draining: bool,
}

impl Events {
    /// Shows the number of open streams in the metrics.
    pub fn count(&self, metrics: &Metrics) {
        let events = self.clone();
        metrics.sample(move |metrics| metrics.event_streams(events.number()));
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> usize {
        self.streams().of.values().flatten().filter(|(_, sender)| !sender.is_closed()).count()
    }

    /// Opens a stream. It ends when the receiver returns None.
    ///
    /// # Errors
    /// There are too many streams.
    pub fn open(&self, subscriber: Subscriber) -> Result<Receiver<Message>, Refused> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        if self.number() >= MAX_STREAMS {
            return Err(Refused::Process);
        }
        let mut streams = self.streams();
        if streams.draining {
            return Ok(receiver);
        }
        let own = streams.of.entry(subscriber.account_id).or_default();
        own.retain(|(_, sender)| !sender.is_closed());
        if own.len() >= MAX_STREAMS_PER_ACCOUNT {
            return Err(Refused::Account);
        }
        own.push((subscriber, sender));
        Ok(receiver)
    }

    /// The sessions of the open streams.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        self.streams().of.values().flatten().map(|(subscriber, _)| subscriber.clone()).collect()
    }

    /// Ends the streams of sessions for which `holds` is false, and forgets those that their clients have closed.
    pub fn retain(&self, holds: impl Fn(&Subscriber) -> bool) {
        self.streams().of.retain(|_, own| {
            own.retain(|(subscriber, sender)| !sender.is_closed() && holds(subscriber));
            !own.is_empty()
        });
    }

    /// Sends a message to the streams of an account, or of all. Ends those whose clients do not read.
    fn send(&self, message: &Message, account_id: Option<Uuid>) {
        let mut streams = self.streams();
        let pass_on = |own: &mut Vec<(Subscriber, Sender<Message>)>| own.retain(|(_, sender)| sender.try_send(message.clone()).is_ok());
        match account_id {
            Some(account_id) => streams.of.get_mut(&account_id).into_iter().for_each(pass_on),
            None => streams.of.values_mut().for_each(pass_on),
        }
    }

    /// Passes events on until `soft`, then ends every stream, so that the clients go to another process.
    ///
    /// # Errors
    /// None. A lost subscription is made anew.
    pub async fn run(self, redis: Redis, soft: CancellationToken) -> anyhow::Result<()> {
        let mut lost = false;
        let listen = async {
            loop {
                let Err(e) = self.listen(&redis, &mut lost).await;
                if !std::mem::replace(&mut lost, true) {
                    warn!(error = format!("{e:#}"), "no events until Redis is back: {e:#}");
                }
                sleep(RETRY_PAUSE).await;
            }
        };
        soft.run_until_cancelled(listen).await.unwrap_or(());
        let mut streams = self.streams();
        streams.draining = true;
        streams.of.clear();
        Ok(())
    }

    /// Subscribes, and passes events on for as long as messages arrive.
    async fn listen(&self, redis: &Redis, lost: &mut bool) -> anyhow::Result<std::convert::Infallible> {
        let own = format!("events:{}", Uuid::new_v4());
        let mut subscription = redis.subscribe(&[CHANNEL, &own]).await?;
        *lost = false;
        info!("events are passed on");
        self.send(&Message::Resync, None);
        let heard = Heartbeat::default();
        heard.beat();
        let read = async {
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                heard.beat();
                if message.get_channel_name() == CHANNEL
                    && let Ok(event) = serde_json::from_slice::<Event>(message.get_payload_bytes())
                {
                    let account_id = event.account_id;
                    self.send(&Message::Changed(event), Some(account_id));
                }
            }
            Err(anyhow::anyhow!("the connection ended"))
        };
        let probe = async {
            let mut ticks = interval(PROBE_INTERVAL);
            loop {
                ticks.tick().await;
                anyhow::ensure!(heard.age() < SILENCE_LIMIT, "no message in {SILENCE_LIMIT:?}");
                let mut commands = pipe();
                commands.publish(&own, "").ignore();
                // If it fails, no message arrives.
                let _ = timeout(PUBLISH_TIMEOUT, redis.run::<()>(&commands)).await;
            }
        };
        tokio::select! { ended = read => ended, silent = probe => silent }
    }
}
