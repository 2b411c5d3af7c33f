//! The harness: starts the built programs as a platform would, and looks at them from outside.
//!
//! A `Deploy` has a database, a Redis number and a mail sink of its own, so tests run in parallel and in any order.
//! Nothing here waits for time: it waits for a log line, an answer or an exit, and gives up after `PATIENCE`.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod access;
pub mod balancer;
pub mod collector;
pub mod deploy;
pub mod dev;
pub mod formation;
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

/// What never takes this long has failed; on a busy machine much takes longer than it should.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A port that nobody listens on just now, and that the system gives to no connection of its own.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ports that the scripts choose from.
    let first = 12_000 + u16::try_from(std::process::id() % 80).expect("a small number") * 100;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        // Bound and never listened at: a process that is started meanwhile holds a copy of it for a moment, which is in nobody's way.
        let bound = TcpSocket::new_v4().and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(([127, 0, 0, 1], port).into())
        });
        if bound.is_ok() {
            return port;
        }
    }
}

/// Asks again and again until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}
