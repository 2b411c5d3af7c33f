//! Secrets of 256 random bits for sessions, tokens and links. Only their hash is stored, so that reading a store
//! reveals no secret.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Creates a secret of 43 characters that need no escaping in a URL.
///
/// # Errors
/// The system has no randomness.
pub fn mint() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The hash of a secret, as it is stored. SHA-256 is enough, because nobody can guess 256 random bits.
pub fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}
