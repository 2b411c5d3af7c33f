//! The jobs that mail accounts: the links that verify an address and set a password, and notices.

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::account::{self, Account};
use super::mail_limit;
use super::mailed_token::{self, Purpose};
use crate::jobs::{Job, JobContext, JobError, Priority, Registry};
use crate::resources::smtp::{self, Mail};

/// The kinds of jobs here.
pub fn jobs(registry: Registry) -> Registry {
    let registry = registry.with::<SendVerification>().with::<SendPasswordReset>().with::<SendInvitation>();
    registry.with::<SendNotice>().with::<SendSecurityNotice>()
}

/// Sends a mail to an account. That its address is refused for good is noted on the account, and is no failure: it is
/// seldom ours, and trying again cannot help.
///
/// # Errors
/// The mail was not sent, and trying again can help.
pub async fn deliver(context: &JobContext, account_id: Uuid, mail: Mail) -> Result<(), JobError> {
    let to = mail.to.clone();
    match context.mailer.send(mail).await {
        Err(smtp::Error::Refused(why)) => {
            warn!(account_id = %account_id, "an address was refused for good: {why}");
            Ok(account::bounce(&mut *context.postgres.acquire().await?, account_id, &to).await?)
        }
        sent => Ok(sent?),
    }
}

/// Counts a mail that anybody can cause; false if its recipient has got enough of these. Nobody is told but the metrics.
async fn may_mail(context: &JobContext, address: &str) -> Result<bool, JobError> {
    let mut transaction = context.postgres.begin().await?;
    let may = mail_limit::take(&mut transaction, address, context.id()).await?;
    transaction.commit().await?;
    if !may {
        info!("a mail is held back: its recipient has got enough for an hour");
        context.mailer.held_back();
    }
    Ok(may)
}

async fn find(context: &JobContext, id: Uuid) -> Result<Option<Account>, JobError> {
    Ok(account::find(&mut *context.postgres.acquire().await?, id).await?)
}

/// An absolute link with a new token, good for so many hours. None as of [`mailed_token::mint`].
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

/// Mails the link that verifies the address, or the one that shall take its place.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendVerification {
    pub account_id: Uuid,
}

impl Job for SendVerification {
    // No unique key: one that runs may be for the address before.
    const KIND: &'static str = "send_verification";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await? else { return Ok(()) };
        let email = match account.new_email {
            Some(new) => new,
            None if account.verified => return Ok(()),
            None => account.email,
        };
        if !may_mail(context, &email).await? {
            return Ok(());
        }
        let Some(link) = link(context, Purpose::Verify, 24, account.id, &email, None).await? else { return Ok(()) };
        let text = format!(
            "Somebody signed up at {} with this address.\n\nIf it was you, open this link within 24 hours and enter the password that you \
             chose:\n\n{link}\n\nIf it was not you, do nothing: without the link the account gets no other mail here.\n",
            context.site.origin()
        );
        let id = format!("verify-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: email, subject: "Did you sign up?".to_owned(), text }).await
    }
}

/// Mails the link that sets another password.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendPasswordReset {
    /// Of an unknown address, the id of nobody: the request did as much for it as for a known one.
    pub account_id: Uuid,
}

impl Job for SendPasswordReset {
    // No unique key: a second request would take less time where there is an account.
    const KIND: &'static str = "send_password_reset";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await?.filter(|account| !account.suspended) else { return Ok(()) };
        if !may_mail(context, &account.email).await? {
            return Ok(());
        }
        let Some(link) = link(context, Purpose::Reset, 1, account.id, &account.email, None).await? else { return Ok(()) };
        let text = format!(
            "Somebody, hopefully you, forgot the password of this address at {}.\n\nTo set another, open this link within an hour:\n\n{link}\n\n\
             If it was not you, do nothing: the password stays as it is.\n",
            context.site.origin()
        );
        let id = format!("reset-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: account.email, subject: "Set another password".to_owned(), text }).await
    }
}

/// Mails the link that sets the first password of an account that an operator made.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendInvitation {
    pub account_id: Uuid,
}

impl Job for SendInvitation {
    const KIND: &'static str = "send_invitation";
    const PRIORITY: Priority = Priority::Awaited;

    fn unique_key(&self) -> Option<String> {
        Some(self.account_id.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await?.filter(|account| !account.verified) else { return Ok(()) };
        let Some(link) = link(context, Purpose::Reset, 72, account.id, &account.email, None).await? else { return Ok(()) };
        let origin = context.site.origin();
        let text = format!("You have an account at {origin}.\n\nTo use it, set a password within three days:\n\n{link}\n");
        let id = format!("invitation-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: account.email, subject: "You are invited".to_owned(), text }).await
    }
}

/// What a person is told of their account, for the case that it was somebody else's doing.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// Somebody signed up once more. The answer to that cannot tell: it would tell strangers who has an account.
    AccountExists,
    /// As 0.1.0 enqueues it.
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
        Some(format!("{}:{:?}", self.account_id, self.notice))
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = find(context, self.account_id).await?.filter(|account| account.verified) else { return Ok(()) };
        if matches!(self.notice, Notice::AccountExists) && !may_mail(context, &account.email).await? {
            return Ok(());
        }
        let (subject, what) = match self.notice {
            Notice::AccountExists => (
                "You have an account already",
                "Somebody, hopefully you, signed up with this address, which has an account already. Nothing was changed. \
                 Log in with the password that you chose then, or ask for a link to set another.",
            ),
            Notice::AddressChange => (
                "Another address was asked for",
                "Somebody, hopefully you, asked for another address for this account. It takes this one's place when a link that was \
                 mailed there is opened. If it was not you, set another password at once.",
            ),
            Notice::PasswordChanged => (
                "Your password was changed",
                "The password of this account was changed. Its other sessions and its API tokens have ended. If it was not you, ask for a \
                 link to set another at once.",
            ),
        };
        let text = format!("This is about your account at {}.\n\n{what}\n", context.site.origin());
        let id = format!("notice-{}-{}", account.id, context.id());
        deliver(context, account.id, Mail { id, to: account.email, subject: subject.to_owned(), text }).await
    }
}

/// What was done to an account that its address of before must hear of.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityNotice {
    AddressChangeAsked {
        /// The account's epoch then.
        epoch: i32,
    },
    TokenCreated,
    AccountDeleted,
}

/// Mails a notice to the address that the account had then: it may be another's now, or gone.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendSecurityNotice {
    pub account_id: Uuid,
    pub address: String,
    pub notice: SecurityNotice,
}

impl Job for SendSecurityNotice {
    // No unique key: each is about something else.
    const KIND: &'static str = "send_security_notice";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Self { account_id, address, notice } = self;
        let (subject, what) = match notice {
            SecurityNotice::AddressChangeAsked { epoch } => {
                let link = link(context, Purpose::Undo, 72, *account_id, address, Some(*epoch)).await?;
                let Some(link) = link else { return Ok(()) };
                let what = format!(
                    "Somebody, hopefully you, asked for another address for this account. It takes this one's place when a link that was mailed \
                     there is opened.\n\nIf it was not you, open this link within three days. It keeps this address, and ends every session, API \
                     token and the password:\n\n{link}"
                );
                ("Another address was asked for", what)
            }
            SecurityNotice::TokenCreated => {
                let what = "Somebody, hopefully you, made an API token for this account. If it was not you, set another password at once: \
                            that ends every token.";
                ("An API token was made", what.to_owned())
            }
            SecurityNotice::AccountDeleted => {
                ("Your account was deleted", "Somebody, hopefully you, deleted this account and all that was its own.".to_owned())
            }
        };
        let text = format!("This is about your account at {}.\n\n{what}\n", context.site.origin());
        let id = format!("security-{account_id}-{}", context.id());
        deliver(context, *account_id, Mail { id, to: address.clone(), subject: subject.to_owned(), text }).await
    }
}
