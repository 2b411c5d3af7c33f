//! Writes an object whose content arrives in pieces. While one part is sent, the next one is filled.

use axum::body::Bytes;
use tokio::task::JoinSet;
use tokio_util::bytes::BytesMut;
use tracing::Instrument;

use super::{Error, ObjectHeaders, PART_SIZE, PartId, Storage};

/// An object that is being written. At most two parts are in memory. The object does not exist until it is finished.
pub struct Writer {
    storage: Storage,
    key: String,
    /// The expected length in bytes, or 0 if it is unknown.
    length: u64,
    /// The part that is being filled.
    part: BytesMut,
    /// The memory of the part in flight. It is filled next, because an allocator keeps what is freed and allocated anew.
    other: BytesMut,
    /// The store's id of the upload, once there is more than one part.
    upload: Option<String>,
    /// The part that is being sent.
    in_flight: JoinSet<Result<PartId, Error>>,
    /// The parts that the store has.
    sent: Vec<PartId>,
}

impl Writer {
    pub fn new(storage: Storage, key: String, length: Option<u64>) -> Self {
        let (part, other, in_flight) = (BytesMut::new(), BytesMut::new(), JoinSet::new());
        Self { storage, key, length: length.unwrap_or_default(), part, other, upload: None, in_flight, sent: Vec::new() }
    }

    /// The store's id of the upload. A caller that cannot finish the upload must abort it.
    pub fn upload(&self) -> Option<&str> {
        self.upload.as_deref()
    }

    /// Adds a piece. Sends the current part once it is full and more content follows. `headers` is called once, before the
    /// first part is sent.
    ///
    /// # Errors
    /// The store is unavailable or refuses the request.
    pub async fn write(&mut self, mut piece: Bytes, headers: impl Fn() -> ObjectHeaders) -> Result<(), Error> {
        while !piece.is_empty() {
            if self.part.len() == PART_SIZE {
                self.send(&headers).await?;
            }
            if self.part.capacity() == 0 {
                // For small content, reserve no more than its length.
                let known = usize::try_from(self.length).unwrap_or(PART_SIZE);
                self.part.reserve(if (1..PART_SIZE).contains(&known) { known } else { PART_SIZE });
            }
            let taken = piece.split_to(piece.len().min(PART_SIZE - self.part.len()));
            self.part.extend_from_slice(&taken);
        }
        Ok(())
    }

    /// Sends the rest and creates the object.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn finish(&mut self, headers: impl Fn() -> ObjectHeaders) -> Result<(), Error> {
        if self.upload.is_none() {
            return self.storage.put(&self.key, self.part.split().freeze(), headers()).await;
        }
        self.send(&headers).await?;
        self.finish_part().await?;
        let upload = self.upload.as_deref().unwrap_or_default();
        self.storage.complete(&self.key, upload, std::mem::take(&mut self.sent)).await
    }

    async fn send(&mut self, headers: impl Fn() -> ObjectHeaders) -> Result<(), Error> {
        let upload = match &self.upload {
            Some(upload) => upload.clone(),
            None => self.upload.insert(self.storage.begin(&self.key, headers()).await?).clone(),
        };
        self.finish_part().await?;
        let (storage, key, part, index) = (self.storage.clone(), self.key.clone(), self.part.split().freeze(), self.sent.len());
        std::mem::swap(&mut self.part, &mut self.other);
        self.in_flight.spawn(async move { storage.put_part(&key, &upload, index, part).await }.in_current_span());
        Ok(())
    }

    /// Waits until the part in flight is stored.
    async fn finish_part(&mut self) -> Result<(), Error> {
        while let Some(part) = self.in_flight.join_next().await {
            self.sent.push(part.map_err(|e| Error::Failed { operation: "put_part", text: e.to_string(), missing: false })??);
        }
        Ok(())
    }
}
