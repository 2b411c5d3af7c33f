//! The [`App`] of a task: the resources that commands for accounts and features need.

use anyhow::Result;
use jiff::Timestamp;
use uuid::Uuid;

use super::Task;
use crate::app::{App, Parts};
use crate::auth::password::Passwords;
use crate::auth::session::Sessions;
use crate::config;
use crate::features::FEATURES;
use crate::jobs::Notifier;
use crate::processes::clock;
use crate::resources::cache::Cache;
use crate::resources::events::Events;
use crate::resources::redis::Redis;
use crate::resources::storage::Storage;
use crate::telemetry::feature_counters::FeatureCounters;

/// Attaches the resources that commands for accounts need. A deletion needs no object store here, because jobs delete
/// the objects.
pub fn attach(task: &Task) -> Result<App> {
    attach_with_storage(task, None)
}

/// Attaches the resources that a feature's commands need.
pub fn attach_with_storage(task: &Task, storage: Option<Storage>) -> Result<App> {
    let (database, (redis, (http, (flags, site)))) =
        config::read::<(config::Database, (config::Redis, (config::Http, (config::Flags, config::Site))))>(&task.env)?;
    #[expect(clippy::disallowed_methods, reason = "the clock is passed on from here")]
    let now = Timestamp::now;
    let redis = Redis::attach(&redis)?;
    let sessions = Sessions::new(redis.clone(), &http, &site.public_url, now);
    let (postgres, passwords) = (super::attach(&database)?, Passwords::new(1, &site.public_url)?);
    // No task sends the notifications. The workers find a job at their next poll.
    let notifier = Notifier::default();
    let (cache, events, features, counters) = (Cache::new(redis, Uuid::new_v4), Events::default(), FEATURES, FeatureCounters::default());
    let (schedule, mail_viewer, site) = (clock::schedule, None, site.public_url);
    let parts = Parts {
        postgres,
        storage,
        sessions,
        passwords,
        cache,
        events,
        notifier,
        features,
        counters,
        // Only what `web` serves depends on them.
        on: Vec::new(),
        schedule,
        flags,
        mail_viewer,
        provider: None,
        site,
        now,
    };
    Ok(parts.into())
}
