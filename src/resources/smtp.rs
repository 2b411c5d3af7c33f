//! SMTP: outgoing mail.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use lettre::message::{Mailbox, header};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use secrecy::ExposeSecret;
use tracing::instrument;

use crate::config;
use crate::lifecycle::Lifecycle;
use crate::telemetry::current_field;
use crate::telemetry::metrics::Metrics;

/// How long one step of the conversation with the server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mail to one person.
#[derive(Debug, Clone)]
pub struct Mail {
    /// What the Message-ID is made from: the same at each attempt, so that a mail sent twice is seen to be one.
    pub id: String,
    pub to: String,
    pub subject: String,
    pub text: String,
}

/// Whether mail can be sent to a text at all: the sign-up and the mailer must agree.
pub fn is_address(text: &str) -> bool {
    text.len() <= 254 && text.parse::<lettre::Address>().is_ok()
}

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server says, or the address shows, that trying again cannot help.
    #[error("mail refused for good: {0}")]
    Refused(String),
    #[error("mail not sent: {0}")]
    Delayed(String),
}

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// A handle on the mail server, cheap to clone.
#[derive(Clone)]
pub struct Mailer {
    transport: Arc<RwLock<Transport>>,
    from: Mailbox,
    domain: String,
    metrics: Option<Metrics>,
}

impl Mailer {
    /// Attaches the mail server; connects when the first mail goes out. `domain` is the right side of Message-IDs.
    ///
    /// # Errors
    /// The URL is none of SMTP's, which the config has ruled out.
    pub fn attach(config: &config::Smtp, domain: &str) -> anyhow::Result<Self> {
        let transport = Arc::new(RwLock::new(transport(config)?));
        Ok(Self { transport, from: config.mail_from.clone(), domain: domain.to_owned(), metrics: None })
    }

    /// Has every mail counted.
    pub fn count(&mut self, metrics: &Metrics) {
        self.metrics = Some(metrics.clone());
    }

    /// Follows the URL where it stands in a file.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Smtp) {
        let mailer = self.clone();
        super::follow(lifecycle, "SMTP_URL", config, |config| &config.smtp_url.0, move |config| mailer.clone().renew(config));
    }

    async fn renew(self, config: config::Smtp) -> anyhow::Result<()> {
        let transport = transport(&config)?;
        anyhow::ensure!(transport.test_connection().await?, "the server hung up");
        *self.transport.write().unwrap_or_else(PoisonError::into_inner) = transport;
        Ok(())
    }

    fn transport(&self) -> Transport {
        self.transport.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a mail, and returns when the server has taken it over.
    ///
    /// # Errors
    /// `Refused` for a 5xx answer or an impossible address, `Delayed` for everything else. Neither holds the address.
    pub async fn send(&self, mail: Mail) -> Result<(), Error> {
        let sent = self.hand_over(mail).await;
        let outcome = match &sent {
            Ok(()) => "sent",
            Err(Error::Delayed(_)) => "delayed",
            Err(Error::Refused(_)) => "refused",
        };
        self.metrics.iter().for_each(|metrics| metrics.mail(outcome));
        sent
    }

    /// Counts a mail that was not sent because its recipient has got enough.
    pub fn held_back(&self) {
        self.metrics.iter().for_each(|metrics| metrics.mail("held_back"));
    }

    #[instrument(name = "SMTP", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn hand_over(&self, mail: Mail) -> Result<(), Error> {
        let to = mail.to.parse().map_err(|_| Error::Refused("not an address".to_owned()))?;
        let raw = |name: &'static str, value: String| header::HeaderValue::new(header::HeaderName::new_from_ascii_str(name), value);
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(mail.subject)
            .message_id(Some(format!("<{}@{}>", mail.id, self.domain)))
            // RFC 3834: answering machines must leave automatic mail alone.
            .raw_header(raw("Auto-Submitted", "auto-generated".to_owned()))
            .header(header::ContentType::TEXT_PLAIN);
        // What the mail follows from, for whoever looks into it later.
        for (name, field) in [("X-Request-Id", "request_id"), ("traceparent", "traceparent")] {
            if let Some(value) = current_field(field) {
                message = message.raw_header(raw(name, value));
            }
        }
        let message = message.body(mail.text).map_err(|e| Error::Refused(e.to_string()))?;
        match self.transport().send(message).await {
            Ok(_) => Ok(()),
            // A server may quote the address in its answer, so only the code is told.
            Err(e) => match e.status() {
                Some(code) if e.is_permanent() => Err(Error::Refused(format!("the server answered {code}"))),
                Some(code) => Err(Error::Delayed(format!("the server answered {code}"))),
                None => Err(Error::Delayed(e.to_string())),
            },
        }
    }

    /// Whether the server answers.
    ///
    /// # Errors
    /// It does not, or refuses the log-in.
    pub async fn check(&self) -> Result<(), Error> {
        match self.transport().test_connection().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Delayed("the server hung up".to_owned())),
            Err(e) => Err(Error::Delayed(e.to_string())),
        }
    }
}

fn transport(config: &config::Smtp) -> anyhow::Result<Transport> {
    Ok(Transport::from_url(config.smtp_url.0.expose_secret())?.timeout(Some(PATIENCE)).build())
}
