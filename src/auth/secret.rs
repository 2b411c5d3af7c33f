//! Secrets that open something: made of 256 random bits, kept as a hash, so that a look into a store opens nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// A new secret, as 43 characters that need no escaping in an address.
///
/// # Errors
/// The system has no randomness.
pub fn mint() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// What is kept of a secret. SHA-256 is enough: nobody guesses 256 random bits.
pub fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}
