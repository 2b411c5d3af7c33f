//! The daily digest: one mail for each account, with the reminders that are due that day.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::features::accounts::mails::deliver;
use crate::jobs::{self, Job, JobContext, JobError, Priority};
use crate::resources::postgres;
use crate::resources::smtp::Mail;

/// How many accounts the fan-out looks at in one transaction.
const PAGE: i64 = 500;

/// How many reminders a digest lists at most. The rest is only counted.
const MAX_LISTED: usize = 100;

/// Fans out into one job for each account that has a reminder due on the day, in pages.
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
    // A million accounts are two thousand pages.
    const TIMEOUT: Duration = Duration::from_mins(10);

    fn unique_key(&self) -> Option<String> {
        Some(self.day.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let (from, to) = bounds(self.day)?;
        let mut after = context.progress::<Uuid>()?.unwrap_or_default();
        loop {
            if context.draining() {
                return Err(JobError::DRAINED);
            }
            // A page's digests and the new position commit together, so each account gets one digest.
            let mut transaction = context.postgres.begin().await?;
            let page = sqlx::query!(
                r#"WITH page AS (SELECT id, verified_at, digest, suspended_at FROM accounts WHERE id > $3 ORDER BY id LIMIT $4)
                   SELECT id, verified_at IS NOT NULL AND digest AND suspended_at IS NULL AND EXISTS
                       (SELECT FROM reminders WHERE account_id = page.id AND due_at >= $1 AND due_at < $2 AND sent_at IS NULL) AS "due!"
                   FROM page ORDER BY id"#,
                from as _,
                to as _,
                after,
                PAGE
            );
            let page = page.fetch_all(&mut *transaction).await?;
            let Some(last) = page.last() else {
                context.complete(&mut transaction).await?;
                return Ok(transaction.commit().await?);
            };
            after = last.id;
            let digests: Vec<_> =
                page.iter().filter(|account| account.due).map(|account| SendDigest { account_id: account.id, day: self.day }).collect();
            let enqueued = jobs::enqueue_many(&mut transaction, &digests).await?;
            context.save_in(&mut transaction, &after).await?;
            transaction.commit().await?;
            enqueued.fire(&context.notifier);
        }
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
