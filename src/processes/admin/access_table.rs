//! `admin access`: the access rules of all features.

use serde_json::json;

use super::Task;
use crate::auth::rules::Flag;
use crate::processes::web;

/// Prints every rule of this deploy. A route without a rule is refused.
pub fn print(task: &Task) {
    let rows: Vec<_> = web::on(&task.env)
        .into_iter()
        .flat_map(|feature| feature.access.iter().map(move |rule| (feature.name, rule)))
        .map(|(feature, rule)| {
            json!({
                "method": rule.method.as_str(), "path": rule.path, "who": rule.who.to_string(), "limit": rule.rate.variable(),
                "flag": rule.flag.map(Flag::variable), "feature": feature,
            })
        })
        .collect();
    task.rows(&["method", "path", "who", "limit", "flag", "feature"], &rows);
}
