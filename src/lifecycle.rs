//! The lifecycle of a process (factor IX: disposability): start, signals, drain, exit codes.
//!
//! One object owns the signals. A process registers its tasks here and gives each the two tokens. `soft` is cancelled
//! when a drain begins, `hard` when the drain's time limit has passed. A task that panics or ends early takes the
//! process down, because a process without one of its tasks does not work. Knows nothing of what the tasks do.

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::{self, Env, Problems, Section};
use crate::release::Release;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{self, Stream, traces};

/// `EX_CONFIG` of sysexits.h: the configuration is wrong, and a restart cannot help.
pub const EXIT_CONFIG: u8 = 78;

/// `EX_USAGE` of sysexits.h: the program was called with wrong arguments.
pub const EXIT_USAGE: u8 = 64;

/// 128 plus the number of SIGINT, by the convention of shells: a person pressed Ctrl-C twice to skip the drain.
const EXIT_INTERRUPTED: u8 = 130;

/// How long tasks may take after `hard` to release what they hold. Then the process exits without them.
const HARD_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Registers the tasks of a process.
pub struct Lifecycle {
    /// The environment that the config was read from.
    pub env: Env,
    /// The code and the release that this process runs.
    pub release: Release,
    pub metrics: Metrics,
    /// Cancelled when a drain begins: accept no new work, finish the work in progress. A task whose work is done may
    /// cancel it.
    pub soft: CancellationToken,
    /// Cancelled when the drain's time limit has passed: abandon the work in progress.
    pub hard: CancellationToken,
    drain_limit: Duration,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Lifecycle {
    /// Registers a task. It must run until `soft` and end soon after `hard`.
    /// If it returns an error, at any time, the exit status is 1.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Delays `hard` by this long, because `web` keeps accepting for a while after `soft`.
    pub fn delay_drain(&mut self, delay: Duration) {
        self.drain_limit += delay;
    }
}

/// Reads the arguments of a program: returns whether the one option that it knows was given.
///
/// # Errors
/// There are other arguments. The exit status says so, and stderr has the usage.
pub fn option(known: Option<&str>, usage: &str) -> Result<bool, ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(false),
        (Some(argument), None) if known.is_some_and(|known| argument == known) => Ok(true),
        _ => {
            let _ = writeln!(std::io::stderr(), "{usage}");
            Err(ExitCode::from(EXIT_USAGE))
        }
    }
}

/// Runs a process, from reading its config to its exit status: 0 after a drain, 1 after a failure, 78 for a wrong config.
///
/// `connect` prepares the calls of the collector of traces. `start` builds the process from its config and registers the
/// tasks.
pub fn run<C: Section>(
    process: &'static str,
    connect: traces::Connect,
    start: impl AsyncFnOnce(config::Process, C, &mut Lifecycle) -> anyhow::Result<()>,
) -> ExitCode {
    let env = Env::of_process();
    let (common, own) = match config::read::<(config::Process, C)>(&env) {
        Ok(config) => config,
        Err(problems) => {
            // Not `eprintln!`, which panics if stderr is closed.
            let _ = writeln!(std::io::stderr(), "{process}: {problems}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let (release, metrics, log) = telemetry::start(process, &common, &env, Stream::Stdout, connect);
    // Panics go to the log instead of stderr.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        error!(panic.message = panic.payload_as_str(), panic.place = place, "panicked");
    }));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(process, &e.into()),
    };
    let ended = runtime.block_on(async {
        // First of all, because a signal during the start must drain too.
        let signals = Signals::new()?;
        let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
        let mut lifecycle = Lifecycle { env, release, metrics, soft, hard, drain_limit: common.drain_timeout, tasks: JoinSet::new() };
        info!(flags = flags::<C>(&lifecycle.env), "{process} is starting");
        tokio::spawn(log.report_lost(lifecycle.metrics.clone()));
        start(common, own, &mut lifecycle).await?;
        anyhow::Ok(supervise(lifecycle, signals).await)
    });
    // Work on blocking threads, such as hashing a password for a request that is gone, must not delay the exit.
    runtime.shutdown_background();
    match ended {
        Ok(0) => {
            info!(exit_status = 0, "{process} has stopped");
            ExitCode::SUCCESS
        }
        Ok(status) => {
            let how = if status == EXIT_INTERRUPTED {
                "was interrupted twice and stopped without draining"
            } else {
                "has stopped after a failure"
            };
            error!(exit_status = status, "{process} {how}");
            ExitCode::from(status)
        }
        Err(e) => failed(process, &e),
    }
}

/// The flags that the process reads, such as `FEATURE_SIGN_UP=true`.
fn flags<C: Section>(env: &Env) -> Option<String> {
    let flags = C::variables().into_iter().filter(|variable| variable.name.starts_with(config::Flags::PREFIX));
    let flags = flags.filter_map(|flag| Some(format!("{}={}", flag.name, flag.find(env).ok()??.0)));
    flags.reduce(|all, flag| format!("{all} {flag}"))
}

fn failed(process: &str, e: &anyhow::Error) -> ExitCode {
    let status = if e.is::<Problems>() { EXIT_CONFIG } else { 1 };
    // On stderr too, because the log's filter may drop the line.
    let _ = writeln!(std::io::stderr(), "{process} could not start: {e:#}");
    error!(exit_status = status, error = format!("{e:#}"), "{process} could not start: {e:#}");
    ExitCode::from(status)
}

/// The signals that a process handles. None of them ends it without a drain, except a second SIGINT. SIGUSR1 and SIGUSR2,
/// which would end it by default, do nothing.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Waits until every task has ended and returns the exit status.
async fn supervise(mut lifecycle: Lifecycle, mut signals: Signals) -> u8 {
    let mut status = 0;
    let mut interrupts = 0;
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    loop {
        let draining = lifecycle.soft.is_cancelled();
        let begin = tokio::select! {
            task = lifecycle.tasks.join_next() => match task {
                None => return status,
                Some(Ok((_, Ok(())))) if lifecycle.soft.is_cancelled() => false,
                Some(ended) => {
                    status = 1;
                    report(ended);
                    true
                }
            },
            () = lifecycle.soft.cancelled(), if !draining => true,
            _ = signals.terminate.recv() => true,
            // The terminal was closed.
            _ = signals.hangup.recv() => true,
            _ = signals.user1.recv() => false,
            _ = signals.user2.recv() => false,
            _ = signals.interrupt.recv() => {
                interrupts += 1;
                if interrupts > 1 {
                    return EXIT_INTERRUPTED;
                }
                true
            }
            () = &mut deadline, if draining => {
                if lifecycle.hard.is_cancelled() {
                    error!(tasks = lifecycle.tasks.len(), "tasks still run after the drain's time limit; exiting without them");
                    return 1;
                }
                lifecycle.hard.cancel();
                deadline.as_mut().reset(Instant::now() + HARD_STOP_TIMEOUT);
                false
            }
        };
        // A task may have begun the drain and ended in the same moment.
        if (begin || lifecycle.soft.is_cancelled()) && !draining {
            lifecycle.soft.cancel();
            info!("draining for at most {:?}", lifecycle.drain_limit);
            deadline.as_mut().reset(Instant::now() + lifecycle.drain_limit);
        }
    }
}

fn report(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) {
    match ended {
        Ok((task, Ok(()))) => error!(task, "task {task} ended unexpectedly"),
        Ok((task, Err(e))) => error!(task, error = format!("{e:#}"), "task {task} failed: {e:#}"),
        Err(e) => error!(error = %e, "a task panicked"),
    }
}

/// Records when something last happened. By default that is never.
#[derive(Clone, Default)]
pub struct Heartbeat(Arc<Mutex<Option<Instant>>>);

impl Heartbeat {
    /// Records that it happens now.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago it last happened.
    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::MAX, |at| at.elapsed())
    }
}
