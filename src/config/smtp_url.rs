//! `SMTP_URL`: the mail server, and how the connection to it is encrypted.

use std::net::IpAddr;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::Url;

use super::Setting;

/// An SMTP URL.
#[derive(Debug, Clone)]
pub struct SmtpUrl {
    pub text: SecretString,
    pub server: SmtpServer,
}

/// The mail server that an SMTP URL names.
#[derive(Debug, Clone)]
pub struct SmtpServer {
    pub host: String,
    pub port: u16,
    pub credentials: Option<(String, SecretString)>,
    pub tls: SmtpTls,
}

/// How the connection to a mail server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// TLS from the beginning.
    Implicit,
    /// STARTTLS. Without it no mail is sent.
    Required,
    /// STARTTLS if the server offers it.
    Opportunistic,
    None,
}

impl Setting for SmtpUrl {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { server: SmtpServer::parse(text)?, text: text.into() })
    }
}

impl SmtpServer {
    fn parse(text: &str) -> Result<Self, String> {
        let shape = || "must be a URL such as smtp://host:25, smtps://user:password@host or smtp://host:587?tls=required".to_owned();
        let url = Url::parse(text).map_err(|_| shape())?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(shape)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (_, None) => return Err("names a user but no password".to_owned()),
            (user, Some(password)) => Some((decoded(user), SecretString::from(decoded(password)))),
        };
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let mut asked = None;
        for (key, value) in url.query_pairs() {
            match &*key {
                "tls" => asked = Some(value.into_owned()),
                _ => return Err(format!("has the unknown parameter {key}: the only parameter is tls")),
            }
        }
        let tls = match (url.scheme(), asked.as_deref()) {
            ("smtps", None) => SmtpTls::Implicit,
            ("smtp", Some("required")) => SmtpTls::Required,
            ("smtp", Some("opportunistic")) => SmtpTls::Opportunistic,
            // A password must not cross a network unencrypted.
            ("smtp", None) if credentials.is_some() && !loopback => SmtpTls::Required,
            ("smtp", None | Some("none")) => SmtpTls::None,
            ("smtp", Some(_)) => return Err("has a tls that is not one of required, opportunistic and none".to_owned()),
            ("smtps", Some(_)) => return Err("begins with smtps, which is TLS from the beginning: leave tls out".to_owned()),
            _ => return Err(shape()),
        };
        let port = url.port().unwrap_or(match tls {
            SmtpTls::Implicit => 465,
            SmtpTls::Required => 587,
            SmtpTls::Opportunistic | SmtpTls::None => 25,
        });
        Ok(Self { host, port, credentials, tls })
    }
}
