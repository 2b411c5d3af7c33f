//! Verifies the `Content-Digest` header (RFC 9530), in which a client declares hashes of its content.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};

use super::problem::{Problem, Result};

/// The hashes that a request declares. Algorithms other than SHA-256 and SHA-512 are ignored.
#[derive(Default)]
pub struct ContentDigest {
    sha256: Option<Vec<u8>>,
    sha512: Option<Vec<u8>>,
}

impl<S: Send + Sync> FromRequestParts<S> for ContentDigest {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let malformed = || Problem::malformed("`Content-Digest` must have the form `sha-256=:BASE64:`.");
        let mut digest = Self::default();
        for value in parts.headers.get_all("content-digest") {
            for member in value.to_str().map_err(|_| malformed())?.split(',') {
                let (algorithm, value) = member.trim().split_once('=').ok_or_else(malformed)?;
                let value = value.strip_prefix(':').and_then(|value| value.strip_suffix(':')).ok_or_else(malformed)?;
                let value = STANDARD.decode(value).map_err(|_| malformed())?;
                match algorithm {
                    "sha-256" => digest.sha256 = Some(value),
                    "sha-512" => digest.sha512 = Some(value),
                    _ => {}
                }
            }
        }
        Ok(digest)
    }
}

impl ContentDigest {
    /// Starts hashing content, to compare it with this digest.
    pub fn hashes(&self) -> Hashes<'_> {
        Hashes { declared: self, sha256: Sha256::new(), sha512: self.sha512.as_ref().map(|_| Sha512::new()) }
    }
}

/// Hashes content as it arrives.
pub struct Hashes<'a> {
    declared: &'a ContentDigest,
    sha256: Sha256,
    sha512: Option<Sha512>,
}

impl Hashes<'_> {
    pub fn update(&mut self, piece: &[u8]) {
        self.sha256.update(piece);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(piece);
        }
    }

    /// Returns the SHA-256 of the whole content.
    ///
    /// # Errors
    /// 400: the content does not match the declared hashes.
    pub fn finish(self) -> Result<Vec<u8>> {
        let (sha256, sha512) = (self.sha256.finalize().to_vec(), self.sha512.map(|hash| hash.finalize().to_vec()));
        let differs = |declared: &Option<Vec<u8>>, actual: Option<&Vec<u8>>| declared.is_some() && declared.as_ref() != actual;
        if differs(&self.declared.sha256, Some(&sha256)) || differs(&self.declared.sha512, sha512.as_ref()) {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "digest-mismatch", "The content does not match `Content-Digest`."));
        }
        Ok(sha256)
    }
}
