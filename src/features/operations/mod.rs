//! What admins see of the jobs and the schedule, and what they do to dead jobs. `admin jobs` does the same on the command
//! line.

mod routes;

use axum::http::Method;

use crate::app::Feature;
use crate::auth::rules::{Rate, Rule, Who};

pub const FEATURE: Feature =
    Feature { name: "operations", api: routes::api, admin_section: include_str!("admin_section.html"), access: ACCESS, ..Feature::EMPTY };

const ACCESS: &[Rule] = &[
    Rule::new(Method::GET, "/api/v1/admin/jobs", Who::Admin, Rate::Requests),
    Rule::new(Method::GET, "/api/v1/admin/jobs/counts", Who::Admin, Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/admin/jobs/{id}", Who::Admin, Rate::Requests),
    Rule::new(Method::POST, "/api/v1/admin/jobs/{id}/retry", Who::Admin, Rate::Requests),
    Rule::new(Method::GET, "/api/v1/admin/schedules", Who::Admin, Rate::Requests),
];
