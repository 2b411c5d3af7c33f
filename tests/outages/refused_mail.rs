//! A mail server that refuses: only a permanent refusal of a recipient or of the mail itself ends the job.

use std::net::{IpAddr, UdpSocket};

use serde_json::Value;

use crate::support::clients::get;
use crate::support::mail_front::MailFront;
use crate::support::person::Person;
use crate::support::{Deploy, Process, eventually, free_port};

#[tokio::test]
async fn temporary_refusal_is_retried_permanent_is_not() {
    let port = free_port();
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.clone_with("METRICS_PORT", port).start("worker"));
    // The sink answers with the code in the address.
    for (address, outcome) in [("later-450@refuse.example", "failed"), ("never-550@refuse.example", "done")] {
        let ada = Person { email: address.to_owned(), ..Person::stranger(&web) };
        ada.sign_up().await;
        let line = worker.logged(outcome, |line| line["outcome"] == outcome).await;
        assert_eq!(line["attempt"], 1, "{line}");
        assert!(!worker.lines().join("\n").contains(address), "no address is logged: {:#?}", worker.lines());
    }
    worker.says("a mail server permanently refused an address: at RcptTo: the server answered 550").await;
    let metrics = get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap().text().await.unwrap();
    for series in ["mails_total{outcome=\"refused\"} 1", "mails_total{outcome=\"delayed\"} 1"] {
        assert!(metrics.contains(series), "{metrics}");
    }
    // A client cannot trigger an alert with an address that does not exist.
    let dead: i64 = sqlx::query_scalar("SELECT count(dead_at) FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(dead, 0);
    let shown = deploy.admin(&["account", "show", "never-550@refuse.example"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("bounced"), "{shown:?}");
}

/// Waits for the end of a first attempt, and returns its line.
async fn first_attempt(worker: &Process, request: &str) -> Value {
    worker.logged("the attempt's end", |line| line["request_id"] == request && line["attempt"] == 1 && line["outcome"].is_string()).await
}

#[tokio::test]
async fn refusal_of_the_sender_is_retried() {
    for (command, answer, phase) in [
        ("greeting", "554 5.7.1 not from your address", "Connect"),
        ("EHLO", "550 5.7.1 not with that name", "Connect"),
        ("AUTH", "535 5.7.8 the password was changed", "Auth"),
        ("MAIL", "530 5.7.0 STARTTLS first", "MailFrom"),
        ("MAIL", "550 5.2.2 quota", "MailFrom"),
    ] {
        let deploy = Deploy::new().await;
        let front = MailFront::before(&deploy.mail).await;
        front.refuse(command, answer);
        let deploy = deploy.clone_with("SMTP_URL", format!("smtp://user:secret@127.0.0.1:{}", front.port));
        let (web, worker) = (deploy.web().await, deploy.start("worker"));
        let ada = Person::stranger(&web);
        let request = ada.sign_up().await.headers()["x-request-id"].to_str().unwrap().to_owned();
        let line = first_attempt(&worker, &request).await;
        assert_eq!(line["outcome"], "failed", "{command} {answer}: {line}");
        let expected = format!("at {phase}: the server answered {}", &answer[..3]);
        assert!(line["error"].as_str().unwrap().contains(&expected), "{expected}: {line}");
        front.refuse_nothing();
        sqlx::query("UPDATE jobs SET run_at = now() WHERE token IS NULL").execute(&mut deploy.database().await).await.unwrap();
        deploy.mail.to(&ada.email, "Did you sign up?").await;
    }
}

/// An address of this machine other than the loopback's, if it has one. Nothing is sent to find it.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn smtp_password_needs_tls_unless_disabled() {
    let Some(host) = own_address() else {
        println!("skipped: needs an address beside the loopback's");
        return;
    };
    let deploy = Deploy::new().await;
    let front = MailFront::before(&deploy.mail).await;
    let url = |parameters: &str| format!("smtp://user:secret@{host}:{}{parameters}", front.port);
    let deploy = deploy.clone_with("SMTP_URL", url(""));
    let (web, mut worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::stranger(&web);
    let request = ada.sign_up().await.headers()["x-request-id"].to_str().unwrap().to_owned();
    let line = first_attempt(&worker, &request).await;
    assert!(line["outcome"] == "failed" && line["error"].as_str().unwrap().contains("at StartTls"), "{line}");
    let doctor = deploy.admin(&["doctor", "--json"]).await;
    let printed = String::from_utf8(doctor.stdout).unwrap();
    assert!(printed.lines().any(|line| line.contains("\"check\":\"smtp\"") && line.contains("\"ok\":false")), "{printed}");
    assert!(!front.received().iter().any(|command| command.starts_with("AUTH") || command.starts_with("MAIL")), "{:#?}", front.received());
    assert_eq!(worker.terminate().await, Some(0));

    // With `tls=none` the password is sent in clear.
    let _worker = deploy.clone_with("SMTP_URL", url("?tls=none")).start("worker");
    sqlx::query("UPDATE jobs SET run_at = now() WHERE token IS NULL").execute(&mut deploy.database().await).await.unwrap();
    deploy.mail.to(&ada.email, "Did you sign up?").await;
    eventually("the password", async || front.received().iter().any(|command| command.starts_with("AUTH PLAIN")).then_some(())).await;
}
