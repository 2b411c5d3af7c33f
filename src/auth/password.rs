//! Hashes passwords with argon2id on blocking threads, at most `HASH_CONCURRENCY` at a time.

use std::sync::Arc;

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version, password_hash};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization;

use crate::config::PublicUrl;
use crate::http::{Problem, Result};

/// OWASP's Password Storage Cheat Sheet: argon2id with 19 MiB of memory, two iterations, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const ITERATIONS: u32 = 2;
const LANES: u32 = 1;

/// The KiB blocks that are reserved for a hash. Only the blocks that it uses become resident. The reservation is 33 MiB
/// because glibc returns freed allocations above 32 MiB to the system at once. It keeps smaller ones and cannot reuse
/// them here, because it searches for slightly more than it gave before: twenty log-ins would leave 200 MB behind.
const RESERVED_BLOCKS: usize = 33 * 1024;

/// The salt of the hashes that match no password, by which [`has_password`] recognizes them. No random salt is this one.
const UNUSABLE_SALT: [u8; 16] = [0; 16];

/// How many characters of a password the strength estimate reads. Further characters cannot make a password weaker.
const MAX_ESTIMATED_CHARS: usize = 100;

/// Validates a new password's length, as typed and as hashed. Length is what matters for its strength (NIST SP 800-63B,
/// 3.1.1). The upper bound keeps hashing cheap.
///
/// # Errors
/// The password is too short or too long.
pub fn length(password: &SecretString, (): &()) -> garde::Result {
    let [typed, hashed] = [password, &normal(password)].map(|text| text.expose_secret().chars().count());
    if (12..=256).contains(&typed) && hashed >= 12 { Ok(()) } else { Err(garde::Error::new("must have 12 to 256 characters")) }
}

/// Normalizes a password before hashing, so that all Unicode forms of a text are equal (NIST SP 800-63B, 3.1.1.2).
fn normal(password: &SecretString) -> SecretString {
    password.expose_secret().nfkc().collect::<String>().into()
}

/// Whether an account with this hash has a password. Also true for hashes without one that version 0.1.0 made.
pub fn has_password(hash: &SecretString) -> bool {
    let salt = PasswordHash::new(hash.expose_secret()).ok().and_then(|hash| hash.salt);
    salt.is_none_or(|salt| *salt != UNUSABLE_SALT)
}

/// Hashes and compares passwords.
#[derive(Clone)]
pub struct Passwords {
    params: Params,
    /// Limits concurrent hashing, which uses much CPU and memory and would otherwise starve the process.
    permits: Arc<Semaphore>,
    /// The hash that a password for an unknown address is compared with, so that it takes as long as for a known one.
    nobody: Arc<str>,
    /// This deploy's host, which is an obvious guess.
    host: Arc<str>,
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    pub same: bool,
    /// Whether the hash has another cost or form than new hashes.
    pub outdated: bool,
}

impl Passwords {
    /// Hashes at most `at_a_time` passwords at a time.
    ///
    /// # Errors
    /// The system has no randomness for a salt.
    pub fn new(at_a_time: usize, site: &PublicUrl) -> anyhow::Result<Self> {
        let params = Params::new(MEMORY_KIB, ITERATIONS, LANES, None).map_err(|e| anyhow::anyhow!("argon2: {e}"))?;
        let (permits, host) = (Arc::new(Semaphore::new(at_a_time)), site.host().into());
        Ok(Self { params, permits, nobody: nobody()?.into(), host })
    }

    /// A hash that matches no password, of an account that has none.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn unusable(&self) -> anyhow::Result<String> {
        hash_without_password(UNUSABLE_SALT)
    }

    /// Hashes a new password of the account with this address. Returns a PHC string.
    ///
    /// # Errors
    /// 422 for a password that is easy to guess.
    pub async fn hash_new(&self, password: SecretString, field: &str, address: &str) -> Result<String> {
        let password = normal(&password);
        let (estimated, host, address) = (password.clone(), self.host.clone(), address.to_lowercase());
        let weak = self.blocking(move || {
            let estimated: String = estimated.expose_secret().chars().take(MAX_ESTIMATED_CHARS).collect();
            let name = address.split('@').next().unwrap_or_default();
            let lower = estimated.to_lowercase();
            let known = [address.as_str(), name, &*host];
            // The estimator counts these as guesses. A password that is one of them plus a few characters is refused as
            // well.
            known.iter().any(|known| known.len() > 3 && lower.replace(known, "").chars().count() < 6)
                || zxcvbn::zxcvbn(&estimated, &known).score() < zxcvbn::Score::Three
        });
        if weak.await? {
            return Err(Problem::invalid_field(field, "is easy to guess: use several unrelated words"));
        }
        self.hash(&password).await
    }

    /// Hashes a password without estimating its strength, because it is already in use or random.
    ///
    /// # Errors
    /// The system has no randomness for a salt.
    pub async fn hash(&self, password: &SecretString) -> Result<String> {
        let (password, params) = (normal(password), self.params.clone());
        let mut salt = [0; Salt::RECOMMENDED_LENGTH];
        getrandom::fill(&mut salt).map_err(|e| Problem::internal(anyhow::anyhow!("no randomness: {e}")))?;
        let hash = self.blocking(move || argon2id(&password, Salt::new(&salt)?, params).map(|hash| hash.to_string()));
        hash.await?.map_err(|e| Problem::internal(anyhow::anyhow!("hashing: {e}")))
    }

    /// Compares a password with a hash. Without a hash the result is never `same`, and it takes as long.
    ///
    /// # Errors
    /// The stored hash is invalid.
    pub async fn verify(&self, password: &SecretString, hash: Option<SecretString>) -> Result<Comparison> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.as_ref().into());
        let (normal, typed) = (normal(password), password.clone());
        let now = (self.params.m_cost(), self.params.t_cost(), self.params.p_cost());
        let compare = move || -> password_hash::Result<Comparison> {
            let hash = PasswordHash::new(hash.expose_secret())?;
            let salt = hash.salt.ok_or(password_hash::Error::SaltInvalid)?;
            let params = Params::try_from(&hash)?;
            let outdated = (params.m_cost(), params.t_cost(), params.p_cost()) != now;
            // `Output` compares digests in constant time.
            let fits = |password| Ok::<_, password_hash::Error>(hash == argon2id(password, salt, params.clone())?);
            if fits(&normal)? {
                return Ok(Comparison { same: true, outdated });
            }
            // Version 0.1.0 hashed the password as it was typed, without normalizing it.
            let as_typed = typed.expose_secret() != normal.expose_secret() && fits(&typed)?;
            Ok(Comparison { same: as_typed, outdated: true })
        };
        let found = self.blocking(compare).await?.map_err(|e| Problem::internal(anyhow::anyhow!("comparing: {e}")))?;
        Ok(Comparison { same: found.same && known, ..found })
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let permit = self.permits.clone().acquire_owned().await.map_err(Problem::internal)?;
        // The permit moves with the work, because the work continues even if its request has timed out.
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        done.await.map_err(Problem::internal)
    }
}

/// A hash that matches no password. Its salt and digest are random, and its parameters are those of real hashes.
fn nobody() -> anyhow::Result<String> {
    let mut salt = [0; 16];
    fill(&mut salt)?;
    hash_without_password(salt)
}

fn hash_without_password(salt: [u8; 16]) -> anyhow::Result<String> {
    let mut digest = [0; 32];
    fill(&mut digest)?;
    let text = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, bytes);
    Ok(format!("$argon2id$v=19$m={MEMORY_KIB},t={ITERATIONS},p={LANES}${}${}", text(&salt), text(&digest)))
}

fn fill(bytes: &mut [u8]) -> anyhow::Result<()> {
    getrandom::fill(bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))
}

/// The hash of a password, including the parameters to compute it again.
fn argon2id(password: &SecretString, salt: Salt, params: Params) -> password_hash::Result<PasswordHash> {
    let (algorithm, version, text) = (Algorithm::Argon2id, Version::V0x13, ParamsString::try_from(&params)?);
    let mut memory = Vec::with_capacity(RESERVED_BLOCKS);
    memory.resize(params.block_count(), Block::new());
    let mut digest = [0; Params::DEFAULT_OUTPUT_LEN];
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into_with_memory(password.expose_secret().as_bytes(), &salt, &mut digest, &mut memory)?;
    let hash = Some(Output::new(&digest)?);
    Ok(PasswordHash { algorithm: algorithm.ident(), version: Some(version.into()), params: text, salt: Some(salt), hash })
}
