//! A mail sink for development and tests: takes every mail over SMTP, delivers none, and shows the latest on a page.
//!
//!     mail [SMTP-ADDRESS [PAGE-ADDRESS [KEPT]]]
//!
//! The default addresses are 127.0.0.1:1025 and 127.0.0.1:8025. If a port is taken, it uses a free one. By default it
//! keeps the last 1000 mails.
//!
//! `/` is the page, `/mails` returns the mails as JSON, and `/latest?to=ADDRESS` the text of the latest mail to an address.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use askama::Template;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use mail_parser::MessageParser;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// The largest mail that is taken, in bytes.
const SIZE_LIMIT: usize = 10 * 1024 * 1024;

#[derive(Clone, Serialize)]
struct Mail {
    from: String,
    to: Vec<String>,
    subject: String,
    message_id: String,
    text: String,
    /// The request that led to the mail.
    request_id: Option<String>,
    traceparent: Option<String>,
}

/// The mails, the latest first, and how many it keeps.
#[derive(Clone)]
struct Mails(Arc<Mutex<VecDeque<Mail>>>, usize);

impl Mails {
    fn keep(&self, mail: Mail) {
        // A closed stdout must not stop the sink.
        let text = mail.text.trim_end().replace('\n', "\n  ");
        let _ = writeln!(std::io::stdout(), "mail to {}: {}\n  {text}", mail.to.join(", "), mail.subject);
        let mut mails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mails.push_front(mail);
        mails.truncate(self.1);
    }

    fn all(&self) -> Vec<Mail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let smtp = listen(arguments.next().as_deref().unwrap_or("127.0.0.1:1025")).await?;
    let page = listen(arguments.next().as_deref().unwrap_or("127.0.0.1:8025")).await?;
    println!("takes mail at smtp://{}, shows it at http://{}", smtp.local_addr()?, page.local_addr()?);

    let mails = Mails(Arc::default(), arguments.next().map_or(Ok(1000), |kept| kept.parse())?);
    let routes = Router::new()
        .route("/", get(async |State(mails): State<Mails>| Page { mails: mails.all() }.render().map(Html).map_err(|e| e.to_string())))
        .route("/mails", get(async |State(mails): State<Mails>| Json(mails.all())))
        .route("/latest", get(latest))
        .with_state(mails.clone());
    // The first process of a container has no default signal handlers.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(page, routes) => served?,
        () = take(smtp, mails) => {}
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

/// Listens at the address, or at a free port of it if the port is taken.
async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let address: SocketAddr = address.parse()?;
    match TcpListener::bind(address).await {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Ok(TcpListener::bind((address.ip(), 0)).await?),
        bound => Ok(bound?),
    }
}

#[derive(Deserialize)]
struct To {
    to: String,
}

async fn latest(State(mails): State<Mails>, Query(To { to }): Query<To>) -> Response {
    match mails.all().into_iter().find(|mail| mail.to.contains(&to)) {
        Some(mail) => format!("Subject: {}\n\n{}", mail.subject, mail.text).into_response(),
        None => (StatusCode::NOT_FOUND, "no mail to that address\n").into_response(),
    }
}

#[derive(Template)]
#[template(
    ext = "html",
    source = "<!doctype html><html lang=en><meta charset=utf-8><meta name=color-scheme content='light dark'><title>Mail</title>\
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}article{border-top:1px solid #888}pre{white-space:pre-wrap}</style>\
<script>setInterval(() => getSelection().isCollapsed && location.reload(), 2000)</script>\
<h1>Mail</h1>{% for mail in mails %}<article><h2>{{ mail.subject }}</h2><p>to {{ mail.to.join(\", \") }}</p>\
<pre>{% for line in mail.text.lines() %}{% if line.starts_with(\"http\") %}<a href='{{ line }}'>{{ line }}</a>{% else %}{{ line }}{% endif %}\n{% endfor %}</pre></article>\
{% else %}<p>Nothing yet.</p>{% endfor %}</html>"
)]
struct Page {
    mails: Vec<Mail>,
}

async fn take(listener: TcpListener, mails: Mails) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let mails = mails.clone();
            tokio::spawn(async move { converse(stream, &mails).await });
        }
    }
}

/// The server side of RFC 5321, as far as sending clients need it.
async fn converse(stream: TcpStream, mails: &Mails) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut from, mut to) = (String::new(), Vec::new());
    stream.write_all(b"220 mail sink\r\n").await?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let (command, argument) = line.trim_end().split_once([' ', ':']).unwrap_or((line.trim_end(), ""));
        let answer = match command.to_ascii_uppercase().as_str() {
            "EHLO" => "250-mail sink\r\n250 8BITMIME",
            "MAIL" => {
                from = address(argument);
                to.clear();
                "250 OK"
            }
            // Tests cause a refusal by the recipient's address.
            "RCPT" if argument.contains("450@refuse.example") => "450 not now",
            "RCPT" if argument.contains("550@refuse.example") => "550 never",
            "RCPT" => {
                to.push(address(argument));
                "250 OK"
            }
            "DATA" if to.is_empty() => "503 to whom?",
            "DATA" => {
                stream.write_all(b"354 end with a dot\r\n").await?;
                let Some(raw) = data(&mut stream).await? else { return Ok(()) };
                mails.keep(read(&raw, &from, &to));
                "250 taken"
            }
            "HELO" | "RSET" | "NOOP" => "250 OK",
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => "502 not here",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// The address in `FROM:<…>`.
fn address(argument: &str) -> String {
    argument.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(address, _)| address).to_owned()
}

/// Reads everything up to a line with a single dot. None if the client disconnects or sends too much.
async fn data(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Vec<u8>>> {
    let mut raw = Vec::new();
    while raw.len() < SIZE_LIMIT {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        if line == b".\r\n" {
            return Ok(Some(raw));
        }
        raw.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
    Ok(None)
}

fn read(raw: &[u8], from: &str, to: &[String]) -> Mail {
    let message = MessageParser::default().parse(raw).unwrap_or_default();
    let header = |name: &str| Some(message.header_raw(name)?.trim().to_owned());
    Mail {
        from: from.to_owned(),
        to: to.to_vec(),
        subject: message.subject().unwrap_or_default().to_owned(),
        message_id: message.message_id().unwrap_or_default().to_owned(),
        text: message.body_text(0).unwrap_or_default().replace("\r\n", "\n"),
        request_id: header("X-Request-Id"),
        traceparent: header("traceparent"),
    }
}
