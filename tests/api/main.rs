//! The HTTP contract, spoken to the built programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod accounts;
mod headers;
mod input;
mod limits;
mod parsers;
mod recovery;
mod reminders;
mod resources;
mod tokens;
