//! The journal of a soak: what was done to whom and when, who sent which mail in which attempt, and what that explains.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};
use sqlx::PgPool;

use super::Process;

/// A proxy reads, and a task notes, a moment after a process has sent.
const BLUR: SignedDuration = SignedDuration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL, until another process is in its place.
    Kill,
    /// SIGTERM, until another process is in its place.
    Terminate,
    /// SIGSTOP until SIGCONT.
    Stop,
    /// The way to a resource breaks.
    Cut,
    /// The way to a resource lets nothing through.
    Stall,
    /// Postgres is struck down, until it is back.
    Crash,
    /// Postgres takes no writes, as a standby does, until it does again.
    ReadOnly,
    /// Another Redis takes over, and the old one lives on as its replica.
    FailOver,
}

/// Something that was done on purpose.
#[derive(Debug)]
struct Fault {
    kind: Kind,
    whom: Vec<&'static str>,
    /// The variable of the resource that is out of reach.
    resource: &'static str,
    from: Timestamp,
    to: Timestamp,
}

/// A mail that a worker has handed to its mail server, whether it heard the answer or not.
#[derive(Debug)]
struct Sent {
    who: &'static str,
    at: Timestamp,
    id: String,
}

/// One attempt at a job, as the worker's log tells it.
#[derive(Debug, Clone, PartialEq)]
struct Attempt {
    who: &'static str,
    job: i64,
    number: i64,
    from: Timestamp,
    /// None if the worker was killed before it could tell.
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
    #[expect(clippy::disallowed_methods, reason = "the clock that the programs' logs tell too")]
    Timestamp::now()
}

impl Journal {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("no panic while locked")
    }

    /// Prints the faults if the test fails.
    pub fn teller(&self) -> Teller {
        Teller(self.clone())
    }

    /// Notes a fault for as long as it takes.
    pub async fn during<T>(&self, kind: Kind, whom: &[&'static str], resource: &'static str, work: impl Future<Output = T>) -> T {
        let fault = Fault { kind, whom: whom.to_vec(), resource, from: now(), to: Timestamp::MAX };
        let index = {
            let mut entries = self.entries();
            entries.faults.push(fault);
            entries.faults.len() - 1
        };
        let done = work.await;
        self.entries().faults[index].to = now();
        done
    }

    /// Notes the mail whose head is in this piece of a conversation, if one is.
    pub fn sent(&self, who: &'static str, piece: &[u8]) {
        let text = String::from_utf8_lossy(piece);
        if let Some((_, rest)) = text.split_once("Message-ID: <") {
            let id = rest.split('>').next().unwrap_or_default().to_owned();
            self.entries().sent.push(Sent { who, at: now(), id });
        }
    }

    /// Notes the attempts in the log of a worker that has ended or is at rest.
    pub fn read(&self, who: &'static str, process: &Process) {
        let mut attempts: Vec<Attempt> = Vec::new();
        // The last line of a killed process may be half a line.
        for line in process.lines().iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
            let (Some(job), Some(number)) = (line["job_id"].as_i64(), line["attempt"].as_i64()) else { continue };
            let at = line["timestamp"].as_str().and_then(|at| at.parse().ok()).expect("a line has its time");
            if line["wait_ms"].is_number() {
                attempts.push(Attempt { who, job, number, from: at, to: None });
            } else if line["run_ms"].is_number() {
                let started = attempts.iter_mut().rev().find(|attempt| attempt.job == job && attempt.number == number);
                started.unwrap_or_else(|| panic!("{who} ends what it never started: {line}")).to = Some(at);
            }
        }
        self.entries().attempts.append(&mut attempts);
    }

    /// Has the database note which job sends which mail, and for whom, since a job that is done leaves nothing behind.
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
        sqlx::raw_sql(statements).execute(database).await.expect("the database notes jobs");
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.entries().faults.iter().filter(|fault| fault.kind == kind).count()
    }

    /// Whether somebody was on its way down or up in this time, so that connections to it could not but break.
    pub fn was_away(&self, who: &str, from: Timestamp, to: Timestamp) -> bool {
        self.entries().during(who, from, to).any(|fault| matches!(fault.kind, Kind::Kill | Kind::Terminate))
    }

    /// How often each mail was sent, by its Message-ID.
    pub fn copies(&self) -> HashMap<String, usize> {
        let mut copies = HashMap::new();
        for sent in &self.entries().sent {
            *copies.entry(sent.id.clone()).or_default() += 1;
        }
        copies
    }

    /// The mails of noted jobs that were sent again without a reason.
    ///
    /// A worker that sends a mail must also delete its job, so a mail is sent again only where the harness has come between.
    /// Copies must be those of attempts of their own. The worker of an earlier attempt was killed, stopped, or cut off from
    /// Postgres or its mail server after it had sent the mail, or so long before that another could take the job meanwhile.
    pub async fn unexplained(&self, database: &PgPool) -> Vec<String> {
        let jobs: Vec<(String, i64)> = sqlx::query_as("SELECT mail, job FROM noted").fetch_all(database).await.expect("what was noted");
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
                let (from, to) = (sent.at.min(later.from) - BLUR, entries.end(earlier) + BLUR);
                let faults = entries.during(earlier.who, from, to).any(Fault::can_repeat_a_mail);
                if earlier == later || !faults {
                    unexplained.push(format!("{id} was sent in {earlier:?} at {} and again in {later:?}", sent.at));
                }
            }
        }
        unexplained
    }
}

impl Entries {
    fn during(&self, who: &str, from: Timestamp, to: Timestamp) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |fault| fault.whom.contains(&who) && fault.from <= to && fault.to >= from)
    }

    /// The attempt in which a mail was sent.
    fn attempt(&self, sent: &Sent, job: i64) -> Option<Attempt> {
        let started = self.attempts.iter().filter(|attempt| attempt.who == sent.who && attempt.job == job);
        let attempt = started.filter(|attempt| attempt.from <= sent.at + BLUR).max_by_key(|attempt| attempt.from).cloned();
        // The log is written a moment later too, and a kill may come before it.
        let killed = || self.during(sent.who, sent.at - BLUR, sent.at + BLUR).any(|fault| fault.kind == Kind::Kill);
        attempt.or_else(|| killed().then_some(Attempt { who: sent.who, job, number: 0, from: sent.at, to: Some(sent.at) }))
    }

    /// When an attempt ended: by its own account, or when its worker was killed.
    fn end(&self, attempt: &Attempt) -> Timestamp {
        let mut kills = self.during(attempt.who, attempt.from, Timestamp::MAX).filter(|fault| fault.kind == Kind::Kill);
        attempt.to.or_else(|| kills.next().map(|fault| fault.from)).unwrap_or(attempt.from)
    }
}

impl Fault {
    fn can_repeat_a_mail(&self) -> bool {
        self.kind != Kind::Terminate && self.resource != "REDIS_URL"
    }
}

pub struct Teller(Journal);

impl Drop for Teller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for Fault { kind, whom, resource, from, to } in &self.0.entries().faults {
                let lasted = if *to == Timestamp::MAX { "still".to_owned() } else { format!("{:#}", to.duration_since(*from)) };
                println!("{from:.3} {kind:?} {resource} {} ({lasted})", whom.join(" "));
            }
        }
    }
}
