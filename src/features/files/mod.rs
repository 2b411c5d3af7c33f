//! File uploads, kept in the object store. No process keeps files on its local disk (factor VI).

mod clean_up;
mod commands;
mod file;
mod inspect;
mod media_type;
mod objects;
mod routes;
mod upload;

use axum::http::Method;
use futures_util::FutureExt;
use serde_json::json;

use crate::app::Feature;
use crate::auth::audit::Action;
use crate::auth::rules::{Rate, Rule, Who};
use crate::jobs::Registry;
use crate::jobs::schedule::Schedule;

pub const FEATURE: Feature = Feature {
    name: "files",
    api: routes::api,
    section: include_str!("section.html"),
    access: ACCESS,
    jobs,
    schedule,
    export: |snapshot, account_id| async move { Ok(json!(file::list(snapshot, account_id, None, i64::MAX).await?)) }.boxed(),
    commands: Some(commands::COMMANDS),
    counters: &[inspect::INSPECTED],
    deleted: |transaction, account_id| file::delete_all(transaction, account_id).boxed(),
    ..Feature::EMPTY
};

const ACCESS: &[Rule] = &[
    Rule::new(Method::GET, "/api/v1/files", Who::Scope("files:read"), Rate::Requests),
    Rule::new(Method::POST, "/api/v1/files", Who::Scope("files:write"), Rate::Requests).streaming(),
    Rule::new(Method::GET, "/api/v1/files/{id}", Who::Scope("files:read"), Rate::Requests),
    Rule::new(Method::DELETE, "/api/v1/files/{id}", Who::Scope("files:write"), Rate::Requests),
    Rule::new(Method::GET, "/api/v1/files/{id}/content", Who::Scope("files:read"), Rate::Requests),
    Rule::new(Method::GET, "/api/v1/files/{id}/thumbnail", Who::Scope("files:read"), Rate::Requests),
];

/// The actions in the audit trail.
const UPLOADED: Action = Action("file_uploaded");
const DELETED: Action = Action("file_deleted");

fn jobs(registry: Registry) -> Registry {
    registry.with::<inspect::InspectFile>().with::<objects::RemoveFile>().with::<clean_up::CleanUpFiles>()
}

fn schedule() -> anyhow::Result<Vec<Schedule>> {
    Ok(vec![Schedule::new("clean-up-files", "45 * * * *", |_| clean_up::CleanUpFiles {})?])
}
