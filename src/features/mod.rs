//! The registry of features: one line each. Routes, access rules, jobs, the schedule, retention and export come from it.
//!
//! To delete a feature, delete its folder, its lines here, its module in `tests/features/` and its migration.

pub mod accounts;
mod files;
mod reminders;

use crate::app::Feature;

/// Every feature of the service.
pub const FEATURES: &[Feature] = &[
    accounts::FEATURE,  // sign-up, log-in, one's own account, API tokens
    files::FEATURE,     // what people upload, in the object store
    reminders::FEATURE, // the sample
];
