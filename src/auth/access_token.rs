//! Access tokens of an issuer (JWT, RFC 9068), which authenticate services. A token counts only if its subject is a
//! service account that an operator has created.

use axum::http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, decode_header};
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use tokio::time::Instant;

use super::issuer::{Issuer, Unknown};
use super::rules::Role;
use super::service_account::{Service, Services};
use crate::config::TokenIssuer;
use crate::http::problem::{Problem, Result};
use crate::resources::http_client::HttpClient;
use crate::resources::postgres::Pool;

/// The algorithms of signatures. None of them uses a shared secret.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// The longest token in bytes, and the longest id of a key or a subject.
const MAX_TOKEN: usize = 8 * 1024;
const MAX_ID: usize = 255;

/// How far the issuer's clock may differ, in seconds.
const LEEWAY_S: f64 = 60.0;

/// The longest remaining life of a token, in seconds. Nobody can revoke a token, so it must expire soon.
const MAX_LIFE_S: f64 = 24.0 * 60.0 * 60.0;

/// The claims that are checked for every token. The others are in `more`.
#[derive(Debug, Clone, Deserialize)]
pub struct Claims {
    iss: String,
    pub sub: String,
    aud: Audience,
    exp: Number,
    nbf: Option<Number>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Claims {
    /// What is wrong with the claims, for the client.
    fn check(&self, issuer: &str, audience: &str, now: Timestamp) -> std::result::Result<(), &'static str> {
        let for_us = match &self.aud {
            Audience::One(one) => one == audience,
            Audience::Several(several) => several.iter().any(|one| one == audience),
        };
        let seconds = |number: &Number| number.as_f64().filter(|seconds| seconds.is_finite()).ok_or("The token has an invalid time");
        // Seconds since 1970 are exact as a float for millions of years.
        let now = now.as_duration().as_secs_f64();
        let (expires, begins) = (seconds(&self.exp)?, self.nbf.as_ref().map_or(Ok(0.0), seconds)?);
        let sane = (1..=MAX_ID).contains(&self.sub.len()) && !self.sub.contains(char::is_control);
        match () {
            () if self.iss != issuer => Err("The token is from another issuer"),
            () if !for_us => Err("The token is for another audience"),
            () if expires + LEEWAY_S <= now => Err("The token has expired"),
            () if expires - now > MAX_LIFE_S + LEEWAY_S => Err("The token lives for more than a day"),
            () if begins - LEEWAY_S > now => Err("The token is not valid yet"),
            () if !sane => Err("The token has an invalid subject"),
            () => Ok(()),
        }
    }
}

/// Whether a text has the form of a JWT. No API token has it.
pub fn has_form(token: &str) -> bool {
    token.split('.').count() == 3
}

/// Checks a token: its size, its type, its claims and then its signature. Returns its claims.
///
/// `allows` decides on the `typ` in its head, in small letters and without `application/`.
///
/// # Errors
/// 401 with the reason, 503 if no keys of the issuer are known.
pub async fn verify(issuer: &Issuer, token: &str, audience: &str, allows: fn(Option<&str>) -> bool, now: Timestamp) -> Result<Claims> {
    if token.len() > MAX_TOKEN {
        return Err(invalid("The token is too long"));
    }
    let malformed = |_| invalid("The token is malformed, or its algorithm is not allowed");
    let head = decode_header(token).map_err(malformed)?;
    let kind = head.typ.map(|kind| kind.to_ascii_lowercase());
    if !allows(kind.as_deref().map(|kind| kind.strip_prefix("application/").unwrap_or(kind))) {
        return Err(invalid("The token is of another type"));
    }
    if !ALGORITHMS.contains(&head.alg) || head.kid.as_ref().is_some_and(|id| id.len() > MAX_ID) {
        return Err(invalid("The token is malformed, or its algorithm is not allowed"));
    }
    // Before the signature, so that a token that is not for this service never makes it ask the issuer for keys.
    let claims: Claims = insecure_decode_claims(token).map_err(malformed)?;
    claims.check(issuer.url(), audience, now).map_err(invalid)?;
    let signed = issuer.has_signed(token, head.kid.as_deref(), head.alg).await.map_err(|Unknown| Problem::unavailable(Unknown))?;
    match signed {
        Some(true) => Ok(claims),
        Some(false) => Err(invalid("The token's signature is invalid")),
        None => Err(invalid("The token's key is unknown")),
    }
}

/// 401 as RFC 6750, 3.1, demands.
fn invalid(reason: &'static str) -> Problem {
    let challenge = HeaderValue::try_from(format!("Bearer error=\"invalid_token\", error_description=\"{reason}\""));
    let headers = challenge.into_iter().map(|challenge| (header::WWW_AUTHENTICATE, challenge)).collect();
    Problem { headers, ..Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", format!("{reason}.")) }
}

/// What a valid token allows.
pub struct Grant {
    pub service: Service,
    /// The scopes that both the token and the account have.
    pub scopes: Vec<String>,
    /// Admin only if both the token and the account have that role.
    pub role: Role,
}

/// The issuer whose tokens are accepted, and the accounts of its services.
pub struct AccessTokens {
    issuer: Issuer,
    audience: String,
    roles_claim: Option<String>,
    services: Services,
    now: fn() -> Timestamp,
}

impl AccessTokens {
    pub fn new(config: TokenIssuer, client: HttpClient, postgres: Pool, now: fn() -> Timestamp) -> Self {
        let TokenIssuer { url, audience, roles_claim } = config;
        Self { issuer: Issuer::attach(url, client, Instant::now), audience, roles_claim, services: Services::new(postgres), now }
    }

    /// Checks a token and finds its service.
    ///
    /// # Errors
    /// 401 with the reason, 503 if no keys of the issuer are known or Postgres is unavailable.
    pub async fn check(&self, token: &str) -> Result<Grant> {
        let claims = verify(&self.issuer, token, &self.audience, is_access_token, (self.now)()).await?;
        // What only ID tokens have. Some issuers give them the same type, and they may have the same audience.
        if ["nonce", "at_hash", "c_hash"].iter().any(|claim| claims.more.contains_key(*claim)) {
            return Err(invalid("The token is an ID token"));
        }
        let found = self.services.find(self.issuer.url(), &claims.sub).await?;
        let service = found.ok_or_else(|| invalid("The token's subject is no service of this deploy"))?;
        let asked = claims.more.get("scope").and_then(Value::as_str).unwrap_or_default();
        let scopes = asked.split(' ').filter(|asked| service.scopes.iter().any(|has| has == asked)).map(str::to_owned).collect();
        let role = if service.role == Role::Admin && self.names_admin(&claims.more) { Role::Admin } else { Role::User };
        Ok(Grant { service, scopes, role })
    }

    /// Whether the claim with the roles is `admin`, or a list that contains it.
    fn names_admin(&self, claims: &Map<String, Value>) -> bool {
        let Some(claim) = &self.roles_claim else { return false };
        let path = claim.strip_prefix('/').map(|path| path.split('/'));
        let roles = match path {
            Some(mut path) => {
                path.next().and_then(|first| claims.get(first)).and_then(|first| path.try_fold(first, |at, name| at.get(name)))
            }
            None => claims.get(claim),
        };
        match roles {
            Some(Value::Array(roles)) => roles.iter().any(|role| role == "admin"),
            Some(role) => role == "admin",
            None => false,
        }
    }
}

/// RFC 9068, 2.1, asks for `at+jwt`. `JWT` and no type are accepted too, because the issuers of many platforms' workload
/// identities send these. Tokens for other purposes have types of their own.
fn is_access_token(kind: Option<&str>) -> bool {
    matches!(kind, None | Some("at+jwt" | "jwt"))
}
