//! Load for the benchmarks that use HTTP: servers that are built as for production, logged-in accounts, and `wrk`.
#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use serde_json::{Value, json};
use sqlx::PgPool;

const SECONDS: u32 = 4;
pub const ACCOUNTS: usize = 500;
/// How many of them log in where the benchmark does not need more.
pub const SESSIONS: usize = 20;
pub const PASSWORD: &str = "correct horse battery staple";

/// A server under measurement.
pub struct Server {
    child: Child,
    pub url: String,
    asked: AtomicU64,
}

impl Server {
    pub fn start(program: &Path) -> Self {
        Self::start_with(program, &[])
    }

    /// The same with additional variables.
    pub fn start_with(program: &Path, variables: &[(&str, &str)]) -> Self {
        // This process's own client has TLS, and asks for a provider of cryptography even where it needs none.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.env("PORT", port.to_string()).env("RATE_LIMIT_LOGIN", "1000000000").env("RATE_LIMIT_REQUESTS", "1000000000");
        command.envs(variables.iter().copied());
        let child = command.stdout(Stdio::null()).spawn().expect("the program starts");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "{} does not listen", program.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, url: format!("http://127.0.0.1:{port}"), asked: AtomicU64::new(0) }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn process(&self) -> procfs::process::Process {
        procfs::process::Process::new(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// How many requests it has answered in measurements.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Seconds of CPU since its start.
    pub fn cpu(&self) -> f64 {
        let stat = self.process().stat().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "ticks of a benchmark")]
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        seconds
    }

    pub fn resident_mb(&self) -> f64 {
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

/// The request that is measured.
pub struct Request {
    pub name: &'static str,
    pub method: &'static str,
    pub path: &'static str,
    pub body: Option<Value>,
    /// The header that identifies the client, and what precedes the session or the token in it.
    pub credential: Option<(&'static str, &'static str)>,
}

pub const COOKIE: (&str, &str) = ("cookie", "id=");
pub const TOKEN: (&str, &str) = ("authorization", "Bearer ");

/// The results of the rounds.
#[derive(Default)]
pub struct Rounds {
    pub rate: Vec<f64>,
    pub cpu_us: Vec<f64>,
    pub p50_ms: Vec<f64>,
    pub p99_ms: Vec<f64>,
}

/// Sends requests for some seconds and adds the results to `rounds`. They use the sessions or tokens in turn. Panics if a
/// request fails.
pub fn ask(server: &Server, request: &Request, credentials: &[String], connections: usize, rounds: &mut Rounds) {
    let (header, prefix) = request.credential.unwrap_or_default();
    let credentials: Vec<_> = credentials.iter().map(|credential| format!("\"{prefix}{credential}\"")).collect();
    let body = request.body.as_ref().map(|body| format!("[==[{body}]==]"));
    // Every request is built before the first one is sent.
    let script = format!(
        "local credentials, requests, at = {{ {credentials} }}, {{}}, 0
         function init()
           for i, credential in ipairs(credentials) do
             local headers = {{ [\"content-type\"] = \"application/json\", [\"origin\"] = \"http://localhost\" }}
             if \"{header}\" ~= \"\" then headers[\"{header}\"] = credential end
             requests[i] = wrk.format(\"{method}\", \"{path}\", headers, {body})
           end
         end
         function request() at = at % #requests + 1; return requests[at] end
         function done(summary, latency)
           local e = summary.errors
           print(string.format(\"RESULT %d %d %d %d %d\", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
             e.connect + e.read + e.write + e.status + e.timeout))
         end",
        credentials = credentials.join(", "),
        method = request.method,
        path = request.path,
        body = body.as_deref().unwrap_or("nil"),
    );
    let file = PathBuf::from(std::env::var("SCRATCH").unwrap()).join(format!("wrk-{}.lua", server.child.id()));
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
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    server.asked.fetch_add(requests as u64, Ordering::Relaxed);
    rounds.rate.push(requests / duration_us * 1e6);
    rounds.cpu_us.push(cpu / requests * 1e6);
    rounds.p50_ms.push(p50_us / 1000.0);
    rounds.p99_ms.push(p99_us / 1000.0);
}

/// Creates the accounts and logs a number of them in. Returns their sessions, which the floor can use too.
pub async fn people(pool: &PgPool, web: &Server, number: usize) -> Vec<String> {
    let client = reqwest::Client::new();
    let email = |n: usize| format!("bench-{n}@example.com");
    let account = json!({ "email": email(0), "password": PASSWORD });
    let answer = client.post(format!("{}/api/v1/accounts", web.url)).json(&account).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    // The other accounts get the first one's password.
    let others = "INSERT INTO accounts (id, email, password_hash) SELECT gen_random_uuid(), 'bench-' || n || '@example.com', password_hash
                  FROM accounts, generate_series(1, $1) n WHERE email = 'bench-0@example.com'";
    sqlx::query(others).bind(i32::try_from(ACCOUNTS - 1).unwrap()).execute(pool).await.unwrap();
    sqlx::query("UPDATE accounts SET verified_at = now()").execute(pool).await.unwrap();
    sqlx::query("VACUUM ANALYZE").execute(pool).await.unwrap();

    let redis = redis::Client::open(std::env::var("REDIS_URL").unwrap()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut sessions = Vec::new();
    for n in 0..number {
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
