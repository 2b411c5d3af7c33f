//! The operations of admins on other accounts.

use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::response::Response;
use uuid::Uuid;

use super::account::{self, Account};
use super::my_sessions::end_before;
use crate::app::App;
use crate::auth::Caller;
use crate::auth::audit::{self, Action};
use crate::http::{Id, List, Page, Problem, Query, Result};

/// List all accounts, the oldest first
#[utoipa::path(get, path = "/admin/accounts", tag = "Administration", params(Page), responses((status = 200, description = "A page of accounts", body = List<Account>)))]
pub async fn list_accounts(State(app): State<App>, uri: OriginalUri, Query(page): Query<Page>) -> Result<Response> {
    let after = page.after()?.unwrap_or_else(Uuid::nil);
    let accounts = account::list(&mut *app.postgres.acquire().await?, after, page.fetch()).await?;
    page.answer(&uri, accounts, |account| account.id)
}

/// Suspend an account
///
/// Its sessions end, its tokens stop working, and it cannot log in until it is restored.
#[utoipa::path(post, path = "/admin/accounts/{id}/suspend", tag = "Administration", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Suspended"), (status = 409, description = "own-account: Admins cannot suspend their own account")))]
pub async fn suspend_account(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<StatusCode> {
    if id == caller.account_id {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "own-account",
            "You cannot suspend your own account; no one might be able to restore it.",
        ));
    }
    set(&app, &caller, id, true).await
}

/// Restore a suspended account
#[utoipa::path(post, path = "/admin/accounts/{id}/restore", tag = "Administration", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Restored. The account may log in again")))]
pub async fn restore_account(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<StatusCode> {
    set(&app, &caller, id, false).await
}

async fn set(app: &App, caller: &Caller, id: Uuid, suspended: bool) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    let Some(epoch) = account::suspend(&mut transaction, id, suspended, Some(caller)).await? else {
        let there = account::find(&mut *transaction, id).await?.is_some();
        return Err(if there { Problem::forbidden("insufficient-role", "This requires the role admin.") } else { Problem::not_found() });
    };
    let action = if suspended { Action::SUSPENDED } else { Action::RESTORED };
    audit::record(&mut *transaction, action, Some(id), caller.by).await?;
    end_before(app, transaction, id, epoch).await?;
    Ok(StatusCode::NO_CONTENT)
}
