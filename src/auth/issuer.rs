//! An issuer of tokens, and the keys that it signs them with. Its discovery document names them (OIDC
//! Discovery 1.0).
//!
//! A process caches the documents. It fetches them again for a token with an unknown key and when they are old, but at
//! most once a minute. If that fails, the known ones stay in use.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, warn};
use url::Url;

use super::{secret, signature};
use crate::config::IssuerUrl;
use crate::resources::http_client::HttpClient;

/// How often the documents may be fetched, also if fetching them fails. Anyone can send a token with an unknown key.
const FETCH_INTERVAL: Duration = Duration::from_mins(1);

/// The age at which the documents are fetched again while the old ones are used, so that a busy process never waits.
const REFRESH_AGE: Duration = Duration::from_mins(5);

/// The age at which a request waits for new documents, so that a key that the issuer has withdrawn stops working.
const MAX_AGE: Duration = Duration::from_mins(10);

/// How long fetching both documents may take. Requests wait for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How many requests may wait for the documents. The others are refused at once.
const MAX_WAITING: usize = 64;

/// How many keys a key set may have. Issuers have a handful.
const MAX_KEYS: usize = 100;

/// How many signed tokens a process remembers, at some 100 bytes each.
const MAX_SIGNED: usize = 10_000;

/// What a discovery document says, as far as it is needed.
#[derive(Debug, Clone, Deserialize)]
pub struct Discovery {
    issuer: String,
    jwks_uri: String,
    pub authorization_endpoint: Option<String>,
    pub token_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Vec<String>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// A member of a key set (RFC 7517, RFC 8037).
#[derive(Deserialize)]
struct Jwk {
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    #[serde(flatten)]
    material: Material,
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum Material {
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "EC")]
    Ec { crv: String, x: String, y: String },
    #[serde(rename = "OKP")]
    Okp { crv: String, x: String },
}

/// A public key, and the algorithm that it verifies.
#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    public: DecodingKey,
}

impl Key {
    /// None if the key is not for signatures that are accepted here.
    fn of(value: Value) -> Option<Self> {
        let Jwk { kid: id, alg, usage, material } = serde_json::from_value(value).ok()?;
        let (algorithm, name, key) = match material {
            Material::Rsa { n, e } => (Algorithm::RS256, "RS256", DecodingKey::from_rsa_components(&n, &e)),
            Material::Ec { crv, x, y } if crv == "P-256" => (Algorithm::ES256, "ES256", DecodingKey::from_ec_components(&x, &y)),
            Material::Okp { crv, x } if crv == "Ed25519" => (Algorithm::EdDSA, "EdDSA", DecodingKey::from_ed_components(&x)),
            Material::Ec { .. } | Material::Okp { .. } => return None,
        };
        let suits = alg.is_none_or(|alg| alg == name || alg == "Ed25519" && name == "EdDSA") && usage.is_none_or(|usage| usage == "sig");
        Some(Self { id, algorithm, public: key.ok().filter(|_| suits)? })
    }
}

/// The issuer's documents as they were last fetched.
struct Known {
    at: Instant,
    discovery: Discovery,
    keys: Vec<Key>,
    /// The hashes of tokens that one of these keys has signed. Verifying a signature costs as much as a whole request.
    signed: RwLock<HashSet<Vec<u8>>>,
}

impl Known {
    /// The key with this id. A token without an id uses the only key of its algorithm.
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut keys = self.keys.iter().filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
        let found = keys.next()?;
        (id.is_some() || keys.next().is_none()).then_some(&found.public)
    }

    /// Whether a token's signature is by the key that its head names. None if there is no such key.
    fn has_signed(&self, token: &str, id: Option<&str>, algorithm: Algorithm) -> Option<bool> {
        let key = self.find(id, algorithm)?;
        let hash = secret::hash(token);
        if self.signed.read().unwrap_or_else(PoisonError::into_inner).contains(&hash) {
            return Some(true);
        }
        let mut only_signature = Validation::new(algorithm);
        only_signature.required_spec_claims.clear();
        (only_signature.validate_exp, only_signature.validate_aud) = (false, false);
        let valid = decode::<IgnoredAny>(token, key, &only_signature).is_ok();
        if valid {
            let mut signed = self.signed.write().unwrap_or_else(PoisonError::into_inner);
            if signed.len() >= MAX_SIGNED {
                signed.clear();
            }
            signed.insert(hash);
        }
        Some(valid)
    }
}

/// The issuer's keys are not known, because it did not answer or its answer is unusable. The log says why.
#[derive(Debug, thiserror::Error)]
#[error("the keys of the token issuer are not known")]
pub struct Unknown;

/// A handle on an issuer. Cheap to clone.
#[derive(Clone)]
pub struct Issuer(Arc<Parts>);

struct Parts {
    url: IssuerUrl,
    client: HttpClient,
    clock: fn() -> Instant,
    known: RwLock<Option<Arc<Known>>>,
    /// When the documents were last asked for. It is locked while they are fetched.
    asked_at: Mutex<Option<Instant>>,
    waiting: Semaphore,
}

impl Issuer {
    /// Attaches an issuer. It is asked when the first token arrives. `clock` says how old the documents are.
    pub fn attach(url: IssuerUrl, client: HttpClient, clock: fn() -> Instant) -> Self {
        signature::install();
        let (known, asked_at, waiting) = (RwLock::default(), Mutex::default(), Semaphore::new(MAX_WAITING));
        Self(Arc::new(Parts { url, client, clock, known, asked_at, waiting }))
    }

    /// The issuer's identifier.
    pub fn url(&self) -> &str {
        &self.0.url.0
    }

    /// Whether the issuer has signed a token, by the key's id and the algorithm in its head. None if the issuer has no such
    /// key. Nothing else about the token is checked.
    ///
    /// # Errors
    /// No keys are known.
    pub async fn has_signed(&self, token: &str, id: Option<&str>, algorithm: Algorithm) -> Result<Option<bool>, Unknown> {
        let answer = self.fresh().await.ok_or(Unknown)?.has_signed(token, id, algorithm);
        if answer.is_some() {
            return Ok(answer);
        }
        self.wait_for_refresh().await;
        self.known().map(|known| known.has_signed(token, id, algorithm)).ok_or(Unknown)
    }

    /// The issuer's host, for people.
    pub fn host(&self) -> String {
        Url::parse(self.url()).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
    }

    /// The issuer's discovery document.
    ///
    /// # Errors
    /// It is not known.
    pub async fn discovery(&self) -> Result<Discovery, Unknown> {
        self.fresh().await.map(|known| known.discovery.clone()).ok_or(Unknown)
    }

    /// The documents, fetched again if they are old. If that fails, they stay in use. None if there are none.
    async fn fresh(&self) -> Option<Arc<Known>> {
        match self.known().map(|known| self.since(known.at)) {
            Some(age) if age <= REFRESH_AGE => {}
            Some(age) if age <= MAX_AGE => {
                if self.may_ask() {
                    tokio::spawn(self.clone().refresh().in_current_span());
                }
            }
            _ => self.wait_for_refresh().await,
        }
        self.known()
    }

    /// The client that asks the issuer.
    pub fn client(&self) -> &HttpClient {
        &self.0.client
    }

    async fn wait_for_refresh(&self) {
        if let Ok(_place) = self.0.waiting.try_acquire() {
            // In a new task, so that it goes on for the other clients if this one disconnects.
            let _ = tokio::spawn(self.clone().refresh().in_current_span()).await;
        }
    }

    fn since(&self, at: Instant) -> Duration {
        (self.0.clock)().duration_since(at)
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nobody fetches the documents now, or has just done so.
    fn may_ask(&self) -> bool {
        self.0.asked_at.try_lock().is_ok_and(|at| at.is_none_or(|at| self.since(at) >= FETCH_INTERVAL))
    }

    /// Fetches the documents, or waits while another task fetches them. Does nothing if that was less than a minute ago.
    async fn refresh(self) {
        let mut asked_at = self.0.asked_at.lock().await;
        if asked_at.is_some_and(|at| self.since(at) < FETCH_INTERVAL) {
            return;
        }
        *asked_at = Some((self.0.clock)());
        let fetched = timeout(FETCH_TIMEOUT, self.fetch()).await;
        match fetched.unwrap_or_else(|_| Err(anyhow!("no answer in {FETCH_TIMEOUT:?}"))) {
            Ok(known) => *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(known)),
            Err(e) => warn!(error = format!("{e:#}"), "cannot fetch the keys of the token issuer, retrying in a minute: {e:#}"),
        }
    }

    async fn fetch(&self) -> anyhow::Result<Known> {
        let place = format!("{}/.well-known/openid-configuration", self.url().trim_end_matches('/'));
        let discovery: Discovery = self.get(&place).await.context("discovery document")?;
        ensure!(discovery.issuer == self.url(), "discovery document: it is another issuer's");
        let secure = self.url().starts_with("https:");
        let addresses = [Some(&discovery.jwks_uri), discovery.authorization_endpoint.as_ref(), discovery.token_endpoint.as_ref()];
        let insecure = addresses.into_iter().flatten().any(|address| !address.starts_with("https:"));
        ensure!(!secure || !insecure, "discovery document: it has an address without https");
        let set: KeySet = self.get(&discovery.jwks_uri).await.context("key set")?;
        ensure!(set.keys.len() <= MAX_KEYS, "key set: it has more than {MAX_KEYS} keys");
        let keys: Vec<_> = set.keys.into_iter().filter_map(Key::of).collect();
        // An issuer that withdraws its last key has none.
        ensure!(!keys.is_empty() || self.known().is_some(), "key set: it has no key for RS256, ES256 or EdDSA");
        Ok(Known { at: (self.0.clock)(), discovery, keys, signed: RwLock::default() })
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        let request = Request::get(url).header("accept", "application/json").body(Bytes::new()).map_err(|_| anyhow!("not a URL"))?;
        let response = self.0.client.send(request).await?;
        ensure!(response.status() == StatusCode::OK, "the issuer answered {}", response.status());
        // The error of the parser may contain parts of the text.
        serde_json::from_slice(response.body()).map_err(|_| anyhow!("not JSON of the expected form"))
    }
}
