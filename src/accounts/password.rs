//! Passwords: argon2id, off the runtime's threads, and never more at once than cores.

use std::sync::Arc;

use crate::http::{Problem, Result};
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

/// OWASP's Password Storage Cheat Sheet: argon2id with 19 MiB of memory, two iterations, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const ITERATIONS: u32 = 2;
const LANES: u32 = 1;

/// The passwords of 12 characters and more among the 20,000 most common of leaked ones (Royce Williams's list, as Django
/// ships it), in small letters and sorted; the others are too short anyway.
const COMMON: &str = include_str!("common_passwords.txt");

/// NIST SP 800-63B, 3.1.1: length is what counts, and what everybody would try first is refused. The upper bound keeps
/// hashing cheap.
pub fn rule(password: &SecretString, (): &()) -> garde::Result {
    let password = password.expose_secret();
    if !(12..=256).contains(&password.chars().count()) {
        return Err(garde::Error::new("must have 12 to 256 characters"));
    }
    let common = COMMON.lines().any(|common| common == password.to_lowercase());
    if common { Err(garde::Error::new("is among the most common passwords")) } else { Ok(()) }
}

/// Hashes and compares passwords.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    /// One permit a core: hashing is all CPU and memory, and unbounded it would starve the process.
    permits: Arc<Semaphore>,
    /// What an unknown address is compared with, so that it takes as long as a known one.
    nobody: Arc<str>,
}

impl Passwords {
    /// Errors: The system has no randomness for a salt.
    pub fn new() -> anyhow::Result<Self> {
        let params = Params::new(MEMORY_KIB, ITERATIONS, LANES, None).map_err(|e| anyhow::anyhow!("argon2: {e}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        // The hash of no password: its salt and digest are random, its parameters are everyone's.
        let mut digest = [0; 32];
        getrandom::fill(&mut digest).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let text = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, bytes);
        let nobody = format!("$argon2id$v=19$m={MEMORY_KIB},t={ITERATIONS},p={LANES}${}${}", text(&salt), text(&digest));
        Ok(Self { argon2, permits: Arc::new(Semaphore::new(cores)), nobody: nobody.into() })
    }

    /// Hashes a password, as a PHC string.
    /// Errors: The system has no randomness for a salt.
    pub async fn hash(&self, password: SecretString) -> Result<String> {
        let argon2 = self.argon2.clone();
        let hash = self.blocking(move || argon2.hash_password(password.expose_secret().as_bytes()).map(|hash| hash.to_string()));
        hash.await?.map_err(|e| Problem::internal(anyhow::anyhow!("hashing: {e}")))
    }

    /// Whether the password is the one of the hash; of no hash, none is, and finding out takes as long.
    /// Errors: The stored hash is none.
    pub async fn verify(&self, password: SecretString, hash: Option<String>) -> Result<bool> {
        let argon2 = self.argon2.clone();
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        let same = self.blocking(move || argon2.verify_password(password.expose_secret().as_bytes(), hash.as_str())).await?;
        match same {
            Ok(()) => Ok(known),
            Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
            Err(e) => Err(Problem::internal(anyhow::anyhow!("comparing: {e}"))),
        }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let permit = self.permits.clone().acquire_owned().await.map_err(Problem::internal)?;
        // The permit goes with the work, which goes on when the request that asked for it has timed out.
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        done.await.map_err(Problem::internal)
    }
}
