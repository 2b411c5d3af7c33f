//! Backing services as attached resources (factor IV): each is a URL in the config and a handle here.
//!
//! Attaching is lazy: a resource that is down does not stop a start, and its return needs no restart.

pub mod postgres;
pub mod redis;
pub mod smtp;
