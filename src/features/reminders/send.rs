//! Mails a reminder when it is due.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::features::accounts::mails::deliver;
use crate::jobs::{Job, JobContext, JobError};
use crate::resources::events;
use crate::resources::smtp::Mail;

/// How long the reminder of a suspended account waits before its job runs again.
const SUSPENDED_DELAY: Duration = Duration::from_mins(15);

/// Mails one version of a reminder. A reminder that was changed since has another job.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendReminder {
    pub id: Uuid,
    pub version: i32,
}

impl Job for SendReminder {
    const KIND: &'static str = "send_reminder";

    fn unique_key(&self) -> Option<String> {
        Some(format!("{}:{}", self.id, self.version))
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let due = sqlx::query!(
            r#"SELECT account_id, message, email, suspended_at IS NOT NULL AS "suspended!"
               FROM reminders JOIN accounts ON accounts.id = account_id
               WHERE reminders.id = $1 AND version = $2 AND sent_at IS NULL AND verified_at IS NOT NULL"#,
            self.id,
            self.version
        );
        // None if it was changed, deleted or already sent.
        let Some(due) = due.fetch_optional(&mut *context.postgres.acquire().await?).await? else { return Ok(()) };
        // The reminder is kept, because the account may be restored.
        if due.suspended {
            return Err(JobError::Later(SUSPENDED_DELAY));
        }
        let mail = Mail {
            id: format!("reminder-{}-{}", self.id, self.version),
            to: due.email,
            subject: "A reminder".to_owned(),
            text: due.message,
        };
        deliver(context, due.account_id, mail).await?;

        let mut transaction = context.postgres.begin().await?;
        sqlx::query!("UPDATE reminders SET sent_at = now() WHERE id = $1 AND version = $2", self.id, self.version)
            .execute(&mut *transaction)
            .await?;
        context.complete(&mut transaction).await?;
        transaction.commit().await?;
        events::publish(&context.redis, due.account_id, "reminders", self.id).await;
        Ok(())
    }
}
