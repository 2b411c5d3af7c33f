//! VII. Port binding: the program contains its own server and listens on the port that the environment names.
//!
//! Violated by a server that must host the program, a port that the program chooses, or an interface that others cannot reach.

use std::time::Duration;

use serde_json::json;

use crate::support::balancer::{Balancer, has};
use crate::support::clients::{builder, get};
use crate::support::issuer::{AUDIENCE, Issuer, Key, now};
use crate::support::{Deploy, eventually, free_port};

#[tokio::test]
async fn web_serves_its_port_on_every_interface() {
    let deploy = Deploy::new().await;
    let port = free_port();
    let web = deploy.with("PORT", port).web().await;
    assert_eq!(web.port(), port);
    // 127.0.0.2 is a second address of this machine. ::1 exists if it has IPv6.
    let with_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    for address in ["127.0.0.1", "127.0.0.2", "[::1]"].into_iter().filter(|address| with_ipv6 || *address != "[::1]") {
        let answer = get(format!("http://{address}:{port}/version")).await;
        let answer = answer.unwrap_or_else(|e| panic!("web does not answer on the interface {address}: {e:?}"));
        assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["process"], "web");
    }
}

#[tokio::test]
async fn web_reports_a_taken_port_and_exits() {
    let deploy = Deploy::new().await.with("PORT", free_port());
    let first = deploy.web().await;
    let mut second = deploy.start("web");
    assert_eq!(second.exit().await.code(), Some(1));
    let expected = format!("cannot listen on port {}", first.port());
    assert!(second.lines().iter().any(|line| line.contains(&expected)), "{:?}", second.lines());
}

#[tokio::test]
async fn balancer_reaches_two_webs_by_port_alone() {
    if !has("haproxy") {
        return;
    }
    let deploy = Deploy::new().await;
    let (ports, webs) = ([free_port(), free_port()], async |port: u16| deploy.clone_with("PORT", port).web().await);
    let webs = tokio::join!(webs(ports[0]), webs(ports[1]));
    let balancer = Balancer::before(&ports).await;
    for number in 0..4 {
        let asked = builder()
            .build()
            .unwrap()
            .get(format!("{}/api/v1/session", balancer.url))
            .header("x-request-id", format!("of-the-balancer-{number}"));
        assert_eq!(asked.send().await.unwrap().status(), 401, "the response comes from the service");
    }
    for web in [webs.0, webs.1] {
        web.process
            .logged("a request of the balancer's", |line| {
                line["caller_request_id"].as_str().is_some_and(|id| id.starts_with("of-the-balancer"))
            })
            .await;
    }
}

/// Two deploys call each other for ten seconds with their workloads' tokens. Each token is valid for eight seconds, and the
/// platform renews it in its file each second.
#[tokio::test]
async fn two_apps_are_each_others_backing_service() {
    let key = Key::ed("1");
    let issuer = Issuer::start(&[&key]).await;
    let files = std::env::temp_dir().join(format!("tokens-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&files).unwrap();
    // A process accepts a token for a minute after it has expired, because clocks differ.
    let token = |subject: &str| {
        let claims = json!({ "sub": subject, "scope": "tokens:read", "exp": now() - 52 });
        key.sign(&key.head(), &issuer.claims(claims))
    };
    let renew = |subject: &str| {
        // In one step, as platforms do.
        let (new, file) = (files.join(format!("{subject}.new")), files.join(subject));
        std::fs::write(&new, token(subject)).unwrap();
        std::fs::rename(new, file).unwrap();
    };
    let (shop, billing) = tokio::join!(Deploy::new(), Deploy::new());
    let accepting = |deploy: Deploy| deploy.with("TOKEN_ISSUER", &issuer.url).with("TOKEN_AUDIENCE", AUDIENCE);
    let (shop, billing) = (accepting(shop), accepting(billing));
    let (shop_web, billing_web) = tokio::join!(shop.web(), billing.web());
    let mut jobs = Vec::new();
    for (deploy, name, other, other_web) in [(&shop, "shop", &billing, &billing_web), (&billing, "billing", &shop, &shop_web)] {
        renew(name);
        let made = other.admin(&["account", "create", "--service", name, "--scopes", "tokens:read"]).await;
        assert!(made.status.success(), "{made:?}");
        let call = json!({ "url": format!("{}/api/v1/tokens", other_web.url), "token_file": files.join(name), "times": 100 });
        let insert = sqlx::query_scalar::<_, i64>("INSERT INTO jobs (kind, payload, max_attempts) VALUES ('call', $1, 1) RETURNING id");
        jobs.push((deploy, insert.bind(call).fetch_one(&mut deploy.database().await).await.unwrap()));
    }
    let expired = token("shop");
    let _workers = [shop.rough_worker(), billing.rough_worker()];
    for (deploy, id) in jobs {
        eventually("the calls of a deploy", async || {
            renew("shop");
            renew("billing");
            let state = sqlx::query_scalar::<_, Option<String>>("SELECT last_error FROM jobs WHERE id = $1").bind(id);
            let state = state.fetch_optional(&mut deploy.database().await).await.unwrap();
            assert!(!matches!(state, Some(Some(_))), "{state:?}");
            if state.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            state.is_none().then_some(())
        })
        .await;
    }
    let late = reqwest::Client::new().get(format!("{}/api/v1/tokens", billing_web.url)).bearer_auth(expired);
    assert_eq!(late.send().await.unwrap().status(), 401, "the tokens of the calls expire");
    std::fs::remove_dir_all(files).unwrap();
}

#[tokio::test]
async fn process_types_answer_probes_on_metrics_port() {
    let deploy = Deploy::new().await.with("METRICS_PORT", 0);
    for name in ["web", "worker", "clock"] {
        let mut process = deploy.start(name);
        let port = process.logged("the second listener", |line| line["listener"] == "metrics").await["port"].to_string();
        let get = async |path: &str| get(format!("http://127.0.0.1:{port}{path}")).await.unwrap();
        assert_eq!(get("/livez").await.status(), 200);
        eventually("ready", async || (get("/readyz").await.status() == 200).then_some(())).await;
        let asked = deploy.clone_with("METRICS_PORT", &port);
        assert!(asked.admin(&["health"]).await.status.success(), "{name}: admin health agrees");
        process.signal(nix::sys::signal::Signal::SIGKILL);
        process.exit().await;
        assert!(!asked.admin(&["health"]).await.status.success());
    }
}
