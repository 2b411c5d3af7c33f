//! An event stream, as a client reads it.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::Value;
use tokio::time::timeout;

use super::deploy::Web;
use super::person::Person;
use super::{EVENT_TIMEOUT, clients};

pub struct EventStream {
    pub response: Response,
    read: String,
}

impl EventStream {
    /// Whether a service has event streams. A project may delete them and keep the features that publish events.
    pub async fn are_served(web: &Web) -> bool {
        let served = web.get("/api/v1/events").await.status() != 404;
        if !served {
            println!("skipped: needs the feature events");
        }
        served
    }

    /// Opens a stream and waits until it is open.
    pub async fn of(person: &Person, web: &Web) -> Self {
        web.process.says("events are passed on").await;
        let mut stream = Self::with_cookie(&person.cookie().await, web).await;
        assert_eq!(stream.response.status(), 200);
        assert!(stream.block().await.is_some_and(|block| block.starts_with("retry: ")), "the first line says when to come back");
        stream
    }

    /// Requests a stream and waits for the head of the response.
    pub async fn with_cookie(cookie: &str, web: &Web) -> Self {
        let client: Client = clients::builder().build().expect("a client");
        let request = client.get(format!("{}/api/v1/events", web.url)).header("cookie", cookie);
        Self { response: request.send().await.expect("web answers"), read: String::new() }
    }

    /// The next block of lines, or None if the stream has ended.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                return Some(block);
            }
            let piece = self.response.chunk().await.ok()??;
            self.read.push_str(str::from_utf8(&piece).expect("UTF-8"));
        }
    }

    /// The name and the data of the next event, or None if the stream has ended.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        let next = async {
            loop {
                let block = self.block().await?;
                let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                // The others are comments.
                if let Some(event) = line("event: ") {
                    return Some((event, serde_json::from_str(&line("data: ").unwrap_or_default()).unwrap_or_default()));
                }
            }
        };
        timeout(EVENT_TIMEOUT, next).await.expect("an event, or the stream's end")
    }

    /// Whether nothing comes for this long.
    pub async fn is_silent(&mut self, time: Duration) -> bool {
        timeout(time, self.next()).await.is_err()
    }
}
