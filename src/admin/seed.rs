//! `admin seed`: two accounts to try the service with.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use uuid::Uuid;

use super::say;
use crate::accounts::account;
use crate::accounts::password::Passwords;
use crate::config;
use crate::resources::postgres;

const DEMO: [&str; 2] = ["ada@example.com", "grace@example.com"];

/// Makes the demo accounts that are not there yet, verified, and prints their passwords.
pub async fn plant(database: &config::Database, site: &config::Site) -> anyhow::Result<()> {
    anyhow::ensure!(!site.public_url.is_https(), "PUBLIC_URL is https, so this deploy is for real people: demo accounts stay out");
    let pool = postgres::attach(database, "admin")?;
    let passwords = Passwords::new()?;
    for email in DEMO {
        let mut bytes = [0; 15];
        getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let password = URL_SAFE_NO_PAD.encode(bytes);
        let hash = passwords.hash(SecretString::from(password.clone())).await;
        let hash = hash.map_err(|problem| problem.source.unwrap_or_else(|| anyhow::anyhow!("hashing failed")))?;

        let id = Uuid::now_v7();
        let mut transaction = pool.begin().await.context("cannot reach Postgres")?;
        if account::create(&mut transaction, id, email, &hash).await? {
            account::verify(&mut transaction, id, email).await?;
            transaction.commit().await?;
            say(format_args!("{email}  {password}"));
        } else {
            say(format_args!("{email}  is there already, with the password it was given then"));
        }
    }
    Ok(())
}
