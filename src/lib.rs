//! The one crate that every process type shares. `ARCHITECTURE.md` draws its layers: a module imports from its own layer
//! or from those below it.

// What each process type starts, serves and stops.
pub mod processes;

// What the service does. A feature is a folder, and two lines in `features/mod.rs`.
pub mod features;

// What handlers use, and who may do what.
pub mod app;
pub mod auth;

// Transport and the queue.
pub mod http;
pub mod jobs;

// Attached resources.
pub mod resources;

// The lifecycle of a process, and its log, metrics and traces.
pub mod lifecycle;
pub mod telemetry;

// Config, and which code and release this is.
pub mod config;
pub mod release;
