//! What each process type starts, serves and stops. The programs in `bin/` only call these modules.

pub mod admin;
pub mod clock;
mod retention;
pub mod web;
pub mod worker;
