//! Random faults hit every process and resource while clients work. Afterwards the test checks that nothing was lost.
//!
//! This is a separate binary, so that no other test runs beside it. The seed decides the faults, their order and their length.
//! It does not reproduce the timing of the system.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::support::formation::{self, Links, PLACES, Place};
use crate::support::issuer::{AUDIENCE, Issuer, Key, now};
use crate::support::journal::{Journal, Kind};
use crate::support::load::{Customer, Seen};
use crate::support::postgres::Postgres;
use crate::support::redis::Redis;
use crate::support::{Deploy, EVENT_TIMEOUT, Proxy, eventually};

/// The shortest allowed, so that some processes are stopped for longer.
const JOB_LEASE: Duration = Duration::from_secs(10);

/// The number of clients. Half of them read their session. The others sign up new addresses and request a reset for each. Two
/// services are added.
const CUSTOMERS: usize = 16;

const POSTGRES_POOL: usize = 4;
const REDIS_POOL: usize = 2;

/// The file descriptors of an idle process: its connections, its listeners, its log, and a few of the runtime's.
const MAX_DESCRIPTORS: usize = 40;

/// How much a process may grow after its first ten seconds. A debug build's allocator keeps some memory of a burst. A leak of
/// a kilobyte in each request or job would exceed this within minutes.
const MAX_GROWTH_KIB: usize = 16 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_no_accepted_request() {
    let Some(postgres) = Postgres::start().await else { return };
    let variable = |name| std::env::var(name).ok();
    let minutes: f64 = variable("CHAOS_MINUTES").map_or(1.0, |minutes| minutes.parse().expect("a number of minutes"));
    let seed: u64 = variable("CHAOS_SEED").map_or_else(|| fastrand::u64(..1_000_000), |seed| seed.parse().expect("a seed is a number"));
    println!("seed {seed}, reproduce with: bin/chaos {minutes} {seed}");
    let mut random = Rng::with_seed(seed);

    let deploy = Deploy::unmigrated().await.with("DATABASE_URL", format!("{}/postgres", postgres.url));
    let (Some(redis), Some(replica)) = (Redis::start().await, Redis::start().await) else { return };
    let deploy = deploy.with("REDIS_URL", redis.url());
    let deploy = deploy.with("DATABASE_POOL_SIZE", POSTGRES_POOL).with("REDIS_POOL_SIZE", REDIS_POOL);
    let deploy = deploy.with("JOB_LEASE", format!("{}s", JOB_LEASE.as_secs())).with("RATE_LIMIT_REQUESTS", 10_000_000);
    let (deploy, issuer, token) = with_service(deploy).await;
    let journal = Journal::default();
    let _report = journal.report_on_failure();
    let links = formation::links(&deploy, &journal).await;
    let mut places = Vec::new();
    for name in PLACES {
        places.push(Place::fill(name, &deploy, &links, &journal).await);
    }
    for place in &places {
        place.ready().await;
    }
    let webs: Vec<_> = places.iter().filter(|place| place.name.starts_with("web")).map(|web| (web.name, web.url.clone())).collect();
    let database = PgPool::connect(&deploy.environment["DATABASE_URL"]).await.unwrap();
    let mut customers = Vec::new();
    for _ in 0..CUSTOMERS {
        customers.push(Customer::sign_up(&webs, random.fork()).await);
    }
    sqlx::query("UPDATE accounts SET verified_at = now()").execute(&database).await.unwrap();
    settle(&database).await;
    journal.note_jobs(&database).await;

    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    let (signing_up, reading) = customers.split_at(CUSTOMERS / 2);
    load.extend(signing_up.iter().map(|customer| tokio::spawn(customer.clone().sign_others_up(stop.clone()))));
    load.extend(reading.iter().map(|customer| tokio::spawn(customer.clone().read_session(stop.clone()))));
    load.extend(reading[..2].iter().map(|customer| tokio::spawn(customer.clone().list_as_service(token.clone(), stop.clone()))));
    let silences = tokio::spawn(silence(issuer, random.fork(), until));
    let mut networks = Vec::new();
    for variable in ["DATABASE_URL", "REDIS_URL", "SMTP_URL"] {
        networks.push(tokio::spawn(disturb_network(variable, links.clone(), journal.clone(), random.fork(), until)));
    }
    let failovers = tokio::spawn(fail_over([redis, replica], links.clone(), journal.clone(), random.fork(), until));
    let crashes = tokio::spawn(crash(postgres, journal.clone(), random.fork(), until));
    let disturbed: Vec<_> = places.into_iter().map(|place| tokio::spawn(disturb_process(place, random.fork(), until))).collect();

    join_all(networks).await.into_iter().for_each(Result::unwrap);
    let (_issuer, silences) = silences.await.unwrap();
    let _redis = failovers.await.unwrap();
    let _postgres = crashes.await.unwrap();
    let mut places = Vec::new();
    for place in disturbed {
        places.push(place.await.unwrap());
    }
    for place in &places {
        place.ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = Seen::default();
    for customer in load {
        let at_rest = timeout(EVENT_TIMEOUT, customer).await;
        seen.add(at_rest.expect("without faults every request succeeds").unwrap());
    }
    settle(&database).await;

    for place in &mut places {
        place.check();
        place.read_log();
    }
    assert!(seen.wrong.is_empty(), "{} wrong responses: {:#?}", seen.wrong.len(), &seen.wrong[..seen.wrong.len().min(20)]);
    let answered = u32::try_from(seen.answered).unwrap();
    assert!(f64::from(answered) > minutes * 100.0, "too little load: {answered} responses");
    let unexpected: Vec<_> = seen.broken.iter().filter(|broken| !journal.was_being_replaced(broken.web, broken.from, broken.to)).collect();
    assert!(unexpected.is_empty(), "connections broke to webs that were not restarted: {unexpected:#?}");
    for customer in &customers {
        customer.is_known_everywhere().await;
    }
    let accepted = seen.signed_up.len() + seen.reset.len();
    assert!(f64::from(u32::try_from(accepted).unwrap()) > minutes * 50.0, "too little load: {accepted} requests were accepted");
    let mails = mails(&deploy, &database, &journal, &seen).await;
    let promised = format!("| sessions kept, lost | {CUSTOMERS}, 0 |\n{mails}");
    let at_rest = at_rest(&places).await;
    let count = |kind| journal.count(kind);
    println!(
        "| | |\n|---|---|\n| minutes, seed | {minutes}, {seed} |\n| `kill -9`, SIGTERM, SIGSTOP | {}, {}, {} |\n\
         | ways to resources cut, stalled | {}, {} |\n| Postgres crashed, read-only | {}, {} |\n| failovers of Redis | {} |\n| silences of the token issuer | {silences} |\n\
         | requests answered, refused with 503, broken with their process | {}, {}, {} |\n\
         {promised}\n{at_rest}",
        count(Kind::Kill),
        count(Kind::Terminate),
        count(Kind::Stop),
        count(Kind::Cut),
        count(Kind::Stall),
        count(Kind::Crash),
        count(Kind::ReadOnly),
        count(Kind::FailOver),
        seen.answered,
        seen.refused,
        seen.broken.len(),
    );
}

/// Migrates a deploy, and gives it a token issuer and a service. Returns an access token of the service, too.
async fn with_service(deploy: Deploy) -> (Deploy, Issuer, String) {
    let key = Key::ed("1");
    let issuer = Issuer::start(&[&key]).await;
    let deploy = deploy.with("TOKEN_ISSUER", &issuer.url).with("TOKEN_AUDIENCE", AUDIENCE);
    assert!(deploy.admin(&["migrate"]).await.status.success());
    assert!(deploy.admin(&["account", "create", "--service", "billing", "--scopes", "tokens:read"]).await.status.success());
    let token = key.sign(&key.head(), &issuer.claims(json!({ "scope": "tokens:read", "exp": now() + 3600 })));
    (deploy, issuer, token)
}

/// Kills, terminates and stops the process in one place.
async fn disturb_process(mut place: Place, mut random: Rng, until: Instant) -> Place {
    while pause(&mut random, 500..6000, until).await {
        place.check();
        match random.u8(..10) {
            0..4 if !place.is_permanent() => place.kill().await,
            4..7 if !place.is_permanent() => place.terminate().await,
            // Sometimes for longer than the lease.
            9 => place.stop(JOB_LEASE + Duration::from_millis(random.u64(..3000))).await,
            _ => place.stop(Duration::from_millis(random.u64(200..4000))).await,
        }
    }
    place
}

/// Cuts and stalls the connections to one resource, for one process or for all.
async fn disturb_network(variable: &'static str, links: Arc<Links>, journal: Journal, mut random: Rng, until: Instant) {
    let all: Vec<_> = links.iter().filter(|((_, to), _)| *to == variable).map(|((name, _), link)| (*name, link)).collect();
    while pause(&mut random, 500..4000, until).await {
        let some = if random.u8(..4) == 0 { &all[..] } else { std::slice::from_ref(&all[random.usize(..all.len())]) };
        let names: Vec<_> = some.iter().map(|(name, _)| *name).collect();
        let (kind, disturb): (_, fn(&Proxy)) = if random.bool() { (Kind::Cut, Proxy::cut) } else { (Kind::Stall, Proxy::stall) };
        let lasting = Duration::from_millis(random.u64(50..5000));
        let disturbing = async {
            for (_, link) in some {
                disturb(link);
            }
            sleep(lasting).await;
            for (_, link) in some {
                link.heal();
            }
        };
        journal.during(kind, &names, variable, disturbing).await;
    }
}

/// Crashes Postgres, or makes it read-only for a while, as a failover does whose old primary stays reachable.
async fn crash(mut postgres: Postgres, journal: Journal, mut random: Rng, until: Instant) -> Postgres {
    while pause(&mut random, 5_000..20_000, until).await {
        if random.bool() {
            journal.during(Kind::Crash, &PLACES, "DATABASE_URL", postgres.crash()).await;
        } else {
            let lasting = Duration::from_millis(random.u64(50..3000));
            journal.during(Kind::ReadOnly, &PLACES, "DATABASE_URL", read_only(&postgres.url, lasting)).await;
        }
    }
    postgres
}

async fn read_only(server: &str, lasting: Duration) {
    let mut connection = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
    let begin = "SET default_transaction_read_only = off;
        ALTER DATABASE postgres SET default_transaction_read_only = on;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ('web', 'worker', 'clock')";
    sqlx::raw_sql(begin).execute(&mut connection).await.unwrap();
    sleep(lasting).await;
    sqlx::raw_sql("ALTER DATABASE postgres RESET default_transaction_read_only").execute(&mut connection).await.unwrap();
}

/// Lets the token issuer accept connections without an answer for a while. Returns how often.
async fn silence(issuer: Issuer, mut random: Rng, until: Instant) -> (Issuer, usize) {
    let mut silences = 0;
    while pause(&mut random, 500..10_000, until).await {
        silences += 1;
        issuer.hang();
        sleep(Duration::from_millis(random.u64(1000..10_000))).await;
        issuer.heal();
    }
    (issuer, silences)
}

/// Repeatedly fails over from one Redis to the other. Existing connections stay with the old one.
async fn fail_over(
    [mut redis, mut replica]: [Redis; 2],
    links: Arc<Links>,
    journal: Journal,
    mut random: Rng,
    until: Instant,
) -> [Redis; 2] {
    while pause(&mut random, 5_000..20_000, until).await {
        let takes_over = async {
            replica.take_over_from(&redis).await;
            for (_, link) in links.iter().filter(|((_, to), _)| *to == "REDIS_URL") {
                link.turn_to(replica.address.clone());
            }
        };
        journal.during(Kind::FailOver, &PLACES, "REDIS_URL", takes_over).await;
        std::mem::swap(&mut redis, &mut replica);
    }
    [redis, replica]
}

/// Waits for a random time, and returns whether there is time left.
async fn pause(random: &mut Rng, millis: std::ops::Range<u64>, until: Instant) -> bool {
    let next = Instant::now() + Duration::from_millis(random.u64(millis));
    sleep_until(next.min(until)).await;
    next < until
}

/// Waits for an empty queue. Failed jobs are retried at once, because their backoff may be minutes.
async fn settle(database: &PgPool) {
    let emptied = eventually("an empty queue", async || {
        let hurry = "UPDATE jobs SET run_at = now() WHERE token IS NULL AND dead_at IS NULL AND attempt > 0 AND run_at > now()";
        sqlx::query(hurry).execute(database).await.unwrap();
        let left = "SELECT count(*), count(dead_at) FROM jobs";
        let (left, dead): (i64, i64) = sqlx::query_as(left).fetch_one(database).await.unwrap();
        assert_eq!(dead, 0, "jobs are dead");
        (left == 0).then_some(())
    });
    let emptied = std::panic::AssertUnwindSafe(emptied).catch_unwind().await;
    assert!(emptied.is_ok(), "the queue was never empty: {:#?}", remaining_work(database).await);
}

/// The remaining jobs, the activity of every client of Postgres, and the locks.
async fn remaining_work(database: &PgPool) -> Vec<String> {
    let mut left = Vec::new();
    for query in [
        "SELECT row_to_json(jobs)::text FROM jobs ORDER BY id LIMIT 50",
        "SELECT row_to_json(activity)::text FROM (SELECT pid, application_name, client_port, state, wait_event_type, wait_event,
            now() - xact_start AS transaction, now() - state_change AS since, pg_blocking_pids(pid) AS blocked_by, left(query, 300) AS query
            FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS activity",
        "SELECT row_to_json(held)::text FROM (SELECT pid, locktype, relation::regclass::text, tuple, transactionid, mode, granted
            FROM pg_locks WHERE pid <> pg_backend_pid() AND locktype <> 'virtualxid') AS held",
    ] {
        left.extend(sqlx::query_scalar::<_, String>(query).fetch_all(database).await.unwrap());
    }
    left
}

/// Each address with an account, and the Message-IDs of its verifications and its resets.
const ACCOUNTS: &str = "
    SELECT email, COALESCE(array_agg(mail) FILTER (WHERE kind = 'send_verification'), '{}'),
        COALESCE(array_agg(mail) FILTER (WHERE kind = 'send_password_reset'), '{}')
    FROM accounts LEFT JOIN noted ON account_id = accounts.id GROUP BY email";

/// Checks that every accepted sign-up made one account and a verification, no more of them than requests, that every accepted reset was mailed, that every
/// job sent its mail to its address, and that every duplicate has a reason. Returns lines for the table.
async fn mails(deploy: &Deploy, database: &PgPool, journal: &Journal, seen: &Seen) -> String {
    // Reset links expire and are purged during a long soak.
    let good = "SELECT email, token_hash FROM mailed_tokens WHERE purpose = 'verify'";
    let good: HashSet<(String, Vec<u8>)> = sqlx::query_as(good).fetch_all(database).await.unwrap().into_iter().collect();
    let mut mailed: HashMap<String, (Vec<String>, usize)> = HashMap::new();
    for mail in deploy.mail.all().await {
        let works = || good.contains(&(mail.to[0].clone(), Sha256::digest(mail.token()).to_vec()));
        assert!(!mail.message_id.starts_with("verify-") || works(), "an invalid link was mailed: {mail:?}");
        mailed.entry(mail.message_id).or_insert((mail.to, 0)).1 += 1;
    }
    let accounts: Vec<(String, Vec<String>, Vec<String>)> = sqlx::query_as(ACCOUNTS).fetch_all(database).await.unwrap();
    let accounts: HashMap<_, _> = accounts.into_iter().map(|(email, verify, reset)| (email, (verify, reset))).collect();
    let arrived = |email: &String, mail: &String| mailed.get(mail).is_some_and(|(to, _)| *to == [email.as_str()]);
    let kept = |email: &String, mails: &[String]| !mails.is_empty() && mails.iter().all(|mail| arrived(email, mail));
    // A sign-up whose response was lost may have been committed. The next one for its address mails the link again.
    let signed_up = |(email, requests): &&(String, usize)| {
        accounts.get(email).is_some_and(|(verify, _)| verify.len() <= *requests && kept(email, verify))
    };
    let reset = |email: &&String| accounts.get(*email).is_some_and(|(_, reset)| kept(email, reset));
    let lost: Vec<_> = seen.signed_up.iter().filter(|email| !signed_up(email)).collect();
    let details: Vec<_> = lost.iter().take(20).map(|sign_up| (sign_up, accounts.get(&sign_up.0))).collect();
    assert!(lost.is_empty(), "{} accepted sign-ups were lost or duplicated: {details:#?}", lost.len());
    let lost: Vec<_> = seen.reset.iter().filter(|email| !reset(email)).collect();
    assert!(lost.is_empty(), "{} accepted resets were lost: {:#?}", lost.len(), &lost[..lost.len().min(20)]);
    // This includes the jobs of requests whose response was lost.
    let noted: Vec<String> = sqlx::query_scalar("SELECT mail FROM noted").fetch_all(database).await.unwrap();
    let lost: Vec<_> = noted.iter().filter(|mail| !mailed.contains_key(*mail)).collect();
    assert!(lost.is_empty(), "{} jobs are gone without their mail: {:#?}", lost.len(), &lost[..lost.len().min(20)]);

    let unexplained = journal.unexplained(database).await;
    assert!(unexplained.is_empty(), "{} mails were sent again without a reason: {unexplained:#?}", unexplained.len());
    // A mail that no proxy saw cannot be explained.
    let copies = journal.copies();
    let unseen: Vec<_> = mailed.iter().filter(|(id, (_, count))| copies.get(*id) < Some(count)).collect();
    assert!(unseen.is_empty(), "the sink has mails that no worker sent: {unseen:?}");
    let twice = mailed.values().filter(|(_, count)| *count > 1).count();
    format!(
        "| sign-ups accepted, lost | {}, 0 |\n| resets accepted, lost | {}, 0 |\n| mails; twice, each explained | {}; {twice} |",
        seen.signed_up.len(),
        seen.reset.len(),
        mailed.len(),
    )
}

/// Checks memory, connections and file descriptors of every process. It may hold its pools' connections and one for probes,
/// a worker one for notifications, and a web one for events. Returns lines for the table.
async fn at_rest(places: &[Place]) -> String {
    for place in places {
        assert!(place.growth_kib() < MAX_GROWTH_KIB, "{} has grown by {} KiB", place.name, place.growth_kib());
        let apart = if place.name.starts_with("worker") { 2 } else { 1 };
        let for_events = usize::from(place.name.starts_with("web"));
        eventually(&format!("{} holds no more connections than allowed", place.name), async || {
            let (postgres, redis) = (place.connections("DATABASE_URL"), place.connections("REDIS_URL"));
            (postgres <= POSTGRES_POOL + apart && redis <= REDIS_POOL + for_events && place.descriptors() <= MAX_DESCRIPTORS).then_some(())
        })
        .await;
    }
    let most = |number: fn(&Place) -> usize| places.iter().map(number).max().unwrap_or_default();
    let all = |variable| places.iter().map(|place| place.connections(variable)).sum::<usize>();
    format!(
        "| peak memory of a process; growth, at most | {} MiB; {} KiB |\n| connections at rest to Postgres, to Redis | {}, {} |\n\
         | file descriptors at rest, at most | {} |",
        most(|place| place.peak_kib) / 1024,
        most(Place::growth_kib),
        all("DATABASE_URL"),
        all("REDIS_URL"),
        most(Place::descriptors),
    )
}
