//! `admin statistics`: how many accounts and jobs there are, and what each feature counts.

use std::iter::once;

use serde_json::{Value, json};

use super::Task;
use crate::features::FEATURES;
use crate::features::accounts::statistics::count;

/// Prints the numbers, counted now: the API's may be a minute old.
pub async fn print(task: &Task) -> anyhow::Result<()> {
    let counted = count(&task.postgres()?, FEATURES).await?;
    let core = [("accounts".to_owned(), json!(counted.accounts)), ("jobs".to_owned(), json!(counted.jobs))];
    let parts = core.into_iter().chain(counted.features);
    let rows: Vec<_> = parts
        .flat_map(|(of, numbers)| match numbers {
            Value::Object(numbers) => numbers.into_iter().map(|(state, count)| row(&of, &state, &count)).collect(),
            other => once(row(&of, "", &other)).collect::<Vec<_>>(),
        })
        .collect();
    task.rows(&["of", "state", "count"], &rows);
    Ok(())
}

fn row(of: &str, state: &str, count: &Value) -> Value {
    json!({ "of": of, "state": state, "count": count })
}
