//! The test harness: starts the built programs as a platform would, and observes them from outside.
//!
//! A `Deploy` has its own database, Redis database and mail sink, so tests run in parallel and in any order.
//! The harness waits for events, such as a log line, a response or an exit, and fails after `EVENT_TIMEOUT`.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod access;
pub mod balancer;
pub mod browser;
pub mod clients;
pub mod collector;
pub mod deploy;
pub mod dev;
pub mod events;
pub mod formation;
pub mod issuer;
pub mod journal;
pub mod load;
pub mod log_schema;
pub mod mail;
pub mod mail_front;
pub mod openapi;
pub mod person;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod redis;
pub mod store;
pub mod tls;

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::net::TcpSocket;

pub use deploy::Deploy;
pub use process::Process;
pub use proxy::Proxy;

/// How long a test waits for an event. It is generous, because a busy machine is slow.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A port that is free now, outside the range from which the system chooses ports.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ports that the scripts use.
    let first = 12_000 + u16::try_from(std::process::id() % 80).expect("a small number") * 100;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        // The socket never listens, so a process that inherits it for a moment does no harm.
        let bound = TcpSocket::new_v4().and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(([127, 0, 0, 1], port).into())
        });
        if bound.is_ok() {
            return port;
        }
    }
}

/// Calls `ask` repeatedly until it returns a value.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(EVENT_TIMEOUT, asking).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}
