//! Outages: processes that are restarted or killed under load, slow clients, and failing resources.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod cache;
mod certificates;
mod crowds;
mod failovers;
mod locked_tables;
mod refused_mail;
mod resources;
mod restarts;
mod schema_changes;
mod secret_files;
mod slow_clients;
mod unavailable;
