//! The factors, tested on the built programs. Each module tests one factor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod f01_codebase;
mod f02_dependencies;
mod f03_config;
mod f04_backing_services;
mod f05_build_release_run;
mod f06_processes;
mod f07_port_binding;
mod f08_concurrency;
mod f09_disposability;
mod f10_parity;
mod f11_logs;
mod f12_admin;
mod f13_api_first;
mod f14_telemetry;
mod f15_authorization;
