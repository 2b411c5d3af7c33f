//! `admin account …`: what an operator does to accounts.

use crate::accounts::account;
use crate::accounts::audit::{self, Action};
use crate::accounts::jobs::EndSessions;
use crate::config;
use crate::http::session::Role;
use crate::jobs;
use crate::resources::postgres;

use super::say;

/// Gives an account a role. Its sessions end with that, in the same transaction.
pub async fn grant(config: &config::Database, email: &str, role: Role) -> anyhow::Result<()> {
    let pool = postgres::attach(config, "admin")?;
    let mut transaction = pool.begin().await?;
    let Some((account_id, epoch)) = account::grant(&mut transaction, email, role).await? else {
        anyhow::bail!("no account has the address {email}");
    };
    // A worker finds the job at its next poll; there is no need to wake it.
    let _ = jobs::enqueue(&mut transaction, &EndSessions { account_id, epoch }).await?;
    audit::record(&mut *transaction, Action::RoleChanged, Some(account_id), None).await?;
    transaction.commit().await?;
    say(format_args!("account {account_id} has the role {role:?} now, and its earlier sessions end"));
    Ok(())
}
