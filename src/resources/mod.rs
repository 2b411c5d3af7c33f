//! Backing services as attached resources (factor IV): each is a URL in the config and a handle here.
//!
//! Attaching is lazy: a resource that is down does not stop a start, and its return needs no restart. A URL that stands
//! in a file may change: new connections then use the new one, and the old ones are let go.

pub mod postgres;
pub mod redis;
pub mod smtp;
pub mod storage;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::{self, Section};
use crate::lifecycle::Lifecycle;

/// One of those who wait for a connection, until it is dropped: waiting can end with the waiter.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(pending: &Arc<AtomicUsize>) -> Self {
        pending.fetch_add(1, Ordering::Relaxed);
        Self(pending.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often files are read again.
const LOOK: Duration = Duration::from_millis(500);

/// How long a resource may take to show that what is new works.
const RENEW: Duration = Duration::from_secs(5);

/// Registers a task that reads a section again, if this deploy has secrets in files: when one of `secrets` has changed, `renew`
/// gets the section, again and again until it succeeds, since the file and the resource never change at the same moment.
fn follow<S, F>(
    lifecycle: &mut Lifecycle,
    name: &'static str,
    current: &S,
    secrets: fn(&S) -> Vec<&SecretString>,
    renew: impl Fn(S) -> F + Send + 'static,
) where
    S: Section + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    if !lifecycle.env.names_files() {
        return;
    }
    let (env, soft) = (lifecycle.env.clone(), lifecycle.soft.clone());
    let all = move |section: &S| secrets(section).into_iter().cloned().collect::<Vec<_>>();
    let mut known = all(current);
    let mut told = false;
    lifecycle.spawn(name, async move {
        loop {
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = sleep(LOOK) => {}
            }
            // A file that is being written may be empty or cut short: what is known stays good until a whole one is there.
            let Ok(section) = config::read::<S>(&env) else { continue };
            let new = all(&section);
            if new.iter().map(ExposeSecret::expose_secret).eq(known.iter().map(ExposeSecret::expose_secret)) {
                continue;
            }
            let renewed = tokio::select! {
                () = soft.cancelled() => return Ok(()),
                renewed = timeout(RENEW, renew(section)) => renewed.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {RENEW:?}"))),
            };
            match renewed {
                Ok(()) => {
                    (known, told) = (new, false);
                    info!("{name} has changed, and new connections use it");
                }
                Err(e) if !std::mem::replace(&mut told, true) => {
                    warn!(error = format!("{e:#}"), "{name} has changed and does not work yet, so the old one stays: {e:#}");
                }
                Err(_) => {}
            }
        }
    });
}
