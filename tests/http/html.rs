//! HTML for people: pages in place of problems, one style sheet for all pages, and the name of the process that answered.

use app::http::assets::Asset;
use nix::sys::signal::Signal;

use crate::support::Deploy;
use crate::support::deploy::{Web, client};
use crate::support::person::{Person, problem};
use crate::support::redis::Redis;

/// What a browser sends for a page that a person opens.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

async fn get(web: &Web, path: &str, accept: &str) -> reqwest::Response {
    client().get(format!("{}{path}", web.url)).header("accept", accept).send().await.unwrap()
}

#[tokio::test]
async fn browser_gets_page_in_place_of_problem() {
    let Some(mut redis) = Redis::start().await else { return };
    let deploy = Deploy::new().await.with("REDIS_URL", redis.url());
    let web = deploy.web().await;
    let cookie = Person::stranger(&web).cookie().await;
    for accept in [BROWSER, "text/html", "application/json;q=0.5, text/html"] {
        let answer = get(&web, "/nowhere", accept).await;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let page = answer.text().await.unwrap();
        assert_eq!((status.as_u16(), &headers["content-type"]), (404, &"text/html; charset=utf-8".parse().unwrap()), "{accept}");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'; style-src 'self';"));
        for text in ["Not Found", "/problems/not-found", headers["x-request-id"].to_str().unwrap()] {
            assert!(page.contains(text), "{text}: {page}");
        }
    }
    for accept in ["*/*", "application/json", "application/problem+json", "text/html;q=0.5, application/json", "text/*", "text/html;q=0"] {
        problem(get(&web, "/nowhere", accept).await, 404, "not-found").await;
    }
    redis.kill().await;
    let request = client().get(format!("{}/api/v1/session", web.url)).header("cookie", cookie);
    let answer = request.header("accept", BROWSER).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    assert!(answer.text().await.unwrap().contains("Please retry shortly."));
}

#[tokio::test]
async fn every_page_has_the_style_sheet() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for path in ["/verify?token=x", "/reset?token=x", "/undo?token=x", "/verify", "/problems/not-found", "/nowhere"] {
        let page = get(&web, path, BROWSER).await.text().await.unwrap();
        let (_, rest) = page.split_once("<link rel=\"stylesheet\" href=\"").unwrap_or_else(|| panic!("{path}: {page}"));
        let (style, _) = rest.split_once('"').unwrap();
        let answer = web.get(style).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &"text/css; charset=utf-8".parse().unwrap()));
        assert_eq!(answer.headers()["cache-control"], "public, max-age=31536000, immutable");
    }
}

#[test]
fn assets_name_follows_its_content() {
    let name = |content| Asset::new("style.css", content).name();
    assert_eq!(name("a{}"), name("a{}"));
    assert_ne!(name("a{}"), name("b{}"));
    let hash = name("a{}").strip_prefix("style-").and_then(|rest| Some(rest.strip_suffix(".css")?.len()));
    assert_eq!(hash, Some(16), "{}", name("a{}"));
}

#[tokio::test]
async fn every_response_names_its_process() {
    let deploy = Deploy::new().await.with("RELEASE_VERSION", "v1 & más").with("DRAIN_DELAY", "5s");
    let (one, other) = tokio::join!(deploy.web(), deploy.web());
    let served_by = async |web: &Web, path: &str| {
        let answer = web.get(path).await;
        let header = answer.headers()["x-served-by"].to_str().unwrap().to_owned();
        let pairs = url::form_urlencoded::parse(header.as_bytes()).into_owned().collect::<std::collections::BTreeMap<_, _>>();
        assert_eq!((pairs["commit"].as_str(), pairs["release"].as_str()), (app::release::COMMIT, "v1 & más"), "{path}");
        (pairs["process"].clone(), pairs["draining"].clone())
    };
    let (name, _) = served_by(&one, "/version").await;
    for path in ["/api/v1/session", "/nowhere", "/verify"] {
        assert_eq!(served_by(&one, path).await, (name.clone(), "false".to_owned()));
    }
    one.process.logged("the id", |line| line["served_by"] == name.as_str()).await;
    let (others, _) = served_by(&other, "/version").await;
    assert_ne!(name, others);
    // Nothing of the machine.
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert!(name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) && !host.contains(&name), "{name}");
    one.process.signal(Signal::SIGTERM);
    one.process.says("draining").await;
    assert_eq!(served_by(&one, "/version").await, (name, "true".to_owned()));
}
