//! The HTTP layer: access rules, tokens of an issuer, headers, limits, invalid input, and the API's document.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod access_tokens;
mod document;
mod headers;
mod heads;
mod html;
mod input;
mod limits;
mod outgoing;
mod parsers;
mod problems;
mod rules;
