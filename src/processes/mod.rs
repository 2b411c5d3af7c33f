//! What each process type starts, serves and stops. The programs in `bin/` only call these modules.

pub mod admin;
pub mod clock;
mod retention;
pub mod web;
pub mod worker;

use crate::resources::collector;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Transport;

/// Prepares the calls of the collector of traces.
fn connect(metrics: &Metrics) -> anyhow::Result<Transport> {
    collector::attach(metrics, random)
}

/// A random number, or the largest if the system has no randomness.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}
