//! `admin files …`: what an operator does with files.

use anyhow::{Context, Result};
use clap::{ArgMatches, FromArgMatches, Subcommand};
use futures_util::FutureExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::info;
use uuid::Uuid;

use super::file::{self, Claim};
use super::objects::content_key;
use crate::app::{App, Commands, Output};
use crate::resources::storage::Storage;

pub const COMMANDS: Commands = Commands {
    command: || {
        Command::augment_subcommands(
            clap::Command::new("files").about("Show files, and verify what the object store holds").subcommand_required(true),
        )
    },
    run: |app, matches| run(app, matches).boxed(),
};

/// How many rows are read at a time.
const BATCH_SIZE: i64 = 500;

#[derive(Subcommand)]
enum Command {
    /// Show one file with all of its fields
    Show { id: Uuid },
    /// Read the content of every file and compare it with its row; exit 1 if one is missing or differs
    Verify {
        /// Begin after the file with this id
        #[arg(long, default_value_t = Uuid::nil(), hide_default_value = true)]
        after: Uuid,
    },
}

async fn run(app: &App, matches: &ArgMatches) -> Result<Output> {
    match Command::from_arg_matches(matches)? {
        Command::Show { id } => {
            let row = file::all_fields(&mut *app.postgres.acquire().await?, id).await?.with_context(|| format!("there is no file {id}"))?;
            Ok(Output { text: Some(serde_json::to_string_pretty(&row)?), ..Output::default() })
        }
        Command::Verify { after } => verify(app, after).await,
    }
}

/// Lists the files whose object is missing or differs from the row.
async fn verify(app: &App, mut after: Uuid) -> Result<Output> {
    let storage = app.storage.as_ref().context("STORAGE_URL is unset, so there is no object store")?;
    let (mut verified, mut rows) = (0, Vec::new());
    loop {
        // No connection is held while objects are read.
        let claims = file::claims(&mut *app.postgres.acquire().await?, after, BATCH_SIZE).await?;
        let Some(last) = claims.last() else { break };
        after = last.id;
        for claim in &claims {
            verified += 1;
            let found = problem(storage, claim).await.unwrap_or_else(|e| Some(format!("it cannot be read: {e:#}")));
            let Some(problem) = found else { continue };
            // Its owner may have deleted it meanwhile.
            if file::find(&mut *app.postgres.acquire().await?, claim.account_id, claim.id).await?.is_some() {
                rows.push(json!({ "id": claim.id, "account_id": claim.account_id, "problem": problem }));
            }
        }
        info!(verified, wrong = rows.len(), after = %after, "files verified");
    }
    let text = Some(format!("{verified} file(s) verified, {} wrong", rows.len()));
    Ok(Output { failed: !rows.is_empty(), columns: &["id", "account_id", "problem"], rows, text })
}

/// Reads an object and says how it differs from its row. None if it does not.
async fn problem(storage: &Storage, claim: &Claim) -> Result<Option<String>> {
    let (key, mut hash, mut offset) = (content_key(claim.id), Sha256::new(), 0);
    let size = match storage.size(&key).await {
        Ok(size) => size,
        Err(error) if error.is_missing() => return Ok(Some("the object is missing".to_owned())),
        Err(error) => return Err(error.into()),
    };
    if i64::try_from(size) != Ok(claim.size) {
        return Ok(Some(format!("the object has {size} bytes, its row says {}", claim.size)));
    }
    while offset < size {
        let part = storage.get_part(&key, offset).await?;
        anyhow::ensure!(!part.is_empty(), "the object store sent no content");
        hash.update(&part);
        offset += part.len() as u64;
    }
    Ok((hash.finalize().as_slice() != claim.sha256).then(|| "the object has another SHA-256 than its row".to_owned()))
}
