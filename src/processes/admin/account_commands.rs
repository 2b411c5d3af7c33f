//! `admin account …`, `session …`, `seed` and `export`: what an operator does to accounts, and for the people behind them.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow};
use clap::Subcommand;
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;
use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::Task;
use super::output::{note, say};
use crate::app::{App, Parts};
use crate::auth::audit::{self, Action};
use crate::auth::password::Passwords;
use crate::auth::session::Sessions;
use crate::auth::{By, Role, secret};
use crate::config;
use crate::features::FEATURES;
use crate::features::accounts::account::{self, Account};
use crate::features::accounts::export::export as export_of;
use crate::features::accounts::mails::SendInvitation;
use crate::features::accounts::my_sessions::{self, end_before};
use crate::features::accounts::settings;
use crate::http::Problem;
use crate::jobs::{self, Notifier};
use crate::resources::redis::Redis;
use crate::resources::smtp;

#[derive(Subcommand)]
pub enum Command {
    /// List accounts, the oldest first
    List {
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Begin after the account with this id
        #[arg(long, default_value_t = Uuid::nil(), hide_default_value = true)]
        after: Uuid,
    },
    /// Show one account, by its address or its id
    Show { account: String },
    /// Make an account, and mail a link to set its password, which is good for three days
    Invite {
        email: String,
        #[arg(long, default_value = "user")]
        role: Role,
    },
    /// Give an account a role; its sessions end
    Grant { account: String, role: Role },
    /// Keep an account out: its sessions end, its tokens stop, it cannot log in
    Suspend {
        account: String,
        /// Let it in again
        #[arg(long)]
        restore: bool,
    },
    /// Delete an account and all that is its own
    Delete {
        account: String,
        /// Do not ask first
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub enum SessionCommand {
    /// List where an account is logged in
    List { account: String },
    /// End all sessions of an account, or one of them
    End { account: String, session: Option<String> },
}

/// Runs `admin account …`.
pub async fn run(task: &Task, command: Command) -> Result<()> {
    let app = attach(task)?;
    let pool = &app.postgres;
    match command {
        Command::List { limit, after } => {
            let accounts = account::list(&**pool, after, i64::from(limit)).await?;
            let rows: Vec<_> = accounts.into_iter().map(|account| json!(account)).collect();
            task.rows(&["id", "email", "role", "verified", "suspended", "created_at"], &rows);
        }
        Command::Show { account } => {
            let columns = ["id", "email", "new_email", "role", "verified", "digest", "suspended", "bounced_at", "created_at"];
            task.rows(&columns, &[json!(find(pool, &account).await?)]);
        }
        Command::Invite { email, role } => invite(&app, &email, role).await?,
        Command::Grant { account, role } => {
            let (found, mut change) = (find(pool, &account).await?, pool.begin().await?);
            let epoch = account::grant(&mut change, found.id, role).await?;
            finish(&app, change, found.id, epoch, Action::ROLE_CHANGED).await?;
        }
        Command::Suspend { account, restore } => {
            let (found, mut change) = (find(pool, &account).await?, pool.begin().await?);
            let epoch = account::suspend(&mut change, found.id, !restore, None).await?;
            finish(&app, change, found.id, epoch, if restore { Action::RESTORED } else { Action::SUSPENDED }).await?;
        }
        Command::Delete { account, yes } => {
            let found = find(pool, &account).await?;
            if !yes {
                // Without a terminal there is nobody to ask.
                anyhow::ensure!(std::io::stdin().is_terminal(), "there is no terminal to ask on: say --yes");
                note(format_args!("Delete {} ({}) and all that is its own? Type yes:", found.email, found.id));
                let mut answer = String::new();
                std::io::stdin().read_line(&mut answer)?;
                anyhow::ensure!(answer.trim() == "yes", "nothing was changed");
            }
            let mut change = pool.begin().await?;
            let epoch = settings::delete(&app, &mut change, found.id, None).await?;
            finish(&app, change, found.id, epoch, Action::ACCOUNT_DELETED).await?;
        }
    }
    Ok(())
}

/// Runs `admin session …`.
pub async fn sessions(task: &Task, command: SessionCommand) -> Result<()> {
    let app = attach(task)?;
    match command {
        SessionCommand::List { account } => {
            let rows = my_sessions::as_json(&app.sessions, find(&app.postgres, &account).await?.id).await?;
            task.rows(&["id", "created_at", "last_used_at", "user_agent"], &rows);
        }
        SessionCommand::End { account, session: None } => {
            let (found, mut change) = (find(&app.postgres, &account).await?, app.postgres.begin().await?);
            let epoch = account::raise_epoch(&mut change, found.id, None).await?;
            finish(&app, change, found.id, epoch, Action::SESSIONS_ENDED).await?;
        }
        SessionCommand::End { account, session: Some(session) } => {
            let id = find(&app.postgres, &account).await?.id;
            anyhow::ensure!(app.sessions.end(id, &session).await?, "the account has no such session");
            audit::record(&*app.postgres, Action::SESSIONS_ENDED, Some(id), By::OPERATOR).await?;
            say(format_args!("account {id}: that session has ended"));
        }
    }
    Ok(())
}

/// Prints all that is stored about one person, as JSON, without a password or a token that works.
pub async fn export(task: &Task, account: &str) -> Result<()> {
    let app = attach(task)?;
    let account = find(&app.postgres, account).await?;
    audit::record(&*app.postgres, Action::DATA_EXPORTED, Some(account.id), By::OPERATOR).await?;
    say(serde_json::to_string_pretty(&export_of(&app, account).await?)?);
    Ok(())
}

/// Makes two demo accounts if they are not there yet, and prints their passwords.
pub async fn seed(task: &Task) -> Result<()> {
    let (app, site) = (attach(task)?, config::read::<config::Site>(&task.env)?);
    anyhow::ensure!(!site.public_url.is_https(), "PUBLIC_URL is https, so this deploy is for real people: demo accounts stay out");
    for email in ["ada@example.com", "grace@example.com"] {
        let password = create(&app, email).await?;
        let password = password.as_deref().unwrap_or("is there already, with the password it was given then");
        say(format_args!("{email}  {password}"));
    }
    Ok(())
}

/// Makes a verified account with a random password, and gives that; none if the address has an account.
async fn create(app: &App, email: &str) -> Result<Option<String>> {
    let (id, password) = (Uuid::now_v7(), secret::mint()?);
    let hash = app.passwords.hash(&SecretString::from(password.clone())).await.map_err(cause)?;
    let mut change = app.postgres.begin().await.context("cannot reach Postgres")?;
    if !account::create(&mut change, id, email, &hash).await? {
        return Ok(None);
    }
    account::verify(&mut change, id, email, None).await?;
    audit::record(&mut *change, Action::ACCOUNT_CREATED, Some(id), By::OPERATOR).await?;
    change.commit().await?;
    Ok(Some(password))
}

/// Makes an account that nobody can log in to, and enqueues the mail with the link that changes that. An address that was
/// never verified may be invited again: whoever signed up with it before is locked out, and earlier links stop working.
async fn invite(app: &App, email: &str, role: Role) -> Result<()> {
    anyhow::ensure!(smtp::is_address(email), "{email} is no mail address");
    let unusable = app.passwords.unusable()?;
    let mut change = app.postgres.begin().await.context("cannot reach Postgres")?;
    let created = account::create(&mut change, Uuid::now_v7(), email, &unusable).await?;
    let account = account::find_by_email(&mut *change, email).await?.context("the account was deleted just now")?;
    let id = account.id;
    anyhow::ensure!(!account.verified, "the address {email} has an account already");
    if !created {
        let renewed = account::set_password(&mut change, id, &unusable, None).await?;
        renewed.with_context(|| format!("the account of {email} is suspended: restore it first"))?;
    }
    let epoch = account::grant(&mut change, id, role).await?.context("the account was deleted just now")?;
    let _ = jobs::enqueue(&mut change, &SendInvitation { account_id: id }).await?;
    audit::record(&mut *change, Action::ACCOUNT_INVITED, Some(id), By::OPERATOR).await?;
    if created {
        change.commit().await?;
    } else {
        end_before(app, change, id, epoch).await.map_err(cause)?;
    }
    say(format_args!("account {id}: invited. The link is mailed to {email}"));
    Ok(())
}

async fn find(pool: &PgPool, name: &str) -> Result<Account> {
    account::find_by_name(pool, name).await?.with_context(|| format!("no account has the address or the id {name}"))
}

/// Commits a change, with its line in the trail, and ends the sessions from before its epoch as `web` does.
async fn finish(app: &App, mut change: Transaction<'_, Postgres>, id: Uuid, epoch: Option<i32>, action: Action) -> Result<()> {
    let epoch = epoch.context("the account was deleted just now")?;
    audit::record(&mut *change, action, Some(id), By::OPERATOR).await?;
    end_before(app, change, id, epoch).await.map_err(cause)?;
    say(format_args!("account {id}: {}. Its earlier sessions end", action.0.replace('_', " ")));
    Ok(())
}

fn attach(task: &Task) -> Result<App> {
    let (database, (redis, (http, site))) = config::read::<(config::Database, (config::Redis, (config::Http, config::Site)))>(&task.env)?;
    #[expect(clippy::disallowed_methods, reason = "here the clock enters, to be passed on")]
    let now = Timestamp::now;
    let sessions = Sessions::new(Redis::attach(&redis)?, &http, &site.public_url, now);
    let (postgres, passwords) = (super::attach(&database)?, Passwords::new(1, &site.public_url)?);
    // Nobody wakes the workers, which find a job at their next poll.
    // An account is deleted without the store: jobs follow.
    let storage = None;
    Ok(Parts { postgres, storage, sessions, passwords, notifier: Notifier::default(), features: FEATURES, site: site.public_url, now }
        .into())
}

/// What was wrong inside: an operator may know.
fn cause(problem: Problem) -> anyhow::Error {
    problem.source.unwrap_or_else(|| anyhow!(problem.detail.unwrap_or_default()))
}
