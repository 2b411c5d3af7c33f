//! What is asked of the identity provider: a log-in in the browser, and the ID token for its code.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::auth::access_token::verify;
use crate::auth::issuer::Discovery;
use crate::auth::provider::Provider;
use crate::auth::secret;
use crate::http::{Problem, Result};

/// How long a request waits for the provider, in all. A request has more time than this.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a log-in must remember between its two requests, which different processes may serve.
#[derive(Serialize, Deserialize)]
pub struct Attempt {
    /// The provider repeats it in the ID token, so that a token of another log-in is of no use.
    nonce: String,
    /// The proof that the code belongs to this log-in (RFC 7636).
    verifier: String,
    /// The hash of the cookie of the browser that began it.
    pub browser: String,
}

impl Attempt {
    /// A new attempt of the browser with this cookie.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(browser: String) -> anyhow::Result<Self> {
        Ok(Self { nonce: secret::mint()?, verifier: secret::mint()?, browser })
    }
}

/// Who logged in, as the provider says.
pub struct Person {
    pub subject: String,
    pub email: Option<String>,
    /// Whether the provider has verified that the address is the person's own.
    pub verified: bool,
}

/// The address of the provider's log-in page.
///
/// # Errors
/// 503: the provider is unavailable, or has no such page.
pub async fn log_in_page(provider: &Provider, attempt: &Attempt, state: &str, back: &str) -> Result<Url> {
    let discovery = within_limits(provider, async { provider.issuer.discovery().await.map_err(Problem::unavailable) }).await?;
    let page = discovery.authorization_endpoint.as_deref().and_then(|page| Url::parse(page).ok());
    let mut page = page.ok_or_else(|| Problem::unavailable(anyhow::anyhow!("the identity provider has no authorization endpoint")))?;
    let challenge = URL_SAFE_NO_PAD.encode(secret::hash(&attempt.verifier));
    page.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", &provider.client_id)
        .append_pair("redirect_uri", back)
        .append_pair("scope", "openid email")
        .append_pair("state", state)
        .append_pair("nonce", &attempt.nonce)
        .append_pair("code_challenge", &challenge)
        .append_pair("code_challenge_method", "S256");
    Ok(page)
}

/// Runs a call of the provider, unless too many wait for it already.
async fn within_limits<T>(provider: &Provider, call: impl Future<Output = Result<T>>) -> Result<T> {
    let broken = |what: &'static str| Problem::unavailable(anyhow::anyhow!("the identity provider {what}"));
    let _place = provider.place().ok_or_else(|| broken("holds too many requests"))?;
    timeout(PROVIDER_TIMEOUT, call).await.unwrap_or_else(|_| Err(broken("did not answer in time")))
}

/// Exchanges a code for an ID token, and checks it.
///
/// # Errors
/// 401 if the provider refuses the code or its token is not for this log-in, 503 if it is unavailable.
pub async fn redeem(provider: &Provider, attempt: &Attempt, code: &str, back: &str, now: Timestamp) -> Result<Person> {
    within_limits(provider, exchange(provider, attempt, code, back, now)).await
}

async fn exchange(provider: &Provider, attempt: &Attempt, code: &str, back: &str, now: Timestamp) -> Result<Person> {
    #[derive(Deserialize)]
    struct Answer {
        id_token: String,
    }
    /// RFC 6749, 5.2.
    #[derive(Deserialize, Default)]
    struct Refusal {
        error: String,
    }
    let discovery = provider.issuer.discovery().await.map_err(Problem::unavailable)?;
    let broken = |what: &'static str| Problem::unavailable(anyhow::anyhow!("the identity provider {what}"));
    let request = redemption(provider, &discovery, attempt, code, back).ok_or_else(|| broken("has no token endpoint"))?;
    let response = provider.issuer.client().send(request).await.map_err(Problem::unavailable)?;
    if response.status() != StatusCode::OK {
        let refusal: Refusal = serde_json::from_slice(response.body()).unwrap_or_default();
        if refusal.error == "invalid_grant" {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", "The provider refused the code."));
        }
        // Any other refusal is of this deploy, such as `invalid_client` for a wrong secret. Only such a word may go into the log.
        let is_word = refusal.error.len() <= 40 && refusal.error.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let error = if is_word { refusal.error.as_str() } else { "" };
        let text = format!("the identity provider answered {} {error}", response.status().as_u16());
        return Err(Problem::unavailable(anyhow::anyhow!(text.trim_end().to_owned())));
    }
    let answer: Answer = serde_json::from_slice(response.body()).map_err(|_| broken("sent no ID token"))?;
    let claims = verify(&provider.issuer, &answer.id_token, &provider.client_id, |kind| matches!(kind, None | Some("jwt")), now).await?;
    let text = |name: &str| claims.more.get(name).and_then(Value::as_str);
    // OIDC Core 1.0, 3.1.3.7.
    if text("nonce") != Some(&attempt.nonce) || text("azp").is_some_and(|party| party != provider.client_id) {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", "The ID token is not for this log-in."));
    }
    let verified = match claims.more.get("email_verified") {
        Some(Value::Bool(verified)) => *verified,
        // Some providers send a text.
        Some(Value::String(verified)) => verified == "true",
        _ => false,
    };
    let email = text("email").map(str::to_owned);
    Ok(Person { subject: claims.sub, verified: verified && email.is_some(), email })
}

/// The request that exchanges a code. None if the provider has no valid token endpoint.
fn redemption(provider: &Provider, discovery: &Discovery, attempt: &Attempt, code: &str, back: &str) -> Option<Request<Bytes>> {
    let (id, secret) = (&provider.client_id, provider.client_secret());
    let password = secret.expose_secret();
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "authorization_code").append_pair("code", code).append_pair("redirect_uri", back);
    form.append_pair("code_verifier", &attempt.verifier);
    let mut request = Request::post(discovery.token_endpoint.as_deref()?).header(header::ACCEPT, "application/json");
    // Every provider knows HTTP Basic, unless it says otherwise (OIDC Discovery 1.0, 3).
    let methods = &discovery.token_endpoint_auth_methods_supported;
    if methods.is_empty() || methods.iter().any(|method| method == "client_secret_basic") {
        let escaped = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let pair = SecretString::from(STANDARD.encode(format!("{}:{}", escaped(id), escaped(password))));
        request = request.header(header::AUTHORIZATION, format!("Basic {}", pair.expose_secret()));
    } else {
        form.append_pair("client_id", id).append_pair("client_secret", password);
    }
    request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(Bytes::from(form.finish())).ok()
}
