//! The daily digest: one mail for each account, with the reminders that are due that day.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::features::accounts::mails::deliver;
use crate::jobs::{self, Job, JobContext, JobError, Priority};
use crate::resources::postgres;
use crate::resources::smtp::Mail;

/// How many reminders a digest lists at most. The rest is only counted.
const MAX_LISTED: usize = 100;

/// Fans out into one job for each account that has a reminder due on the day.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendDigests {
    pub day: Date,
}

impl SendDigests {
    /// The digests of a tick's day, in UTC.
    pub fn of(tick: Timestamp) -> Self {
        Self { day: tick.to_zoned(TimeZone::UTC).date() }
    }
}

impl Job for SendDigests {
    const KIND: &'static str = "send_digests";

    fn unique_key(&self) -> Option<String> {
        Some(self.day.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let (from, to) = bounds(self.day)?;
        let accounts = sqlx::query_scalar!(
            r#"SELECT DISTINCT account_id FROM reminders JOIN accounts ON accounts.id = account_id
               WHERE sent_at IS NULL AND due_at >= $1 AND due_at < $2 AND verified_at IS NOT NULL AND digest AND suspended_at IS NULL"#,
            from as _,
            to as _
        );
        let digests: Vec<_> = accounts
            .fetch_all(&mut *context.postgres.acquire().await?)
            .await?
            .into_iter()
            .map(|account_id| SendDigest { account_id, day: self.day })
            .collect();
        // In one transaction with the end of this job. Either all digests are enqueued once, or this job runs again.
        let mut transaction = context.postgres.begin().await?;
        let mut enqueued = Vec::new();
        for some in digests.chunks(1000) {
            enqueued.push(jobs::enqueue_many(&mut transaction, some).await?);
        }
        context.complete(&mut transaction).await?;
        transaction.commit().await?;
        for some in enqueued {
            some.fire(&context.notifier);
        }
        Ok(())
    }
}

/// Mails one account's digest of one day.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendDigest {
    pub account_id: Uuid,
    pub day: Date,
}

impl Job for SendDigest {
    const KIND: &'static str = "send_digest";
    const PRIORITY: Priority = Priority::Bulk;

    fn unique_key(&self) -> Option<String> {
        Some(format!("{}:{}", self.account_id, self.day))
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let (from, to) = bounds(self.day)?;
        let due = sqlx::query!(
            r#"SELECT email, message, due_at FROM reminders JOIN accounts ON accounts.id = account_id
               WHERE account_id = $1 AND due_at >= $2 AND due_at < $3 AND sent_at IS NULL AND verified_at IS NOT NULL AND digest AND suspended_at IS NULL
               ORDER BY due_at LIMIT 1000"#,
            self.account_id,
            from as _,
            to as _
        );
        let due = due.fetch_all(&mut *context.postgres.acquire().await?).await?;
        let Some(first) = due.first() else { return Ok(()) };
        let line = |message: &str, at: Timestamp| {
            let start: String = message.lines().next().unwrap_or_default().chars().take(100).collect();
            format!("{} UTC  {start}\n", at.to_zoned(TimeZone::UTC).strftime("%H:%M"))
        };
        let mut text: String = due.iter().take(MAX_LISTED).map(|row| line(&row.message, row.due_at.into())).collect();
        if due.len() > MAX_LISTED {
            text.push_str(&format!("and {} more\n", due.len() - MAX_LISTED));
        }
        let mail = Mail {
            id: format!("digest-{}-{}", self.account_id, self.day),
            to: first.email.clone(),
            subject: format!("Due on {}", self.day),
            text,
        };
        deliver(context, self.account_id, mail).await
    }
}

/// A day's beginning and end, in UTC.
fn bounds(day: Date) -> anyhow::Result<(postgres::Timestamp, postgres::Timestamp)> {
    let start = day.to_zoned(TimeZone::UTC)?;
    Ok((start.timestamp().into(), start.tomorrow()?.timestamp().into()))
}
