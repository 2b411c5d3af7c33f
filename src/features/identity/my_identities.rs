//! The operations on the caller's own identities, and the mail that tells of a new one.

use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::linked_identity::{self, Identity, Unlinked};
use crate::app::App;
use crate::auth::Caller;
use crate::auth::audit::{self, Action};
use crate::features::accounts::mails::deliver;
use crate::http::{Id, List, Page, Problem, Query, Result};
use crate::jobs::{Job, JobContext, JobError, Priority};
use crate::resources::smtp::Mail;

const UNLINKED: Action = Action("identity_unlinked");

/// List my identities, the oldest first
#[utoipa::path(get, path = "/identities", tag = "Identities", params(Page), responses((status = 200, description = "A page of identities", body = List<Identity>)))]
pub async fn list_identities(State(app): State<App>, caller: Caller, uri: OriginalUri, Query(page): Query<Page>) -> Result<Response> {
    let after = page.after()?.unwrap_or_else(Uuid::nil);
    let identities = linked_identity::list(&mut *app.postgres.acquire().await?, caller.account_id, after, page.fetch()).await?;
    page.answer(&uri, identities, |identity| identity.id)
}

/// Unlink an identity
///
/// It no longer logs in to the account. Sessions that it began stay: end them too if somebody else began them.
#[utoipa::path(delete, path = "/identities/{id}", tag = "Identities", params(("id" = Uuid, Path)), responses(
    (status = 204, description = "Unlinked"),
    (status = 409, description = "no-password: The account has no password, and this is its only identity"),
))]
pub async fn unlink_identity(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    let issuer = app.provider.as_ref().map_or("", |provider| provider.issuer.url());
    match linked_identity::unlink(&mut transaction, &caller, issuer, id).await? {
        Unlinked::Done => {}
        Unlinked::NotFound => return Err(Problem::not_found()),
        Unlinked::SessionEnded => return Err(Problem::unauthenticated()),
        Unlinked::OnlyOne => {
            let detail = "This is the only way to log in to your account, which has no password. Ask for a link to set one first.";
            return Err(Problem::new(StatusCode::CONFLICT, "no-password", detail));
        }
    }
    audit::record(&mut *transaction, UNLINKED, Some(caller.account_id), caller.by).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Mails the account's address that an identity was linked.
#[derive(Debug, Serialize, Deserialize)]
pub struct SendLinked {
    pub account_id: Uuid,
    /// The address at that time.
    pub address: String,
    /// The provider's host.
    pub provider: String,
}

impl Job for SendLinked {
    // No unique key: each job is about a different event.
    const KIND: &'static str = "send_identity_linked";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, context: &mut JobContext) -> std::result::Result<(), JobError> {
        let Self { account_id, address, provider } = self;
        let text = format!(
            "This is about your account at {}.\n\nSomebody logged in with {provider}, which says that this email address is theirs. From now \
             on they can log in to your account that way. If it was not you, set a new password at once. That ends it.\n",
            context.site.origin()
        );
        let id = format!("identity-{account_id}-{}", context.id());
        deliver(context, *account_id, Mail { id, to: address.clone(), subject: "A new way to log in".to_owned(), text }).await
    }
}
