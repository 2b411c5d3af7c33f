//! Exports all data that is stored about one person.

use serde_json::{Value, json};
use uuid::Uuid;

use super::account::Account;
use super::my_sessions;
use crate::app::App;
use crate::auth::{api_token, audit};

/// An account as JSON, with the data of each feature. It contains no password and no working token.
///
/// # Errors
/// Postgres or Redis is unavailable.
pub async fn export(app: &App, account: Account) -> anyhow::Result<Value> {
    let id = account.id;
    // One snapshot, so that changes meanwhile cannot make the parts inconsistent.
    let mut snapshot = app.postgres.snapshot().await?;
    let mut all = json!({
        "account": account,
        "tokens": api_token::list(&mut *snapshot, id, Uuid::nil(), i64::MAX).await?,
        "audit_events": audit::of(&mut *snapshot, id).await?,
    });
    for feature in app.features {
        let own = (feature.export)(&mut snapshot, id).await?;
        if !own.is_null() {
            all[feature.name] = own;
        }
    }
    drop(snapshot);
    all["sessions"] = my_sessions::as_json(&app.sessions, id).await?.into();
    Ok(all)
}
