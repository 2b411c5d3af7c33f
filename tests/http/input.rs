//! Invalid input: each kind gets its status as a problem, and changes nothing.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::access::rules;
use crate::support::deploy::Web;
use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, EVENT_TIMEOUT};

async fn raw(person: &Person, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Response {
    person.request(Method::POST, path).header("content-type", content_type).body(body).send().await.unwrap()
}

#[tokio::test]
async fn malformed_body_is_400_invalid_field_422() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    for broken in ["", "{", "{\"name\": ", "nonsense", "{} {}", "[1,]"] {
        problem(raw(&ada, "/tokens", "application/json", broken).await, 400, "malformed").await;
    }
    problem(raw(&ada, "/tokens", "application/json", vec![b'"', 0xff, b'"']).await, 400, "malformed").await;
    problem(raw(&ada, "/tokens", "text/plain", "{}").await, 415, "unsupported-media-type").await;

    let token = |name: &str, days: Value| json!({ "name": name, "scopes": ["tokens:read"], "expires_in_days": days });
    for (body, field) in [
        (json!({ "name": 5, "scopes": ["tokens:read"], "expires_in_days": 1 }), "name"),
        (json!({ "name": "x", "scopes": [], "expires_in_days": 1 }), "scopes"),
        (token("x", json!("tomorrow")), "expires_in_days"),
        (token("x", json!(0)), "expires_in_days"),
        (token("", json!(1)), "name"),
        (token(&"x".repeat(101), json!(1)), "name"),
        (token("a\u{0}b", json!(1)), "name"),
    ] {
        let problem = problem(ada.post("/tokens", body).await, 422, "invalid-input").await;
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        assert!(problem["errors"][0]["detail"].is_string());
    }
    problem(ada.post("/tokens", json!(["x", 1])).await, 422, "invalid-input").await;
    problem(ada.post("/tokens", json!({ "name": "no end" })).await, 422, "invalid-input").await;
    assert_eq!(ada.get("/tokens").await.json::<Value>().await.unwrap()["items"], json!([]), "nothing was created");
    assert_eq!(ada.post("/tokens", token(&"é".repeat(100), json!(1))).await.status(), 201, "the limit is in characters");
}

#[tokio::test]
async fn every_invalid_field_is_reported_at_once() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let answer = Person::stranger(&web).post("/accounts", json!({ "email": "nowhere", "password": "short" })).await;
    let problem = problem(answer, 422, "invalid-input").await;
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["email", "password"]);
    for email in ["a\u{0}b@example.com", "a@b@c", "", &format!("{}@example.com", "x".repeat(300))] {
        let answer = Person::stranger(&web).post("/accounts", json!({ "email": email, "password": PASSWORD })).await;
        assert_eq!(answer.status(), 422, "{email}");
    }
    let answer = Person::stranger(&web).post("/session", json!({ "email": "a\u{0}b", "password": PASSWORD })).await;
    assert_eq!(answer.status(), 422);
}

#[tokio::test]
async fn body_over_one_mebibyte_is_413() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    problem(raw(&ada, "/tokens", "application/json", vec![b' '; 1024 * 1024 + 1]).await, 413, "body-too-large").await;
    problem(raw(&ada, "/tokens", "application/json", vec![b' '; 1024 * 1024]).await, 400, "malformed").await;
}

#[tokio::test]
async fn missing_or_forged_session_is_401() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let nobody = Person::stranger(&web);
    let id = "/tokens/0199d5b5-0000-7000-8000-000000000000";
    for (method, path) in [
        (Method::GET, "/session"),
        (Method::POST, "/email-verifications"),
        (Method::GET, "/tokens"),
        (Method::POST, "/tokens"),
        (Method::DELETE, id),
        (Method::PATCH, "/account"),
        (Method::GET, "/account/sessions"),
    ] {
        problem(nobody.request(method.clone(), path).send().await.unwrap(), 401, "unauthenticated").await;
        let forged = nobody.request(method, path).header("cookie", "id=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").send();
        problem(forged.await.unwrap(), 401, "unauthenticated").await;
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let nobody = Person::stranger(&web);
    problem(nobody.get("/nothing").await, 404, "not-found").await;
    problem(web.get("/nowhere").await, 404, "not-found").await;
    let answer = nobody.request(Method::PUT, "/session").send().await.unwrap();
    assert!(answer.headers()["allow"].to_str().unwrap().contains("DELETE"), "{answer:?}");
    problem(answer, 405, "method-not-allowed").await;
}

#[tokio::test]
async fn web_replaces_and_logs_callers_request_id() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let nobody = Person::stranger(&web);
    let answer = |id: &'static str| nobody.request(Method::GET, "/session").header("x-request-id", id).send();
    for sane in ["trace-me.12345678", "short"] {
        let ours = answer(sane).await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_ne!(ours, sane, "web must not adopt the caller's id");
        web.process.logged("both", |line| line["request_id"] == ours && line["caller_request_id"] == sane).await;
    }
    for odd in ["with space in it", "{\"json\":\"injection\"}"] {
        let ours = answer(odd).await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned();
        web.process.logged("ours alone", |line| line["request_id"] == ours && line["caller_request_id"].is_null()).await;
    }
}

/// Sends raw bytes, and returns the response's status line.
async fn bytes(web: &Web, request: &[u8]) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    // A server may close the connection before it has read everything.
    let _ = connection.write_all(request).await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            match connection.read(&mut buffer).await {
                Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(EVENT_TIMEOUT, reading).await.expect("an answer");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn hostile_input_causes_no_server_error() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000);
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let id = "0199d5b5-0000-7000-8000-000000000000";
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let bodies: Vec<Vec<u8>> = [
        "{\"name\": \"x",
        &deep,
        &deep_objects,
        &format!("{{\"name\": {deep}}}"),
        "{\"name\": 1e999999, \"expires_in_days\": 1e400}",
        &format!("{{\"expires_in_days\": {}, \"scopes\": {}}}", "9".repeat(400), "9".repeat(400)),
        "{\"email\": \"\\u0000@example.com\", \"password\": \"\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\"}",
        "{\"token\": \"\\u0000\", \"old\": \"\\u0000\", \"new\": \"\\u0000\", \"name\": \"\\u0000\", \"scopes\": [\"\\u0000\"], \"expires_in_days\": 1}",
        "{\"name\": \"\\ud800\", \"scopes\": [\"tokens:read\"], \"expires_in_days\": 1}",
        "{\"email\": \"a@b.example\", \"email\": \"c@d.example\", \"password\": \"x\", \"password\": \"y\"}",
        "null",
        "[]",
        "\"text\"",
        "",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .chain([vec![0xff, 0xfe, b'{'], b"{\"name\": \"\xc3\x28\"}".to_vec(), vec![0; 1000]])
    .collect();
    for rule in rules(&deploy).await.iter().filter(|rule| ["POST", "PUT", "PATCH"].contains(&&*rule.method)) {
        let (method, path) = (rule.method.parse::<Method>().unwrap(), rule.path.replace("{id}", id));
        for body in &bodies {
            for content_type in ["application/json", "application/xml", "application/x-www-form-urlencoded", ""] {
                let request = ada.client.request(method.clone(), format!("{}{path}", web.url)).header("sec-fetch-site", "same-origin");
                let answer = request.header("content-type", content_type).body(body.clone()).send().await.unwrap();
                let what = format!("{method} {path} {content_type} {:?}: {answer:?}", String::from_utf8_lossy(&body[..body.len().min(60)]));
                assert!(answer.status().as_u16() < 500, "{what}");
            }
        }
    }
    for path in [
        "/tokens?cursor=%00",
        "/tokens?limit=99999999999999999999",
        "/tokens?cursor=%ff%fe",
        "/tokens/%00",
        "/tokens/%ff",
        "/account/sessions/%00",
        "/%2e%2e/%2e%2e/etc/passwd",
    ] {
        let answer = ada.get(path).await;
        assert!(answer.status().is_client_error(), "{path}: {answer:?}");
    }
    for path in ["/verify?token=%00%ff<script>alert(1)</script>", "/reset?token=%22%3E%3Cscript%3E"] {
        let page = web.get(path).await.text().await.unwrap();
        assert!(!page.contains("<script") && !page.contains("\"><"), "{page}");
    }
    assert_eq!(ada.delete("/account/sessions/%00").await.status(), 404);

    let head = "GET /api/v1/session HTTP/1.1\r\nhost: x\r\n";
    let hundred = "x-header: x\r\n".repeat(100);
    let requests = [
        (format!("{head}{hundred}\r\n").into_bytes(), "HTTP/1.1 431"),
        (format!("{head}x-long: {}\r\n\r\n", "x".repeat(16 * 1024)).into_bytes(), "HTTP/1.1 401"),
        (format!("{head}x-long: {}\r\n\r\n", "x".repeat(64 * 1024)).into_bytes(), "HTTP/1.1 431"),
        (format!("{head}cookie: {}\r\n\r\n", "id=;".repeat(2000)).into_bytes(), "HTTP/1.1 401"),
        ([head.as_bytes(), b"cookie: id=\xff\xfe\r\nauthorization: Bearer \xff\r\n\r\n"].concat(), "HTTP/1.1 401"),
        (format!("{head}authorization: Bearer\r\n\r\n").into_bytes(), "HTTP/1.1 401"),
        (format!("{head}authorization: bearer {}\r\n\r\n", "x".repeat(5000)).into_bytes(), "HTTP/1.1 401"),
        (b"NONSENSE\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        (b"POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        (b"POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(), "HTTP/1.1 4"),
    ];
    for (request, status) in requests {
        let answer = bytes(&web, &request).await;
        assert!(answer.starts_with(status), "{status} for {:?}: {answer}", String::from_utf8_lossy(&request[..request.len().min(120)]));
    }
    assert_eq!(ada.get("/session").await.status(), 200);
    let bad: Vec<_> = web.process.log().into_iter().filter(|line| line["level"] == "ERROR" || line["level"] == "WARN").collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(web.process.errors().is_empty(), "{:?}", web.process.errors());
}

#[tokio::test]
async fn connection_stays_usable_after_client_errors() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let mut connection = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    for (body, status) in [("{", "HTTP/1.1 400"), ("[1]", "HTTP/1.1 422"), ("{}", "HTTP/1.1 422")] {
        let head = "POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        connection.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut buffer = [0; 4096];
        // The JSON of a problem ends with a brace.
        while !answer.trim_end().ends_with('}') {
            let count = tokio::time::timeout(EVENT_TIMEOUT, connection.read(&mut buffer)).await.expect("an answer").unwrap();
            assert!(count > 0, "closed after: {answer}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        assert!(answer.starts_with(status), "{answer}");
    }
}

#[tokio::test]
async fn client_can_read_refusal_while_sending() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let large = || vec![b' '; 1024 * 1024];
    for _ in 0..20 {
        problem(raw(&Person::stranger(&web), "/tokens", "application/json", large()).await, 401, "unauthenticated").await;
        problem(raw(&ada, "/tokens", "text/plain", large()).await, 415, "unsupported-media-type").await;
        problem(raw(&ada, "/nothing", "application/json", large()).await, 404, "not-found").await;
    }
}
