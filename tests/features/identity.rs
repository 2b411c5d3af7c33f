//! Log-in with an identity provider: with two real ones from `PyPI`, and with one of this test that answers anything.

mod second_provider;

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response as Answer};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::process::Command;
use url::Url;
use uuid::Uuid;

use crate::support::balancer::found_or_skipped;
use crate::support::clients::get;
use crate::support::deploy::{Web, client};
use crate::support::dev::Dev;
use crate::support::issuer::{Issuer, Key};
use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, Process, free_port};

/// Where a provider sends people back to.
const CALLBACK: &str = "http://localhost:8080/log-in/oidc/callback";

/// `oidc-provider-mock` from `PyPI`, which nobody here wrote.
struct Provider {
    url: String,
    _process: Process,
}

impl Provider {
    /// None, and the test is skipped, if it cannot be installed.
    async fn start() -> Option<Self> {
        let (script, port) = ("tests/features/identity/provider", free_port());
        let installed = Command::new(script).arg("install").stdout(Stdio::null()).status().await.unwrap().success();
        if !found_or_skipped(installed, "python3 and PyPI") {
            return None;
        }
        let mut command = Command::new(script);
        command.arg(port.to_string());
        let provider = Self { url: format!("http://127.0.0.1:{port}"), _process: Process::spawn(command) };
        crate::support::eventually("the provider", async || get(&provider.url).await.ok()).await;
        Some(provider)
    }

    /// Sets what it says of a person.
    async fn knows(&self, subject: &str, claims: Value) {
        let put = client().put(format!("{}/users/{subject}", self.url)).json(&claims);
        assert_eq!(put.send().await.unwrap().status(), 204);
    }
}

/// A deploy whose people may log in with this provider.
async fn deploy(issuer: &str) -> Deploy {
    let deploy = Deploy::new().await.with("OIDC_ISSUER", issuer).with("OIDC_CLIENT_ID", "the-service");
    deploy.with("OIDC_CLIENT_SECRET", "sekret")
}

/// Begins a log-in, and returns the provider's page.
async fn begin(browser: &Client, web: &Web) -> Url {
    let response = browser.get(format!("{}/log-in/oidc", web.url)).send().await.unwrap();
    assert_eq!(response.status(), 303);
    response.headers()["location"].to_str().unwrap().parse().unwrap()
}

/// Logs in at the provider, and returns the query with which it sends the browser back.
async fn agree(browser: &Client, page: Url, subject: &str) -> String {
    let response = browser.post(page).form(&[("sub", subject)]).send().await.unwrap();
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    location.split_once("/log-in/oidc/callback?").unwrap_or_else(|| panic!("{location}")).1.to_owned()
}

async fn come_back(browser: &Client, web: &Web, query: &str) -> Response {
    let callback = browser.get(format!("{}/log-in/oidc/callback?{query}", web.url));
    callback.header("accept", "text/html").send().await.unwrap()
}

async fn log_in(browser: &Client, web: &Web, subject: &str) -> Response {
    let page = begin(browser, web).await;
    let query = agree(browser, page, subject).await;
    come_back(browser, web, &query).await
}

/// The account that a browser is logged in to.
async fn account(browser: &Client, web: &Web) -> Value {
    let response = browser.get(format!("{}/api/v1/session", web.url)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// Checks that a page says what to do, and that nobody is logged in.
async fn page(response: Response, status: u16, text: &str) {
    assert_eq!(response.status(), status, "{text}");
    assert!(response.headers().get_all("set-cookie").iter().all(|cookie| !cookie.to_str().unwrap().starts_with("id=")));
    let html = response.text().await.unwrap();
    assert!(html.contains(text) && html.contains("/log-in/oidc"), "{text}: {html}");
}

#[tokio::test]
async fn new_person_logs_in_and_again() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    // The callback meets another process.
    let metrics_port = free_port();
    let (web, other) = (deploy.web().await, deploy.clone().with("METRICS_PORT", metrics_port).web().await);
    provider.knows("ada", json!({ "email": "ada@example.org", "email_verified": true })).await;
    let browser = client();
    let query = agree(&browser, begin(&browser, &web).await, "ada").await;
    let response = come_back(&browser, &other, &query).await;
    assert_eq!((response.status().as_u16(), &response.headers()["location"]), (303, &"/".parse().unwrap()));
    let ada = account(&browser, &web).await;
    assert_eq!((&ada["email"], &ada["verified"], &ada["role"]), (&json!("ada@example.org"), &json!(true), &json!("user")));
    // The log-in confirms the session, although the account has no password.
    let token = json!({ "name": "test", "scopes": ["tokens:read"], "expires_in_days": 1 });
    let ada_here = Person { client: browser, email: "ada@example.org".to_owned(), url: web.url.clone() };
    assert_eq!(ada_here.post("/tokens", token).await.status(), 201);
    assert_eq!(ada_here.elsewhere().log_in().await.status(), 401);
    // The identity stays when the address at the provider changes.
    provider.knows("ada", json!({ "email": "countess@example.org", "email_verified": true })).await;
    let elsewhere = client();
    assert_eq!(log_in(&elsewhere, &other, "ada").await.status(), 303);
    assert_eq!(account(&elsewhere, &web).await["id"], ada["id"]);
    let trail: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT action, actor FROM audit_events ORDER BY id").fetch_all(&mut deploy.database().await).await.unwrap();
    let trail: Vec<_> = trail.iter().map(|(action, actor)| format!("{action} {}", actor.as_deref().unwrap())).collect();
    assert_eq!(
        trail,
        ["sign_up account", "identity_linked account", "log_in account", "token_created account", "log_in_failed anyone", "log_in account"]
    );
    // It signed up at the process that the provider sent it back to.
    let metrics = get(format!("http://127.0.0.1:{metrics_port}/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\naccounts_signed_up_total 1\n"), "{metrics}");
    // A suspended account cannot log in, and a deleted one begins anew.
    let id = ada["id"].as_str().unwrap();
    assert!(deploy.admin(&["account", "suspend", id]).await.status.success());
    page(log_in(&client(), &web, "ada").await, 403, "suspended").await;
    assert!(deploy.admin(&["account", "delete", "--yes", id]).await.status.success());
    let anew = client();
    assert_eq!(log_in(&anew, &web, "ada").await.status(), 303);
    assert_ne!(account(&anew, &web).await["id"], ada["id"]);
    for process in [&web.process, &other.process] {
        let log = process.lines().join("\n");
        for secret in ["sekret", "code=", "state=", "eyJ"] {
            assert!(!log.contains(secret), "the log contains {secret}");
        }
    }
}

#[tokio::test]
async fn address_links_only_if_both_sides_verified_it() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    let web = deploy.web().await;
    let (known, unverified) = (Person::known(&deploy, &web).await, Person::unverified(&web).await);
    let id = |person: Value| person["id"].as_str().unwrap().to_owned();
    let known_id = id(account(&known.client, &web).await);
    for claims in [
        json!({ "email": known.email, "email_verified": false }),
        json!({ "email": known.email }),
        json!({ "email": known.email.to_uppercase(), "email_verified": 1 }),
        // A free address gets the same answer, and nobody takes it before its owner.
        json!({ "email": "new@example.org", "email_verified": false }),
    ] {
        provider.knows("eve", claims).await;
        page(log_in(&client(), &web, "eve").await, 403, "has not verified your email address").await;
    }
    provider.knows("eve", json!({ "email": unverified.email, "email_verified": true })).await;
    page(log_in(&client(), &web, "eve").await, 403, "an account here that nobody has verified").await;
    for claims in [json!({}), json!({ "email": "no address", "email_verified": true }), json!({ "email": 7, "email_verified": true })] {
        provider.knows("eve", claims).await;
        page(log_in(&client(), &web, "eve").await, 403, "did not say what your email address is").await;
    }
    provider.knows("ada", json!({ "email": known.email.to_uppercase(), "email_verified": true })).await;
    let browser = client();
    assert_eq!(log_in(&browser, &web, "ada").await.status(), 303);
    assert_eq!(id(account(&browser, &web).await), known_id);
    // The password works as before.
    assert_eq!(known.elsewhere().log_in().await.status(), 200);
    // A service's address never links.
    let with_issuer = deploy.clone_with("TOKEN_ISSUER", &provider.url).with("TOKEN_AUDIENCE", "a");
    assert!(with_issuer.admin(&["account", "create", "--service", "s", "--scopes", "tokens:read"]).await.status.success());
    let service: String = sqlx::query_scalar("SELECT email FROM accounts WHERE email LIKE '%.invalid'")
        .fetch_one(&mut deploy.database().await)
        .await
        .unwrap();
    for email in [service.clone(), service.to_uppercase()] {
        provider.knows("mallory", json!({ "email": email, "email_verified": true })).await;
        page(log_in(&client(), &web, "mallory").await, 403, "did not say what your email address is").await;
    }
    provider.knows("suspended", json!({ "email": known.email, "email_verified": true })).await;
    assert!(deploy.admin(&["account", "suspend", &known_id]).await.status.success());
    page(log_in(&client(), &web, "suspended").await, 403, "is suspended").await;
    let linked = "SELECT count(*) FROM identities WHERE subject = 'suspended'";
    assert_eq!(sqlx::query_scalar::<_, i64>(linked).fetch_one(&mut deploy.database().await).await.unwrap(), 0);
    let closed = deploy.with("FEATURE_SIGN_UP", false).web().await;
    provider.knows("new", json!({ "email": "new@example.org", "email_verified": true })).await;
    page(log_in(&client(), &closed, "new").await, 403, "nobody may sign up").await;
}

#[tokio::test]
async fn log_in_is_of_one_browser_and_one_use() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    let web = deploy.web().await;
    provider.knows("ada", json!({ "email": "ada@example.org", "email_verified": true })).await;
    let browser = client();
    let query = agree(&browser, begin(&browser, &web).await, "ada").await;
    // A browser that did not begin it, and then the first one again: the state is used up.
    page(come_back(&client(), &web, &query).await, 400, "in another browser").await;
    page(come_back(&browser, &web, &query).await, 400, "was used already").await;
    let query = agree(&browser, begin(&browser, &web).await, "ada").await;
    assert_eq!(come_back(&browser, &web, &query).await.status(), 303);
    let other = client();
    page(come_back(&other, &web, &query).await, 400, "was used already").await;
    // The code of one log-in with the state of another.
    let code = query.split('&').find(|pair| pair.starts_with("code=")).unwrap().to_owned();
    let fresh = agree(&other, begin(&other, &web).await, "ada").await;
    let (own, state) = (
        fresh.split('&').find(|pair| pair.starts_with("code=")).unwrap(),
        fresh.split('&').find(|pair| pair.starts_with("state=")).unwrap(),
    );
    page(come_back(&other, &web, &format!("{code}&{state}")).await, 403, "answer is not valid").await;
    let page_of = begin(&other, &web).await;
    let state = page_of.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    page(come_back(&other, &web, &format!("{own}&state={state}")).await, 403, "answer is not valid").await;
    for query in ["", "state=", "code=x", "state=x&code=x", "state=%00&code=x", "error=access_denied"] {
        page(come_back(&other, &web, query).await, 400, "in another browser").await;
    }
    let page_of = begin(&other, &web).await;
    let state = page_of.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    page(come_back(&other, &web, &format!("state={state}&error=access_denied&error_description=x")).await, 403, "did not log you in").await;
    // Ten minutes are the life of a key in Redis.
    begin(&other, &web).await;
    let mut redis = deploy.redis().await;
    let keys: Vec<String> = deadpool_redis::redis::cmd("KEYS").arg("oidc:*").query_async(&mut redis).await.unwrap();
    let life: i64 = deadpool_redis::redis::cmd("TTL").arg(&keys[0]).query_async(&mut redis).await.unwrap();
    assert!(keys.len() == 1 && (590..=600).contains(&life), "{keys:?} {life}");
    deadpool_redis::redis::cmd("FLUSHDB").query_async::<()>(&mut redis).await.unwrap();
    page(come_back(&other, &web, "state=x&code=x").await, 400, "has expired").await;
}

fn discovery(url: &str) -> Answer {
    let document = json!({ "issuer": url, "jwks_uri": format!("{url}/keys"), "authorization_endpoint": format!("{url}/log-in?tenant=1"),
        "token_endpoint": format!("{url}/token") });
    axum::Json(document).into_response()
}

/// A provider of this test, whose token endpoint answers with `token`.
async fn answering(token: &Arc<Mutex<Value>>, key: &Key) -> Issuer {
    let token = token.clone();
    let issuer = Issuer::answering(move |path, url| match path {
        "/.well-known/openid-configuration" => Some(discovery(url)),
        "/token" => Some(axum::Json(token.lock().unwrap().clone()).into_response()),
        _ => None,
    })
    .await;
    issuer.publish(&[key]);
    issuer
}

#[tokio::test]
async fn id_token_must_be_for_this_log_in() {
    let (key, stranger, token) = (Key::ed("1"), Key::ed("1"), Arc::new(Mutex::new(Value::Null)));
    let issuer = answering(&token, &key).await;
    let web = deploy(&issuer.url).await.web().await;
    let attempt = async |make: &dyn Fn(&str) -> String| {
        let browser = client();
        let page = begin(&browser, &web).await;
        let of = |name: &str| page.query_pairs().find(|(known, _)| known == name).unwrap().1.into_owned();
        assert_eq!(
            (of("tenant"), of("code_challenge_method"), of("scope")),
            ("1".to_owned(), "S256".to_owned(), "openid email".to_owned())
        );
        *token.lock().unwrap() = json!({ "id_token": make(&of("nonce")), "access_token": "x", "token_type": "Bearer" });
        come_back(&browser, &web, &format!("state={}&code=c", of("state"))).await
    };
    let head = json!({ "alg": "EdDSA", "kid": "1", "typ": "JWT" });
    let claims = |nonce: &str, others: Value| {
        let mut claims = json!({ "aud": "the-service", "sub": "ada", "nonce": nonce, "email": "ada@example.org", "email_verified": true });
        claims.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        issuer.claims(claims)
    };
    let past = crate::support::issuer::now() - 100;
    for others in [
        json!({ "nonce": "another" }),
        json!({ "nonce": null }),
        json!({ "aud": "another" }),
        json!({ "aud": null }),
        json!({ "aud": ["the-service", "another"], "azp": "another" }),
        json!({ "iss": "https://login.example.com" }),
        json!({ "exp": past }),
        json!({ "exp": null }),
        json!({ "sub": null }),
    ] {
        page(attempt(&|nonce| key.sign(&head, &claims(nonce, others.clone()))).await, 403, "answer is not valid").await;
    }
    page(attempt(&|nonce| stranger.sign(&head, &claims(nonce, json!({})))).await, 403, "answer is not valid").await;
    page(attempt(&|nonce| key.sign(&key.head(), &claims(nonce, json!({})))).await, 403, "answer is not valid").await;
    page(attempt(&|_| "nonsense".to_owned()).await, 403, "answer is not valid").await;
    assert_eq!(attempt(&|nonce| key.sign(&head, &claims(nonce, json!({})))).await.status(), 303);
}

#[tokio::test]
async fn provider_that_fails_is_explained() {
    let html = || -> Option<Answer> { Some(([("content-type", "text/html")], "<h1>Welcome</h1>").into_response()) };
    for issuer in
        [Issuer::answering(move |_, _| html()).await, Issuer::answering(|_, _| Some(StatusCode::BAD_GATEWAY.into_response())).await]
    {
        let web = deploy(&issuer.url).await.web().await;
        page(web.get("/log-in/oidc").await, 503, "does not answer as it should").await;
        assert_eq!(Person::unverified(&web).await.get("/session").await.status(), 200);
    }
    let hanging = Issuer::start(&[]).await;
    hanging.hang();
    let web = deploy(&hanging.url).await.web().await;
    page(web.get("/log-in/oidc").await, 503, "does not answer as it should").await;
    // Nothing listens there.
    let web = deploy(&format!("http://127.0.0.1:{}", free_port())).await.web().await;
    page(web.get("/log-in/oidc").await, 503, "does not answer as it should").await;
    // At its second part.
    let key = Key::ed("1");
    let issuer = answering(&Arc::new(Mutex::new(json!("nonsense"))), &key).await;
    let web = deploy(&issuer.url).await.web().await;
    let browser = client();
    let at = begin(&browser, &web).await;
    let state = at.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    page(come_back(&browser, &web, &format!("state={state}&code=c")).await, 503, "does not answer as it should").await;
    let at = begin(&browser, &web).await;
    let state = at.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    issuer.hang();
    page(come_back(&browser, &web, &format!("state={state}&code=c")).await, 503, "does not answer as it should").await;
}

#[tokio::test]
async fn refused_code_and_refused_client_differ() {
    for (status, error, shown, logged) in [
        (400, "invalid_grant", 403, "the identity provider's answer was refused: The provider refused the code."),
        (
            400,
            "invalid_client",
            503,
            "cannot log a person in with the identity provider: the identity provider answered 400 invalid_client",
        ),
        (
            401,
            "invalid_client",
            503,
            "cannot log a person in with the identity provider: the identity provider answered 401 invalid_client",
        ),
        (401, "<b>Sekret</b>", 503, "cannot log a person in with the identity provider: the identity provider answered 401"),
    ] {
        let issuer = Issuer::answering(move |path, url| match path {
            "/token" => Some((StatusCode::from_u16(status).unwrap(), axum::Json(json!({ "error": error }))).into_response()),
            "/.well-known/openid-configuration" => Some(discovery(url)),
            _ => None,
        })
        .await;
        issuer.publish(&[&Key::ed("1")]);
        let web = deploy(&issuer.url).await.web().await;
        let browser = client();
        let at = begin(&browser, &web).await;
        let state = at.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        let text = if shown == 403 { "not valid for this log-in" } else { "does not answer as it should" };
        page(come_back(&browser, &web, &format!("state={state}&code=c")).await, shown, text).await;
        web.process.logged(logged, |line| line["message"] == logged).await;
    }
}

#[tokio::test]
async fn hanging_provider_holds_few_requests() {
    let key = Key::ed("1");
    let issuer = answering(&Arc::default(), &key).await;
    let web = deploy(&issuer.url).await.web().await;
    let mut begun = Vec::new();
    for _ in 0..40 {
        let browser = client();
        let at = begin(&browser, &web).await;
        begun.push((browser, at.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned()));
    }
    issuer.hang();
    let answers = begun.iter().map(async |(browser, state)| {
        let began = Instant::now();
        page(come_back(browser, &web, &format!("state={state}&code=c")).await, 503, "does not answer as it should").await;
        began.elapsed()
    });
    let waited = join_all(answers).await;
    let at_once = waited.iter().filter(|waited| **waited < Duration::from_secs(4)).count();
    assert_eq!(at_once, 40 - 32, "{waited:?}");
    assert!(waited.iter().all(|waited| *waited < Duration::from_secs(8)), "{waited:?}");
}

/// Links the account with this address to a person at the provider, whose address there is another one afterwards.
async fn link(provider: &Provider, web: &Web, subject: &str, email: &str) -> Client {
    provider.knows(subject, json!({ "email": email, "email_verified": true })).await;
    let browser = client();
    assert_eq!(log_in(&browser, web, subject).await.status(), 303);
    provider.knows(subject, json!({ "email": format!("{subject}@example.net"), "email_verified": true })).await;
    browser
}

/// Checks that a person at the provider no longer logs in to an account.
async fn assert_unlinked(web: &Web, subject: &str, account_id: &Value) {
    let browser = client();
    assert_eq!(log_in(&browser, web, subject).await.status(), 303);
    assert_ne!(&account(&browser, web).await["id"], account_id, "{subject} still logs in");
}

#[tokio::test]
async fn new_password_ends_every_identity() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let id = account(&ada.client, &web).await["id"].clone();
    let thief = link(&provider, &web, "changer", &ada.email).await;
    assert_eq!(account(&thief, &web).await["id"], id);
    let change = json!({ "old": PASSWORD, "new": "seven purple lanterns drift" });
    assert_eq!(ada.post("/account/password", change).await.status(), 204);
    assert_unlinked(&web, "changer", &id).await;
    link(&provider, &web, "resetter", &ada.email).await;
    assert_eq!(ada.request_reset().await.status(), 202);
    let token = deploy.mail.to(&ada.email, "Set a new password").await.token();
    let reset = json!({ "token": token, "password": "eleven green teapots whistle" });
    assert_eq!(ada.post("/password-resets/redeem", reset).await.status(), 204);
    assert_unlinked(&web, "resetter", &id).await;
}

#[tokio::test]
async fn undo_ends_the_thiefs_identity() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let id = account(&ada.client, &web).await["id"].clone();
    assert_eq!(ada.patch("/account", json!({ "email": "thief@example.org" })).await.status(), 200);
    let undo = deploy.mail.to(&ada.email, "Email address change requested").await.token();
    let verify = deploy.mail.to("thief@example.org", "Did you sign up?").await.token();
    assert_eq!(ada.redeem(&verify).await.status(), 204);
    link(&provider, &web, "thief", "thief@example.org").await;
    assert_eq!(ada.post("/email-changes/undo", json!({ "token": undo })).await.status(), 204);
    assert_unlinked(&web, "thief", &id).await;
}

#[tokio::test]
async fn new_identity_is_mailed_and_listed() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, eve) = (Person::known(&deploy, &web).await, Person::known(&deploy, &web).await);
    let id = account(&ada.client, &web).await["id"].clone();
    link(&provider, &web, "ada", &ada.email).await;
    let mail = deploy.mail.to(&ada.email, "A new way to log in").await;
    assert!(mail.text.contains("Somebody logged in with 127.0.0.1"), "{}", mail.text);
    let listed: Value = ada.get("/identities").await.json().await.unwrap();
    let identity = &listed["items"][0];
    assert_eq!((&identity["issuer"], &identity["subject"]), (&json!(provider.url), &json!("ada")), "{listed}");
    assert_eq!(eve.get("/identities").await.json::<Value>().await.unwrap()["items"], json!([]));
    let path = format!("/identities/{}", identity["id"].as_str().unwrap());
    problem(eve.delete(&path).await, 404, "not-found").await;
    // A session whose confirmation is old is not enough.
    let mut redis = deploy.redis().await;
    let keys: Vec<String> = deadpool_redis::redis::cmd("KEYS").arg("session:*").query_async(&mut redis).await.unwrap();
    for key in keys {
        let data: String = deadpool_redis::redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
        let mut session: Value = serde_json::from_str(&data).unwrap();
        session["confirmed_at"] = json!("2020-01-01T00:00:00Z");
        deadpool_redis::redis::cmd("SET").arg(&key).arg(session.to_string()).query_async::<()>(&mut redis).await.unwrap();
    }
    problem(ada.delete(&path).await, 403, "confirmation-required").await;
    assert_eq!(ada.post("/session/confirm", json!({ "password": PASSWORD })).await.status(), 204);
    assert_eq!(ada.delete(&path).await.status(), 204);
    problem(ada.delete(&path).await, 404, "not-found").await;
    assert_unlinked(&web, "ada", &id).await;
    let trail: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit_events WHERE account_id = $1::uuid AND action LIKE 'identity%' ORDER BY id")
            .bind(id.as_str().unwrap())
            .fetch_all(&mut deploy.database().await)
            .await
            .unwrap();
    assert_eq!(trail, ["identity_linked", "identity_unlinked"]);
}

#[tokio::test]
async fn last_identity_stays_without_a_password() {
    let Some(provider) = Provider::start().await else { return };
    let deploy = deploy(&provider.url).await;
    let web = deploy.web().await;
    let browser = link(&provider, &web, "ada", "ada@example.org").await;
    link(&provider, &web, "countess", "ada@example.org").await;
    let ada = Person { client: browser, email: "ada@example.org".to_owned(), url: web.url.clone() };
    let listed: Value = ada.get("/identities").await.json().await.unwrap();
    let paths: Vec<_> = [0, 1].map(|i| format!("/identities/{}", listed["items"][i]["id"].as_str().unwrap())).into();
    // Only one of two requests at the same time may succeed.
    let both = tokio::join!(ada.delete(&paths[0]), ada.delete(&paths[1]));
    let mut statuses = [both.0.status().as_u16(), both.1.status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 409]);
    let left: Value = ada.get("/identities").await.json().await.unwrap();
    let path = format!("/identities/{}", left["items"][0]["id"].as_str().unwrap());
    problem(ada.delete(&path).await, 409, "no-password").await;
}

#[tokio::test]
async fn client_secret_follows_its_file() {
    let seen: Arc<Mutex<String>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_endpoint = format!("http://{}/token", listener.local_addr().unwrap());
    let keep = seen.clone();
    let token = async move |headers: HeaderMap| {
        headers["authorization"].to_str().unwrap().clone_into(&mut keep.lock().unwrap());
        StatusCode::BAD_REQUEST
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/token", post(token))).await });
    let issuer = Issuer::answering(move |path, url| {
        let document =
            json!({ "issuer": url, "jwks_uri": format!("{url}/keys"), "authorization_endpoint": url, "token_endpoint": token_endpoint });
        (path == "/.well-known/openid-configuration").then(|| axum::Json(document).into_response())
    })
    .await;
    issuer.publish(&[&Key::ed("1")]);
    let file = std::env::temp_dir().join(Uuid::new_v4().to_string());
    std::fs::write(&file, "sekret\n").unwrap();
    let deploy = deploy(&issuer.url).await.without("OIDC_CLIENT_SECRET").with("OIDC_CLIENT_SECRET_FILE", file.display());
    let web = deploy.web().await;
    let browser = client();
    let sent = async || {
        let at = begin(&browser, &web).await;
        let state = at.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        page(come_back(&browser, &web, &format!("state={state}&code=c")).await, 503, "does not answer as it should").await;
        seen.lock().unwrap().clone()
    };
    let basic = |secret: &str| format!("Basic {}", STANDARD.encode(format!("the-service:{secret}")));
    assert_eq!(sent().await, basic("sekret"));
    std::fs::write(&file, "sekret2\n").unwrap();
    crate::support::eventually("the new secret", async || (sent().await == basic("sekret2")).then_some(())).await;
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn unset_provider_leaves_no_trace() {
    let without = Deploy::new().await;
    let web = without.web().await;
    for path in ["/log-in/oidc", "/log-in/oidc/callback?state=x&code=x"] {
        assert_eq!(web.get(path).await.status(), 404, "{path}");
    }
    let rules = async |deploy: &Deploy| String::from_utf8(deploy.admin(&["access"]).await.stdout).unwrap();
    let none = rules(&without).await;
    assert!(!none.contains("oidc") && !none.contains("identities"), "{none}");
    let home = web.get("/").await.text().await.unwrap();
    assert!(!home.contains("/log-in/oidc") && !home.contains("/api/v1/identities"));
    let with = deploy("https://login.example.com/tenant").await;
    assert!(rules(&with).await.contains("/log-in/oidc/callback"));
    let shown = with.web().await.get("/").await.text().await.unwrap();
    assert!(shown.contains("href=\"/log-in/oidc\"") && shown.contains("Log in with login.example.com"), "{shown}");
    let document = async |deploy: &Deploy| String::from_utf8(deploy.admin(&["openapi"]).await.stdout).unwrap();
    assert!(!document(&without).await.contains("/api/v1/identities"));
    assert!(document(&with).await.contains("/api/v1/identities"));
    assert_eq!(Person::unverified(&web).await.get("/identities").await.status(), 404);
    for missing in ["OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET"] {
        let mut web = with.clone().without(missing).start("web");
        assert_eq!(web.exit().await.code(), Some(78));
        assert!(web.errors().join("\n").contains(&format!("{missing} is missing, which OIDC_ISSUER requires")));
    }
}

#[tokio::test]
async fn bin_dev_offers_a_provider_to_try() {
    if Provider::start().await.is_none() {
        return;
    }
    let dev = Dev::start(&["oidc=1"]).await;
    let url = format!("http://localhost:{}", dev.port);
    let web = Web { process: dev.process, url };
    let page = get(&web.url).await.unwrap().text().await.unwrap();
    assert!(page.contains("/log-in/oidc"), "{page}");
    let browser = client();
    assert_eq!(log_in(&browser, &web, "ada").await.status(), 303);
    assert_eq!(account(&browser, &web).await["email"], "ada@example.net");
}
