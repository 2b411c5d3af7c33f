//! Access rules: who may call an operation, and how often. Only the features' tables of rules decide that.
//!
//! A rule cannot say whose data a request may see. Each query selects the caller's own rows, so another account's data
//! is 404.

use std::collections::BTreeSet;
use std::fmt;

use axum::http::{HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::config::Flags;
use crate::http::openapi::{Access, DocumentedProblem};
use crate::http::problem::{Problem, Result};

/// An account's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, sqlx::Type, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Role {
    User,
    Admin,
}

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Every client, signed in or not.
    Anyone,
    /// A session. Tokens are refused, whatever their scopes.
    SignedIn,
    /// A session in which the password was entered in the last ten minutes. A thief of the session cannot take the
    /// account over.
    Confirmed,
    /// A session, or a token with this scope.
    Scope(&'static str),
    /// The session of an admin, or a service's access token whose role and whose account's role are admin.
    Admin,
}

/// As `admin access` prints it: `anyone`, `session`, `confirmed session`, `session or scope tokens:read`, `admin
/// session or admin service`.
impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::SignedIn => f.write_str("session"),
            Self::Confirmed => f.write_str("confirmed session"),
            Self::Scope(scope) => write!(f, "session or scope {scope}"),
            Self::Admin => f.write_str("admin session or admin service"),
        }
    }
}

/// How often an operation may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// `RATE_LIMIT_REQUESTS`, counted by account, or by client address for a request without one. While Redis is
    /// unavailable, requests without a session are not limited.
    Requests,
    /// `RATE_LIMIT_LOGIN`, counted by client address, for operations that send a mail or try a password. Counting by
    /// account alone would let anyone lock a person out, and the limit of an account at one address could never be
    /// reached before the address's own. While Redis is unavailable these operations are 503, because they must not go
    /// uncounted.
    LogIn,
    /// Not counted, for answers to anyone that need neither Redis nor Postgres. They cost less than the counting.
    Static,
}

impl Rate {
    /// The environment variable that sets the limit, or `none`.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Requests => "RATE_LIMIT_REQUESTS",
            Self::LogIn => "RATE_LIMIT_LOGIN",
            Self::Static => "none",
        }
    }
}

/// A flag of the config that an operation depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    SignUp,
}

impl Flag {
    /// The environment variable that turns it on and off.
    pub fn variable(self) -> &'static str {
        match self {
            Self::SignUp => "FEATURE_SIGN_UP",
        }
    }

    /// Whether this deploy has it on.
    pub fn is_on(self, flags: &Flags) -> bool {
        match self {
            Self::SignUp => flags.feature_sign_up,
        }
    }
}

/// One line of a feature's table of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub method: Method,
    /// The route's template, such as `/api/v1/tokens/{id}`.
    pub path: &'static str,
    pub who: Who,
    pub rate: Rate,
    /// If the deploy has this flag off, nobody may call the operation.
    pub flag: Option<Flag>,
    /// Whether the handler gets the body as it arrives, without a time limit for the whole.
    pub streams: bool,
}

impl Rule {
    pub const fn new(method: Method, path: &'static str, who: Who, rate: Rate) -> Self {
        Self { method, path, who, rate, flag: None, streams: false }
    }

    /// The same rule, as long as the flag is on.
    pub const fn if_on(mut self, flag: Flag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// The same rule for a route whose handler gets the body as it arrives. `REQUEST_TIMEOUT` does not apply. A client that
    /// sends nothing for too long gets a 408.
    pub const fn streaming(mut self) -> Self {
        self.streams = true;
        self
    }

    /// The rule as the `OpenAPI` document describes it.
    pub fn access(&self) -> Access {
        let security = match self.who {
            Who::Anyone => json!([]),
            Who::SignedIn | Who::Confirmed => json!([{ "session": [] }]),
            Who::Admin => json!([{ "session": [] }, { "admin_service": [] }]),
            Who::Scope(scope) => json!([{ "session": [] }, { "token": [scope] }]),
        };
        let happens = |slug| match slug {
            "cross-site" => !self.method.is_safe(),
            "insufficient-role" => self.who == Who::Admin,
            "confirmation-required" => self.who == Who::Confirmed,
            "feature-disabled" => self.flag.is_some(),
            _ => self.who != Who::Anyone,
        };
        Access {
            method: self.method.as_str().to_ascii_lowercase(),
            path: self.path,
            security,
            limit: self.rate.variable(),
            flag: self.flag.map(Flag::variable),
            streams: self.streams,
            problems: REFUSALS.iter().filter(|problem| happens(problem.slug)).copied().collect(),
        }
    }
}

/// The problems that the guard responds with.
const REFUSALS: &[DocumentedProblem] = &[
    DocumentedProblem::new("401", "unauthenticated", "The request has no session or token, or it has ended"),
    DocumentedProblem::new(
        "403",
        "confirmation-required",
        "The password was not confirmed in the last ten minutes: `POST /api/v1/session/confirm`",
    ),
    DocumentedProblem::new("403", "cross-site", "A change with a cookie came from another site"),
    DocumentedProblem::new("403", "feature-disabled", "This deploy has turned the operation off. `x-feature-flag` names the variable"),
    DocumentedProblem::new("403", "insufficient-role", "The session is not an admin's"),
    DocumentedProblem::new("403", "insufficient-scope", "The token lacks the scope, or the operation requires a session"),
];

/// The ways to authenticate a request, as the `OpenAPI` document names them.
pub fn security_schemes() -> Value {
    json!({
        "session": { "type": "apiKey", "in": "cookie", "name": "id",
            "description": "Set at log-in. Named `__Host-id` over https. A change also needs an `Origin` or `Sec-Fetch-Site` header." },
        "token": { "type": "http", "scheme": "bearer", "description": "An API token, or a service's access token, that has the operation's scope." },
        "admin_service": { "type": "http", "scheme": "bearer", "description": "The access token of a service with the role admin. `TOKEN_ROLES_CLAIM` names the claim." },
    })
}

/// The scopes that the rules require, sorted.
pub fn scopes<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> BTreeSet<&'static str> {
    rules.into_iter().filter_map(|rule| if let Who::Scope(scope) = rule.who { Some(scope) } else { None }).collect()
}

/// The rule for a route. The rule for GET applies to HEAD too.
///
/// # Errors
/// 405 with `Allow`: no rule names the method on that path.
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
