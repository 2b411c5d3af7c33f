//! A mail server before the sink. It refuses the commands that a test chooses, and forwards all others.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::mail::Sink;

/// The command that it refuses, or `greeting`, and its response.
type Refusal = Option<(&'static str, &'static str)>;

#[derive(Clone, Default)]
struct Behaviour {
    refusal: Arc<Mutex<Refusal>>,
    received: Arc<Mutex<Vec<String>>>,
}

pub struct MailFront {
    pub port: u16,
    behaviour: Behaviour,
}

impl MailFront {
    /// Listens on every address of this machine, and offers AUTH and no TLS.
    pub async fn before(sink: &Sink) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (behaviour, target) = (Behaviour::default(), sink.smtp_url.replace("smtp://", ""));
        let shared = behaviour.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (behaviour, target) = (shared.clone(), target.clone());
                tokio::spawn(async move { converse(client, &behaviour, &target).await });
            }
        });
        Self { port, behaviour }
    }

    /// Refuses commands that begin with this text. `greeting` stands for the server's greeting.
    pub fn refuse(&self, command: &'static str, answer: &'static str) {
        *self.behaviour.refusal.lock().expect("no panic while locked") = Some((command, answer));
    }

    pub fn refuse_nothing(&self) {
        *self.behaviour.refusal.lock().expect("no panic while locked") = None;
    }

    /// Every command that it has received.
    pub fn received(&self) -> Vec<String> {
        self.behaviour.received.lock().expect("no panic while locked").clone()
    }
}

async fn converse(client: TcpStream, behaviour: &Behaviour, target: &str) -> std::io::Result<()> {
    let refused = |command: &str| {
        let refusal = *behaviour.refusal.lock().expect("no panic while locked");
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
        behaviour.received.lock().expect("no panic while locked").push(command.clone());
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

/// Forwards a line to the sink, and its response of one line to the client.
async fn relay(line: &str, sink: &mut BufReader<TcpStream>, client: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    sink.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    sink.read_line(&mut answer).await?;
    client.write_all(answer.as_bytes()).await
}
