//! Cookies that only this host can set, for the session and for a log-in with the identity provider.
//!
//! `CookieJar` of `axum-extra` ignores a header with bytes that are not ASCII, so another program's cookie would log people out
//! (`cookie_is_found_among_others`).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};

use crate::config::PublicUrl;
use crate::http::{Problem, Result};

/// A cookie by its name. No script can read it, and other sites do not send it with a change.
#[derive(Debug, Clone, Copy)]
pub struct Cookie {
    name: &'static str,
    attributes: &'static str,
}

impl Cookie {
    /// `secure` is the name over https, and `plain` the name over http. A `secure` name begins with `__Host-`, which makes
    /// browsers refuse a cookie of this name from another host or from plain http (RFC 6265bis, 4.1.3.2).
    pub fn new(site: &PublicUrl, secure: &'static str, plain: &'static str) -> Self {
        if site.is_https() {
            Self { name: secure, attributes: "HttpOnly; SameSite=Lax; Path=/; Secure" }
        } else {
            Self { name: plain, attributes: "HttpOnly; SameSite=Lax; Path=/" }
        }
    }

    /// The `Set-Cookie` value that stores the cookie in the browser.
    ///
    /// # Errors
    /// The value contains characters that no header may contain.
    pub fn set(&self, value: &str, max_age: Duration) -> Result<HeaderValue> {
        let text = format!("{}={value}; {}; Max-Age={}", self.name, self.attributes, max_age.as_secs());
        let mut header = HeaderValue::try_from(text).map_err(Problem::internal)?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// The `Set-Cookie` value that removes the cookie from the browser.
    ///
    /// # Errors
    /// None in practice: the value is empty.
    pub fn remove(&self) -> Result<HeaderValue> {
        self.set("", Duration::ZERO)
    }

    /// The cookie's value in a request (RFC 6265, 5.4). Other cookies may contain any bytes.
    pub fn find<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let mut pairs = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        pairs
            .find_map(|pair| str::from_utf8(pair).ok()?.trim().split_once('=').filter(|(name, _)| *name == self.name))
            .map(|(_, value)| value)
    }
}
