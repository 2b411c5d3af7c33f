//! `admin health`: the health check of a container. The image contains no other program that could send the request.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Task;
use super::output::say;
use crate::config;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests `/readyz` on `METRICS_PORT` if it is set, otherwise on `PORT`. Returns whether the response is 200.
pub async fn ask(task: &Task) -> anyhow::Result<bool> {
    let (process, http) = config::read::<(config::Process, config::Http)>(&task.env)?;
    let port = process.metrics_port.unwrap_or(http.port);
    let answer = timeout(RESPONSE_TIMEOUT, get("/readyz", port)).await.context("no answer in 2 s")?;
    let answer = answer.with_context(|| format!("no process answers on port {port}"))?;
    say(answer.lines().last().unwrap_or_default());
    Ok(answer.split(' ').nth(1) == Some("200"))
}

async fn get(path: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
