//! `DATABASE_URL`: a Postgres URL that is complete, so that nothing else decides where to connect.

use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::Setting;

/// A Postgres URL that names a host, a user and a database.
#[derive(Debug, Clone)]
pub struct DatabaseUrl {
    /// The URL as it was given.
    pub text: SecretString,
    /// The URL with only the parameters that the driver knows.
    pub url: SecretString,
    /// The names of the parameters that the driver does not know. It would log them with their values.
    pub unknown: Vec<String>,
}

/// The parameters that the driver knows, in addition to `options[…]`.
const KNOWN_PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Parameters that require a security feature which the driver does not support.
const UNSUPPORTED: [(&str, &str); 3] = [("channel_binding", "require"), ("gssencmode", "require"), ("require_auth", "")];

const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

impl Setting for DatabaseUrl {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let shape = "must be a URL such as postgres://user:password@host:5432/name";
        if text.contains('#') {
            return Err("contains a `#`, after which everything is ignored: in a password write it as %23".to_owned());
        }
        let (scheme, rest) = text.split_once("://").ok_or(shape)?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(shape.to_owned());
        }
        let place = rest.split(['/', '?']).next().unwrap_or_default();
        let host = place.rsplit('@').next().unwrap_or_default();
        if host.contains(',') {
            return Err("names several hosts: name one, such as a proxy that finds the primary".to_owned());
        }
        // The host may be in the parameter `host` alone.
        let text_with_host = if host.is_empty() { format!("{scheme}://{place}localhost{}", &rest[place.len()..]) } else { text.to_owned() };
        let mut url = Url::parse(&text_with_host).map_err(|_| shape.to_owned())?;
        if url.path().len() > 1 && url.path()[1..].contains('/') {
            return Err("has a `/` after the database's name".to_owned());
        }
        let mut unknown = Vec::new();
        let mut kept = Vec::new();
        for (key, value) in url.query_pairs() {
            if UNSUPPORTED.iter().any(|(name, only)| *name == key && (only.is_empty() || *only == value)) {
                return Err(format!("requires {key}, which the driver does not support: leave it out"));
            }
            if matches!(&*key, "sslmode" | "ssl-mode") && !SSL_MODES.contains(&&*value) {
                return Err(format!("has an {key} that is not one of {}", SSL_MODES.join(", ")));
            }
            match &*key {
                // The pool always does what this requests: it uses only connections that accept writes.
                "target_session_attrs" => {}
                known if KNOWN_PARAMETERS.contains(&known) || known.starts_with("options[") => {
                    kept.push((key.into_owned(), value.into_owned()));
                }
                _ => unknown.push(key.into_owned()),
            }
        }
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(&kept);
        }
        url.as_str().parse::<PgConnectOptions>().map_err(|_| shape.to_owned())?;
        // The driver would take missing parts from PGHOST, PGUSER or PGDATABASE, or from the system user's name.
        let said = |key: &str| kept.iter().any(|(k, v)| k == key && !v.is_empty());
        let left_out: Vec<_> = [
            ("a host", !host.is_empty() || said("host") || said("hostaddr")),
            ("a user", !url.username().is_empty() || said("user")),
            ("a database name", url.path().len() > 1 || said("dbname")),
        ]
        .into_iter()
        .filter_map(|(part, said)| (!said).then_some(part))
        .collect();
        if !left_out.is_empty() {
            return Err(format!("leaves out {}: {}", left_out.join(" and "), &shape[5..]));
        }
        // The driver reads these variables and cannot be told to ignore them.
        match ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"].iter().find(|name| std::env::var_os(name).is_some()) {
            Some(name) => Err(format!("is overridden by {name}: unset {name}, and set the value in the URL")),
            None => Ok(Self { text: text.into(), url: url.as_str().into(), unknown }),
        }
    }
}
