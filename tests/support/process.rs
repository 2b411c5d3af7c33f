//! A running program: its log as parsed JSON, its signals, its exit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::EVENT_TIMEOUT;

/// The folder that holds the built programs.
pub fn programs() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_web")).parent().expect("a program lies in a folder").to_owned()
}

/// The command behind a name in the Procfile.
pub fn procfile(name: &str) -> String {
    let procfile = std::fs::read_to_string("Procfile").expect("the Procfile");
    let line = procfile.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("the Procfile names no {name}")).to_owned()
}

/// A running program. It is killed when the value is dropped.
pub struct Process {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<String>>>, watch::Receiver<usize>);

impl Process {
    /// Starts the Procfile's command for `name` from this folder, with exactly this environment.
    pub fn start(name: &str, programs: &Path, environment: &BTreeMap<String, String>) -> Self {
        let mut words = procfile(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter();
        let program = programs.join(words.next().expect("a program"));
        let mut command = Command::new(program);
        command.args(words).env_clear().envs(environment);
        Self::spawn(command)
    }

    /// Starts any command.
    pub fn spawn(mut command: Command) -> Self {
        // The tests' own HTTP client supports TLS, and panics without a crypto provider even over plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        let stdout = Lines::of(child.stdout.take().expect("piped"));
        let stderr = Lines::of(child.stderr.take().expect("piped"));
        Self { child, stdout, stderr }
    }

    pub fn pid(&self) -> Pid {
        let pid = self.child.id().expect("it has not been waited for");
        Pid::from_raw(i32::try_from(pid).expect("a process id"))
    }

    /// Its CPU time so far, in the system's ticks. A tick is nearly always a hundredth of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("a system with /proc");
        // The name in parentheses may contain anything. User and system time are the 12th and 13th field after it.
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// A line of its memory's status, such as `VmHWM:`, the peak of its resident memory. 0 if the system has no /proc.
    pub fn memory_kib(&self, name: &str) -> usize {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid())) else { return 0 };
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a process has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the process is there");
    }

    /// Its exit status, if it has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its status")
    }

    /// Waits for the exit. The log stays readable.
    pub async fn exit(&mut self) -> ExitStatus {
        self.exit_within(EVENT_TIMEOUT).await
    }

    pub async fn exit_within(&mut self, limit: Duration) -> ExitStatus {
        let exit = timeout(limit, self.child.wait()).await;
        let status = exit.unwrap_or_else(|_| panic!("no exit within {limit:?}, log: {:#?}", self.lines())).expect("a status");
        // All lines have been read when both streams have ended.
        for stream in [&mut self.stdout, &mut self.stderr] {
            let _ = timeout(EVENT_TIMEOUT, stream.1.wait_for(|count| *count == usize::MAX)).await;
        }
        status
    }

    /// Sends SIGTERM, and returns the exit status.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.exit().await.code()
    }

    pub fn lines(&self) -> Vec<String> {
        self.stdout.all()
    }

    pub fn errors(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Every line of the log so far.
    pub fn log(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"))).collect()
    }

    /// Waits for a log line. A line that was logged earlier counts, too.
    pub async fn logged(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let line = self.line(what, |line| serde_json::from_str(line).is_ok_and(|value| matches(&value))).await;
        serde_json::from_str(&line).expect("it was just parsed")
    }

    /// Waits for a log line whose message contains the text.
    pub async fn says(&self, text: &str) -> Value {
        self.logged(text, |line| line["message"].as_str().is_some_and(|message| message.contains(text))).await
    }

    /// Waits for any line of stdout.
    pub async fn line(&self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        let mut lines = self.stdout.clone();
        let waiting = async {
            loop {
                let count = *lines.1.borrow_and_update();
                if let Some(line) = lines.all().iter().find(|line| matches(line)) {
                    return line.clone();
                }
                assert!(count != usize::MAX, "exited without `{what}`, stdout: {:#?} stderr: {:#?}", self.lines(), self.errors());
                let _ = lines.1.changed().await;
            }
        };
        timeout(EVENT_TIMEOUT, waiting).await.unwrap_or_else(|_| panic!("never logged `{what}`: {:#?}", self.lines()))
    }
}

/// Every log line of every test must follow `docs/logs.md`.
impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for line in self.lines().iter().filter(|line| line.starts_with("{\"timestamp\"")) {
            if let Some(name) = super::log_schema::repeated(line) {
                panic!("a line has {name} twice: {line}");
            }
            // The last line of a killed process may be incomplete.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            // Another release may have another format.
            if line["commit"].as_str().is_some_and(|commit| commit != env!("BUILD_COMMIT")) {
                continue;
            }
            if let Some(fault) = super::log_schema::fault(&line) {
                panic!("{fault}: {line}");
            }
        }
    }
}

impl Lines {
    /// Reads a stream to its end. Then the count becomes `MAX`.
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(0);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let lines = kept.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream).lines();
            while let Ok(Some(line)) = stream.next_line().await {
                lines.lock().expect("no panic while locked").push(line);
                sender.send_modify(|count| *count += 1);
            }
            sender.send_replace(usize::MAX);
        });
        Self(kept, receiver)
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic while locked").clone()
    }
}
