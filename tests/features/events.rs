//! The event stream, read as a client does.

use std::time::{Duration, Instant};

use deadpool_redis::redis::{AsyncCommands, cmd};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::access::{Things, prove_table};
use crate::support::events::EventStream;
use crate::support::person::{Person, problem};
use crate::support::redis::Redis;
use crate::support::{Deploy, Proxy, eventually};

/// Which callers may use which operations, written by hand. `tests/support/access.rs` explains the letters.
const ACCESS_TABLE: &str = "
    GET    /api/v1/events    - - - u a
";

/// How long a stream may outlive its session.
const SESSION_LIMIT: Duration = Duration::from_secs(5);

/// Publishes an event as a worker does, and returns its id.
async fn publish(deploy: &Deploy, person: &Person) -> Uuid {
    let (mut redis, id) = (deploy.redis().await, Uuid::new_v4());
    let event = json!({ "account_id": account_id(person).await, "feature": "files", "id": id });
    redis.publish::<_, _, ()>("events", event.to_string()).await.unwrap();
    id
}

async fn account_id(person: &Person) -> Value {
    person.get("/session").await.json::<Value>().await.unwrap()["id"].clone()
}

/// How many streams `web` counts.
async fn open_streams(metrics: u16) -> u64 {
    let text = crate::support::clients::get(format!("http://127.0.0.1:{metrics}/metrics")).await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix("event_streams ")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn events_follow_the_access_table() {
    prove_table(ACCESS_TABLE, async |_, _| Things { ids: Vec::new(), texts: Vec::new() }).await;
}

#[tokio::test]
async fn event_reaches_its_accounts_streams_everywhere() {
    let deploy = Deploy::new().await;
    let (first, second) = (deploy.web().await, deploy.web().await);
    let (ada, eve) = tokio::join!(Person::known(&deploy, &first), Person::known(&deploy, &first));
    let mut streams = [EventStream::of(&ada, &first).await, EventStream::of(&ada, &second).await];
    let mut eves = EventStream::of(&eve, &first).await;
    assert_eq!(streams[0].response.headers()["content-type"], "text/event-stream");
    assert_eq!(streams[0].response.headers()["cache-control"], "no-store");
    for _ in 0..3 {
        let id = publish(&deploy, &ada).await;
        for stream in &mut streams {
            assert_eq!(stream.next().await, Some(("changed".to_owned(), json!({ "feature": "files", "id": id }))));
        }
    }
    assert!(eves.is_silent(Duration::from_millis(300)).await, "another account learns nothing");
}

#[tokio::test]
async fn drain_ends_streams_at_once() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "20s").with("DRAIN_DELAY", "5s");
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut stream = EventStream::of(&ada, &web).await;
    let asked = Instant::now();
    web.process.signal(Signal::SIGTERM);
    assert_eq!(stream.next().await, None);
    assert!(asked.elapsed() < Duration::from_secs(1), "the stream ended after {:?}", asked.elapsed());
    // While the listener is still open, new streams end at once.
    assert_eq!(EventStream::of(&ada, &web).await.next().await, None);
    assert_eq!(web.process.exit().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10), "the drain took {:?}", asked.elapsed());
}

#[tokio::test]
async fn unread_stream_delays_no_drain() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "20s");
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut client = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let request = format!("GET /api/v1/events HTTP/1.1\r\nhost: x\r\ncookie: {}\r\n\r\n", ada.cookie().await);
    client.write_all(request.as_bytes()).await.unwrap();
    // Fills the buffers of both ends.
    let event = json!({ "account_id": account_id(&ada).await, "feature": "x".repeat(60_000), "id": Uuid::nil() }).to_string();
    let mut redis = deploy.redis().await;
    for _ in 0..400 {
        redis.publish::<_, _, ()>("events", &event).await.unwrap();
    }
    let asked = Instant::now();
    assert_eq!(web.process.terminate().await, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "the drain took {:?}", asked.elapsed());
    drop(client);
}

#[tokio::test]
async fn ended_session_ends_its_streams_only() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let elsewhere = ada.elsewhere();
    elsewhere.log_in().await;
    let (mut here, mut there) = (EventStream::of(&ada, &web).await, EventStream::of(&elsewhere, &web).await);
    assert_eq!(elsewhere.delete("/session").await.status(), 204);
    let ended = Instant::now();
    assert_eq!(there.next().await, None);
    assert!(ended.elapsed() < SESSION_LIMIT, "the stream ended after {:?}", ended.elapsed());
    let id = publish(&deploy, &ada).await;
    assert_eq!(here.next().await.unwrap().1["id"], json!(id));
}

#[tokio::test]
async fn suspension_ends_streams_without_a_worker() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut stream = EventStream::of(&ada, &web).await;
    // No worker runs, so nothing deletes the session in Redis.
    assert!(deploy.admin(&["account", "suspend", &ada.email]).await.status.success());
    let ended = Instant::now();
    assert_eq!(stream.next().await, None);
    assert!(ended.elapsed() < SESSION_LIMIT, "the stream ended after {:?}", ended.elapsed());
}

#[tokio::test]
async fn eleventh_stream_of_an_account_is_429() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, eve) = tokio::join!(Person::known(&deploy, &web), Person::known(&deploy, &web));
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(EventStream::of(&ada, &web).await);
    }
    let cookie = ada.cookie().await;
    problem(EventStream::with_cookie(&cookie, &web).await.response, 429, "too-many-requests").await;
    EventStream::of(&eve, &web).await;
    drop(streams.pop());
    eventually("a free place", async || (EventStream::with_cookie(&cookie, &web).await.response.status() == 200).then_some(())).await;
}

#[tokio::test]
async fn client_that_does_not_read_is_cut_off() {
    let metrics = crate::support::free_port();
    let deploy = Deploy::new().await.with("METRICS_PORT", metrics);
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let stream = EventStream::of(&ada, &web).await;
    assert_eq!(open_streams(metrics).await, 1);
    let event = json!({ "account_id": account_id(&ada).await, "feature": "x".repeat(60_000), "id": Uuid::nil() }).to_string();
    let mut redis = deploy.redis().await;
    eventually("no stream", async || {
        for _ in 0..50 {
            cmd("PUBLISH").arg("events").arg(&event).query_async::<()>(&mut redis.clone()).await.unwrap();
        }
        (open_streams(metrics).await == 0).then_some(())
    })
    .await;
    drop(stream);
    redis.publish::<_, _, ()>("events", "no event").await.unwrap();
    assert_eq!(ada.get("/session").await.status(), 200);
}

#[tokio::test]
async fn streams_outlive_redis_and_resync() {
    let Some(mut redis) = Redis::start().await else { return };
    let deploy = Deploy::new().await.with("REDIS_URL", redis.url());
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut stream = EventStream::of(&ada, &web).await;
    redis.kill().await;
    web.process.says("no events until Redis is back").await;
    redis.start_again().await;
    assert_eq!(stream.next().await.unwrap().0, "resync");
}

#[tokio::test]
async fn silent_subscription_is_made_anew() {
    let (Some(first), Some(second)) = (Redis::start().await, Redis::start().await) else { return };
    let proxy = Proxy::to(first.address.clone()).await;
    let deploy = Deploy::new().await.with("REDIS_URL", format!("redis://{}/0", proxy.address)).with("REDIS_POOL_SIZE", 1);
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut stream = EventStream::of(&ada, &web).await;
    // The old server still runs and the subscription to it stays open, but it gets no event any more.
    second.take_over_from(&first).await;
    first.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    first.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    proxy.turn_to(second.address.clone());
    assert_eq!(stream.next().await.unwrap().0, "resync");
    let id = Uuid::new_v4();
    let event = json!({ "account_id": account_id(&ada).await, "feature": "files", "id": id }).to_string();
    second.ask::<()>(&["PUBLISH", "events", &event]).await;
    assert_eq!(stream.next().await.unwrap().1["id"], json!(id));
}
