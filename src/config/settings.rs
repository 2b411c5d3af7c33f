//! The types that a variable can have. Each is parsed once from text and valid from then on.

use std::num::NonZeroU32;
use std::time::Duration;

use deadpool_redis::redis::IntoConnectionInfo;
use lettre::message::Mailbox;
use secrecy::SecretString;
use url::Url;

use super::Setting;

/// A number of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

/// A file with PEM certificates. The TLS library reads it.
#[derive(Debug, Clone)]
pub struct CertificateFile;

/// A Redis URL.
#[derive(Debug, Clone)]
pub struct RedisUrl(pub SecretString);

/// The address of this deploy: only scheme, host and port.
#[derive(Debug, Clone)]
pub struct PublicUrl(Url);

impl PublicUrl {
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The origin as browsers send it (RFC 6454): `https://example.com`.
    pub fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// An absolute link for mails. `path` begins with a slash.
    pub fn link(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }
}

/// The address of a server or a page, with a path or without one.
#[derive(Debug, Clone)]
pub struct Endpoint(pub Url);

/// A duration of at least 100 ms.
#[derive(Debug, Clone, Copy)]
pub struct MinDuration(pub Duration);

/// How long a worker holds a job, at least 10 s. With a shorter lease, a slow moment of the database would look like a
/// lost worker.
#[derive(Debug, Clone, Copy)]
pub struct Lease(pub Duration);

/// A list of names.
#[derive(Debug, Clone)]
pub struct Names(pub Vec<String>);

/// Origins of sites, as browsers send them (RFC 6454): `https://app.example.com`.
#[derive(Debug, Clone)]
pub struct Origins(pub Vec<String>);

impl<T: Setting> Setting for Option<T> {
    const SECRET: bool = T::SECRET;

    fn parse(text: &str) -> Result<Self, String> {
        T::parse(text).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Setting for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Setting for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be `true` or `false`".to_owned())
    }
}

impl Setting for u16 {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be a number from 0 to 65535".to_owned())
    }
}

impl Setting for NonZeroU32 {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be a whole number above 0".to_owned())
    }
}

impl Setting for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit);
        let millis = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000),
            _ => None,
        };
        number
            .parse::<u64>()
            .ok()
            .zip(millis)
            .and_then(|(number, millis)| number.checked_mul(millis))
            // A century. Adding longer durations to the current time would overflow.
            .filter(|millis| *millis <= 100 * 366 * 86_400_000)
            .map(Duration::from_millis)
            .ok_or_else(|| "must be a duration such as 250ms, 30s, 5m, 12h or 14d".to_owned())
    }
}

impl Setting for Size {
    fn parse(text: &str) -> Result<Self, String> {
        let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit);
        let shift = match unit {
            "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            "TiB" => Some(40),
            _ => None,
        };
        let bytes = number.parse::<u64>().ok().zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
        // What Postgres can count.
        let bytes = bytes.filter(|bytes| (1..=1 << 60).contains(bytes));
        bytes.map(Self).ok_or_else(|| "must be a size such as 512KiB, 100MiB or 1GiB".to_owned())
    }
}

impl Setting for MinDuration {
    fn parse(text: &str) -> Result<Self, String> {
        match Duration::parse(text)? {
            long if long >= Duration::from_millis(100) => Ok(Self(long)),
            _ => Err("must be 100ms or longer".to_owned()),
        }
    }
}

impl Setting for Lease {
    fn parse(text: &str) -> Result<Self, String> {
        match Duration::parse(text)? {
            long if long >= Duration::from_secs(10) => Ok(Self(long)),
            _ => Err("must be 10s or longer".to_owned()),
        }
    }
}

impl Setting for Names {
    fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) { Err("must be names, separated by commas".to_owned()) } else { Ok(Self(names)) }
    }
}

impl Setting for Mailbox {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be an email address such as `Example <hello@example.com>`".to_owned())
    }
}

impl Setting for CertificateFile {
    fn parse(text: &str) -> Result<Self, String> {
        match std::fs::read(text) {
            Ok(pem) if String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") => Ok(Self),
            Ok(_) => Err("must be a file with PEM certificates".to_owned()),
            Err(e) => Err(format!("must be a file that can be read: {}", e.kind())),
        }
    }
}

impl Setting for PublicUrl {
    fn parse(text: &str) -> Result<Self, String> {
        Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .filter(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none())
            .filter(|url| url.username().is_empty() && url.password().is_none())
            .map(Self)
            .ok_or_else(|| "must be an address such as https://example.com, with nothing after the host".to_owned())
    }
}

impl Setting for Endpoint {
    fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // It is shown to people.
        let url = url.filter(|url| url.username().is_empty() && url.password().is_none());
        url.map(Self).ok_or_else(|| {
            "must be an address such as http://collector:4318 or https://files.example.com, without a user and a password".to_owned()
        })
    }
}

impl Setting for SecretString {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }
}

impl Setting for Origins {
    fn parse(text: &str) -> Result<Self, String> {
        let shape = || "must be addresses such as https://app.example.com, separated by commas".to_owned();
        if text.contains('*') {
            return Err("contains a `*`, which browsers do not accept together with cookies: name each site".to_owned());
        }
        let origins: Result<_, _> = text.split(',').map(|origin| PublicUrl::parse(origin.trim()).map(|url| url.origin())).collect();
        origins.map(Self).map_err(|_| shape())
    }
}

impl Setting for RedisUrl {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        text.into_connection_info()
            .map(|_| Self(text.into()))
            .map_err(|_| "must be a URL such as redis://:password@host:6379/0 or rediss://…".to_owned())
    }
}
