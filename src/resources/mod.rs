//! Backing services as attached resources (factor IV). Each is a URL in the config and a handle here.
//!
//! Attaching is lazy: a process starts even if a resource is down, and needs no restart when the resource returns. If a
//! URL is in a file, it may change. New connections then use the new URL, and the old connections are closed.

pub mod cache;
pub mod collector;
pub mod events;
pub mod http_client;
pub mod postgres;
pub mod public_address;
pub mod redis;
pub mod smtp;
pub mod storage;
pub mod token_file;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::{self, Section};
use crate::lifecycle::Lifecycle;

/// Counts a caller that waits for a connection until it is dropped. The caller's future may be dropped too.
struct PendingCaller(Arc<AtomicUsize>);

impl PendingCaller {
    fn new(pending: &Arc<AtomicUsize>) -> Self {
        pending.fetch_add(1, Ordering::Relaxed);
        Self(pending.clone())
    }
}

impl Drop for PendingCaller {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often secret files are read again.
const FILE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a resource may take to accept a new secret.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Registers a task that reads a config section again and again, if this deploy has secrets in files. When one of `secrets`
/// has changed, the task calls `renew` with the section until it succeeds, because the file and the resource never change
/// at the same moment.
pub fn follow<S, F>(
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
    let mut logged = false;
    lifecycle.spawn(name, async move {
        loop {
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = sleep(FILE_CHECK_INTERVAL) => {}
            }
            // A file that is being written may be empty or incomplete. The known secret stays in use until the file is
            // complete.
            let Ok(section) = config::read::<S>(&env) else { continue };
            let new = all(&section);
            if new.iter().map(ExposeSecret::expose_secret).eq(known.iter().map(ExposeSecret::expose_secret)) {
                continue;
            }
            let renewed = tokio::select! {
                () = soft.cancelled() => return Ok(()),
                renewed = timeout(RENEW_TIMEOUT, renew(section)) => renewed.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {RENEW_TIMEOUT:?}"))),
            };
            match renewed {
                Ok(()) => {
                    (known, logged) = (new, false);
                    info!("{name} has changed; new connections use the new value");
                }
                Err(e) if !std::mem::replace(&mut logged, true) => {
                    warn!(error = format!("{e:#}"), "{name} has changed and does not work yet; keeping the old value: {e:#}");
                }
                Err(_) => {}
            }
        }
    });
}
