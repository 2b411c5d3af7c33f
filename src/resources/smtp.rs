//! Sends mail over SMTP.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lettre::address::Envelope;
use lettre::message::{Mailbox, header};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::{Address, Message};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout};
use tracing::instrument;

use crate::config::{self, SmtpServer, SmtpTls};
use crate::lifecycle::Lifecycle;
use crate::telemetry::current_field;
use crate::telemetry::metrics::Metrics;

/// How long one SMTP command and its response may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle before it is used again, and how many may be idle.
const MAX_IDLE: Duration = Duration::from_secs(10);
const MAX_IDLE_CONNECTIONS: usize = 10;

/// A mail to one person.
#[derive(Debug, Clone)]
pub struct Mail {
    /// The left side of the Message-ID. It is the same at each attempt, so that a mail that is sent twice is recognized
    /// as one.
    pub id: String,
    pub to: String,
    pub subject: String,
    pub text: String,
}

/// Whether a text is an address that mail can be sent to. The sign-up and the mailer use the same rule.
pub fn is_address(text: &str) -> bool {
    text.len() <= 254 && text.parse::<lettre::Address>().is_ok()
}

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server or the address itself shows that a retry cannot help.
    #[error("mail permanently refused: {0}")]
    Refused(String),
    #[error("mail not sent: {0}")]
    Delayed(String),
}

/// The current step of a conversation with the server.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Connect,
    StartTls,
    Auth,
    MailFrom,
    RcptTo,
    Data,
}

impl Phase {
    /// The error of this phase. Only a 5xx to the recipient or to the data concerns the mail. Before that the server
    /// refuses this client, for example while a password is being changed. A server may quote the address, so only its
    /// code is reported.
    fn error(self, error: &lettre::transport::smtp::Error) -> Error {
        let text = match error.status() {
            Some(code) => format!("at {self:?}: the server answered {code}"),
            None => format!("at {self:?}: {error}"),
        };
        match self {
            Self::RcptTo | Self::Data if error.is_permanent() => Error::Refused(text),
            _ => Error::Delayed(text),
        }
    }
}

/// A connection that can be used again.
struct Idle {
    connection: AsyncSmtpConnection,
    since: Instant,
}

/// A handle on the mail server. Cheap to clone.
#[derive(Clone)]
pub struct Mailer {
    shared: Arc<Mutex<Shared>>,
    from: Mailbox,
    domain: String,
    metrics: Option<Metrics>,
}

struct Shared {
    server: Arc<SmtpServer>,
    idle: Vec<Idle>,
}

impl Mailer {
    /// Attaches the mail server. It connects when the first mail is sent. `domain` is the right side of Message-IDs.
    pub fn attach(config: &config::Smtp, domain: &str) -> Self {
        let shared = Shared { server: Arc::new(config.smtp_url.server.clone()), idle: Vec::new() };
        Self { shared: Arc::new(Mutex::new(shared)), from: config.mail_from.clone(), domain: domain.to_owned(), metrics: None }
    }

    /// Counts every mail in the metrics.
    pub fn count(&mut self, metrics: &Metrics) {
        self.metrics = Some(metrics.clone());
    }

    /// Follows changes of the URL if it is in a file.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Smtp) {
        let mailer = self.clone();
        super::follow(lifecycle, "SMTP_URL", config, |config| vec![&config.smtp_url.text], move |config| mailer.clone().renew(config));
    }

    async fn renew(self, config: config::Smtp) -> anyhow::Result<()> {
        let server = Arc::new(config.smtp_url.server.clone());
        connect(&server).await?.abort().await;
        *self.shared() = Shared { server, idle: Vec::new() };
        Ok(())
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a mail and returns when the server has accepted it.
    ///
    /// # Errors
    /// `Refused` for a 5xx response or an invalid address, `Delayed` for everything else. Neither contains the address.
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

    /// Counts a mail that was not sent because its recipient has reached the limit.
    pub fn held_back(&self) {
        self.metrics.iter().for_each(|metrics| metrics.mail("held_back"));
    }

    #[instrument(name = "SMTP", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn hand_over(&self, mail: Mail) -> Result<(), Error> {
        let to: Address = mail.to.parse().map_err(|_| Error::Refused("not an address".to_owned()))?;
        // The address of a service account. RFC 2606, 2: no server is responsible for this domain.
        if to.domain().ends_with(".invalid") {
            return Err(Error::Refused("the domain does not exist".to_owned()));
        }
        let raw = |name: &'static str, value: String| header::HeaderValue::new(header::HeaderName::new_from_ascii_str(name), value);
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(mail.subject)
            .message_id(Some(format!("<{}@{}>", mail.id, self.domain)))
            // RFC 3834: automatic responders must not reply to automatic mail.
            .raw_header(raw("Auto-Submitted", "auto-generated".to_owned()))
            .header(header::ContentType::TEXT_PLAIN);
        // Identifies the request that led to the mail, for a later investigation.
        for (name, field) in [("X-Request-Id", "request_id"), ("traceparent", "traceparent")] {
            if let Some(value) = current_field(field) {
                message = message.raw_header(raw(name, value));
            }
        }
        let message = message.body(mail.text).map_err(|e| Error::Refused(e.to_string()))?;
        self.converse(message.envelope(), &message.formatted()).await
    }

    /// Hands a message over on an idle connection, or on a new one.
    async fn converse(&self, envelope: &Envelope, message: &[u8]) -> Result<(), Error> {
        let server = self.shared().server.clone();
        // Servers close idle connections after a while.
        let fresh = |idle: &Idle| idle.since.elapsed() < MAX_IDLE;
        let idle = std::iter::from_fn(|| self.shared().idle.pop()).find(fresh);
        let mut begun = None;
        if let Some(Idle { mut connection, .. }) = idle
            && begin(&mut connection, envelope).await.is_ok()
        {
            begun = Some(connection);
        }
        let mut connection = if let Some(connection) = begun {
            connection
        } else {
            let mut connection = connect(&server).await?;
            begin(&mut connection, envelope).await?;
            connection
        };
        for to in envelope.to() {
            step(Phase::RcptTo, connection.command(Rcpt::new(to.clone(), Vec::new()))).await?;
        }
        step(Phase::Data, connection.command(Data)).await?;
        step(Phase::Data, connection.message(message)).await?;
        let mut shared = self.shared();
        if Arc::ptr_eq(&shared.server, &server) && shared.idle.len() < MAX_IDLE_CONNECTIONS {
            shared.idle.push(Idle { connection, since: Instant::now() });
        }
        Ok(())
    }

    /// Checks that the server answers and accepts the credentials.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&self) -> Result<(), Error> {
        let server = self.shared().server.clone();
        connect(&server).await?.abort().await;
        Ok(())
    }
}

/// Opens a connection that is ready for a mail.
async fn connect(server: &SmtpServer) -> Result<AsyncSmtpConnection, Error> {
    let hello = ClientId::default();
    let tls = || TlsParameters::new(server.host.clone()).map_err(|e| Phase::StartTls.error(&e));
    let implicit = if server.tls == SmtpTls::Implicit { Some(tls()?) } else { None };
    let address = (server.host.as_str(), server.port);
    let connecting = Box::pin(AsyncSmtpConnection::connect_tokio1(address, Some(COMMAND_TIMEOUT), &hello, implicit, None));
    let mut connection = step(Phase::Connect, connecting).await?;
    let wanted = match server.tls {
        SmtpTls::Required => true,
        SmtpTls::Opportunistic => connection.can_starttls(),
        SmtpTls::Implicit | SmtpTls::None => false,
    };
    if wanted {
        step(Phase::StartTls, Box::pin(connection.starttls(tls()?, &hello))).await?;
    }
    if let Some((user, password)) = &server.credentials {
        let credentials = Credentials::new(user.clone(), password.expose_secret().to_owned());
        step(Phase::Auth, connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials)).await?;
    }
    Ok(connection)
}

async fn begin(connection: &mut AsyncSmtpConnection, envelope: &Envelope) -> Result<(), Error> {
    let mut parameters = Vec::new();
    if !envelope.to().iter().all(|to| AsRef::<str>::as_ref(to).is_ascii()) {
        if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            return Err(Error::Refused("the server accepts only ASCII addresses".to_owned()));
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    step(Phase::MailFrom, connection.command(MailFrom::new(envelope.from().cloned(), parameters))).await.map(drop)
}

/// Runs one step of a conversation with its time limit.
async fn step<T>(phase: Phase, answer: impl Future<Output = Result<T, lettre::transport::smtp::Error>>) -> Result<T, Error> {
    match timeout(COMMAND_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|e| phase.error(&e)),
        Err(_) => Err(Error::Delayed(format!("at {phase:?}: no answer in {COMMAND_TIMEOUT:?}"))),
    }
}
