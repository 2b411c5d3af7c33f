//! Load: clients that keep sending requests while a test injects faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use uuid::Uuid;

use super::clients::builder;
use super::deploy::client;
use super::journal::now;
use super::person::{PASSWORD, Person};

/// Clients that send one request after the other until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts clients with one connection each. They read their session, which needs Redis and Postgres.
    pub fn start(count: usize, url: &str, cookie: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..count).map(|_| {
            let (stop, answered, url, cookie) = (stop.clone(), answered.clone(), format!("{url}/api/v1/session"), cookie.to_owned());
            tokio::spawn(async move {
                // No retries: a client that silently retries on another connection would hide failures.
                let client = builder().pool_max_idle_per_host(1).retry(reqwest::retry::never()).build().expect("a client");
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let asking = async {
                        let answer = client.get(&url).header("cookie", &cookie).timeout(Duration::from_secs(20)).send().await?;
                        Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
                    };
                    match asking.await {
                        Ok((status, _)) if status.is_success() => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Ok((status, body)) => failures.push(format!("{status}: {body}")),
                        Err(e) => failures.push(format!("{e:?}")),
                    }
                    // Many connections with little work, because all tests share the machine.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                failures
            })
        });
        let clients = clients.collect();
        Self { stop, answered, clients }
    }

    /// Stops the clients, and returns the number of responses and every failure.
    pub async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.expect("a client"));
        }
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

/// A client with a session that uses any of several webs, and continues if one does not answer.
#[derive(Clone)]
pub struct Customer {
    email: String,
    cookie: String,
    /// Names and addresses.
    webs: Vec<(&'static str, String)>,
    random: fastrand::Rng,
}

/// A broken connection, and the time of its request.
#[derive(Debug)]
pub struct Broken {
    pub web: &'static str,
    pub from: Timestamp,
    pub to: Timestamp,
    pub error: String,
}

/// What customers saw.
#[derive(Default)]
pub struct Seen {
    pub answered: usize,
    /// The number of 503 responses.
    pub refused: usize,
    pub broken: Vec<Broken>,
    /// Addresses whose sign-up was accepted, and how many requests that took.
    pub signed_up: Vec<(String, usize)>,
    /// Addresses for which a reset was accepted.
    pub reset: Vec<String>,
    /// Responses that no client should ever get.
    pub wrong: Vec<String>,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.broken.extend(other.broken);
        self.signed_up.extend(other.signed_up);
        self.reset.extend(other.reset);
        self.wrong.extend(other.wrong);
    }
}

impl Customer {
    /// Signs up a new customer, whose address is not verified.
    pub async fn sign_up(webs: &[(&'static str, String)], random: fastrand::Rng) -> Self {
        let person = Person { client: client(), email: format!("{}@example.com", Uuid::new_v4().simple()), url: webs[0].1.clone() };
        let cookie = person.cookie().await;
        Self { email: person.email, cookie, webs: webs.to_vec(), random }
    }

    /// Checks that the session is valid at every web.
    pub async fn is_known_everywhere(&self) {
        for (web, url) in &self.webs {
            let request = client().get(format!("{url}/api/v1/session")).header("cookie", &self.cookie);
            assert_eq!(request.send().await.expect("web answers").status(), 200, "{} has lost the session at {web}", self.email);
        }
    }

    /// Reads the session repeatedly.
    pub async fn read_session(mut self, stop: Arc<AtomicBool>) -> Seen {
        let mut seen = Seen::default();
        let client = patient_client();
        while !stop.load(Ordering::Relaxed) {
            match self.ask(&mut seen, |web| client.get(format!("{web}/api/v1/session"))).await {
                // Another person's session would be worse than none.
                Some((200, body)) if body["email"] == self.email => {}
                Some(other) => seen.wrong.push(format!("{} reading the session: {other:?}", now())),
                None => {}
            }
            self.pause().await;
        }
        seen
    }

    /// Lists a service's API tokens repeatedly, with an access token of the service.
    pub async fn list_as_service(mut self, token: String, stop: Arc<AtomicBool>) -> Seen {
        let mut seen = Seen::default();
        let client = patient_client();
        while !stop.load(Ordering::Relaxed) {
            match self.ask(&mut seen, |web| client.get(format!("{web}/api/v1/tokens")).bearer_auth(&token)).await {
                Some((200, _)) | None => {}
                Some(other) => seen.wrong.push(format!("{} for a service's token: {other:?}", now())),
            }
            self.pause().await;
        }
        seen
    }

    /// Signs up new addresses and requests a reset for each. A request is retried until it is accepted.
    pub async fn sign_others_up(mut self, stop: Arc<AtomicBool>) -> Seen {
        let mut seen = Seen::default();
        let client = patient_client();
        while !stop.load(Ordering::Relaxed) {
            let email = format!("{}@example.com", Uuid::new_v4().simple());
            let sign_up = json!({ "email": email, "password": PASSWORD });
            let requests = self.accepted(&mut seen, |web| client.post(format!("{web}/api/v1/accounts")).json(&sign_up)).await;
            seen.signed_up.push((email.clone(), requests));
            let reset = json!({ "email": email });
            self.accepted(&mut seen, |web| client.post(format!("{web}/api/v1/password-resets")).json(&reset)).await;
            seen.reset.push(email);
            // Hashing a password takes 25 ms of CPU, which the formation needs too.
            tokio::time::sleep(Duration::from_millis(self.random.u64(300..900))).await;
        }
        seen
    }

    /// Retries a request until the response is 202. Returns how many requests that took.
    async fn accepted(&mut self, seen: &mut Seen, request: impl Fn(&str) -> RequestBuilder) -> usize {
        let mut requests = 0;
        loop {
            requests += 1;
            match self.ask(seen, &request).await {
                Some((202, _)) => return requests,
                Some(other) => seen.wrong.push(format!("{} for a request that must be accepted: {other:?}", now())),
                None => {}
            }
            self.pause().await;
        }
    }

    /// Sends a request. Returns the status and the body, or `None` after a 503 or a broken connection.
    async fn ask(&mut self, seen: &mut Seen, request: impl Fn(&str) -> RequestBuilder) -> Option<(u16, Value)> {
        let (web, url) = self.random.choice(&self.webs).expect("a web");
        let from = now();
        let asking = async {
            let answer = request(url).header("cookie", &self.cookie).header("sec-fetch-site", "same-origin").send().await?;
            let (status, body) = (answer.status().as_u16(), answer.bytes().await?);
            // A 202 has no body.
            Ok::<_, reqwest::Error>((status, serde_json::from_slice(&body).unwrap_or_default()))
        };
        match asking.await {
            Ok((503, _)) => seen.refused += 1,
            Ok(answer) => {
                seen.answered += 1;
                return Some(answer);
            }
            Err(e) if e.is_timeout() => seen.wrong.push(format!("{} of {web}: no answer since {from}", now())),
            Err(e) => seen.broken.push(Broken { web, from, to: now(), error: format!("{e:?}") }),
        }
        None
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(50..250))).await;
    }
}

/// A client with a new connection for each request, so that no idle connection can break.
fn patient_client() -> Client {
    let client = builder().pool_max_idle_per_host(0).retry(reqwest::retry::never());
    client.timeout(super::EVENT_TIMEOUT).build().expect("a client")
}
