//! `bin/bench web`: what a request costs. Absolute figures depend on the machine, so the yardstick is the smallest program
//! that does the same read the obvious way (`benches/floor/`), measured in turns on the same Postgres and Redis. `wrk` sends
//! the requests. The kernel counts the CPU time of each server's process.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/issuer.rs"]
mod issuer;
mod load;
mod report;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use issuer::{AUDIENCE, Issuer, Key, now};
use load::{ACCOUNTS, COOKIE, PASSWORD, Request, Rounds, Server, TOKEN, ask, people};
use report::{Report, median, spread};
use serde_json::json;
use sqlx::PgPool;

const ROUNDS: usize = 3;
const CONNECTIONS: [usize; 3] = [1, 32, 256];

#[tokio::main]
async fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let pool = PgPool::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let key = Key::ec("1");
    let issuer = Issuer::start(&[&key]).await;
    let variables = [("TOKEN_ISSUER", &*issuer.url), ("TOKEN_AUDIENCE", AUDIENCE)];
    let mut service = Command::new(programs.join("admin"));
    service.args(["account", "create", "--service", "billing", "--scopes", "tokens:read"]).envs(variables);
    assert!(service.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let token = key.sign(&key.head(), &issuer.claims(json!({ "scope": "tokens:read", "exp": now() + 3600 })));
    let web = Server::start(&programs.join("web"));
    let with_issuer = Server::start_with(&programs.join("web"), &variables);
    let floor = Server::start(&programs.join("examples/floor"));
    let mut report = Report::default();
    std::thread::sleep(Duration::from_secs(2));
    let idle = web.resident_mb();
    report.reach("web, idle, resident, MB", idle, idle <= 12.0, "12");

    let sessions = people(&pool, &web, load::SESSIONS).await;
    let livez = Request { name: "GET /livez", method: "GET", path: "/livez", body: None, credential: None };
    let read = Request { name: "GET /api/v1/session", method: "GET", path: "/api/v1/session", body: None, credential: Some(COOKIE) };
    let reset = Some(json!({ "email": format!("bench-{}@example.com", ACCOUNTS - 2) }));
    let path = "/api/v1/password-resets";
    let reset = Request { name: "POST /api/v1/password-resets", method: "POST", path, body: reset, credential: None };
    // An account that sends no reads, because an account's hundredth log-in ends its first session.
    let login = json!({ "email": format!("bench-{}@example.com", ACCOUNTS - 1), "password": PASSWORD });
    let login = Request { name: "POST /api/v1/session", method: "POST", path: "/api/v1/session", body: Some(login), credential: None };

    for server in [&web, &floor] {
        // Warms up: opens the connections and runs every code path.
        for request in [&livez, &read] {
            ask(server, request, &sessions, 32, &mut Rounds::default());
        }
    }
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        let mut of = |request: &Request| {
            let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
            for _ in 0..ROUNDS {
                ask(&web, request, &sessions, connections, &mut ours);
                ask(&floor, request, &sessions, connections, &mut theirs);
            }
            for (who, rounds) in [("ours", &ours), ("floor", &theirs)] {
                let what = format!("{}, {connections} at a time, {who}", request.name);
                show(&mut report, &what, rounds);
            }
            (ours, theirs)
        };
        let (ours, theirs) = of(&livez);
        let (read_ours, read_theirs) = of(&read);
        if connections == 32 {
            let resident = web.resident_mb();
            report.reach(&format!("web, after {} requests, resident, MB", web.asked()), resident, resident <= 25.0, "25");
        }
        let ratio = median(&ours.rate) / median(&theirs.rate);
        let read_ratio = median(&read_ours.rate) / median(&read_theirs.rate);
        let cpu_ratio = median(&read_ours.cpu_us) / median(&read_theirs.cpu_us);
        if connections == 1 {
            report.figure("   GET /livez, ours : floor, requests/s", format!("{ratio:.2}"));
            report.figure("   signed-in read, ours : floor, requests/s", format!("{read_ratio:.2}"));
            report.figure("   signed-in read, ours : floor, CPU", format!("{cpu_ratio:.2}"));
        } else {
            report.reach("   GET /livez, ours : floor, requests/s", ratio, ratio >= 0.8, "0.8");
            report.reach("   signed-in read, ours : floor, requests/s", read_ratio, read_ratio >= 1.0, "1.0");
            report.reach("   signed-in read, ours : floor, CPU", cpu_ratio, cpu_ratio <= 1.15, "1.15");
        }
        if connections == 256 {
            let tail = |rounds: &Rounds| median(&rounds.p99_ms) / median(&rounds.p50_ms);
            let (ours, theirs) = (tail(&read_ours), tail(&read_theirs));
            report.reach("   signed-in read, p99 : p50", ours, ours <= theirs.max(3.0), &format!("3, or the floor's {theirs:.2}"));
        }
        rates.push((format!("ours, {connections} at a time"), median(&read_ours.rate)));
        rates.push((format!("floor, {connections} at a time"), median(&read_theirs.rate)));
        costs.push((format!("ours, {connections} at a time"), median(&read_ours.cpu_us)));
        costs.push((format!("floor, {connections} at a time"), median(&read_theirs.cpu_us)));

        // The yardstick for these is the floor's read: how many reads they cost.
        for request in [&reset, &login] {
            let mut rounds = Rounds::default();
            for _ in 0..ROUNDS {
                ask(&web, request, &sessions, connections, &mut rounds);
            }
            show(&mut report, &format!("{}, {connections} at a time, ours", request.name), &rounds);
            let reads = median(&rounds.cpu_us) / median(&read_theirs.cpu_us);
            report.figure("   its CPU in reads of the floor", format!("{reads:.1}"));
            sqlx::query("TRUNCATE jobs").execute(&pool).await.unwrap();
        }
    }
    page_and_tokens(&mut report, &with_issuer, &livez, &sessions, &token);
    report.figure("   requests that the issuer got", issuer.fetches().to_string());
    report.figure(
        &format!("web, after {} requests and 256 log-ins at a time, resident, MB", web.asked()),
        format!("{:.1}", web.resident_mb()),
    );
    report.chart("Signed-in read, requests a second: more is better", rates);
    report.chart("Signed-in read, the server's CPU in µs a request: less is better", costs);
    report.finish("web");
}

/// The page, relative to the smallest answers, and a read by an access token, relative to one by a session.
fn page_and_tokens(report: &mut Report, web: &Server, livez: &Request, sessions: &[String], token: &String) {
    // The page signed out asks neither Redis nor Postgres.
    let page = Request { name: "GET /, signed out", method: "GET", path: "/", body: None, credential: None };
    // The smallest answer with a request id and a line in the log. A probe has neither.
    let version = Request { name: "GET /version", method: "GET", path: "/version", body: None, credential: None };
    let (mut of_page, mut of_version, mut of_livez) = (Rounds::default(), Rounds::default(), Rounds::default());
    for _ in 0..ROUNDS {
        ask(web, &page, sessions, 32, &mut of_page);
        ask(web, &version, sessions, 32, &mut of_version);
        ask(web, livez, sessions, 32, &mut of_livez);
    }
    show(report, "GET /, signed out, 32 at a time", &of_page);
    let ratio = median(&of_page.rate) / median(&of_version.rate);
    report.reach("   GET / : GET /version, requests/s", ratio, ratio >= 0.8, "0.8");
    let ratio = median(&of_page.rate) / median(&of_livez.rate);
    report.figure("   GET / : GET /livez, requests/s", format!("{ratio:.2}"));

    // The same read by a session and by an access token.
    let tokens = |credential| Request {
        name: "GET /api/v1/tokens",
        method: "GET",
        path: "/api/v1/tokens",
        body: None,
        credential: Some(credential),
    };
    let (mut by_session, mut by_token) = (Rounds::default(), Rounds::default());
    for _ in 0..ROUNDS {
        ask(web, &tokens(COOKIE), sessions, 32, &mut by_session);
        ask(web, &tokens(TOKEN), std::slice::from_ref(token), 32, &mut by_token);
    }
    show(report, "GET /api/v1/tokens, 32 at a time, by session", &by_session);
    show(report, "GET /api/v1/tokens, 32 at a time, by access token", &by_token);
    let ratio = median(&by_token.rate) / median(&by_session.rate);
    report.reach("   access token : session, requests/s", ratio, ratio >= 0.9, "0.9");
}

fn show(report: &mut Report, what: &str, rounds: &Rounds) {
    report.figure(&format!("{what}, requests/s"), format!("{:.0}", median(&rounds.rate)));
    report.figure("   of three rounds", spread(&rounds.rate, 0));
    report.figure("   CPU, µs a request", format!("{:.0}", median(&rounds.cpu_us)));
    report.figure("   p50, p99, ms", format!("{:.2}, {:.2}", median(&rounds.p50_ms), median(&rounds.p99_ms)));
}
