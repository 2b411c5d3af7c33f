//! The journal of a chaos test: which fault hit which process and when, which process sent which mail, and which duplicate
//! mails the faults explain.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};
use sqlx::PgPool;

use super::Process;

/// Proxies and the journal record an event slightly later than it happens.
const RECORDING_DELAY: SignedDuration = SignedDuration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL, until the process is replaced.
    Kill,
    /// SIGTERM, until the process is replaced.
    Terminate,
    /// SIGSTOP until SIGCONT.
    Stop,
    /// Connections to a resource are closed and refused.
    Cut,
    /// Connections to a resource transmit nothing.
    Stall,
    /// Postgres crashes, until it is back.
    Crash,
    /// Postgres rejects writes, as a standby does, until it accepts them again.
    ReadOnly,
    /// Another Redis takes over, and the old one becomes its replica.
    FailOver,
}

/// An injected fault.
#[derive(Debug)]
struct Fault {
    kind: Kind,
    places: Vec<&'static str>,
    /// The variable of the affected resource.
    resource: &'static str,
    from: Timestamp,
    to: Timestamp,
}

/// A mail that a worker sent to its mail server, with or without receiving the response.
#[derive(Debug)]
struct Sent {
    place: &'static str,
    at: Timestamp,
    id: String,
}

/// One attempt at a job, from the worker's log.
#[derive(Debug, Clone, PartialEq)]
struct Attempt {
    place: &'static str,
    job: i64,
    number: i64,
    from: Timestamp,
    /// `None` if the worker was killed before it logged the end.
    to: Option<Timestamp>,
}

#[derive(Default)]
struct Entries {
    faults: Vec<Fault>,
    sent: Vec<Sent>,
    attempts: Vec<Attempt>,
}

#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Entries>>);

pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the same clock as in the programs' logs")]
    Timestamp::now()
}

impl Journal {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("no panic while locked")
    }

    /// Prints the faults if the test fails.
    pub fn report_on_failure(&self) -> FaultReport {
        FaultReport(self.clone())
    }

    /// Records a fault that lasts as long as `work`.
    pub async fn during<T>(&self, kind: Kind, places: &[&'static str], resource: &'static str, work: impl Future<Output = T>) -> T {
        let fault = Fault { kind, places: places.to_vec(), resource, from: now(), to: Timestamp::MAX };
        let index = {
            let mut entries = self.entries();
            entries.faults.push(fault);
            entries.faults.len() - 1
        };
        let done = work.await;
        self.entries().faults[index].to = now();
        done
    }

    /// Records a mail if its head is in this piece of an SMTP conversation.
    pub fn sent(&self, place: &'static str, piece: &[u8]) {
        let text = String::from_utf8_lossy(piece);
        if let Some((_, rest)) = text.split_once("Message-ID: <") {
            let id = rest.split('>').next().unwrap_or_default().to_owned();
            self.entries().sent.push(Sent { place, at: now(), id });
        }
    }

    /// Records the attempts in the log of a worker that has exited or is idle.
    pub fn read(&self, place: &'static str, process: &Process) {
        let mut attempts: Vec<Attempt> = Vec::new();
        // The last line of a killed process may be half a line.
        for line in process.lines().iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
            let (Some(job), Some(number)) = (line["job_id"].as_i64(), line["attempt"].as_i64()) else { continue };
            let at = line["timestamp"].as_str().and_then(|at| at.parse().ok()).expect("a line has a timestamp");
            if line["wait_ms"].is_number() {
                attempts.push(Attempt { place, job, number, from: at, to: None });
            } else if line["run_ms"].is_number() {
                let started = attempts.iter_mut().rev().find(|attempt| attempt.job == job && attempt.number == number);
                started.unwrap_or_else(|| panic!("{place} logs the end of an attempt without its start: {line}")).to = Some(at);
            }
        }
        self.entries().attempts.append(&mut attempts);
    }

    /// Makes the database record which job sends which mail to which account, because finished jobs are deleted.
    pub async fn note_jobs(&self, database: &PgPool) {
        let statements = "CREATE TABLE noted (mail text PRIMARY KEY, job bigint NOT NULL, kind text NOT NULL, account_id uuid NOT NULL);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO noted VALUES (
                    format('%s-%s-%s@localhost', CASE NEW.kind WHEN 'send_verification' THEN 'verify' WHEN 'send_password_reset' THEN 'reset' ELSE 'notice' END,
                        NEW.payload->>'account_id', NEW.id),
                    NEW.id, NEW.kind, (NEW.payload->>'account_id')::uuid);
                RETURN NULL;
            END $$;
            CREATE TRIGGER note AFTER INSERT ON jobs FOR EACH ROW
                WHEN (NEW.kind IN ('send_verification', 'send_password_reset', 'send_notice')) EXECUTE FUNCTION note();";
        sqlx::raw_sql(statements).execute(database).await.expect("the database records jobs");
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.entries().faults.iter().filter(|fault| fault.kind == kind).count()
    }

    /// Whether a process was being replaced at some point in this time, which breaks connections to it.
    pub fn was_being_replaced(&self, place: &str, from: Timestamp, to: Timestamp) -> bool {
        self.entries().during(place, from, to).any(|fault| matches!(fault.kind, Kind::Kill | Kind::Terminate))
    }

    /// How many times each mail was sent, by its Message-ID.
    pub fn copies(&self) -> HashMap<String, usize> {
        let mut copies = HashMap::new();
        for sent in &self.entries().sent {
            *copies.entry(sent.id.clone()).or_default() += 1;
        }
        copies
    }

    /// The mails of recorded jobs that were sent again without a reason.
    ///
    /// A worker that has sent a mail deletes its job, so a mail is sent again only if a fault prevents that. Each copy must
    /// belong to another attempt. The worker of the earlier attempt was killed, stopped, or disconnected from Postgres or its mail
    /// server, either after it had sent the mail or so long before that another worker could take the job meanwhile.
    pub async fn unexplained(&self, database: &PgPool) -> Vec<String> {
        let jobs: Vec<(String, i64)> = sqlx::query_as("SELECT mail, job FROM noted").fetch_all(database).await.expect("the recorded jobs");
        let jobs: HashMap<_, _> = jobs.into_iter().collect();
        let entries = self.entries();
        let mut copies: BTreeMap<&str, Vec<&Sent>> = BTreeMap::new();
        for sent in &entries.sent {
            copies.entry(&sent.id).or_default().push(sent);
        }
        let mut unexplained = Vec::new();
        for (id, copies) in copies.into_iter().filter(|(id, copies)| copies.len() > 1 && jobs.contains_key(*id)) {
            let mut attempts = Vec::new();
            for sent in copies {
                match jobs.get(id).and_then(|job| entries.attempt(sent, *job)) {
                    Some(attempt) => attempts.push((attempt, sent)),
                    None => unexplained.push(format!("no attempt of a job sent {sent:?}")),
                }
            }
            attempts.sort_by_key(|(attempt, _)| attempt.from);
            for pair in attempts.windows(2) {
                let [(earlier, sent), (later, _)] = pair else { continue };
                let (from, to) = (sent.at.min(later.from) - RECORDING_DELAY, entries.end(earlier) + RECORDING_DELAY);
                let faults = entries.during(earlier.place, from, to).any(Fault::can_repeat_a_mail);
                if earlier == later || !faults {
                    unexplained.push(format!("{id} was sent in {earlier:?} at {} and again in {later:?}", sent.at));
                }
            }
        }
        unexplained
    }
}

impl Entries {
    fn during(&self, place: &str, from: Timestamp, to: Timestamp) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |fault| fault.places.contains(&place) && fault.from <= to && fault.to >= from)
    }

    /// The attempt that sent a mail.
    fn attempt(&self, sent: &Sent, job: i64) -> Option<Attempt> {
        let started = self.attempts.iter().filter(|attempt| attempt.place == sent.place && attempt.job == job);
        let attempt = started.filter(|attempt| attempt.from <= sent.at + RECORDING_DELAY).max_by_key(|attempt| attempt.from).cloned();
        // The worker may be killed before it logs the attempt.
        let killed = || self.during(sent.place, sent.at - RECORDING_DELAY, sent.at + RECORDING_DELAY).any(|fault| fault.kind == Kind::Kill);
        attempt.or_else(|| killed().then_some(Attempt { place: sent.place, job, number: 0, from: sent.at, to: Some(sent.at) }))
    }

    /// When an attempt ended: as logged, or when its worker was killed.
    fn end(&self, attempt: &Attempt) -> Timestamp {
        let mut kills = self.during(attempt.place, attempt.from, Timestamp::MAX).filter(|fault| fault.kind == Kind::Kill);
        attempt.to.or_else(|| kills.next().map(|fault| fault.from)).unwrap_or(attempt.from)
    }
}

impl Fault {
    fn can_repeat_a_mail(&self) -> bool {
        self.kind != Kind::Terminate && self.resource != "REDIS_URL"
    }
}

pub struct FaultReport(Journal);

impl Drop for FaultReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for Fault { kind, places, resource, from, to } in &self.0.entries().faults {
                let lasted = if *to == Timestamp::MAX { "still".to_owned() } else { format!("{:#}", to.duration_since(*from)) };
                println!("{from:.3} {kind:?} {resource} {} ({lasted})", places.join(" "));
            }
        }
    }
}
