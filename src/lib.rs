//! The one crate that every process type shares. `ARCHITECTURE.md` draws its floors: a file imports only from below.

// Floor 5, processes: one process type each, and the registries of routes, jobs and schedule.
pub mod admin;
pub mod clock;
pub mod web;
pub mod worker;

// Floor 4, features.
pub mod accounts;
pub mod reminders;

// Floor 3, tools that features are built with.
pub mod http;
pub mod jobs;

// Floor 2, attachments.
pub mod lifecycle;
pub mod resources;
pub mod telemetry;

// Floor 1, ground.
pub mod config;
pub mod release;
