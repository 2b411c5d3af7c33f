//! A formation under fault injection: eight processes, each with its own proxy to each resource.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::clients::get;
use super::journal::{Journal, Kind};
use super::{Deploy, Process, Proxy, eventually, free_port};

/// The places of the processes, as platforms name them.
pub const PLACES: [&str; 8] = ["web.1", "web.2", "web.3", "worker.1", "worker.2", "worker.3", "clock.1", "clock.2"];

/// After this time a process has opened its connections and served each kind of request.
const WARM_UP: Duration = Duration::from_secs(10);

/// Longer than `DRAIN_TIMEOUT` and the five seconds in which cancelled tasks return their jobs.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

/// The proxies to the resources, by the process's place and the resource's variable.
pub type Links = BTreeMap<(&'static str, &'static str), Proxy>;

/// Starts the proxies of all places. Those to the mail server record in the journal which process sends which mail.
pub async fn links(deploy: &Deploy, journal: &Journal) -> Arc<Links> {
    let mut links = Links::new();
    for place in PLACES {
        for variable in resources(place) {
            let (target, journal) = (deploy.address_of(variable), journal.clone());
            let proxy = match *variable {
                "SMTP_URL" => Proxy::watched(target, move |piece| journal.sent(place, piece)).await,
                _ => Proxy::watched(target, |_| {}).await,
            };
            links.insert((place, *variable), proxy);
        }
    }
    Arc::new(links)
}

fn program(place: &'static str) -> &'static str {
    place.split_once('.').expect("a program and its number").0
}

fn resources(place: &'static str) -> &'static [&'static str] {
    match program(place) {
        "web" => &["DATABASE_URL", "REDIS_URL"],
        "worker" => &["DATABASE_URL", "REDIS_URL", "SMTP_URL"],
        _ => &["DATABASE_URL"],
    }
}

/// A place of the formation, and its current process.
pub struct Place {
    pub name: &'static str,
    /// The address of its probes, and for a `web` of its API.
    pub url: String,
    pub peak_kib: usize,
    process: Process,
    since: Instant,
    warm_kib: Option<usize>,
    deploy: Deploy,
    links: Arc<Links>,
    journal: Journal,
}

impl Place {
    pub async fn fill(name: &'static str, deploy: &Deploy, links: &Arc<Links>, journal: &Journal) -> Self {
        // The port stays the same when the process is replaced, so that clients find it again.
        let port = free_port();
        let variable = if program(name) == "web" { "PORT" } else { "METRICS_PORT" };
        let mut deploy = deploy.clone_with(variable, port);
        for variable in resources(name) {
            let url = deploy.through(variable, &links[&(name, *variable)]);
            deploy = deploy.with(variable, url);
        }
        let process = start(name, &deploy).await;
        let (url, links, journal) = (format!("http://127.0.0.1:{port}"), links.clone(), journal.clone());
        Self { name, url, peak_kib: 0, process, since: Instant::now(), warm_kib: None, deploy, links, journal }
    }

    /// The first process of each type is never replaced, so that a leak over the whole test shows.
    pub fn is_permanent(&self) -> bool {
        self.name.ends_with(".1")
    }

    /// Waits until the process is ready.
    pub async fn ready(&self) {
        eventually(&format!("{} is ready", self.name), async || {
            let answer = get(format!("{}/readyz", self.url)).await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    pub async fn kill(&mut self) {
        let (name, journal) = (self.name, self.journal.clone());
        let replace = async {
            self.process.signal(Signal::SIGKILL);
            self.process.exit().await;
            self.replace().await;
        };
        journal.during(Kind::Kill, &[name], "", replace).await;
    }

    pub async fn terminate(&mut self) {
        let (name, journal) = (self.name, self.journal.clone());
        let replace = async {
            self.process.signal(Signal::SIGTERM);
            let status = self.process.exit_within(DRAIN_LIMIT).await;
            assert!(status.success(), "{} ended its drain with {status}: {:#?}", self.name, self.last_lines());
            self.replace().await;
        };
        journal.during(Kind::Terminate, &[name], "", replace).await;
    }

    pub async fn stop(&self, pause: Duration) {
        let stop = async {
            self.process.signal(Signal::SIGSTOP);
            tokio::time::sleep(pause).await;
            self.process.signal(Signal::SIGCONT);
        };
        self.journal.during(Kind::Stop, &[self.name], "", stop).await;
    }

    async fn replace(&mut self) {
        self.read_log();
        (self.process, self.since, self.warm_kib) = (start(self.name, &self.deploy).await, Instant::now(), None);
    }

    /// Adds the attempts of the current process to the journal.
    pub fn read_log(&self) {
        self.journal.read(self.name, &self.process);
    }

    fn last_lines(&self) -> Vec<String> {
        let lines = self.process.lines();
        lines[lines.len().saturating_sub(30)..].to_vec()
    }

    /// Checks that the process still runs, and samples its memory.
    pub fn check(&mut self) {
        let ended = self.process.ended();
        assert!(ended.is_none(), "{} exited unexpectedly with {ended:?}: {:#?}", self.name, self.last_lines());
        self.peak_kib = self.peak_kib.max(self.process.memory_kib("VmHWM:"));
        if self.since.elapsed() > WARM_UP && self.warm_kib.is_none() {
            self.warm_kib = Some(self.process.memory_kib("VmRSS:"));
        }
    }

    /// How much the process has grown since its warm-up.
    pub fn growth_kib(&self) -> usize {
        self.warm_kib.map_or(0, |warm| self.process.memory_kib("VmRSS:").saturating_sub(warm))
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.pid())).map_or(0, Iterator::count)
    }

    /// Its connections to a resource.
    pub fn connections(&self, variable: &'static str) -> usize {
        self.links.get(&(self.name, variable)).map_or(0, Proxy::connections)
    }
}

async fn start(name: &'static str, deploy: &Deploy) -> Process {
    let process = deploy.start(program(name));
    let listener = if program(name) == "web" { "web" } else { "metrics" };
    process.logged("it listens", |line| line["listener"] == listener).await;
    process
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("last lines of {}: {:#?}", self.name, self.last_lines());
        }
    }
}
