//! The sample feature: reminders that are mailed when they are due. Delete this folder when you do not need it.

mod digest;
mod reminder;
mod routes;
mod send;

use std::time::Duration;

use axum::http::Method;
use futures_util::FutureExt;
use serde_json::json;

use crate::app::{Feature, Retention};
use crate::auth::rules::{Rate, Rule, Who};
use crate::jobs::Registry;
use crate::jobs::schedule::Schedule;

pub const FEATURE: Feature = Feature {
    name: "reminders",
    api: routes::api,
    section: include_str!("section.html"),
    access: ACCESS,
    jobs,
    schedule,
    retention: RETENTION,
    export: |snapshot, account_id| async move { Ok(json!(reminder::list(snapshot, account_id, None, i64::MAX).await?)) }.boxed(),
    statistics: |snapshot| async move { Ok(json!(reminder::count(snapshot).await?)) }.boxed(),
    ..Feature::EMPTY
};

const ACCESS: &[Rule] = &[
    Rule::new(Method::GET, "/api/v1/reminders", Who::Scope("reminders:read"), Rate::Requests),
    Rule::new(Method::POST, "/api/v1/reminders", Who::Scope("reminders:write"), Rate::Requests),
    Rule::new(Method::GET, "/api/v1/reminders/{id}", Who::Scope("reminders:read"), Rate::Requests),
    Rule::new(Method::PATCH, "/api/v1/reminders/{id}", Who::Scope("reminders:write"), Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/reminders/{id}", Who::Scope("reminders:write"), Rate::Requests),
];

const RETENTION: &[Retention] =
    &[Retention { what: "sent reminders", age: None, floor: Duration::from_hours(24), purge: reminder::purge_sent }];

fn jobs(registry: Registry) -> Registry {
    registry.with::<send::SendReminder>().with::<digest::SendDigests>().with::<digest::SendDigest>()
}

fn schedule() -> anyhow::Result<Vec<Schedule>> {
    // The name is the key that the last tick is stored under.
    Ok(vec![Schedule::new("daily-digest", "0 6 * * *", digest::SendDigests::of)?])
}
