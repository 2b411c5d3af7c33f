//! Bad days: processes that are restarted and killed under load, clients that are slow, resources that fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod mail;
mod resources;
mod restarts;
mod secrets;
mod tls;
