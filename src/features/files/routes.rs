//! The routes of files: upload, list, read, download, delete.

use std::time::Duration;

use axum::extract::{OriginalUri, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use serde::{Deserialize, Serialize};
use tracing::Instrument;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::DELETED;
use super::file::{self, File};
use super::objects::{content_key, thumbnail_key};
use super::upload::Upload;
use crate::app::App;
use crate::auth::{Caller, audit};
use crate::http::{ContentDigest, Id, List, Page, Problem, Query, Result, Streamed};
use crate::resources::storage::Storage;

/// How long a signed URL works.
const URL_LIFETIME: Duration = Duration::from_mins(5);

/// The operations of the API.
pub fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(upload_file, list_files))
        .routes(routes!(read_file, delete_file))
        .routes(routes!(read_content))
        .routes(routes!(read_thumbnail))
}

#[derive(Deserialize, Validate, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NewFile {
    /// Name of the file: 1 to 255 bytes of UTF-8, without `/` and NUL, and neither `.` nor `..`
    #[garde(length(bytes, min = 1, max = 255), custom(not_a_path))]
    #[param(min_length = 1, max_length = 255, pattern = r"^[^\x00/]+$", example = "photo.jpg")]
    name: String,
}

/// The content of the file
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "only its schema is used")]
struct AnyBytes(Vec<u8>);

/// Refuses names that could be read as a path.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as `garde` calls it")]
fn not_a_path(name: &str, (): &()) -> garde::Result {
    let error = match name {
        "." | ".." => "must not be `.` or `..`",
        name if name.contains('/') => "must not contain `/`",
        name if name.contains('\0') => "must not contain the character NUL",
        _ => return Ok(()),
    };
    Err(garde::Error::new(error))
}

/// Upload a file
///
/// The body is the file's content, of any type, as `curl --data-binary @photo.jpg` sends it. The server streams it into the
/// object store and detects the media type from the content.
#[utoipa::path(post, path = "/files", tag = "Files",
    params(NewFile, ("Content-Digest" = Option<String>, Header, description = "SHA-256 or SHA-512 of the content (RFC 9530)",
        pattern = "^sha-256=:[A-Za-z0-9+/]{43}=:$", example = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:")),
    request_body(content = inline(AnyBytes), content_type = "application/octet-stream", description = "The content"),
    responses(
        (status = 201, description = "Stored", body = File, headers(("Location" = String))),
        (status = 400, description = "digest-mismatch: The content does not match `Content-Digest`"),
        (status = 403, description = "email-not-verified: The account's address has not been verified\nfiles-disabled: File storage is off in this deploy\nquota-reached: The account has reached its storage quota"),
        (status = 413, description = "file-too-large: The file is larger than allowed"),
    ))]
async fn upload_file(
    State(app): State<App>,
    caller: Caller,
    Query(NewFile { name }): Query<NewFile>,
    digest: ContentDigest,
    body: Streamed,
) -> Result<Response> {
    let storage = storage(&app)?.clone();
    let upload = Upload { app, storage, caller, name, digest };
    // In its own task. If the client disconnects, this request is cancelled, but the upload must still clean up.
    let file = tokio::spawn(upload.run(body).in_current_span()).await.map_err(Problem::internal)??;
    let location = format!("/api/v1/files/{}", file.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], axum::Json(file)).into_response())
}

/// List my files, newest first
#[utoipa::path(get, path = "/files", tag = "Files", params(Page), responses((status = 200, description = "A page of files", body = List<File>)))]
async fn list_files(State(app): State<App>, caller: Caller, uri: OriginalUri, Query(page): Query<Page>) -> Result<Response> {
    let files = file::list(&mut *app.postgres.acquire().await?, caller.account_id, page.after()?, page.fetch()).await?;
    page.answer(&uri, files, |last| last.id)
}

/// Read a file's metadata
#[utoipa::path(get, path = "/files/{id}", tag = "Files", params(("id" = Uuid, Path)),
    responses((status = 200, description = "The file's metadata", body = File)))]
async fn read_file(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<axum::Json<File>> {
    find(&app, caller, id).await.map(axum::Json)
}

/// Download a file's content
///
/// Redirects to a signed URL in the object store. It works for five minutes and needs no credentials.
#[utoipa::path(get, path = "/files/{id}/content", tag = "Files", params(("id" = Uuid, Path)),
    responses(
        (status = 303, description = "Redirects to the content", headers(("Location" = String))),
        (status = 403, description = "files-disabled: File storage is off in this deploy"),
    ))]
async fn read_content(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<Response> {
    let file = find(&app, caller, id).await?;
    redirect_to(&app, caller, file.id, &content_key(file.id)).await
}

#[derive(Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
struct Thumbnail {
    /// `small` has 160 and `large` 640 pixels on the longer side
    #[garde(skip)]
    #[serde(default)]
    #[param(inline, required = false)]
    size: ThumbnailSize,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ThumbnailSize {
    #[default]
    Small,
    Large,
}

impl ThumbnailSize {
    fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// Download an image's thumbnail
///
/// Responds 404 until a worker has made the thumbnail. `thumbnails` in the file's metadata lists those that exist. Redirects
/// to a signed URL as for the content.
#[utoipa::path(get, path = "/files/{id}/thumbnail", tag = "Files", params(("id" = Uuid, Path), Thumbnail),
    responses(
        (status = 303, description = "Redirects to the thumbnail, a JPEG", headers(("Location" = String))),
        (status = 403, description = "files-disabled: File storage is off in this deploy"),
    ))]
async fn read_thumbnail(
    State(app): State<App>,
    caller: Caller,
    Id(id): Id,
    Query(Thumbnail { size }): Query<Thumbnail>,
) -> Result<Response> {
    let file = find(&app, caller, id).await?;
    if !file.thumbnails.iter().any(|made| made == size.name()) {
        return Err(Problem::not_found());
    }
    redirect_to(&app, caller, file.id, &thumbnail_key(file.id, size.name())).await
}

/// Delete a file
#[utoipa::path(delete, path = "/files/{id}", tag = "Files", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Deleted. The content is removed shortly afterwards")))]
async fn delete_file(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<StatusCode> {
    let mut transaction = app.postgres.begin().await?;
    caller.hold(&mut transaction).await?;
    let enqueued = file::delete(&mut transaction, caller.account_id, id).await?.ok_or_else(Problem::not_found)?;
    audit::record(&mut *transaction, DELETED, Some(caller.account_id), caller.by).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    Ok(StatusCode::NO_CONTENT)
}

async fn find(app: &App, caller: Caller, id: Uuid) -> Result<File> {
    let found = file::find(&mut *app.postgres.acquire().await?, caller.account_id, id).await?;
    found.ok_or_else(Problem::not_found)
}

/// Redirects to an object of a file with 303. Asks the store for the object first, so that an unavailable store is a 503 from
/// this API instead of an error page from the store.
async fn redirect_to(app: &App, caller: Caller, id: Uuid, key: &str) -> Result<Response> {
    let storage = storage(app)?;
    if let Err(error) = storage.size(key).await {
        if error.is_missing() {
            // 404 if the file was deleted meanwhile. Otherwise the object or the whole bucket is lost.
            find(app, caller, id).await?;
        }
        return Err(error.into());
    }
    let url = storage.signed_url(key, URL_LIFETIME).await?;
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, String::from(url))]).into_response())
}

/// # Errors
/// 403: `STORAGE_URL` is unset.
fn storage(app: &App) -> Result<&Storage> {
    let off = || Problem::forbidden("files-disabled", "File storage is off in this deploy.");
    app.storage.as_ref().ok_or_else(off)
}
