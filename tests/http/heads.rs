//! Request heads: untrusted parts have no effect, and ambiguous heads are rejected.

use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::deploy::Web;
use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, EVENT_TIMEOUT};

/// Sends raw bytes, and returns the response's status line and problem.
async fn answer(web: &Web, request: &[u8]) -> (String, Value) {
    let mut connection = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    connection.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while !answer.ends_with(b"}") {
            match connection.read(&mut buffer).await {
                Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(EVENT_TIMEOUT, reading).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&*answer, ""));
    (head.lines().next().unwrap_or_default().to_owned(), serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test]
async fn other_cookies_may_hold_any_bytes() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let cookie = Person::stranger(&web).cookie().await;
    let with = async |method: Method, cookies: Vec<u8>| {
        let request = Person::stranger(&web).request(method, "/session");
        request.header("cookie", HeaderValue::from_bytes(&cookies).unwrap()).send().await.unwrap()
    };
    // In UTF-8, as Chromium sends it, and in Latin-1, as older programs do.
    for other in ["name=Jörg; ".as_bytes(), b"name=J\xf6rg; ", b"=; ;; \xff; "] {
        assert_eq!(with(Method::GET, [other, cookie.as_bytes()].concat()).await.status(), 200, "{other:?}");
        assert_eq!(with(Method::GET, [cookie.as_bytes(), b"; ", other].concat()).await.status(), 200, "{other:?}");
    }
    // A log-out with such cookies ends the session, and always deletes the cookie.
    for _ in 0..2 {
        let logged_out = with(Method::DELETE, ["name=Jörg; ".as_bytes(), cookie.as_bytes()].concat()).await;
        assert_eq!(logged_out.status(), 204);
        assert!(logged_out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"), "{logged_out:?}");
        assert_eq!(with(Method::GET, cookie.clone().into_bytes()).await.status(), 401);
    }
}

#[tokio::test]
async fn garbage_before_trusted_addresses_is_ignored() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 2).with("TRUSTED_PROXIES", 1);
    let web = deploy.web().await;
    let guess = async |from: &[u8]| {
        let body = json!({ "email": "ada@example.com", "password": PASSWORD });
        let from = HeaderValue::from_bytes(from).unwrap();
        Person::stranger(&web).request(Method::POST, "/session").header("x-forwarded-for", from).json(&body).send().await.unwrap()
    };
    problem(guess(b"203.0.113.80").await, 401, "wrong-credentials").await;
    problem(guess(b"\xff, 203.0.113.80").await, 401, "wrong-credentials").await;
    problem(guess(b"\xff\xfe,,not an address, 203.0.113.80").await, 429, "too-many-requests").await;
    let logged = "SELECT DISTINCT address::text FROM audit_events WHERE action = 'log_in_failed'";
    let addresses: Vec<String> = sqlx::query_scalar(logged).fetch_all(&mut deploy.database().await).await.unwrap();
    assert!(addresses.iter().all(|address| address.starts_with("203.0.113.80")), "{addresses:?}");
}

#[tokio::test]
async fn untrusted_forwarded_header_is_logged_once() {
    let deploy = Deploy::new().await;
    let warnings = |web: &Web| web.process.lines().iter().filter(|line| line.contains("TRUSTED_PROXIES is 0")).count();
    let ask = async |web: &Web| {
        for _ in 0..3 {
            let request = Person::stranger(web).request(Method::GET, "/session").header("x-forwarded-for", "203.0.113.80");
            assert_eq!(request.send().await.unwrap().status(), 401);
        }
    };
    let web = deploy.web().await;
    assert_eq!(web.get("/version").await.status(), 200);
    assert_eq!(warnings(&web), 0, "without the header nothing is logged");
    ask(&web).await;
    web.process.says("TRUSTED_PROXIES is 0").await;
    assert_eq!(warnings(&web), 1);
    let web = deploy.with("TRUSTED_PROXIES", 1).web().await;
    ask(&web).await;
    assert_eq!(warnings(&web), 0);
}

#[tokio::test]
async fn http_1_1_needs_one_host() {
    let web = Deploy::new().await.web().await;
    for (head, status) in [
        ("GET /api/v1/session HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
        ("GET /api/v1/session HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", "HTTP/1.1 400"),
        ("GET /api/v1/session HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", "HTTP/1.0 400"),
        ("GET /api/v1/session HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 401"),
        // Some balancers probe like this.
        ("GET /api/v1/session HTTP/1.0\r\n\r\n", "HTTP/1.0 401"),
    ] {
        let (line, problem) = answer(&web, head.as_bytes()).await;
        assert!(line.starts_with(status), "{head:?}: {line}");
        assert_eq!(problem["type"] == "/problems/malformed", status.ends_with("400"), "{head:?}: {problem}");
    }
}

#[tokio::test]
async fn head_over_32_kib_is_431() {
    let web = Deploy::new().await.web().await;
    for (bytes, status, slug) in [
        (30 * 1024, "HTTP/1.1 401", "unauthenticated"),
        (33 * 1024, "HTTP/1.1 431", "head-too-large"),
        (40 * 1024, "HTTP/1.1 431", "head-too-large"),
    ] {
        let request = format!("GET /api/v1/session HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(bytes));
        let (line, problem) = answer(&web, request.as_bytes()).await;
        assert!(line.starts_with(status) && problem["type"] == format!("/problems/{slug}"), "{bytes}: {line} {problem}");
    }
}

#[tokio::test]
async fn body_with_content_encoding_is_415() {
    let web = Deploy::new().await.web().await;
    let eve = Person::stranger(&web);
    for encoding in ["gzip", "br", "identity"] {
        let body = json!({ "email": eve.email, "password": PASSWORD }).to_string();
        let request =
            eve.request(Method::POST, "/accounts").header("content-type", "application/json").header("content-encoding", encoding);
        problem(request.body(body).send().await.unwrap(), 415, "unsupported-media-type").await;
    }
    assert_eq!(eve.log_in().await.status(), 401, "no account was created");
}

#[tokio::test]
async fn next_page_link_keeps_the_query() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for number in 0..5 {
        let token = json!({ "name": format!("token {number}"), "scopes": ["tokens:read"], "expires_in_days": 1 });
        assert_eq!(ada.post("/tokens", token).await.status(), 201);
    }
    let (mut next, mut names) = (Some("/api/v1/tokens?kept=a%20b&limit=2".to_owned()), Vec::new());
    while let Some(path) = next {
        let page = ada.client.get(format!("{}{path}", web.url)).send().await.unwrap();
        assert_eq!(page.status(), 200, "{path}");
        next = page.headers().get("link").map(|link| {
            let link = link.to_str().unwrap();
            let address = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap_or_else(|| panic!("{link}"));
            assert!(address.starts_with("/api/v1/tokens?") && address.contains("limit=2"), "{address}");
            let kept = url::form_urlencoded::parse(address.split_once('?').unwrap().1.as_bytes()).into_owned();
            let kept: Vec<_> = kept.filter(|(name, _)| name != "cursor").collect();
            assert_eq!(kept, [("kept".to_owned(), "a b".to_owned()), ("limit".to_owned(), "2".to_owned())]);
            assert_eq!(address.matches("cursor=").count(), 1, "{address}");
            address.to_owned()
        });
        let page: Value = page.json().await.unwrap();
        assert_eq!(page["next"].is_string(), next.is_some());
        names.extend(page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()));
    }
    names.sort();
    assert_eq!(names, (0..5).map(|number| format!("token {number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn composed_and_decomposed_passwords_are_equal() {
    let web = Deploy::new().await.web().await;
    let ada = Person::stranger(&web);
    // NFC, as most systems type it, and NFD, as some do. The second also has a ligature and a full-width letter.
    let (composed, decomposed) = ("se\u{f1}or find my caf\u{e9} today", "sen\u{303}or \u{fb01}nd my cafe\u{301} \u{ff54}oday");
    let with =
        async |path: &str, password: &str| ada.post(path, json!({ "email": ada.email, "password": password })).await.status().as_u16();
    assert_eq!(with("/accounts", composed).await, 202);
    for password in [composed, decomposed] {
        assert_eq!(with("/session", password).await, 200, "{password}");
    }
    assert_eq!(with("/session", "senor find my cafe today").await, 401);
    // The minimum of twelve counts before and after normalization: the first has 11 after it, the second before.
    for password in ["kn\u{303}q n\u{303}j w9xy", "k\u{f1}q xj w9\u{fb01}z"] {
        let short = Person::stranger(&web);
        let answer = short.post("/accounts", json!({ "email": short.email, "password": password })).await;
        let problem = problem(answer, 422, "invalid-input").await;
        assert!(problem.to_string().contains("12 to 256"), "{problem}");
    }
}
