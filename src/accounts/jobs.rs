//! What accounts ask the worker for.

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tracing::info;
use uuid::Uuid;

use super::{account, verification};
use crate::http::session;
use crate::jobs::{Job, JobContext, JobError};
use crate::resources::smtp::Mail;

/// Mails the link that verifies the address.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendVerification {
    pub account_id: Uuid,
}

impl Job for SendVerification {
    const KIND: &'static str = "send_verification";

    fn unique_key(&self) -> Option<String> {
        Some(self.account_id.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = account::find(&context.postgres, self.account_id).await? else { return Ok(()) };
        if account.verified_at.is_some() {
            return Ok(());
        }
        let token = verification::mint(&context.postgres, account.id).await?;
        let link = context.site.link(&format!("/verify?token={}", token.expose_secret()));
        let mail = Mail {
            id: format!("verify-{}-{}", account.id, context.id()),
            to: account.email,
            subject: "Is this your address?".to_owned(),
            text: format!(
                "Somebody, hopefully you, signed up at {} with this address.\n\nTo show that it is yours, open this link within 24 hours:\n\n{link}\n\n\
                 If it was not you, do nothing: without the link the account gets no mail.\n",
                context.site.origin()
            ),
        };
        Ok(context.mailer.send(mail).await?)
    }
}

/// Tells a person who signed up once more that there is an account already.
///
/// The answer to the sign-up cannot tell it: it would tell strangers who has an account.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendAccountExists {
    pub account_id: Uuid,
}

impl Job for SendAccountExists {
    const KIND: &'static str = "send_account_exists";

    fn unique_key(&self) -> Option<String> {
        Some(self.account_id.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let Some(account) = account::find(&context.postgres, self.account_id).await? else { return Ok(()) };
        let mail = Mail {
            id: format!("exists-{}-{}", account.id, context.id()),
            to: account.email,
            subject: "You have an account already".to_owned(),
            text: format!(
                "Somebody, hopefully you, signed up at {} with this address, which has an account already.\n\nNothing was changed. Log in with \
                 the password that you chose then.\n\nIf it was not you, do nothing.\n",
                context.site.origin()
            ),
        };
        Ok(context.mailer.send(mail).await?)
    }
}

/// Ends the sessions that began before the account's epoch was raised: exactly those, however often it runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndSessions {
    pub account_id: Uuid,
    pub epoch: i32,
}

impl Job for EndSessions {
    const KIND: &'static str = "end_sessions";

    fn unique_key(&self) -> Option<String> {
        Some(format!("{}:{}", self.account_id, self.epoch))
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        Ok(session::end_before(&context.redis, self.account_id, self.epoch).await?)
    }
}

/// Deletes what has expired.
#[derive(Debug, Serialize, Deserialize)]
pub struct PurgeExpired {}

impl Job for PurgeExpired {
    const KIND: &'static str = "purge_expired";

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let tokens = verification::purge(&context.postgres).await?;
        info!(tokens, "{tokens} expired token(s) purged");
        Ok(())
    }
}
