//! The cache that processes share in Redis: one of them makes a value, and nobody waits for a process that is gone.
//!
//! Its user is `GET /api/v1/admin/statistics`. A request needs Redis for its session too, so the faults of Redis begin
//! while a value is made, concern only the cache's keys, or are tested on the cache itself.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use app::config;
use app::resources::cache::Cache;
use app::resources::redis::Redis as Handle;
use deadpool_redis::redis::{self, AsyncCommands};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Response;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::redis::Redis;
use crate::support::{Deploy, Proxy, clients, eventually, free_port};

const PATH: &str = "/admin/statistics";

/// A `web` and the port of its metrics.
struct Counted {
    web: Web,
    metrics: u16,
}

impl Counted {
    async fn start(deploy: &Deploy) -> Self {
        let metrics = free_port();
        Self { web: deploy.clone_with("METRICS_PORT", metrics).web().await, metrics }
    }

    async fn count(&self, outcome: &str) -> u64 {
        let text = clients::get(format!("http://127.0.0.1:{}/metrics", self.metrics)).await.unwrap().text().await.unwrap();
        let series = format!("cache_requests_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }
}

/// How many requests had an outcome at all of these processes.
async fn count(processes: &[Counted], outcome: &str) -> u64 {
    join_all(processes.iter().map(|process| process.count(outcome))).await.into_iter().sum()
}

async fn webs(deploy: &Deploy, number: usize) -> Vec<Counted> {
    join_all((0..number).map(|_| Counted::start(deploy))).await
}

/// An admin with a session.
async fn admin(deploy: &Deploy, web: &Web) -> Person {
    let admin = Person::unverified(web).await;
    let granted = deploy.admin(&["account", "grant", &admin.email, "admin"]).await;
    assert!(granted.status.success(), "{granted:?}");
    assert_eq!(admin.log_in().await.status(), 200);
    admin
}

async fn numbers(answer: Response) -> Value {
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json().await.unwrap()
}

/// The place of the statistics in Redis.
async fn stored(redis: &mut redis::aio::MultiplexedConnection) -> String {
    let keys: Vec<String> = redis.keys("cache:*:statistics").await.unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

/// Makes counting take until the returned transaction ends.
async fn slow_down(database: &mut PgConnection) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut lock = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE jobs").execute(&mut *lock).await.unwrap();
    lock
}

#[tokio::test]
async fn three_processes_make_a_value_once() {
    let deploy = Deploy::new().await;
    let processes = webs(&deploy, 3).await;
    let admin = admin(&deploy, &processes[0].web).await;
    let people: Vec<_> = processes.iter().map(|process| admin.at(&process.web)).collect();
    let mut database = deploy.database().await;
    let lock = slow_down(&mut database).await;
    // Counting waits for the lock while the others ask.
    let (answers, ()) = tokio::join!(join_all((0..200).map(|number| people[number % 3].get(PATH))), async {
        deploy.waits_for_a_lock().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        lock.rollback().await.unwrap();
    });
    let mut made = Vec::new();
    for answer in answers {
        made.push(numbers(answer).await);
    }
    assert!(made.iter().all(|numbers| *numbers == made[0]), "everyone has the same numbers");
    assert_eq!(count(&processes, "made").await, 1, "one process made the value");
    assert_eq!(count(&processes, "waited").await + count(&processes, "hit").await, 199);
    let mut redis = deploy.redis().await;
    let key = stored(&mut redis).await;
    let left: i64 = redis.pttl(key).await.unwrap();
    assert!((50_000..=60_000).contains(&left), "fresh for 24 to 30 s, kept for 30 s more: {left} ms");
}

#[tokio::test]
async fn killed_maker_delays_others_by_a_second() {
    let deploy = Deploy::new().await;
    let mut processes = webs(&deploy, 2).await;
    let admin = admin(&deploy, &processes[0].web).await;
    let (first, second) = (admin.at(&processes[0].web), admin.at(&processes[1].web));
    let mut database = deploy.database().await;
    let lock = slow_down(&mut database).await;
    let asking = tokio::spawn(async move { first.request(reqwest::Method::GET, PATH).send().await.map(|answer| answer.status()) });
    deploy.waits_for_a_lock().await;
    let mut killed = processes.remove(0);
    killed.web.process.signal(Signal::SIGKILL);
    let died = Instant::now();
    killed.web.process.exit().await;
    assert!(asking.await.unwrap().is_err(), "the maker was killed before it could answer");
    lock.rollback().await.unwrap();

    numbers(second.get(PATH).await).await;
    assert!(died.elapsed() < Duration::from_millis(1900), "the others waited for {:?}", died.elapsed());
    assert_eq!((count(&processes, "made").await, count(&processes, "alone").await), (1, 0), "another process took over");
}

#[tokio::test]
async fn others_take_stale_value_from_slow_maker() {
    let deploy = Deploy::new().await;
    let processes = webs(&deploy, 2).await;
    let admin = admin(&deploy, &processes[0].web).await;
    let (first, second) = (admin.at(&processes[0].web), admin.at(&processes[1].web));
    let old = numbers(first.get(PATH).await).await;
    // As after 30 seconds: what is left of its time is only that of a stale value.
    let mut redis = deploy.redis().await;
    let key = stored(&mut redis).await;
    redis.pexpire::<_, ()>(&key, 25_000).await.unwrap();

    let mut database = deploy.database().await;
    let lock = slow_down(&mut database).await;
    let asking = tokio::spawn(async move { numbers(first.get(PATH).await).await });
    deploy.waits_for_a_lock().await;
    // The maker renews its lease, so nobody else becomes a maker after a second.
    for _ in 0..10 {
        let asked = Instant::now();
        assert_eq!(numbers(second.get(PATH).await).await, old);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    lock.rollback().await.unwrap();
    let new = asking.await.unwrap();
    assert_ne!(new["counted_at"], old["counted_at"]);
    assert_eq!(numbers(second.get(PATH).await).await, new);
    assert_eq!((count(&processes, "made").await, count(&processes, "stale").await), (2, 10));
}

/// Waiting callers make their own value, and the maker answers although it cannot store its own.
#[tokio::test]
async fn redis_fails_while_a_value_is_made() {
    let Some(full) = Redis::start().await else { return };
    for fault in ["cut", "stalled", "full"] {
        let proxy = Proxy::to(full.address.clone()).await;
        full.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
        full.ask::<()>(&["FLUSHALL"]).await;
        let deploy = Deploy::new().await.with("REDIS_URL", format!("redis://{}/0", proxy.address));
        let processes = webs(&deploy, 2).await;
        let admin = admin(&deploy, &processes[0].web).await;
        let (first, second) = (admin.at(&processes[0].web), admin.at(&processes[1].web));
        let mut database = deploy.database().await;
        let lock = slow_down(&mut database).await;
        let break_redis = async {
            deploy.waits_for_a_lock().await;
            // The maker looks once. All further looks are those of the caller that waits.
            let looks = || proxy.sent().iter().filter(|piece| piece.contains("PTTL")).count();
            eventually("a caller that waits", async || (looks() > 3).then_some(())).await;
            match fault {
                "cut" => proxy.cut(),
                "stalled" => proxy.stall(),
                _ => full.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await,
            }
            lock.rollback().await.unwrap();
            Instant::now()
        };
        let (maker, waiter, broken) = tokio::join!(first.get(PATH), second.get(PATH), break_redis);
        assert!(broken.elapsed() < Duration::from_secs(5), "{fault}: {:?}", broken.elapsed());
        for answer in [maker, waiter] {
            numbers(answer).await;
        }
        let made = count(&processes, "made").await + count(&processes, "alone").await;
        assert_eq!(made, 2, "{fault}: each process made its own value");
    }
}

#[tokio::test]
async fn refused_cache_keys_leave_fresh_answers() {
    let Some(redis) = Redis::start().await else { return };
    redis.ask::<()>(&["ACL", "SETUSER", "app", "on", ">secret", "~session*", "~limit:*", "+@all"]).await;
    let deploy = Deploy::new().await.with("REDIS_URL", format!("redis://app:secret@{}/0", redis.address));
    let processes = webs(&deploy, 1).await;
    let admin = admin(&deploy, &processes[0].web).await;
    let (first, second) = (numbers(admin.get(PATH).await).await, numbers(admin.get(PATH).await).await);
    assert_ne!(first["counted_at"], second["counted_at"]);
    assert_eq!(count(&processes, "alone").await, 2);
}

/// The cache as a process has it, behind a proxy.
fn cache_at(url: &str) -> Cache {
    let config = config::Redis { redis_url: config::RedisUrl(url.into()), redis_pool_size: 2.try_into().unwrap() };
    Cache::new(Handle::attach(&config).unwrap(), Uuid::new_v4)
}

#[tokio::test]
async fn makers_are_bounded_while_redis_is_away() {
    let Some(redis) = Redis::start().await else { return };
    for fault in ["cut", "stalled", "slow", "full"] {
        let proxy = Proxy::to(redis.address.clone()).await;
        let cache = cache_at(&format!("redis://{}/0", proxy.address));
        let ttl = Duration::from_secs(30);
        assert_eq!(cache.get_or("before", ttl, async || Ok::<_, Infallible>(1)).await, Ok(1));
        match fault {
            "cut" => proxy.cut(),
            "stalled" => proxy.stall(),
            "slow" => proxy.delay(Duration::from_millis(300)),
            _ => redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await,
        }
        let (running, most, made) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let make = async || {
            most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            running.fetch_sub(1, Ordering::Relaxed);
            Ok::<_, Infallible>(made.fetch_add(1, Ordering::Relaxed))
        };
        let asked = Instant::now();
        let answers = join_all((0..20).map(|_| cache.get_or("during", ttl, make))).await;
        // Half a second for Redis and 200 ms for ten pairs of makers, on a busy machine.
        assert!(asked.elapsed() < Duration::from_secs(4), "{fault}: {:?}", asked.elapsed());
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!((made.into_inner(), most.into_inner()), (20, 2), "{fault}");
    }
}

#[tokio::test]
async fn large_values_and_failures_are_not_stored() {
    let deploy = Deploy::new().await;
    let cache = cache_at(&deploy.environment["REDIS_URL"]);
    let ttl = Duration::from_secs(30);
    for size in [70_000, 60_000] {
        let make = async || Ok::<_, Infallible>("x".repeat(size));
        assert_eq!(cache.get_or("text", ttl, make).await.unwrap().len(), size, "a large value is given to its caller");
    }
    let stored = cache.get_or("text", ttl, async || Ok::<_, Infallible>(String::new())).await.unwrap();
    assert_eq!(stored.len(), 60_000, "the one that fits is stored");
    assert_eq!(cache.get_or("failed", ttl, async || Err::<u8, _>("no")).await, Err("no"));
    // The lease of the failed attempt has ended with it.
    let asked = Instant::now();
    assert_eq!(cache.get_or("failed", ttl, async || Ok::<_, Infallible>(1)).await, Ok(1));
    assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn lifetimes_are_spread_over_a_fifth() {
    let deploy = Deploy::new().await;
    let mut redis = deploy.redis().await;
    let url = &deploy.environment["REDIS_URL"];
    for (random, expected) in [(Uuid::nil as fn() -> Uuid, 60_000), (Uuid::max, 54_000)] {
        let config = config::Redis { redis_url: config::RedisUrl(url.as_str().into()), redis_pool_size: 2.try_into().unwrap() };
        let cache = Cache::new(Handle::attach(&config).unwrap(), random);
        redis::cmd("FLUSHDB").exec_async(&mut redis).await.unwrap();
        let made = cache.get_or("statistics", Duration::from_secs(30), async || Ok::<_, Infallible>(1)).await;
        assert_eq!(made, Ok(1));
        let key = stored(&mut redis).await;
        let left: i64 = redis.pttl(key).await.unwrap();
        assert!((expected - 2000..=expected).contains(&left), "{left} ms of {expected}");
    }
}

/// As a process that was suspended for longer than its lease.
#[tokio::test]
async fn maker_without_lease_stores_nothing() {
    let deploy = Deploy::new().await;
    let cache = cache_at(&deploy.environment["REDIS_URL"]);
    let mut redis = deploy.redis().await;
    let make = async || {
        let mut redis = deploy.redis().await;
        let lease: Vec<String> = redis.keys("cache:*:statistics:lease").await.unwrap();
        redis.set::<_, _, ()>(&lease[0], "another maker's token").await.unwrap();
        redis.set::<_, _, ()>(lease[0].trim_end_matches(":lease"), "2").await.unwrap();
        Ok::<_, Infallible>(1)
    };
    assert_eq!(cache.get_or("statistics", Duration::from_secs(30), make).await, Ok(1));
    let key = stored(&mut redis).await;
    assert_eq!(redis.get::<_, u32>(&key).await.unwrap(), 2, "the value of the maker that has the lease stays");
    assert_eq!(redis.exists::<_, u32>(format!("{key}:lease")).await.unwrap(), 1, "and so does its lease");
}
