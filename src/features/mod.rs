//! The list of features, two lines each. Routes, access rules, jobs, the schedule, retention and exports come from it.
//!
//! To delete a feature, delete its folder, its lines here, its module in `tests/features/` and its migration.

pub mod accounts;
mod events;
mod files;
mod identity;
mod operations;
mod pages;
mod reminders;

use crate::app::Feature;

/// Every feature of the service.
pub const FEATURES: &[Feature] = &[
    accounts::FEATURE,   // sign-up, log-in, account settings, API tokens
    events::FEATURE,     // the stream of events for browsers
    files::FEATURE,      // uploads, kept in the object store
    identity::FEATURE,   // log-in with an identity provider
    operations::FEATURE, // the queue and the schedule, for admins
    pages::FEATURE,      // the web page at /
    reminders::FEATURE,  // the sample feature
];
