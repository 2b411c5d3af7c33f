//! Files that are part of the program, such as the style sheet. Their names change with their content, so that browsers
//! may keep them.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::problem::{Problem, Result};

/// How many bytes of the content's hash are in its name.
const HASH_BYTES: usize = 8;

/// A file of the program.
pub struct Asset {
    stem: &'static str,
    extension: &'static str,
    content: &'static str,
    hash: String,
}

impl Asset {
    /// `name` is the file's name without the hash: `style.css`.
    pub fn new(name: &'static str, content: &'static str) -> Self {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let hash = Sha256::digest(content)[..HASH_BYTES].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        Self { stem, extension, content, hash }
    }

    /// Its name in a page: `style-0123456789abcdef.css`.
    pub fn name(&self) -> String {
        format!("{}-{}.{}", self.stem, self.hash, self.extension)
    }

    /// Answers a request for a name, if it is this file's with any hash. A hash of another release gets the content of
    /// this one, which no cache may keep: in a rolling release, the page may come from a process of another release.
    pub fn answer(&self, name: &str) -> Option<Response> {
        let hash = name.strip_prefix(self.stem)?.strip_prefix('-')?.strip_suffix(self.extension)?.strip_suffix('.')?;
        let is_hash = hash.len() == 2 * HASH_BYTES && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let media_type = match self.extension {
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        };
        let lifetime = if hash == self.hash { "public, max-age=31536000, immutable" } else { "no-store" };
        let headers = [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, lifetime)];
        is_hash.then(|| (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), self.content).into_response())
    }
}

/// Answers a request for the name of one of these files.
///
/// # Errors
/// 404: none has that name.
pub fn serve<'a>(assets: impl IntoIterator<Item = &'a Asset>, name: &str) -> Result<Response> {
    assets.into_iter().find_map(|asset| asset.answer(name)).ok_or_else(Problem::not_found)
}
