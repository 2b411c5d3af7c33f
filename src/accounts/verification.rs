//! Showing that an address is one's own: a token that only its mail holds, good once and for a day.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use super::account;

/// Makes a token for an account. It is minted as the mail is written, so that no queue ever holds it.
///
/// # Errors
/// Postgres does not answer, or the system has no randomness.
pub async fn mint(pool: &PgPool, account_id: Uuid) -> anyhow::Result<SecretString> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    let token = SecretString::from(URL_SAFE_NO_PAD.encode(bytes));
    sqlx::query!(
        "INSERT INTO email_verifications (token_hash, account_id, expires_at) VALUES ($1, $2, now() + interval '24 hours')",
        hash(&token),
        account_id
    )
    .execute(pool)
    .await?;
    Ok(token)
}

/// Redeems a token: the address of its account is verified, and no token of that account is good any more.
/// False for a token that is unknown, used or too old.
///
/// # Errors
/// Postgres does not answer, and nothing has happened.
pub async fn redeem(pool: &PgPool, token: &SecretString) -> sqlx::Result<bool> {
    let mut transaction = pool.begin().await?;
    let found = sqlx::query_scalar!(
        "DELETE FROM email_verifications WHERE token_hash = $1 AND expires_at > now() RETURNING account_id",
        hash(token)
    );
    let Some(account_id) = found.fetch_optional(&mut *transaction).await? else { return Ok(false) };
    sqlx::query!("DELETE FROM email_verifications WHERE account_id = $1", account_id).execute(&mut *transaction).await?;
    account::mark_verified(&mut transaction, account_id).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Deletes tokens that are too old; returns how many.
///
/// # Errors
/// Postgres does not answer.
pub async fn purge(executor: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    Ok(sqlx::query!("DELETE FROM email_verifications WHERE expires_at <= now()").execute(executor).await?.rows_affected())
}

fn hash(token: &SecretString) -> Vec<u8> {
    Sha256::digest(token.expose_secret()).to_vec()
}
