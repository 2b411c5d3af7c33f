//! `admin account …`, `session …`, `seed` and `export`: what an operator does with accounts.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow};
use clap::Subcommand;
use secrecy::SecretString;
use serde_json::json;
use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::Task;
use super::attach::attach;
use super::output::{note, say};
use crate::app::App;
use crate::auth::audit::{self, Action};
use crate::auth::{By, Role, rules, secret, service_account};
use crate::config;
use crate::features::FEATURES;
use crate::features::accounts::account::{self, Account};
use crate::features::accounts::export::export as export_of;
use crate::features::accounts::mails::SendInvitation;
use crate::features::accounts::my_sessions::{self, end_before};
use crate::features::accounts::settings::{self, tell_password_changed};
use crate::http::Problem;
use crate::jobs;
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
    /// Create an account and mail a link to set its password. The link is valid for three days
    Invite {
        email: String,
        #[arg(long, default_value = "user")]
        role: Role,
    },
    /// Create the account of a service, which authenticates with access tokens of `TOKEN_ISSUER`, or change its scopes
    Create {
        /// The subject of its tokens: their claim `sub`
        #[arg(long)]
        service: String,
        /// What it may do at most, separated by commas, such as `tokens:read,tokens:write`
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<String>,
    },
    /// Change the role of an account, which ends its sessions
    Grant { account: String, role: Role },
    /// Suspend an account: its sessions end, its tokens stop working, and it cannot log in
    Suspend { account: String },
    /// Restore a suspended account
    Restore { account: String },
    /// Delete an account and all of its data
    Delete {
        account: String,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub enum SessionCommand {
    /// List the sessions of an account
    List { account: String },
    /// End all sessions of an account, or one session
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
            let found = find(pool, &account).await?;
            task.rows(&columns, &[json!(found)]);
            if let Some(identity) = service_account::identity(&**pool, found.id).await? {
                task.rows(&["issuer", "subject", "scopes"], &[json!(identity)]);
            }
        }
        Command::Invite { email, role } => invite(&app, &email, role).await?,
        Command::Create { service, scopes } => create_service(&app, task, &service, &scopes).await?,
        Command::Grant { account, role } => {
            let (found, mut change) = (find(pool, &account).await?, pool.begin().await?);
            let epoch = account::grant(&mut change, found.id, role).await?;
            finish(&app, change, found.id, epoch, Action::ROLE_CHANGED).await?;
        }
        Command::Suspend { account } => suspend(&app, &account, true).await?,
        Command::Restore { account } => suspend(&app, &account, false).await?,
        Command::Delete { account, yes } => {
            let found = find(pool, &account).await?;
            if !yes {
                // Without a terminal nobody can confirm.
                anyhow::ensure!(std::io::stdin().is_terminal(), "stdin is not a terminal: confirm with --yes");
                note(format_args!("Delete {} ({}) and all of its data? Type yes:", found.email, found.id));
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

/// Prints the data that is stored about one person as JSON. It contains no password and no working token.
pub async fn export(task: &Task, account: &str) -> Result<()> {
    let app = attach(task)?;
    let account = find(&app.postgres, account).await?;
    audit::record(&*app.postgres, Action::DATA_EXPORTED, Some(account.id), By::OPERATOR).await?;
    say(serde_json::to_string_pretty(&export_of(&app, account).await?)?);
    Ok(())
}

/// Creates two demo accounts unless they exist, and prints their passwords.
pub async fn seed(task: &Task) -> Result<()> {
    let (app, site) = (attach(task)?, config::read::<config::Site>(&task.env)?);
    anyhow::ensure!(!site.public_url.is_https(), "PUBLIC_URL is https, so this is not a demo: no demo accounts are created");
    for email in ["ada@example.com", "grace@example.com"] {
        let password = create(&app, email).await?;
        let password = password.as_deref().unwrap_or("already exists, with the password from then");
        say(format_args!("{email}  {password}"));
    }
    Ok(())
}

/// Creates a verified account and returns its random password. None if the address has an account.
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

/// Creates an account with an unusable password and enqueues the mail with the link to set one. An address that was
/// never verified may be invited again. Then a person who signed up with it before is locked out, and earlier links
/// stop working.
async fn invite(app: &App, email: &str, role: Role) -> Result<()> {
    anyhow::ensure!(smtp::is_address(email), "{email} is not an email address");
    let unusable = app.passwords.unusable()?;
    let mut change = app.postgres.begin().await.context("cannot reach Postgres")?;
    let created = account::create(&mut change, Uuid::now_v7(), email, &unusable).await?;
    let account = account::find_by_email(&mut *change, email).await?.context("the account was deleted just now")?;
    let id = account.id;
    anyhow::ensure!(!account.verified, "the address {email} already has an account");
    if !created {
        let renewed = account::set_password(&mut change, id, &unusable, None).await?;
        renewed.with_context(|| format!("the account of {email} is suspended: restore it first"))?;
        tell_password_changed(app, &mut change, id).await?;
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

/// Creates the account of a service, or gives an existing one these scopes.
async fn create_service(app: &App, task: &Task, subject: &str, scopes: &[String]) -> Result<()> {
    let issuer = config::read::<config::Tokens>(&task.env)?.0.context("TOKEN_ISSUER is unset, so no service can have a token")?;
    anyhow::ensure!((1..=255).contains(&subject.len()) && !subject.contains(char::is_control), "no token can have this subject");
    let known = rules::scopes(FEATURES.iter().flat_map(|feature| feature.access));
    if let Some(unknown) = scopes.iter().find(|scope| !known.contains(scope.as_str())) {
        anyhow::bail!("no operation has the scope {unknown}; known: {}", known.into_iter().collect::<Vec<_>>().join(", "));
    }
    let mut change = app.postgres.begin().await.context("cannot reach Postgres")?;
    let changed = service_account::set_scopes(&mut change, &issuer.url.0, subject, scopes).await?;
    let (id, action) = if let Some(id) = changed {
        (id, Action::SCOPES_CHANGED)
    } else {
        let unusable = app.passwords.unusable()?;
        (service_account::create(&mut change, &issuer.url.0, subject, scopes, &unusable).await?, Action::ACCOUNT_CREATED)
    };
    audit::record(&mut *change, action, Some(id), By::OPERATOR).await?;
    change.commit().await?;
    say(format_args!("account {id}: {}", action.0.replace('_', " ")));
    Ok(())
}

async fn suspend(app: &App, account: &str, suspended: bool) -> Result<()> {
    let (found, mut change) = (find(&app.postgres, account).await?, app.postgres.begin().await?);
    let epoch = account::suspend(&mut change, found.id, suspended, None).await?;
    finish(app, change, found.id, epoch, if suspended { Action::SUSPENDED } else { Action::RESTORED }).await
}

async fn find(pool: &PgPool, name: &str) -> Result<Account> {
    account::find_by_name(pool, name).await?.with_context(|| format!("no account has the address or the id {name}"))
}

/// Commits a change with its audit event and ends the sessions of earlier epochs, as `web` does.
async fn finish(app: &App, mut change: Transaction<'_, Postgres>, id: Uuid, epoch: Option<i32>, action: Action) -> Result<()> {
    let epoch = epoch.context("the account was deleted just now")?;
    audit::record(&mut *change, action, Some(id), By::OPERATOR).await?;
    end_before(app, change, id, epoch).await.map_err(cause)?;
    say(format_args!("account {id}: {}. Its earlier sessions end", action.0.replace('_', " ")));
    Ok(())
}

/// The underlying error, which an operator may see.
fn cause(problem: Problem) -> anyhow::Error {
    problem.source.unwrap_or_else(|| anyhow!(problem.detail.unwrap_or_default()))
}
