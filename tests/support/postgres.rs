//! A Postgres server for one test, which can crash without disturbing other tests.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::balancer::found_or_skipped;

/// Starts a server with the scripts' functions, prints its address, and restarts it for each line it reads.
/// SIGQUIT is Postgres's immediate shutdown: connections break, and the next start recovers as after a crash.
const SCRIPT: &str = r#"
set -euo pipefail
. bin/services.sh
. .local/services
[ "$POSTGRES" != docker ] || { echo none; exit 0; }
# Postgres must own its key, and it runs as another user if the tests run as root.
for option in "$@"; do
    case $option in ssl_key_file=*) chown -R "$(service_user)" "$(dirname "${option#*=}")" ;; esac
done
begin ".local/postgres-$$.throwaway"
trap finish EXIT
start_postgres -c fsync=off "$@"
echo "$postgres_url"
while read -r _; do
    kill -s QUIT "$launched"
    wait_for_end "$launched"
    start_postgres -c fsync=off "$@"
    echo restarted
done
"#;

pub struct Postgres {
    /// The server's address without a database name.
    pub url: String,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _script: Child,
}

impl Postgres {
    /// Returns `None` if this machine has no Postgres programs.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with options for the server.
    pub async fn start_with(options: &[&str]) -> Option<Self> {
        let mut command = Command::new("bash");
        let mut script =
            command.args(["-c", SCRIPT, "bash"]).args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash runs");
        let (commands, answers) = (script.stdin.take().expect("piped"), script.stdout.take().expect("piped"));
        let mut answers = BufReader::new(answers).lines();
        let url = answers.next_line().await.expect("an answer").expect("an address");
        let found = found_or_skipped(url != "none", "Postgres's own program");
        found.then_some(Self { url, commands, answers, _script: script })
    }

    /// Crashes the server and starts it again.
    pub async fn crash(&mut self) {
        self.commands.write_all(b"\n").await.expect("the script listens");
        assert_eq!(self.answers.next_line().await.expect("an answer").as_deref(), Some("restarted"));
    }
}
