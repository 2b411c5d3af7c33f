//! The features, tested through the built programs. Each feature has one module and one line here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod events;
mod files;
mod identity;
mod operations;
mod pages;
mod reminders;
