//! `admin access`: the access rules of all features.

use serde_json::json;

use super::Task;
use crate::features::FEATURES;

/// Prints every rule. A route without a rule is refused.
pub fn print(task: &Task) {
    let rows: Vec<_> = FEATURES
        .iter()
        .flat_map(|feature| feature.access.iter().map(move |rule| (feature.name, rule)))
        .map(|(feature, rule)| {
            json!({
                "method": rule.method.as_str(), "path": rule.path, "who": rule.who.to_string(), "limit": rule.rate.variable(), "feature": feature,
            })
        })
        .collect();
    task.rows(&["method", "path", "who", "limit", "feature"], &rows);
}
