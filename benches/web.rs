//! `bin/bench web`: what a request costs, beside the smallest program that does the same read the obvious way
//! (`benches/floor/`), measured in turns on the same Postgres and Redis, because absolute figures do not travel.
//! `wrk` asks; a server's own CPU is what the kernel counts for its process.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod report;

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use report::{Report, median, spread};
use serde_json::{Value, json};
use sqlx::PgPool;

const ROUNDS: usize = 3;
const SECONDS: u32 = 4;
const CONNECTIONS: [usize; 3] = [1, 32, 256];
const ACCOUNTS: usize = 500;
const SESSIONS: usize = 20;
const PASSWORD: &str = "correct horse battery staple";

/// A server under measurement.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(program: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.env("PORT", port.to_string()).env("RATE_LIMIT_LOGIN", "1000000000").env("RATE_LIMIT_REQUESTS", "1000000000");
        let child = command.stdout(Stdio::null()).spawn().expect("the program starts");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "{} does not listen", program.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, url: format!("http://127.0.0.1:{port}") }
    }

    fn process(&self) -> procfs::process::Process {
        procfs::process::Process::new(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// Seconds of CPU since its start.
    fn cpu(&self) -> f64 {
        let stat = self.process().stat().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "ticks of a benchmark")]
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        seconds
    }

    fn resident_mb(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "kilobytes of a process")]
        let mb = self.process().status().unwrap().vmrss.unwrap() as f64 / 1000.0;
        mb
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is asked.
struct Request {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    body: Option<Value>,
    signed_in: bool,
}

/// What one round has shown.
#[derive(Default)]
struct Rounds {
    rate: Vec<f64>,
    cpu_us: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

/// Asks for some seconds, and what that was like. Fails if an answer is no success.
fn ask(server: &Server, request: &Request, sessions: &[String], connections: usize, rounds: &mut Rounds) {
    let cookies: Vec<_> = sessions.iter().map(|session| format!("\"id={session}\"")).collect();
    let body = request.body.as_ref().map(|body| format!("[==[{body}]==]"));
    // Every request is made before the first is sent.
    let script = format!(
        "local cookies, requests, at = {{ {cookies} }}, {{}}, 0
         function init()
           for i, cookie in ipairs(cookies) do
             local headers = {{ [\"content-type\"] = \"application/json\", [\"origin\"] = \"http://localhost\" }}
             if {signed_in} then headers[\"cookie\"] = cookie end
             requests[i] = wrk.format(\"{method}\", \"{path}\", headers, {body})
           end
         end
         function request() at = at % #requests + 1; return requests[at] end
         function done(summary, latency)
           local e = summary.errors
           print(string.format(\"RESULT %d %d %d %d %d\", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
             e.connect + e.read + e.write + e.status + e.timeout))
         end",
        cookies = cookies.join(", "),
        signed_in = request.signed_in,
        method = request.method,
        path = request.path,
        body = body.as_deref().unwrap_or("nil"),
    );
    let file = PathBuf::from(std::env::var("SCRATCH").unwrap()).join("wrk.lua");
    std::fs::write(&file, script).unwrap();
    let before = server.cpu();
    let wrk = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{SECONDS}s"), "--timeout", "20s", "-s"])
        .arg(&file)
        .arg(&server.url)
        .output()
        .unwrap();
    let cpu = server.cpu() - before;
    let said = String::from_utf8_lossy(&wrk.stdout).into_owned();
    let result = said
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&wrk.stderr)));
    let numbers: Vec<f64> = result.split(' ').map(|number| number.parse().unwrap()).collect();
    let [requests, duration_us, p50_us, p99_us, errors] = numbers[..] else { panic!("{result}") };
    assert!(errors == 0.0, "{} failed {errors} of {requests} times", request.name);
    rounds.rate.push(requests / duration_us * 1e6);
    rounds.cpu_us.push(cpu / requests * 1e6);
    rounds.p50_ms.push(p50_us / 1000.0);
    rounds.p99_ms.push(p99_us / 1000.0);
}

/// So many accounts with twenty reminders each, of which some have signed in; their sessions, known to the floor too.
async fn people(pool: &PgPool, web: &Server) -> Vec<String> {
    let client = reqwest::Client::new();
    let email = |n: usize| format!("bench-{n}@example.com");
    let account = json!({ "email": email(0), "password": PASSWORD });
    let answer = client.post(format!("{}/api/v1/accounts", web.url)).json(&account).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    // The others have the first one's password.
    let others = "INSERT INTO accounts (id, email, password_hash) SELECT gen_random_uuid(), 'bench-' || n || '@example.com', password_hash
                  FROM accounts, generate_series(1, $1) n WHERE email = 'bench-0@example.com'";
    sqlx::query(others).bind(i32::try_from(ACCOUNTS - 1).unwrap()).execute(pool).await.unwrap();
    sqlx::query("UPDATE accounts SET verified_at = now()").execute(pool).await.unwrap();
    let reminders = "INSERT INTO reminders (id, account_id, message, due_at)
                     SELECT gen_random_uuid(), id, 'water the plants, all of them, and the neighbour''s', now() + n * interval '1 day'
                     FROM accounts, generate_series(1, 20) n";
    sqlx::query(reminders).execute(pool).await.unwrap();
    sqlx::query("VACUUM ANALYZE").execute(pool).await.unwrap();

    let redis = redis::Client::open(std::env::var("REDIS_URL").unwrap()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        let login = json!({ "email": email(n), "password": PASSWORD });
        let answer = client.post(format!("{}/api/v1/session", web.url)).json(&login).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        let session = cookie.strip_prefix("id=").unwrap().split(';').next().unwrap().to_owned();
        let id: uuid::Uuid = sqlx::query_scalar("SELECT id FROM accounts WHERE email = $1").bind(email(n)).fetch_one(pool).await.unwrap();
        redis::cmd("SET").arg(format!("floor:{session}")).arg(id.to_string()).query_async::<()>(&mut redis).await.unwrap();
        sessions.push(session);
    }
    sessions
}

#[tokio::main]
async fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let pool = PgPool::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let web = Server::start(&programs.join("web"));
    let floor = Server::start(&programs.join("examples/floor"));
    let mut report = Report::default();
    std::thread::sleep(Duration::from_secs(2));
    let idle = web.resident_mb();
    report.reach("web, idle, resident, MB", idle, idle < 12.0, "12");

    let sessions = people(&pool, &web).await;
    let due_at = "2099-01-01T09:00:00Z";
    let livez = Request { name: "GET /livez", method: "GET", path: "/livez", body: None, signed_in: false };
    let read = Request { name: "GET /api/v1/reminders", method: "GET", path: "/api/v1/reminders", body: None, signed_in: true };
    let create = json!({ "message": "water the plants", "due_at": due_at });
    let create = Request { name: "POST /api/v1/reminders", method: "POST", path: "/api/v1/reminders", body: Some(create), signed_in: true };
    let login = json!({ "email": "bench-0@example.com", "password": PASSWORD });
    let login = Request { name: "POST /api/v1/session", method: "POST", path: "/api/v1/session", body: Some(login), signed_in: false };

    for server in [&web, &floor] {
        // Warm: connections are there, and every code path has been taken.
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

        // For these the floor's read is the yardstick: what they cost in reads.
        for request in [&create, &login] {
            let mut rounds = Rounds::default();
            for _ in 0..ROUNDS {
                ask(&web, request, &sessions, connections, &mut rounds);
            }
            show(&mut report, &format!("{}, {connections} at a time, ours", request.name), &rounds);
            let reads = median(&rounds.cpu_us) / median(&read_theirs.cpu_us);
            report.figure("   its CPU in reads of the floor", format!("{reads:.1}"));
            sqlx::query("DELETE FROM reminders WHERE due_at = '2099-01-01T09:00:00Z'").execute(&pool).await.unwrap();
            sqlx::query("TRUNCATE jobs").execute(&pool).await.unwrap();
            sqlx::query("VACUUM reminders").execute(&pool).await.unwrap();
        }
    }
    let resident = web.resident_mb();
    report.reach("web, after some 100,000 requests, resident, MB", resident, resident < 25.0, "25");
    report.chart("Signed-in read of 20 rows, requests a second: more is better", rates);
    report.chart("Signed-in read of 20 rows, the server's CPU in µs a request: less is better", costs);
    report.finish("web");
}

fn show(report: &mut Report, what: &str, rounds: &Rounds) {
    report.figure(&format!("{what}, requests/s"), format!("{:.0}", median(&rounds.rate)));
    report.figure("   of three rounds", spread(&rounds.rate, 0));
    report.figure("   CPU, µs a request", format!("{:.0}", median(&rounds.cpu_us)));
    report.figure("   p50, p99, ms", format!("{:.2}, {:.2}", median(&rounds.p50_ms), median(&rounds.p99_ms)));
}
