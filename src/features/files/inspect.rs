//! Inspects a stored image in a worker: measures it, then makes each thumbnail. Each of these is a step.

use std::io::Cursor;
use std::time::Duration;

use axum::body::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::info;
use uuid::Uuid;

use super::objects::{Size, THUMBNAIL_SIZES, content_key, object_store, thumbnail_key};
use crate::jobs::{Job, JobContext, JobError, Priority};
use crate::resources::events;
use crate::resources::storage::ObjectHeaders;
use crate::telemetry::feature_counters::FeatureCounter;

pub const INSPECTED: FeatureCounter = FeatureCounter { name: "files_inspected", help: "Uploaded images that a worker measured" };

/// The largest image that is decoded, in bytes and in pixels. Decoding takes up to 12 bytes a pixel: an animated WebP has a
/// frame, a canvas and the image, and no limit of its decoder counts them.
const MAX_IMAGE_BYTES: i64 = 32 * 1024 * 1024;
const MAX_PIXELS: u64 = 30_000_000;

/// How much more memory a decoder that has a limit may use, in bytes. A frame of an animated GIF may be as large as its canvas.
const MAX_DECODER_MEMORY: u64 = 128 * 1024 * 1024;

/// How long a job waits in the worker until the image before it is done, and then in the queue, where it leaves its place to
/// other jobs.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The JPEG quality of thumbnails, from 1 to 100.
const JPEG_QUALITY: u8 = 80;

/// Inspects one file. Its progress is the number of completed steps.
#[derive(Debug, Serialize, Deserialize)]
pub struct InspectFile {
    pub id: Uuid,
}

impl Job for InspectFile {
    const KIND: &'static str = "inspect_file";
    // One account may upload thousands of images, and other jobs must not wait for them.
    const PRIORITY: Priority = Priority::Bulk;
    const TIMEOUT: Duration = Duration::from_mins(5);

    fn unique_key(&self) -> Option<String> {
        Some(self.id.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let found =
            sqlx::query!(r#"SELECT size AS "size!" FROM files WHERE id = $1 AND state = 'stored' AND media_type LIKE 'image/%'"#, self.id);
        // The file was deleted, or is not an image.
        let Some(found) = found.fetch_optional(&mut *context.postgres.acquire().await?).await? else { return Ok(()) };
        let mut done = context.progress::<usize>()?.unwrap_or_default();
        if found.size > MAX_IMAGE_BYTES {
            let remark = format!("no thumbnails: the image is larger than {MAX_IMAGE_BYTES} bytes");
            return self.save_measurement(context, Measurement { size: None, remark: Some(remark) }).await;
        }
        // Until its thumbnails are made, an image takes hundreds of megabytes. The permit goes into each closure, because these go
        // on if the job is given up.
        let Ok(permit) = timeout(PERMIT_TIMEOUT, context.heavy.clone().acquire_owned()).await else {
            return Err(JobError::Later(PERMIT_TIMEOUT));
        };
        let mut permit = permit?;
        let content = object_store(context)?.get(&content_key(self.id)).await?;
        if done == 0 {
            let (image, held) = (content.clone(), permit);
            let (measurement, held) = spawn_blocking(move || (measure(&image), held)).await?;
            permit = held;
            let failed = measurement.remark.is_some();
            self.save_measurement(context, measurement).await?;
            if failed {
                return Ok(());
            }
            done = 1;
        }
        if context.draining() {
            return Err(JobError::DRAINED);
        }
        let made = spawn_blocking(move || {
            let _held = permit;
            thumbnails(&content, &THUMBNAIL_SIZES[done - 1..])
        });
        let made = made.await;
        // The decoder panicked, which is a bug that this image triggers. A retry would not help.
        let made = made.unwrap_or_else(|_| Err("no thumbnails: the image cannot be decoded".to_owned()));
        let thumbnails = match made {
            Ok(thumbnails) => thumbnails,
            Err(remark) => return self.save_measurement(context, Measurement { size: None, remark: Some(remark) }).await,
        };
        for (size, thumbnail) in THUMBNAIL_SIZES[done - 1..].iter().zip(thumbnails) {
            if context.draining() {
                return Err(JobError::DRAINED);
            }
            done += 1;
            if !self.store_thumbnail(context, size, thumbnail, done).await? {
                break;
            }
        }
        Ok(())
    }
}

/// The result of measuring an image.
struct Measurement {
    /// Width and height.
    size: Option<(u32, u32)>,
    /// Why the image gets no thumbnails.
    remark: Option<String>,
}

impl InspectFile {
    /// The first step: saves the measurement. If there is a remark, the job ends here.
    async fn save_measurement(&self, context: &mut JobContext, Measurement { size, remark }: Measurement) -> Result<(), JobError> {
        let (width, height) = size.unzip();
        let mut transaction = context.postgres.begin().await?;
        let owner = sqlx::query_scalar!(
            "UPDATE files SET width = COALESCE($2, width), height = COALESCE($3, height), remark = $4 WHERE id = $1 RETURNING account_id",
            self.id,
            width.and_then(|width| i32::try_from(width).ok()),
            height.and_then(|height| i32::try_from(height).ok()),
            remark
        )
        .fetch_optional(&mut *transaction)
        .await?;
        match remark {
            Some(_) => context.complete(&mut transaction).await?,
            None => context.save_in(&mut transaction, &1_usize).await?,
        }
        transaction.commit().await?;
        context.counters.increment(&INSPECTED);
        self.tell(context, "measured", owner).await;
        Ok(())
    }

    /// A later step: stores a thumbnail and records it. Returns whether the file still exists.
    async fn store_thumbnail(&self, context: &mut JobContext, size: &Size, thumbnail: Bytes, done: usize) -> Result<bool, JobError> {
        let (storage, key) = (object_store(context)?, thumbnail_key(self.id, size.name));
        let headers = ObjectHeaders { content_type: "image/jpeg".to_owned(), content_disposition: "attachment".to_owned() };
        storage.put(&key, thumbnail, headers).await?;
        let mut transaction = context.postgres.begin().await?;
        let recorded = sqlx::query_scalar!(
            "UPDATE files SET thumbnails = array_append(array_remove(thumbnails, $2), $2) WHERE id = $1 RETURNING account_id",
            self.id,
            size.name
        );
        let owner = recorded.fetch_optional(&mut *transaction).await?;
        if owner.is_none() {
            transaction.rollback().await?;
            // The file was deleted in the meantime. The job that removes its objects may have run before this thumbnail was
            // stored.
            storage.delete(&key).await?;
            return Ok(false);
        }
        if done > THUMBNAIL_SIZES.len() {
            context.complete(&mut transaction).await?;
        } else {
            context.save_in(&mut transaction, &done).await?;
        }
        transaction.commit().await?;
        self.tell(context, size.name, owner).await;
        Ok(true)
    }

    /// Logs a completed step, and tells the owner's open pages.
    async fn tell(&self, context: &JobContext, step: &'static str, owner: Option<Uuid>) {
        info!(file_id = %self.id, step, "file {}: step {step} done", self.id);
        if let Some(owner) = owner {
            events::publish(&context.redis, owner, "files", self.id).await;
        }
    }
}

/// Measures an image by its header.
fn measure(content: &[u8]) -> Measurement {
    let size = ImageReader::new(Cursor::new(content)).with_guessed_format().ok().and_then(|reader| reader.into_dimensions().ok());
    let remark = match size {
        None => Some("no thumbnails: the image header cannot be read".to_owned()),
        Some((width, height)) if u64::from(width) * u64::from(height) > MAX_PIXELS => {
            Some(format!("no thumbnails: {width} × {height} pixels exceed the limit of {MAX_PIXELS}"))
        }
        Some(_) => None,
    };
    Measurement { size, remark }
}

/// Makes JPEG thumbnails of an image in the given sizes.
///
/// # Errors
/// The image cannot be decoded within the limits. The text is for the file's owner.
fn thumbnails(content: &[u8], sizes: &[Size]) -> Result<Vec<Bytes>, String> {
    let failed = |error: image::ImageError| format!("no thumbnails: the image cannot be decoded: {error}");
    let mut reader = ImageReader::new(Cursor::new(content))
        .with_guessed_format()
        .map_err(|_| "no thumbnails: the image header cannot be read".to_owned())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    // Photos may be stored rotated, depending on how the camera was held.
    let orientation = decoder.orientation().map_err(failed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let mut made = Vec::new();
    // Largest first, because each smaller one is made from it.
    for size in sizes.iter().rev() {
        if image.width().max(image.height()) > size.pixels {
            image = image.thumbnail(size.pixels, size.pixels);
        }
        let mut upright = image.clone();
        upright.apply_orientation(orientation);
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY).encode_image(&on_white(&upright)).map_err(failed)?;
        made.push(jpeg.into());
    }
    made.reverse();
    Ok(made)
}

/// Puts an image on a white background, because JPEG has no transparency.
fn on_white(image: &DynamicImage) -> RgbImage {
    let image = image.to_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0;
        let over = |color: u8| {
            let mixed = (u16::from(color) * u16::from(alpha) + 255 * (255 - u16::from(alpha))) / 255;
            u8::try_from(mixed).unwrap_or(u8::MAX)
        };
        image::Rgb([over(red), over(green), over(blue)])
    })
}
