//! The counters that features declare, in the metrics of `web` and `worker`.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use super::metrics::Metrics;

/// A counter that a feature declares, such as the accounts that signed up.
#[derive(Debug)]
pub struct FeatureCounter {
    /// The name of its metric, without `_total`.
    pub name: &'static str,
    pub help: &'static str,
}

/// The features' counters in this process. Cheap to clone. The default counts nothing: nobody reads the metrics of a
/// task.
#[derive(Clone, Default)]
pub struct FeatureCounters(Arc<BTreeMap<&'static str, Counter>>);

impl FeatureCounters {
    /// Adds the counters to the process's metrics, so that each starts at 0.
    pub fn register(metrics: &Metrics, counters: impl Iterator<Item = &'static FeatureCounter>) -> Self {
        let register = |FeatureCounter { name, help }: &FeatureCounter| {
            let counter = Counter::default();
            metrics.counter(name, help, counter.clone());
            (*name, counter)
        };
        Self(Arc::new(counters.map(register).collect()))
    }

    /// Adds one. Call it after the commit, because a transaction may be rolled back.
    pub fn increment(&self, counter: &FeatureCounter) {
        if let Some(counter) = self.0.get(counter.name) {
            counter.inc();
        }
    }
}
