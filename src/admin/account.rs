//! `admin account …`: what an operator does to accounts.

use crate::accounts::account;
use crate::accounts::audit::{self, Action};
use crate::accounts::jobs::EndSessions;
use crate::config;
use crate::http::session::{self, Role};
use crate::jobs;
use crate::resources::postgres;
use crate::resources::redis::Redis;

use super::say;

/// Gives an account a role. Its sessions end with that: at once, and if Redis is away by a job of the same transaction.
pub async fn grant(database: &config::Database, redis: &config::Redis, email: &str, role: Role) -> anyhow::Result<()> {
    let pool = postgres::attach(database, "admin")?;
    let mut transaction = pool.begin().await?;
    let Some((account_id, epoch)) = account::grant(&mut transaction, email, role).await? else {
        anyhow::bail!("no account has the address {email}");
    };
    // A worker finds the job at its next poll; there is no need to wake it.
    let _ = jobs::enqueue(&mut transaction, &EndSessions { account_id, epoch }).await?;
    audit::record(&mut *transaction, Action::RoleChanged, Some(account_id), None).await?;
    transaction.commit().await?;
    let ended = match session::end_before(&Redis::attach(redis)?, account_id, epoch).await {
        Ok(()) => "its earlier sessions have ended".to_owned(),
        Err(e) => format!("its earlier sessions end when a worker and Redis are there: {e}"),
    };
    say(format_args!("account {account_id} has the role {role:?} now, and {ended}"));
    Ok(())
}
