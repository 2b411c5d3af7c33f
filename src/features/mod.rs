//! The list of features, one line each. Routes, access rules, jobs, the schedule, retention and exports come from it.
//!
//! To delete a feature, delete its folder, its lines here, its module in `tests/features/` and its migration.

pub mod accounts;
mod reminders;

use crate::app::Feature;

/// Every feature of the service.
pub const FEATURES: &[Feature] = &[
    accounts::FEATURE,  // sign-up, log-in, account settings, API tokens
    reminders::FEATURE, // the sample feature
];
