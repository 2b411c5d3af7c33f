//! Rules: who may ask for an operation, and how often. The features' tables of rules decide, and nothing else does.
//!
//! No rule can say whose data a request may see: each query asks for the caller's own rows, and another's are 404.

use std::collections::BTreeSet;
use std::fmt;

use axum::http::{HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::http::openapi::{Access, DocumentedProblem};
use crate::http::problem::{Problem, Result};

/// What a person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, sqlx::Type, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Role {
    User,
    Admin,
}

/// Who may ask for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    Anyone,
    /// A session. A token is refused, whatever its scopes.
    SignedIn,
    /// A session whose person showed the password in the last ten minutes: a stolen session is not a stolen account.
    Confirmed,
    /// A session, or a token with this scope.
    Scope(&'static str),
    /// An admin's session.
    Admin,
}

/// As `admin access` prints it: `anyone`, `session`, `confirmed session`, `session or scope tokens:read`, `admin session`.
impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::SignedIn => f.write_str("session"),
            Self::Confirmed => f.write_str("confirmed session"),
            Self::Scope(scope) => write!(f, "session or scope {scope}"),
            Self::Admin => f.write_str("admin session"),
        }
    }
}

/// How often an operation may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// `RATE_LIMIT_REQUESTS`, by account, and by client address for a request that is nobody's. While Redis is unavailable
    /// requests without a session pass unlimited.
    Requests,
    /// `RATE_LIMIT_LOGIN`, by client address: what sends mails or tries secrets. Never by account alone, which would let
    /// anyone lock a person out. By account and address together it would never be reached before the address's own limit.
    /// While Redis is unavailable it is 503, since both must be counted.
    LogIn,
}

impl Rate {
    /// The variable that sets the limit.
    pub fn variable(self) -> &'static str {
        if self == Self::Requests { "RATE_LIMIT_REQUESTS" } else { "RATE_LIMIT_LOGIN" }
    }
}

/// A line of a table of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub method: Method,
    /// The route's template: `/api/v1/tokens/{id}`.
    pub path: &'static str,
    pub who: Who,
    pub rate: Rate,
    /// Whether the body is handed on as it comes in, however long it takes.
    pub streams: bool,
}

impl Rule {
    pub const fn new(method: Method, path: &'static str, who: Who, rate: Rate) -> Self {
        Self { method, path, who, rate, streams: false }
    }

    /// The same for a route whose body is handed on as it comes in: it is not read before the work begins, not bound by
    /// `REQUEST_TIMEOUT`, and cut off with 408 when nothing moves.
    pub const fn streaming(mut self) -> Self {
        self.streams = true;
        self
    }

    /// What the API's document says of the rule.
    pub fn access(&self) -> Access {
        let security = match self.who {
            Who::Anyone => json!([]),
            Who::SignedIn | Who::Confirmed | Who::Admin => json!([{ "session": [] }]),
            Who::Scope(scope) => json!([{ "session": [] }, { "token": [scope] }]),
        };
        let happens = |slug| match slug {
            "cross-site" => !self.method.is_safe(),
            "insufficient-role" => self.who == Who::Admin,
            "confirmation-required" => self.who == Who::Confirmed,
            _ => self.who != Who::Anyone,
        };
        Access {
            method: self.method.as_str().to_ascii_lowercase(),
            path: self.path,
            security,
            limit: self.rate.variable(),
            streams: self.streams,
            problems: REFUSALS.iter().filter(|problem| happens(problem.slug)).copied().collect(),
        }
    }
}

/// The problems that the guard answers with.
const REFUSALS: &[DocumentedProblem] = &[
    DocumentedProblem::new("401", "unauthenticated", "There is no session or token, or it has ended"),
    DocumentedProblem::new(
        "403",
        "confirmation-required",
        "The password was not shown in the last ten minutes: `POST /api/v1/session/confirm`",
    ),
    DocumentedProblem::new("403", "cross-site", "A change with a cookie came from another site"),
    DocumentedProblem::new("403", "insufficient-role", "The session is not an admin's"),
    DocumentedProblem::new("403", "insufficient-scope", "The token may not do this"),
];

/// How a request can show whose it is, as the API's document names it.
pub fn security_schemes() -> Value {
    json!({
        "session": { "type": "apiKey", "in": "cookie", "name": "id",
            "description": "Set by a log-in. `__Host-id` over https. A change needs an `Origin` or `Sec-Fetch-Site` header too." },
        "token": { "type": "http", "scheme": "bearer", "description": "An API token with the scope that the operation names." },
    })
}

/// The scopes that the rules ask for, in order.
pub fn scopes<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> BTreeSet<&'static str> {
    rules.into_iter().filter_map(|rule| if let Who::Scope(scope) = rule.who { Some(scope) } else { None }).collect()
}

/// The rule for a route, whose GET is also its HEAD.
///
/// # Errors
/// 405 with `Allow`: no rule names the method on that path, so nobody may.
pub fn find<'a>(rules: &'a [Rule], method: &Method, path: &str) -> Result<&'a Rule> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let of_path = || rules.iter().filter(|rule| rule.path == path);
    if let Some(rule) = of_path().find(|rule| rule.method == method) {
        return Ok(rule);
    }
    let allowed: Vec<_> = of_path().map(|rule| if rule.method == Method::GET { "GET,HEAD" } else { rule.method.as_str() }).collect();
    let allow = HeaderValue::try_from(allowed.join(",")).map_err(Problem::internal)?;
    Err(Problem { headers: vec![(header::ALLOW, allow)], ..Problem::from_status(StatusCode::METHOD_NOT_ALLOWED) })
}
