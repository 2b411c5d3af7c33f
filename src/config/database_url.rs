//! `DATABASE_URL`: a Postgres URL that names all that decides where it leads.

use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::Setting;

/// A Postgres URL that names host, user and database, so that nothing else decides them.
#[derive(Debug, Clone)]
pub struct DatabaseUrl {
    /// As it was given.
    pub text: SecretString,
    /// As the driver understands it.
    pub url: SecretString,
    /// Parameters that mean nothing to the driver, by name. It would write them into the log, values and all.
    pub unknown: Vec<String>,
}

/// The parameters that the driver knows, beside `options[…]`.
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

/// What asks for a security that the driver cannot give.
const UNSUPPORTED: [(&str, &str); 3] = [("channel_binding", "require"), ("gssencmode", "require"), ("require_auth", "")];

const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

impl Setting for DatabaseUrl {
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let shape = "must be a URL such as postgres://user:password@host:5432/name";
        if text.contains('#') {
            return Err("has a `#`, behind which nothing is read: in a password it is written %23".to_owned());
        }
        let (scheme, rest) = text.split_once("://").ok_or(shape)?;
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(shape.to_owned());
        }
        let place = rest.split(['/', '?']).next().unwrap_or_default();
        let host = place.rsplit('@').next().unwrap_or_default();
        if host.contains(',') {
            return Err("names several hosts: name one, such as the proxy that finds the primary".to_owned());
        }
        // A host may stand in the parameter of that name alone.
        let text_with_host = if host.is_empty() { format!("{scheme}://{place}localhost{}", &rest[place.len()..]) } else { text.to_owned() };
        let mut url = Url::parse(&text_with_host).map_err(|_| shape.to_owned())?;
        if url.path().len() > 1 && url.path()[1..].contains('/') {
            return Err("has a `/` behind the database's name".to_owned());
        }
        let mut unknown = Vec::new();
        let mut kept = Vec::new();
        for (key, value) in url.query_pairs() {
            if UNSUPPORTED.iter().any(|(name, only)| *name == key && (only.is_empty() || *only == value)) {
                return Err(format!("asks for {key}, which the driver cannot keep: leave it out"));
            }
            if matches!(&*key, "sslmode" | "ssl-mode") && !SSL_MODES.contains(&&*value) {
                return Err(format!("has an {key} that is none of {}", SSL_MODES.join(", ")));
            }
            match &*key {
                // What it asks for is what the pool does: connections that take writes.
                "target_session_attrs" => {}
                known if KNOWN_PARAMETERS.contains(&known) || known.starts_with("options[") => {
                    kept.push((key.into_owned(), value.into_owned()))
                }
                _ => unknown.push(key.into_owned()),
            }
        }
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(&kept);
        }
        url.as_str().parse::<PgConnectOptions>().map_err(|_| shape.to_owned())?;
        // What is left out here would be taken from PGHOST, PGUSER or PGDATABASE, or from the name of the system's user.
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
        // The driver obeys these and offers no way to overrule them.
        match ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"].iter().find(|name| std::env::var_os(name).is_some()) {
            Some(name) => Err(format!("is not all that decides: unset {name}, and say it in the URL")),
            None => Ok(Self { text: text.into(), url: url.as_str().into(), unknown }),
        }
    }
}
