//! A mail server with opinions, before the sink: it refuses what it is told to refuse, and passes all the rest on.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::mail::Sink;

/// What it says instead of the sink, to a command or as its greeting.
type Refusal = Option<(&'static str, &'static str)>;

#[derive(Clone, Default)]
struct Opinions {
    refusal: Arc<Mutex<Refusal>>,
    heard: Arc<Mutex<Vec<String>>>,
}

pub struct MailFront {
    pub port: u16,
    opinions: Opinions,
}

impl MailFront {
    /// Listens on every address of this machine, and offers AUTH and no TLS.
    pub async fn before(sink: &Sink) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (opinions, target) = (Opinions::default(), sink.smtp_url.replace("smtp://", ""));
        let shared = opinions.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (opinions, target) = (shared.clone(), target.clone());
                tokio::spawn(async move { converse(client, &opinions, &target).await });
            }
        });
        Self { port, opinions }
    }

    /// Answers commands that begin so with a refusal; `greeting` is what comes first.
    pub fn refuse(&self, command: &'static str, answer: &'static str) {
        *self.opinions.refusal.lock().expect("no panic while locked") = Some((command, answer));
    }

    pub fn refuse_nothing(&self) {
        *self.opinions.refusal.lock().expect("no panic while locked") = None;
    }

    /// Every command that clients have sent.
    pub fn heard(&self) -> Vec<String> {
        self.opinions.heard.lock().expect("no panic while locked").clone()
    }
}

async fn converse(client: TcpStream, opinions: &Opinions, target: &str) -> std::io::Result<()> {
    let refused = |command: &str| {
        let refusal = *opinions.refusal.lock().expect("no panic while locked");
        refusal.filter(|(begin, _)| command.to_ascii_uppercase().starts_with(&begin.to_ascii_uppercase())).map(|(_, answer)| answer)
    };
    let mut client = BufReader::new(client);
    let mut sink = BufReader::new(TcpStream::connect(target).await?);
    sink.read_line(&mut String::new()).await?;
    if let Some(answer) = refused("greeting") {
        return client.write_all(format!("{answer}\r\n").as_bytes()).await;
    }
    client.write_all(b"220 front\r\n").await?;
    let mut line = String::new();
    while client.read_line(&mut line).await? > 0 {
        let command = line.trim_end().to_owned();
        opinions.heard.lock().expect("no panic while locked").push(command.clone());
        if let Some(answer) = refused(&command) {
            client.write_all(format!("{answer}\r\n").as_bytes()).await?;
        } else if command.starts_with("EHLO") {
            client.write_all(b"250-front\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n").await?;
        } else if command.starts_with("AUTH") {
            client.write_all(b"235 welcome\r\n").await?;
        } else {
            relay(&line, &mut sink, &mut client).await?;
            while command == "DATA" && line != ".\r\n" {
                line.clear();
                client.read_line(&mut line).await?;
                sink.write_all(line.as_bytes()).await?;
            }
            if command == "DATA" {
                relay("", &mut sink, &mut client).await?;
            }
        }
        line.clear();
    }
    Ok(())
}

/// A line to the sink, and its answer of one line back.
async fn relay(line: &str, sink: &mut BufReader<TcpStream>, client: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    sink.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    sink.read_line(&mut answer).await?;
    client.write_all(answer.as_bytes()).await
}
