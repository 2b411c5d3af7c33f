//! Writes an object whose content comes in piece by piece: while one part is sent the next is filled, and a third waits.

use axum::body::Bytes;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{Error, PART, PartId, Presentation, Storage};

/// An object that is being written. It holds two parts at most; nothing is there until it is finished.
pub struct Writer {
    storage: Storage,
    key: String,
    /// How many bytes there will be, as far as that is known.
    length: u64,
    /// The part that is being filled.
    part: Vec<u8>,
    /// What the store calls the upload, once there is more than one part.
    upload: Option<String>,
    /// The part that is being sent, and those that are.
    flying: JoinSet<Result<PartId, Error>>,
    sent: Vec<PartId>,
}

impl Writer {
    pub fn new(storage: Storage, key: String, length: Option<u64>) -> Self {
        let (length, part, flying) = (length.unwrap_or_default(), Vec::new(), JoinSet::new());
        Self { storage, key, length, part, upload: None, flying, sent: Vec::new() }
    }

    /// What the store calls the upload: whoever cannot finish it must abort it.
    pub fn upload(&self) -> Option<&str> {
        self.upload.as_deref()
    }

    /// Adds a piece, and sends the part when it is full and there is more. `present` is asked once, before the first part.
    ///
    /// # Errors
    /// The store is unavailable or refuses.
    pub async fn write(&mut self, mut piece: Bytes, present: impl Fn() -> Presentation) -> Result<(), Error> {
        while !piece.is_empty() {
            if self.part.len() == PART {
                self.send(&present).await?;
            }
            if self.part.capacity() == 0 {
                // Small content takes no more than it needs.
                let known = usize::try_from(self.length).unwrap_or(PART);
                self.part.reserve_exact(if (1..PART).contains(&known) { known } else { PART });
            }
            let taken = piece.split_to(piece.len().min(PART - self.part.len()));
            self.part.extend_from_slice(&taken);
        }
        Ok(())
    }

    /// Sends the rest, and makes the object.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn finish(&mut self, present: impl Fn() -> Presentation) -> Result<(), Error> {
        if self.upload.is_none() {
            return self.storage.put(&self.key, std::mem::take(&mut self.part).into(), present()).await;
        }
        self.send(&present).await?;
        self.land().await?;
        let upload = self.upload.as_deref().unwrap_or_default();
        self.storage.complete(&self.key, upload, std::mem::take(&mut self.sent)).await
    }

    async fn send(&mut self, present: impl Fn() -> Presentation) -> Result<(), Error> {
        let upload = match &self.upload {
            Some(upload) => upload.clone(),
            None => self.upload.insert(self.storage.begin(&self.key, present()).await?).clone(),
        };
        self.land().await?;
        let (storage, key, part, index) = (self.storage.clone(), self.key.clone(), std::mem::take(&mut self.part), self.sent.len());
        self.flying.spawn(async move { storage.put_part(&key, &upload, index, part.into()).await }.in_current_span());
        Ok(())
    }

    /// Waits until the part that is on its way is there.
    async fn land(&mut self) -> Result<(), Error> {
        while let Some(part) = self.flying.join_next().await {
            self.sent.push(part.map_err(|_| Error::Late { operation: "put_part", limit: super::CONTENT_TIMEOUT })??);
        }
        Ok(())
    }
}
