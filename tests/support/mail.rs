//! The mail sink, the same program as in development.

use serde::Deserialize;
use tokio::process::Command;

use super::clients::get;
use super::process::programs;
use super::{Process, eventually};

#[derive(Debug, Clone, Deserialize)]
pub struct Mail {
    pub to: Vec<String>,
    pub subject: String,
    pub message_id: String,
    pub text: String,
    pub request_id: Option<String>,
    pub traceparent: Option<String>,
}

impl Mail {
    /// The token in the mailed link.
    pub fn token(&self) -> String {
        let (_, rest) = self.text.split_once("token=").unwrap_or_else(|| panic!("no link in: {}", self.text));
        rest.split_whitespace().next().expect("a token").to_owned()
    }
}

pub struct Sink {
    process: Process,
    pub smtp_url: String,
    page: String,
}

impl Sink {
    pub async fn start() -> Self {
        let mut command = Command::new(programs().join("examples/mail"));
        // More mails than the longest chaos test sends.
        command.args(["127.0.0.1:0", "127.0.0.1:0", "1000000"]);
        let process = Process::spawn(command);
        let line = process.line("takes mail", |line| line.starts_with("takes mail at ")).await;
        let mut addresses = line.split([' ', ',']).filter(|word| word.contains("://")).map(str::to_owned);
        let mut next = || addresses.next().expect("two addresses");
        Self { smtp_url: next(), page: next(), process }
    }

    pub async fn all(&self) -> Vec<Mail> {
        let answer = get(format!("{}/mails", self.page)).await.expect("the sink answers");
        answer.json().await.expect("a list of mails")
    }

    /// Waits for a mail with this subject to this address.
    pub async fn to(&self, address: &str, subject: &str) -> Mail {
        let what = format!("a mail to {address} about {subject}");
        eventually(&what, async || self.all().await.into_iter().find(|mail| mail.subject == subject && mail.to == [address])).await
    }
}
