//! The objects of a file in the object store: its content and, if it is an image, its thumbnails.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::jobs::{Job, JobContext, JobError, Priority};
use crate::resources::storage::Storage;

/// The folder that holds the objects of all files.
pub const FOLDER: &str = "files";

/// A size of thumbnail.
pub struct Size {
    pub name: &'static str,
    /// The longer side.
    pub pixels: u32,
}

/// The thumbnails of an image, smallest first.
pub const THUMBNAIL_SIZES: [Size; 2] = [Size { name: "small", pixels: 160 }, Size { name: "large", pixels: 640 }];

/// The key of a file's content.
pub fn content_key(id: Uuid) -> String {
    format!("{FOLDER}/{id}/content")
}

/// The key of a file's thumbnail.
pub fn thumbnail_key(id: Uuid, size: &str) -> String {
    format!("{FOLDER}/{id}/{size}")
}

/// The id of the file that an object belongs to.
pub fn id_in(key: &str) -> Option<Uuid> {
    key.strip_prefix(FOLDER)?.strip_prefix('/')?.split('/').next()?.parse().ok()
}

/// Returns the object store.
///
/// # Errors
/// `STORAGE_URL` is unset.
pub fn object_store(context: &JobContext) -> anyhow::Result<Storage> {
    context.storage.clone().ok_or_else(|| anyhow::anyhow!("STORAGE_URL is unset, but there are files"))
}

/// Removes the objects of a file whose row is deleted, and aborts its upload.
#[derive(Debug, Serialize, Deserialize)]
pub struct RemoveFile {
    pub id: Uuid,
    /// The store's id of the upload, if it is still open.
    pub upload: Option<String>,
}

impl Job for RemoveFile {
    const KIND: &'static str = "remove_file";
    const PRIORITY: Priority = Priority::Bulk;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let storage = object_store(context)?;
        if let Some(upload) = &self.upload {
            storage.abort(&content_key(self.id), upload).await?;
        }
        for size in THUMBNAIL_SIZES {
            storage.delete(&thumbnail_key(self.id, size.name)).await?;
        }
        Ok(storage.delete(&content_key(self.id)).await?)
    }
}
