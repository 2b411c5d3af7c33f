//! An issuer of tokens: a discovery document, a key set, and keys that sign what a test wants.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Pair {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A key that signs tokens. It is generated for the test.
pub struct Key {
    pub id: String,
    pair: Pair,
}

impl Key {
    pub fn ed(id: &str) -> Self {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("randomness");
        Self { id: id.to_owned(), pair: Pair::Ed(Ed25519KeyPair::from_pkcs8(made.as_ref()).expect("a key")) }
    }

    pub fn ec(id: &str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("randomness");
        Self { id: id.to_owned(), pair: Pair::Ec(EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).expect("a key")) }
    }

    /// ring cannot make such a key, so `openssl` does.
    pub fn rsa(id: &str) -> Self {
        let arguments = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"];
        let made = Command::new("openssl").args(arguments).output().expect("openssl runs");
        // Which of the two encodings it writes depends on its version.
        let pair = RsaKeyPair::from_pkcs8(&made.stdout).or_else(|_| RsaKeyPair::from_der(&made.stdout));
        Self { id: id.to_owned(), pair: Pair::Rsa(pair.expect("a key")) }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Ed(_) => "EdDSA",
            Pair::Ec(_) => "ES256",
            Pair::Rsa(_) => "RS256",
        }
    }

    /// The public key, as a key set contains it.
    pub fn public(&self) -> Value {
        let (id, algorithm) = (&self.id, self.algorithm());
        match &self.pair {
            Pair::Ed(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key()), "kid": id, "use": "sig", "alg": algorithm })
            }
            Pair::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y), "kid": id, "use": "sig" })
            }
            Pair::Rsa(pair) => {
                let PublicKeyComponents::<Vec<u8>> { n, e } = pair.public_key().into();
                json!({ "kty": "RSA", "n": encode(n), "e": encode(e), "kid": id, "alg": algorithm })
            }
        }
    }

    /// A token with this head and these claims.
    pub fn sign(&self, head: &Value, claims: &Value) -> String {
        self.sign_text(head, &claims.to_string())
    }

    /// A token with this head, and any text as its claims.
    pub fn sign_text(&self, head: &Value, claims: &str) -> String {
        let message = format!("{}.{}", encode(head.to_string()), encode(claims));
        let signature = match &self.pair {
            Pair::Ed(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
            Pair::Ec(pair) => pair.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature").as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).expect("a signature");
                signature
            }
        };
        format!("{message}.{}", encode(signature))
    }

    /// The head that a token of this key has.
    pub fn head(&self) -> Value {
        json!({ "typ": "at+jwt", "alg": self.algorithm(), "kid": self.id })
    }
}

/// A running issuer.
pub struct Issuer {
    pub url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    fetches: Arc<AtomicUsize>,
    hangs: Arc<AtomicBool>,
}

/// The audience of the tests' tokens.
pub const AUDIENCE: &str = "https://api.example.com";

impl Issuer {
    pub async fn start(keys: &[&Key]) -> Self {
        let issuer = Self::answering(|_, _| None).await;
        issuer.publish(keys);
        issuer
    }

    /// An issuer that answers as the test wants. `answer` gets a path and the issuer's URL. For None it answers as others.
    pub async fn answering(answer: impl Fn(&str, &str) -> Option<Response> + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let issuer = Self { url: url.clone(), keys: Arc::default(), fetches: Arc::default(), hangs: Arc::default() };
        let (keys, fetches, hangs) = (issuer.keys.clone(), issuer.fetches.clone(), issuer.hangs.clone());
        let serve = async move |uri: Uri| -> Response {
            if uri.path() == "/.well-known/openid-configuration" {
                fetches.fetch_add(1, Ordering::Relaxed);
            }
            if hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let body = match uri.path() {
                path if let Some(response) = answer(path, &url) => return response,
                "/.well-known/openid-configuration" => json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }),
                _ => json!({ "keys": *keys.lock().expect("no panic while locked") }),
            };
            axum::Json(body).into_response()
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(serve))).await });
        issuer
    }

    /// Replaces the key set.
    pub fn publish(&self, keys: &[&Key]) {
        *self.keys.lock().expect("no panic while locked") = keys.iter().map(|key| key.public()).collect();
    }

    /// From now on it never answers.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// From now on it answers again.
    pub fn heal(&self) {
        self.hangs.store(false, Ordering::Relaxed);
    }

    /// How often its documents were fetched.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }

    /// The claims of a valid token of this issuer, with others in their place. Null removes a claim.
    pub fn claims(&self, others: Value) -> Value {
        let mut claims = json!({ "iss": self.url, "aud": AUDIENCE, "sub": "billing", "iat": now(), "exp": now() + 300, "jti": "1", "client_id": "billing" });
        for (name, value) in others.as_object().unwrap_or(&Map::new()) {
            claims[name] = value.clone();
        }
        if let Some(claims) = claims.as_object_mut() {
            claims.retain(|_, value| !value.is_null());
        }
        claims
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "tests sign tokens for now")]
    jiff::Timestamp::now().as_second()
}
