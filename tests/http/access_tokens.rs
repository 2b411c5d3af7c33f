//! Access tokens of an issuer, with an issuer of this test that signs anything and answers anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use app::auth::issuer;
use app::config::Setting;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures_util::stream;
use jsonwebtoken::Algorithm;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::outgoing::configured;
use crate::support::balancer::has;
use crate::support::deploy::{Web, client};
use crate::support::issuer::{AUDIENCE, Issuer, Key, encode, now};
use crate::support::person::{Person, problem};
use crate::support::{Deploy, Process};

/// A deploy that accepts the issuer's tokens, with the service `billing`.
async fn deploy(issuer: &Issuer) -> Deploy {
    let deploy = Deploy::new().await.with("TOKEN_ISSUER", &issuer.url).with("TOKEN_AUDIENCE", AUDIENCE);
    let scopes = "tokens:read,files:write";
    create(&deploy, "billing", scopes).await;
    deploy
}

/// Creates a service's account, and returns its id.
async fn create(deploy: &Deploy, subject: &str, scopes: &str) -> String {
    let made = deploy.admin(&["account", "create", "--service", subject, "--scopes", scopes]).await;
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().split([' ', ':']).nth(1).unwrap().to_owned()
}

async fn get(web: &Web, path: &str, token: &str) -> Response {
    client().get(format!("{}/api/v1{path}", web.url)).bearer_auth(token).send().await.unwrap()
}

/// Checks that a token is refused as RFC 6750, 3.1, demands.
async fn refused(response: Response, what: &str) {
    let challenge = response.headers().get("www-authenticate").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    assert_eq!(response.status(), 401, "{what}");
    assert_eq!(response.headers().get_all("www-authenticate").iter().count(), 1, "{what}");
    assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\""), "{what}: {challenge}");
    problem(response, 401, "unauthenticated").await;
}

/// Checks that a log contains no part of these tokens but their heads, which are the same for all.
fn unlogged(process: &Process, tokens: &[String]) {
    let log = [process.lines(), process.errors()].concat().join("\n");
    for part in tokens.iter().flat_map(|token| token.split('.').skip(1)).filter(|part| part.len() > 10) {
        assert!(!log.contains(&part[..part.len().min(40)]), "the log contains a part of a token: {part}");
    }
}

#[tokio::test]
async fn service_may_do_what_both_its_scopes_allow() {
    let keys = [Key::ed("ed"), Key::ec("ec")];
    let issuer = Issuer::start(&[&keys[0], &keys[1]]).await;
    let deploy = deploy(&issuer).await;
    let web = deploy.web().await;
    let token = |key: &Key, scope: &str| key.sign(&key.head(), &issuer.claims(json!({ "scope": scope })));
    for key in &keys {
        assert_eq!(get(&web, "/tokens", &token(key, "openid tokens:read")).await.status(), 200);
        for scope in ["", "files:read", "tokens:write", "tokens", "tokens:read\ttokens:read"] {
            let response = get(&web, "/tokens", &token(key, scope)).await;
            assert_eq!(response.headers()["www-authenticate"], "Bearer error=\"insufficient_scope\"", "{scope}");
            problem(response, 403, "insufficient-scope").await;
        }
        // The account lacks the scope.
        problem(get(&web, "/files", &token(key, "files:read")).await, 403, "insufficient-scope").await;
        for path in ["/session", "/account/sessions", "/admin/accounts", "/admin/statistics"] {
            problem(get(&web, path, &token(key, "tokens:read admin")).await, 403, "insufficient-scope").await;
        }
    }
    // A person's own tokens work as before, and a person's identity at the issuer is no service.
    let ada = Person::known(&deploy, &web).await;
    let made = json!({ "name": "own", "scopes": ["tokens:read"], "expires_in_days": 1 });
    let own: Value = ada.post("/tokens", made).await.json().await.unwrap();
    assert_eq!(get(&web, "/tokens", own["secret"].as_str().unwrap()).await.status(), 200);
    let other = keys[0].sign(&keys[0].head(), &issuer.claims(json!({ "sub": ada.email, "scope": "tokens:read" })));
    refused(get(&web, "/tokens", &other).await, "an unknown subject").await;
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn rsa_signatures_are_accepted() {
    if !has("openssl") {
        return;
    }
    let key = Key::rsa("rsa");
    let issuer = Issuer::start(&[&key]).await;
    let web = deploy(&issuer).await.web().await;
    let claims = issuer.claims(json!({ "scope": "tokens:read" }));
    assert_eq!(get(&web, "/tokens", &key.sign(&key.head(), &claims)).await.status(), 200);
    // RS512 with a key that says RS256, and a signature of another message.
    refused(get(&web, "/tokens", &key.sign(&json!({ "alg": "RS512", "kid": "rsa" }), &claims)).await, "RS512").await;
    let (one, other) = (key.sign(&key.head(), &claims), key.sign(&key.head(), &issuer.claims(json!({ "sub": "other" }))));
    let mixed = format!("{}.{}", one.rsplit_once('.').unwrap().0, other.rsplit_once('.').unwrap().1);
    refused(get(&web, "/tokens", &mixed).await, "another signature").await;
}

#[tokio::test]
async fn audit_trail_names_the_service() {
    let key = Key::ed("1");
    let issuer = Issuer::start(&[&key]).await;
    let deploy = deploy(&issuer).await;
    let web = deploy.web().await;
    let token = key.sign(&key.head(), &issuer.claims(json!({ "scope": "files:write files:read" })));
    let upload = client().post(format!("{}/api/v1/files?name=invoice.txt", web.url)).bearer_auth(&token).body("an invoice");
    assert_eq!(upload.send().await.unwrap().status(), 201);
    let trail = "SELECT action, actor, actor_id = account_id AND account_id = (SELECT account_id FROM service_accounts) FROM audit_events ORDER BY id";
    let trail: Vec<(String, String, Option<bool>)> = sqlx::query_as(trail).fetch_all(&mut deploy.database().await).await.unwrap();
    let named = |action: &str, actor: &str, own| (action.to_owned(), actor.to_owned(), own);
    assert_eq!(trail, [named("account_created", "operator", None), named("file_uploaded", "service", Some(true))]);
    unlogged(&web.process, &[token]);
}

#[tokio::test]
async fn roles_need_the_claim_and_the_account() {
    let key = Key::ed("1");
    let issuer = Issuer::start(&[&key]).await;
    let deploy = deploy(&issuer).await;
    let id = create(&deploy, "root", "tokens:read").await;
    assert!(deploy.admin(&["account", "grant", &id, "admin"]).await.status.success());
    let token = |sub: &str, roles: Value| key.sign(&key.head(), &issuer.claims(json!({ "sub": sub, "roles": roles })));
    let nested = |sub: &str| key.sign(&key.head(), &issuer.claims(json!({ "sub": sub, "realm_access": { "roles": ["x", "admin"] } })));
    let (unset, flat) = (deploy.web().await, deploy.clone_with("TOKEN_ROLES_CLAIM", "roles").web().await);
    let path = deploy.clone_with("TOKEN_ROLES_CLAIM", "/realm_access/roles").web().await;
    for (web, token, status) in [
        (&unset, token("root", json!(["admin"])), 403),
        (&flat, token("root", json!(["user", "admin"])), 200),
        (&flat, token("root", json!("admin")), 200),
        (&flat, token("root", json!("admin user")), 403),
        (&flat, token("root", json!({ "admin": true })), 403),
        (&flat, token("root", json!(null)), 403),
        (&flat, token("billing", json!(["admin"])), 403),
        (&flat, nested("root"), 403),
        (&path, nested("root"), 200),
        (&path, nested("billing"), 403),
        (&path, token("root", json!(["admin"])), 403),
    ] {
        assert_eq!(get(web, "/admin/accounts", &token).await.status(), status, "{token}");
    }
}

#[tokio::test]
async fn suspended_and_deleted_services_are_refused() {
    let key = Key::ed("1");
    let issuer = Issuer::start(&[&key]).await;
    let deploy = deploy(&issuer).await;
    let web = deploy.web().await;
    let id = create(&deploy, "other", "tokens:read").await;
    let token = key.sign(&key.head(), &issuer.claims(json!({ "sub": "other", "scope": "tokens:read files:read" })));
    assert_eq!(get(&web, "/files", &token).await.status(), 403);
    // The same command changes the scopes.
    assert_eq!(create(&deploy, "other", "files:read").await, id);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(get(&web, "/files", &token).await.status(), 200);
    assert!(deploy.admin(&["account", "suspend", &id]).await.status.success());
    tokio::time::sleep(Duration::from_secs(5)).await;
    refused(get(&web, "/files", &token).await, "suspended").await;
    assert!(deploy.admin(&["account", "restore", &id]).await.status.success());
    assert_eq!(get(&web, "/files", &token).await.status(), 200);
    assert!(deploy.admin(&["account", "delete", "--yes", &id]).await.status.success());
    tokio::time::sleep(Duration::from_secs(5)).await;
    refused(get(&web, "/files", &token).await, "deleted").await;
    let unknown = deploy.admin(&["account", "create", "--service", "x", "--scopes", "tokens:read,nothing"]).await;
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("scope nothing"), "{unknown:?}");
}

/// A service has no password, no session, and gets no mail.
#[tokio::test]
async fn service_cannot_log_in_and_gets_no_mail() {
    let issuer = Issuer::start(&[&Key::ed("1")]).await;
    let deploy = deploy(&issuer).await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let email: String = sqlx::query_scalar("SELECT email FROM accounts").fetch_one(&mut deploy.database().await).await.unwrap();
    let service = Person { email: email.clone(), ..Person::stranger(&web) };
    problem(service.log_in().await, 401, "wrong-credentials").await;
    assert_eq!(service.request_reset().await.status(), 202);
    assert_eq!(service.sign_up().await.status(), 202);
    worker.says("permanently refused an address").await;
    // Later mails arrive.
    Person::verified(&deploy, &web).await;
    assert!(!deploy.mail.all().await.iter().any(|mail| mail.to.contains(&email)));
}

/// Each is refused, even with a valid signature. None of them is ever in the log.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one list of bad tokens")]
async fn invalid_tokens_are_refused() {
    let (key, stranger) = (Key::ed("1"), Key::ed("1"));
    let ec = Key::ec("2");
    let issuer = Issuer::start(&[&key, &ec]).await;
    let deploy = deploy(&issuer).await.with("LOG_LEVEL", "debug");
    let web = deploy.web().await;
    let good = issuer.claims(json!({ "scope": "tokens:read" }));
    let with = |others: Value| {
        let mut claims = json!({ "scope": "tokens:read" });
        claims.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        key.sign(&key.head(), &issuer.claims(claims))
    };
    let head = |others: Value| {
        let mut head = key.head();
        head.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        key.sign(&head, &good)
    };
    let valid = key.sign(&key.head(), &good);
    assert_eq!(get(&web, "/tokens", &valid).await.status(), 200);
    let message = valid.rsplit_once('.').unwrap().0;
    let unsigned = |head: Value| format!("{}.{}.", encode(head.to_string()), encode(good.to_string()));
    // The text of the public key as the secret, in each form that an implementation might use.
    let hmac = |secret: &[u8]| {
        let message =
            format!("{}.{}", encode(json!({ "typ": "at+jwt", "alg": "HS256", "kid": "1" }).to_string()), encode(good.to_string()));
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), message.as_bytes());
        format!("{message}.{}", encode(tag))
    };
    let public = key.public()["x"].as_str().unwrap().to_owned();
    let raw = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, &public).unwrap();
    let exp = now();
    let bad = [
        ("alg none", unsigned(json!({ "typ": "at+jwt", "alg": "none" }))),
        ("alg NONE", unsigned(json!({ "typ": "at+jwt", "alg": "NONE", "kid": "1" }))),
        ("no signature", format!("{message}.")),
        ("HS256 with the public key", hmac(&raw)),
        ("HS256 with the text of the public key", hmac(public.as_bytes())),
        ("HS256 with the key's JSON", hmac(key.public().to_string().as_bytes())),
        ("alg absent", head(json!({ "alg": null }))),
        ("alg of another key", head(json!({ "alg": "ES256" }))),
        ("kid of another key", head(json!({ "kid": "2" }))),
        ("another issuer's key", stranger.sign(&stranger.head(), &good)),
        ("its own key", stranger.sign(&json!({ "typ": "at+jwt", "alg": "EdDSA", "jwk": stranger.public() }), &good)),
        ("a critical extension", head(json!({ "crit": ["exp"] }))),
        ("typ of a log-out token", head(json!({ "typ": "logout+jwt" }))),
        ("typ of a proof", head(json!({ "typ": "dpop+jwt" }))),
        ("typ a number", head(json!({ "typ": 1 }))),
        ("an ID token", with(json!({ "nonce": "n" }))),
        ("another ID token", with(json!({ "at_hash": "h" }))),
        ("iss absent", with(json!({ "iss": null }))),
        ("iss of another", with(json!({ "iss": "https://login.example.com" }))),
        ("iss a list", with(json!({ "iss": [issuer.url] }))),
        ("iss with a slash", with(json!({ "iss": format!("{}/", issuer.url) }))),
        ("aud absent", with(json!({ "aud": null }))),
        ("aud of another", with(json!({ "aud": "https://other.example.com" }))),
        ("aud longer", with(json!({ "aud": format!("{AUDIENCE}.evil") }))),
        ("aud a list of others", with(json!({ "aud": ["a", "b"] }))),
        ("aud an empty list", with(json!({ "aud": [] }))),
        ("aud an object", with(json!({ "aud": { AUDIENCE: true } }))),
        ("exp past", with(json!({ "exp": exp - 61 }))),
        ("exp absent", with(json!({ "exp": null }))),
        ("exp a string", with(json!({ "exp": format!("{}", exp + 300) }))),
        ("exp in the year 9999", with(json!({ "exp": 253_402_300_799_i64 }))),
        ("exp huge", with(json!({ "exp": 1e300 }))),
        ("exp negative", with(json!({ "exp": -1 }))),
        ("nbf ahead", with(json!({ "nbf": exp + 90 }))),
        ("nbf a string", with(json!({ "nbf": "now" }))),
        ("sub absent", with(json!({ "sub": null }))),
        ("sub empty", with(json!({ "sub": "" }))),
        ("sub a number", with(json!({ "sub": 7 }))),
        ("sub with NUL", with(json!({ "sub": "billing\u{0}" }))),
        ("sub long", with(json!({ "sub": "b".repeat(256) }))),
        ("sub unknown", with(json!({ "sub": "Billing" }))),
        ("kid unknown", head(json!({ "kid": "3" }))),
        ("kid a path", head(json!({ "kid": "../../../../etc/passwd" }))),
        ("kid a URL", head(json!({ "kid": "http://127.0.0.1:6379/" }))),
        ("kid of 10 KB", head(json!({ "kid": "k".repeat(10_000) }))),
        ("kid of 300 bytes", head(json!({ "kid": "k".repeat(300) }))),
        ("a token of 20 KB", with(json!({ "more": "m".repeat(20_000) }))),
        ("claims are no object", key.sign(&key.head(), &json!("claims"))),
        ("a claim twice", key.sign_text(&key.head(), &good.to_string().replacen('{', "{\"sub\":\"other\",", 1))),
        ("claims are no JSON", key.sign_text(&key.head(), "{")),
        ("not base64", "eyJhbGciOiJFZERTQSJ9.!!!.AAAA".to_owned()),
        ("nothing", "eyJ..".to_owned()),
    ];
    let mut accepted = Vec::new();
    for (what, token) in &bad {
        match get(&web, "/tokens", token).await {
            response if response.status() == 200 => accepted.push(what),
            response => refused(response, what).await,
        }
    }
    assert!(accepted.is_empty(), "accepted: {accepted:?}");
    // These have not the form of such a token.
    for token in ["eyJ", "a.b.c", "eyJ.a", "eyJ.a.b.c.d", "pat_.a.b", ""] {
        assert_eq!(get(&web, "/tokens", token).await.status(), 401, "{token}");
    }
    // Good ones at the edges of what is allowed.
    for (what, token) in [
        ("aud a list", with(json!({ "aud": ["other", AUDIENCE] }))),
        ("exp within the leeway", with(json!({ "exp": now() - 50 }))),
        ("nbf within the leeway", with(json!({ "nbf": now() + 50 }))),
        ("exp with a fraction", with(json!({ "exp": 300.5 + f64::from(i32::try_from(now()).unwrap()) }))),
        ("no kid, and one key of its algorithm", head(json!({ "kid": null }))),
        ("typ with a prefix", head(json!({ "typ": "application/AT+JWT" }))),
        ("typ JWT", head(json!({ "typ": "JWT" }))),
        ("no typ", key.sign(&json!({ "alg": "EdDSA", "kid": "1" }), &good)),
        ("the other key", ec.sign(&ec.head(), &good)),
    ] {
        assert_eq!(get(&web, "/tokens", &token).await.status(), 200, "{what}");
    }
    assert_eq!(issuer.fetches(), 1, "unknown keys cause no second fetch in the same minute");
    let mut tokens: Vec<_> = bad.into_iter().map(|(_, token)| token).filter(|token| token.len() > 100).collect();
    tokens.push(valid);
    unlogged(&web.process, &tokens);
    assert!(!web.process.log().iter().any(|line| line["status"].as_u64().is_some_and(|status| status >= 500)));
}

/// Without a key nobody can tell a good token from a bad one, so it is 503, as without the store of sessions.
#[tokio::test]
async fn unusable_issuers_hinder_nothing_else() {
    let key = Arc::new(Key::ed("1"));
    let keys = |number: usize| json!({ "keys": vec![Key::ed("1").public(); number] });
    let (many, large) = (keys(10_000), json!({ "keys": [], "more": "m".repeat(5 * 1024 * 1024) }));
    let html = || ([("content-type", "text/html")], "<h1>Welcome</h1>").into_response();
    let set = |path: &str| path == "/keys";
    let issuers = [
        ("a key set of 5 MB", Issuer::answering(move |path, _| set(path).then(|| axum::Json(large.clone()).into_response())).await),
        ("10,000 keys", Issuer::answering(move |path, _| set(path).then(|| axum::Json(many.clone()).into_response())).await),
        ("no key", Issuer::start(&[]).await),
        (
            "a key set that never ends",
            Issuer::answering(move |path, _| {
                let endless = || {
                    Body::from_stream(stream::unfold((), |()| async {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Some((Ok::<_, std::io::Error>(" "), ()))
                    }))
                };
                set(path).then(|| endless().into_response())
            })
            .await,
        ),
        (
            "a redirect to Redis",
            Issuer::answering(move |path, _| {
                set(path).then(|| (StatusCode::TEMPORARY_REDIRECT, [("location", "http://127.0.0.1:6379/")]).into_response())
            })
            .await,
        ),
        (
            "another issuer's discovery document",
            Issuer::answering(|path, url| {
                let other = json!({ "issuer": "https://login.example.com", "jwks_uri": format!("{url}/keys") });
                (path != "/keys").then(|| axum::Json(other).into_response())
            })
            .await,
        ),
        ("HTML", Issuer::answering(move |_, _| Some(html())).await),
        ("an error", Issuer::answering(|_, _| Some(StatusCode::INTERNAL_SERVER_ERROR.into_response())).await),
        ("silence", Issuer::answering(|_, _| None).await),
    ];
    issuers[8].1.hang();
    issuers[5].1.publish(&[&key]);
    // Not all of them at a time, because each has its own programs.
    for some in issuers.chunks(3) {
        futures_util::future::join_all(some.iter().map(|(what, issuer)| prove_unusable(what, issuer, &key))).await;
    }
}

/// Checks that only the issuer's own tokens are 503, that this comes soon, and that it takes one fetch.
async fn prove_unusable(what: &str, issuer: &Issuer, key: &Key) {
    let deploy = deploy(issuer).await;
    let started = Instant::now();
    let web = deploy.web().await;
    assert!(started.elapsed() < Duration::from_secs(10), "{what}: the start took {:?}", started.elapsed());
    assert_eq!(issuer.fetches(), 0, "{what}");
    let token = key.sign(&key.head(), &issuer.claims(json!({ "scope": "tokens:read" })));
    let started = Instant::now();
    let answers = futures_util::future::join_all((0..5).map(|_| get(&web, "/tokens", &token))).await;
    for answer in answers {
        problem(answer, 503, "unavailable").await;
    }
    assert!(started.elapsed() < Duration::from_secs(9), "{what}: {:?}", started.elapsed());
    let fetches = issuer.fetches();
    assert!((1..=2).contains(&fetches), "{what}: {fetches}");
    problem(get(&web, "/tokens", &token).await, 503, "unavailable").await;
    assert_eq!(issuer.fetches(), fetches, "{what}: the next token waits for no fetch");
    let ada = Person::known(&deploy, &web).await;
    assert_eq!(ada.get("/tokens").await.status(), 200, "{what}");
    // A token that is not for this service is refused all the same.
    let other = key.sign(&key.head(), &issuer.claims(json!({ "aud": "other" })));
    refused(get(&web, "/tokens", &other).await, what).await;
    web.process.says("cannot fetch the keys of the token issuer").await;
    unlogged(&web.process, &[token]);
}

#[tokio::test]
async fn keys_rotate_under_load_without_failures() {
    let (old, new) = (Key::ed("old"), Key::ec("new"));
    let issuer = Issuer::start(&[&old]).await;
    let web = deploy(&issuer).await.with("RATE_LIMIT_REQUESTS", 1_000_000).web().await;
    let sign = |key: &Key| key.sign(&key.head(), &issuer.claims(json!({ "scope": "tokens:read" })));
    let (current, token) = watch::channel(sign(&old));
    assert_eq!(get(&web, "/tokens", &sign(&old)).await.status(), 200);
    let first = Instant::now();
    let ended = Arc::new(AtomicBool::new(false));
    let url = format!("{}/api/v1/tokens", web.url);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (token, ended, url, client) = (token.clone(), ended.clone(), url.clone(), client());
            tokio::spawn(async move {
                let mut count = 0;
                while !ended.load(Ordering::Relaxed) {
                    let token = token.borrow().clone();
                    let status = client.get(&url).bearer_auth(token).send().await.unwrap().status();
                    assert_eq!(status, 200);
                    count += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                count
            })
        })
        .collect();
    // A key that nobody knows causes no fetch in this minute.
    refused(get(&web, "/tokens", &sign(&Key::ed("unknown"))).await, "an unknown key").await;
    assert_eq!(issuer.fetches(), 1);
    tokio::time::sleep(Duration::from_secs(61).saturating_sub(first.elapsed())).await;
    // The issuer signs with its new key at once.
    issuer.publish(&[&old, &new]);
    current.send_replace(sign(&new));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(get(&web, "/tokens", &sign(&old)).await.status(), 200);
    // The issuer hangs, and no request waits for it.
    issuer.hang();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let started = Instant::now();
    assert_eq!(get(&web, "/tokens", &sign(&new)).await.status(), 200);
    refused(get(&web, "/tokens", &sign(&Key::ed("unknown"))).await, "an unknown key").await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    ended.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 100);
    }
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn unset_issuer_accepts_no_tokens() {
    let key = Key::ed("1");
    let issuer = Issuer::start(&[&key]).await;
    let deploy = deploy(&issuer).await.without("TOKEN_ISSUER");
    let web = deploy.web().await;
    let token = key.sign(&key.head(), &issuer.claims(json!({ "scope": "tokens:read" })));
    let response = get(&web, "/tokens", &token).await;
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    problem(response, 401, "unauthenticated").await;
    assert_eq!(issuer.fetches(), 0);
    let none = deploy.admin(&["account", "create", "--service", "x", "--scopes", "tokens:read"]).await;
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("TOKEN_ISSUER is unset"), "{none:?}");
    let mut incomplete = deploy.with("TOKEN_ISSUER", &issuer.url).without("TOKEN_AUDIENCE").start("web");
    assert_eq!(incomplete.exit().await.code(), Some(78));
    assert!(incomplete.errors().join("\n").contains("TOKEN_AUDIENCE is missing, which TOKEN_ISSUER requires"));
}

/// The minutes that the clock of the next test is ahead.
static AHEAD: AtomicU64 = AtomicU64::new(0);

fn clock() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_mins(AHEAD.load(Ordering::Relaxed))
}

#[tokio::test]
async fn withdrawn_key_stops_working_in_ten_minutes() {
    // The issuer replaces one key by another with the same id.
    let (old, new, same_id) = (Key::ed("old"), Key::ed("new"), Key::ed("new"));
    let server = Issuer::start(&[&old]).await;
    let issuer = issuer::Issuer::attach(Setting::parse(&server.url).unwrap(), configured(), clock);
    let tokens: HashMap<_, _> = [&old, &new, &same_id].map(|key| (key.public().to_string(), key.sign(&key.head(), &json!({})))).into();
    // The same token each time, whose signature was verified before.
    let accepts = async |key: &Key| {
        let signed = issuer.has_signed(&tokens[&key.public().to_string()], Some(&key.id), Algorithm::EdDSA);
        signed.await.unwrap() == Some(true)
    };
    assert!(accepts(&old).await);
    server.publish(&[&new]);
    // Nobody uses another key meanwhile.
    AHEAD.store(4, Ordering::Relaxed);
    assert!(accepts(&old).await);
    assert_eq!(server.fetches(), 1, "young documents are not fetched again");
    AHEAD.store(11, Ordering::Relaxed);
    assert!(!accepts(&old).await, "a withdrawn key works after ten minutes");
    assert_eq!(server.fetches(), 2);
    assert!(accepts(&new).await && !accepts(&same_id).await);
    // They are fetched anew beside the requests, before they are too old.
    server.publish(&[&old, &same_id]);
    AHEAD.store(17, Ordering::Relaxed);
    assert!(accepts(&new).await);
    crate::support::eventually("the documents are fetched", async || (server.fetches() == 3).then_some(())).await;
    crate::support::eventually("the new key set is known", async || accepts(&old).await.then_some(())).await;
    assert!(accepts(&same_id).await && !accepts(&new).await, "a token of a replaced key is accepted");
    // Without an answer, the known keys stay in use.
    server.hang();
    AHEAD.store(28, Ordering::Relaxed);
    assert!(accepts(&old).await);
}
