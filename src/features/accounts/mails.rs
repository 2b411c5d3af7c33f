//! The jobs that mail accounts: the link that verifies an address, the link that resets a password, notices.

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::account;
use super::mailed_token::{self, Purpose};
use crate::jobs::{Job, JobContext, JobError};
use crate::resources::smtp::Mail;

/// Mails the link that verifies the address, or the one that shall take its place.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendVerification {
    pub account_id: Uuid,
}

impl Job for SendVerification {
    // No unique key: one that runs may be for the address before.
    const KIND: &'static str = "send_verification";

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = account::find(&mut *context.postgres.acquire().await?, self.account_id).await? else { return Ok(()) };
        let email = match account.new_email {
            Some(new) => new,
            None if account.verified => return Ok(()),
            None => account.email,
        };
        let token = mailed_token::mint(&mut *context.postgres.acquire().await?, Purpose::Verify, account.id, &email).await?;
        let link = context.site.link(&format!("/verify?token={}", token.expose_secret()));
        let mail = Mail {
            id: format!("verify-{}-{}", account.id, context.id()),
            to: email,
            subject: "Is this your address?".to_owned(),
            text: format!(
                "Somebody, hopefully you, has an account at {} and named this address.\n\nTo show that it is yours, open this link within 24 hours:\n\n{link}\n\n\
                 If it was not you, do nothing: without the link the account gets no mail here.\n",
                context.site.origin()
            ),
        };
        Ok(context.mailer.send(mail).await?)
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

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) =
            account::find(&mut *context.postgres.acquire().await?, self.account_id).await?.filter(|account| !account.suspended)
        else {
            return Ok(());
        };
        let token = mailed_token::mint(&mut *context.postgres.acquire().await?, Purpose::Reset, account.id, &account.email).await?;
        let link = context.site.link(&format!("/reset?token={}", token.expose_secret()));
        let text = format!(
            "Somebody, hopefully you, forgot the password of this address at {}.\n\nTo set another, open this link within an hour:\n\n{link}\n\n\
             If it was not you, do nothing: the password stays as it is.\n",
            context.site.origin()
        );
        let id = format!("reset-{}-{}", account.id, context.id());
        Ok(context.mailer.send(Mail { id, to: account.email, subject: "Set another password".to_owned(), text }).await?)
    }
}

/// What a person is told of their account, for the case that it was somebody else's doing.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// Somebody signed up once more. The answer to that cannot tell: it would tell strangers who has an account.
    AccountExists,
    /// Another address was asked for.
    AddressChange,
    PasswordChanged,
}

/// Mails a notice.
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
        let Some(account) = account::find(&mut *context.postgres.acquire().await?, self.account_id).await? else { return Ok(()) };
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
                "The password of this account was changed, and its other sessions have ended. If it was not you, ask for a link to \
                 set another at once.",
            ),
        };
        let text = format!("This is about your account at {}.\n\n{what}\n", context.site.origin());
        let id = format!("notice-{}-{}", account.id, context.id());
        Ok(context.mailer.send(Mail { id, to: account.email, subject: subject.to_owned(), text }).await?)
    }
}
