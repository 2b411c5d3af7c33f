//! The jobs that send mail to accounts: links to verify an address or set a password, and notices.

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::account::{self, Account};
use super::mail_limit;
use super::mailed_token::{self, Purpose};
use crate::jobs::{Job, JobContext, JobError, Priority, Registry};
use crate::resources::smtp::{self, Mail};

/// Adds the kinds of jobs of this module.
pub fn jobs(registry: Registry) -> Registry {
    let registry = registry.with::<SendVerification>().with::<SendPasswordReset>().with::<SendInvitation>();
    registry.with::<SendNotice>().with::<SendSecurityNotice>()
}

/// Sends a mail to an account. A permanent refusal of the address is recorded on the account and is not an error,
/// because a retry cannot help.
///
/// # Errors
/// The mail was not sent, and a retry can help.
pub async fn deliver(context: &JobContext, account_id: Uuid, mail: Mail) -> Result<(), JobError> {
    let to = mail.to.clone();
    match context.mailer.send(mail).await {
        Err(smtp::Error::Refused(why)) => {
            warn!(account_id = %account_id, "a mail server permanently refused an address: {why}");
            Ok(account::bounce(&mut *context.postgres.acquire().await?, account_id, &to).await?)
        }
        sent => Ok(sent?),
    }
}

/// Counts a mail that a stranger can trigger, by the kind of its job. Returns false if its recipient has reached the limit,
/// which only the log and the metrics show.
async fn may_mail<J: Job>(_: &J, context: &JobContext, address: &str) -> Result<bool, JobError> {
    let mut transaction = context.postgres.begin().await?;
    let may = mail_limit::take(&mut transaction, J::KIND, address, context.id()).await?;
    transaction.commit().await?;
    if !may {
        info!("mail held back: its recipient reached the hourly limit");
        context.mailer.held_back();
    }
    Ok(may)
}

async fn find(context: &JobContext, id: Uuid) -> Result<Option<Account>, JobError> {
    Ok(account::find(&mut *context.postgres.acquire().await?, id).await?)
}

/// An absolute link with a new token that is valid for `hours`. None as in [`mailed_token::mint`].
async fn link(
    context: &JobContext,
    purpose: Purpose,
    hours: i32,
    account_id: Uuid,
    email: &str,
    asked_in: Option<i32>,
) -> Result<Option<String>, JobError> {
    let token = mailed_token::mint(&mut *context.postgres.acquire().await?, purpose, hours, account_id, email, asked_in).await?;
    let page = match purpose {
        Purpose::Verify => "verify",
        Purpose::Reset => "reset",
        Purpose::Undo => "undo",
    };
    Ok(token.map(|token| context.site.link(&format!("/{page}?token={}", token.expose_secret()))))
}

/// Mails the link that verifies the account's address, or the new address that shall replace it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendVerification {
    pub account_id: Uuid,
}

impl Job for SendVerification {
    // No unique key, because a running job may be for the previous address.
    const KIND: &'static str = "send_verification";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await? else { return Ok(()) };
        let email = match account.new_email {
            Some(new) => new,
            None if account.verified => return Ok(()),
            None => account.email,
        };
        if !may_mail(self, context, &email).await? {
            return Ok(());
        }
        let Some(link) = link(context, Purpose::Verify, 24, account.id, &email, None).await? else { return Ok(()) };
        let text = format!(
            "Somebody signed up at {} with this email address.\n\nIf it was you, open this link within 24 hours and enter the password that \
             you chose:\n\n{link}\n\nIf it was not you, ignore this mail. You will get no other mail from this account.\n",
            context.site.origin()
        );
        let id = format!("verify-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: email, subject: "Did you sign up?".to_owned(), text }).await
    }
}

/// Mails the link that sets a new password.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendPasswordReset {
    /// For an unknown address, an id that no account has. The request does the same work as for a known address.
    pub account_id: Uuid,
    /// Whether the owner has just undone a change of the address, so that no stranger can have asked for this mail.
    #[serde(default)]
    pub address_restored: bool,
}

impl Job for SendPasswordReset {
    // No unique key: a second request would be faster for an address that has an account, and so reveal it.
    const KIND: &'static str = "send_password_reset";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await?.filter(|account| !account.suspended) else { return Ok(()) };
        if !self.address_restored && !may_mail(self, context, &account.email).await? {
            return Ok(());
        }
        let Some(link) = link(context, Purpose::Reset, 1, account.id, &account.email, None).await? else { return Ok(()) };
        let text = format!(
            "Somebody asked to reset the password of your account at {}.\n\nTo set a new password, open this link within an hour:\n\n{link}\n\n\
             If it was not you, ignore this mail. Your password stays as it is.\n",
            context.site.origin()
        );
        let id = format!("reset-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: account.email, subject: "Set a new password".to_owned(), text }).await
    }
}

/// Mails the link that sets the first password of an account that an operator created.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendInvitation {
    pub account_id: Uuid,
}

// Without a unique key, because a second invitation withdraws the link of the first, which may be on its way.
impl Job for SendInvitation {
    const KIND: &'static str = "send_invitation";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await?.filter(|account| !account.verified) else { return Ok(()) };
        let Some(link) = link(context, Purpose::Reset, 72, account.id, &account.email, None).await? else { return Ok(()) };
        let origin = context.site.origin();
        let text = format!("You have an account at {origin}.\n\nTo use it, set a password within three days:\n\n{link}\n");
        let id = format!("invitation-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: account.email, subject: "You are invited".to_owned(), text }).await
    }
}

/// An event that the owner of an account is notified of, in case somebody else caused it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// Somebody signed up with the account's address. The response to that cannot say so: it would tell strangers who
    /// has an account.
    AccountExists,
    /// Only version 0.1.0 enqueues it.
    AddressChange,
    PasswordChanged,
}

/// Mails a notice to a verified address.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendNotice {
    pub account_id: Uuid,
    pub notice: Notice,
}

impl Job for SendNotice {
    const KIND: &'static str = "send_notice";

    fn unique_key(&self) -> Option<String> {
        // Each change of a password gets its own mail, because a second one may be somebody else's.
        (!matches!(self.notice, Notice::PasswordChanged)).then(|| format!("{}:{:?}", self.account_id, self.notice))
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await?.filter(|account| account.verified) else { return Ok(()) };
        if matches!(self.notice, Notice::AccountExists) && !may_mail(self, context, &account.email).await? {
            return Ok(());
        }
        let (subject, what) = match self.notice {
            Notice::AccountExists => (
                "You have an account already",
                "Somebody signed up with this email address, which already has an account. Nothing was changed. If it was you, log in \
                 with your password, or ask for a link to set a new one.",
            ),
            Notice::AddressChange => (
                "Email address change requested",
                "Somebody asked to change the email address of this account. The new address replaces this one as soon as the link that \
                 we sent there is opened. If it was not you, set a new password at once.",
            ),
            Notice::PasswordChanged => (
                "Your password was changed",
                "The password of this account was changed. Its other sessions, its API tokens and other ways to log in have ended. If it \
                 was not you, ask for a link to set a new password at once.",
            ),
        };
        let text = format!("This is about your account at {}.\n\n{what}\n", context.site.origin());
        let id = format!("notice-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: account.email, subject: subject.to_owned(), text }).await
    }
}

/// An event that the account's address at that time is notified of.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityNotice {
    AddressChangeAsked {
        /// The account's epoch at that time.
        epoch: i32,
    },
    TokenCreated,
    AccountDeleted,
}

/// Mails a notice to the address that the account had at the time. The account may have another address now, or be
/// deleted.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendSecurityNotice {
    pub account_id: Uuid,
    pub address: String,
    pub notice: SecurityNotice,
}

impl Job for SendSecurityNotice {
    // No unique key: each job is about a different event.
    const KIND: &'static str = "send_security_notice";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Self { account_id, address, notice } = self;
        let (subject, what) = match notice {
            SecurityNotice::AddressChangeAsked { epoch } => {
                let link = link(context, Purpose::Undo, 72, *account_id, address, Some(*epoch)).await?;
                let Some(link) = link else { return Ok(()) };
                let what = format!(
                    "Somebody asked to change the email address of this account. The new address replaces this one as soon as the link that \
                     we sent there is opened.\n\nIf it was not you, open this link within three days. It keeps this address and ends every \
                     session, every API token and the password:\n\n{link}"
                );
                ("Email address change requested", what)
            }
            SecurityNotice::TokenCreated => {
                let what = "Somebody created an API token for this account. If it was not you, set a new password at once. \
                            That ends every token.";
                ("An API token was created", what.to_owned())
            }
            SecurityNotice::AccountDeleted => {
                ("Your account was deleted", "Somebody deleted this account and all of its data. We hope it was you.".to_owned())
            }
        };
        let text = format!("This is about your account at {}.\n\n{what}\n", context.site.origin());
        let id = format!("security-{account_id}-{}", context.id());
        deliver(context, *account_id, Mail { id, to: address.clone(), subject: subject.to_owned(), text }).await
    }
}
