//! Passwords: argon2id, off the runtime's threads, and never more at once than cores.

use std::sync::Arc;

use crate::http::{Problem, Result};
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version, password_hash};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

/// OWASP's Password Storage Cheat Sheet: argon2id with 19 MiB of memory, two iterations, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const ITERATIONS: u32 = 2;
const LANES: u32 = 1;

/// Blocks that are reserved for a hash, of which only what it works on becomes resident: 33 MiB, since above 32 glibc gives
/// memory back to the system as soon as it is free. Below it keeps all and finds none of it again, for it looks for a
/// little more than it once gave: twenty log-ins would leave 200 MB behind.
const RESERVED: usize = 33 * 1024;

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
    params: Params,
    /// One permit a core: hashing is all CPU and memory, and unbounded it would starve the process.
    permits: Arc<Semaphore>,
    /// What an unknown address is compared with, so that it takes as long as a known one.
    nobody: Arc<str>,
}

impl Passwords {
    /// # Errors
    /// The system has no randomness for a salt.
    pub fn new() -> anyhow::Result<Self> {
        let params = Params::new(MEMORY_KIB, ITERATIONS, LANES, None).map_err(|e| anyhow::anyhow!("argon2: {e}"))?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        // The hash of no password: its salt and digest are random, its parameters are everyone's.
        let mut digest = [0; 32];
        getrandom::fill(&mut digest).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let text = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, bytes);
        let nobody = format!("$argon2id$v=19$m={MEMORY_KIB},t={ITERATIONS},p={LANES}${}${}", text(&salt), text(&digest));
        Ok(Self { params, permits: Arc::new(Semaphore::new(cores)), nobody: nobody.into() })
    }

    /// Hashes a password, as a PHC string.
    ///
    /// # Errors
    /// The system has no randomness for a salt.
    pub async fn hash(&self, password: SecretString) -> Result<String> {
        let params = self.params.clone();
        let mut salt = [0; Salt::RECOMMENDED_LENGTH];
        getrandom::fill(&mut salt).map_err(|e| Problem::internal(anyhow::anyhow!("no randomness: {e}")))?;
        let hash = self.blocking(move || argon2id(&password, Salt::new(&salt)?, params).map(|hash| hash.to_string()));
        hash.await?.map_err(|e| Problem::internal(anyhow::anyhow!("hashing: {e}")))
    }

    /// Whether the password fits the hash. Without a hash it does not, which takes as long to find out.
    ///
    /// # Errors
    /// The stored hash is none.
    pub async fn verify(&self, password: SecretString, hash: Option<SecretString>) -> Result<bool> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.as_ref().into());
        let same = move || -> password_hash::Result<bool> {
            let hash = PasswordHash::new(hash.expose_secret())?;
            let salt = hash.salt.ok_or(password_hash::Error::SaltInvalid)?;
            // Digests are compared in a time that tells nothing (`Output`'s own promise).
            Ok(hash == argon2id(&password, salt, Params::try_from(&hash)?)?)
        };
        let same = self.blocking(same).await?.map_err(|e| Problem::internal(anyhow::anyhow!("comparing: {e}")))?;
        Ok(same && known)
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

/// The hash of a password, with all that it takes to make it again.
fn argon2id(password: &SecretString, salt: Salt, params: Params) -> password_hash::Result<PasswordHash> {
    let (algorithm, version, text) = (Algorithm::Argon2id, Version::V0x13, ParamsString::try_from(&params)?);
    let mut memory = Vec::with_capacity(RESERVED);
    memory.resize(params.block_count(), Block::new());
    let mut digest = [0; Params::DEFAULT_OUTPUT_LEN];
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into_with_memory(password.expose_secret().as_bytes(), &salt, &mut digest, &mut memory)?;
    let hash = Some(Output::new(&digest)?);
    Ok(PasswordHash { algorithm: algorithm.ident(), version: Some(version.into()), params: text, salt: Some(salt), hash })
}
