//! The look into a stored file, by a worker and in steps: what the image measures, then each thumbnail.

use std::io::Cursor;
use std::time::Duration;

use axum::body::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tracing::info;
use uuid::Uuid;

use super::clean_up::attached;
use super::file::{content_key, thumbnail_key};
use crate::jobs::{Job, JobContext, JobError};
use crate::resources::storage::Presentation;

/// A size of thumbnails.
pub struct Size {
    pub name: &'static str,
    /// Of the longer side.
    pixels: u32,
}

pub const SIZES: [Size; 2] = [Size { name: "small", pixels: 160 }, Size { name: "large", pixels: 640 }];

/// The largest image that is read, in bytes, and in pixels: unpacked it has up to 8 bytes for each.
const READ_LIMIT: i64 = 32 * 1024 * 1024;
const PIXEL_LIMIT: u64 = 40_000_000;

/// What decoding one may take beside, in bytes.
const MEMORY_LIMIT: u64 = 256 * 1024 * 1024;

/// What a thumbnail keeps of its image, of 100.
const QUALITY: u8 = 80;

/// Looks into one file. The steps that are done are its progress.
#[derive(Debug, Serialize, Deserialize)]
pub struct LookIntoFile {
    pub id: Uuid,
}

impl Job for LookIntoFile {
    const KIND: &'static str = "look_into_file";
    // It waits for its turn: images are unpacked one at a time.
    const TIMEOUT: Duration = Duration::from_mins(5);

    fn unique_key(&self) -> Option<String> {
        Some(self.id.to_string())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let found =
            sqlx::query!(r#"SELECT size AS "size!" FROM files WHERE id = $1 AND state = 'stored' AND media_type LIKE 'image/%'"#, self.id);
        // Deleted, or nothing to see.
        let Some(found) = found.fetch_optional(&mut *context.postgres.acquire().await?).await? else { return Ok(()) };
        let mut done = context.progress::<usize>()?.unwrap_or_default();
        if found.size > READ_LIMIT {
            let remark = format!("an image of more than {READ_LIMIT} bytes gets no thumbnails");
            return self.note(context, Measured { size: None, remark: Some(remark) }).await;
        }
        // An image takes hundreds of megabytes until its thumbnails are made.
        let turn = context.heavy.clone().acquire_owned().await?;
        let content = attached(context)?.get(&content_key(self.id)).await?;
        if done == 0 {
            let image = content.clone();
            let measured = spawn_blocking(move || measure(&image)).await?;
            let ends = measured.remark.is_some();
            self.note(context, measured).await?;
            if ends {
                return Ok(());
            }
            done = 1;
        }
        if context.draining() {
            return Err(JobError::PUT_DOWN);
        }
        let made = spawn_blocking(move || thumbnails(&content, &SIZES[done - 1..])).await;
        drop(turn);
        // A decoder that panics has met an image that none should.
        let made = made.unwrap_or_else(|_| Err("the image cannot be decoded".to_owned()));
        let thumbnails = match made {
            Ok(thumbnails) => thumbnails,
            Err(remark) => return self.note(context, Measured { size: None, remark: Some(remark) }).await,
        };
        for (size, thumbnail) in SIZES[done - 1..].iter().zip(thumbnails) {
            if context.draining() {
                return Err(JobError::PUT_DOWN);
            }
            done += 1;
            if !self.keep(context, size, thumbnail, done).await? {
                break;
            }
        }
        Ok(())
    }
}

/// What a first look at an image has found.
struct Measured {
    size: Option<(u32, u32)>,
    /// Why it gets no thumbnails.
    remark: Option<String>,
}

impl LookIntoFile {
    /// The first step: notes what the image measures. With a remark it is the last.
    async fn note(&self, context: &mut JobContext, Measured { size, remark }: Measured) -> Result<(), JobError> {
        let (width, height) = size.unzip();
        let mut transaction = context.postgres.begin().await?;
        sqlx::query!(
            "UPDATE files SET width = COALESCE($2, width), height = COALESCE($3, height), remark = $4 WHERE id = $1",
            self.id,
            width.and_then(|width| i32::try_from(width).ok()),
            height.and_then(|height| i32::try_from(height).ok()),
            remark
        )
        .execute(&mut *transaction)
        .await?;
        match remark {
            Some(_) => context.complete(&mut transaction).await?,
            None => context.save_in(&mut transaction, &1_usize).await?,
        }
        transaction.commit().await?;
        self.tell("measured");
        Ok(())
    }

    /// A step: stores a thumbnail, and notes it. Says whether the file is still there.
    async fn keep(&self, context: &mut JobContext, size: &Size, thumbnail: Bytes, done: usize) -> Result<bool, JobError> {
        let (storage, key) = (attached(context)?, thumbnail_key(self.id, size.name));
        let presentation = Presentation { content_type: "image/jpeg".to_owned(), content_disposition: "attachment".to_owned() };
        storage.put(&key, thumbnail, presentation).await?;
        let mut transaction = context.postgres.begin().await?;
        let noted =
            sqlx::query!("UPDATE files SET thumbnails = array_append(array_remove(thumbnails, $2), $2) WHERE id = $1", self.id, size.name);
        if noted.execute(&mut *transaction).await?.rows_affected() == 0 {
            transaction.rollback().await?;
            // The file was deleted meanwhile, and this came too late for its removal.
            storage.delete(&key).await?;
            return Ok(false);
        }
        if done > SIZES.len() {
            context.complete(&mut transaction).await?;
        } else {
            context.save_in(&mut transaction, &done).await?;
        }
        transaction.commit().await?;
        self.tell(size.name);
        Ok(true)
    }

    fn tell(&self, step: &'static str) {
        info!(file_id = %self.id, step, "file {} is {step}", self.id);
    }
}

/// What an image measures, by its head.
fn measure(content: &[u8]) -> Measured {
    let size = ImageReader::new(Cursor::new(content)).with_guessed_format().ok().and_then(|reader| reader.into_dimensions().ok());
    let remark = match size {
        None => Some("no image that can be decoded".to_owned()),
        Some((width, height)) if u64::from(width) * u64::from(height) > PIXEL_LIMIT => {
            Some(format!("{width} × {height} pixels are more than {PIXEL_LIMIT}, so it gets no thumbnails"))
        }
        Some(_) => None,
    };
    Measured { size, remark }
}

/// Thumbnails of an image in the given sizes, as JPEG.
///
/// # Errors
/// It cannot be decoded, or not within the limits: in words for its owner.
fn thumbnails(content: &[u8], sizes: &[Size]) -> Result<Vec<Bytes>, String> {
    let failed = |error: image::ImageError| format!("the image cannot be decoded: {error}");
    let mut reader = ImageReader::new(Cursor::new(content)).with_guessed_format().map_err(|_| "no image".to_owned())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MEMORY_LIMIT);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    // As the camera was held.
    let orientation = decoder.orientation().map_err(failed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let mut made = Vec::new();
    // The largest first: a smaller one is made of it.
    for size in sizes.iter().rev() {
        if image.width().max(image.height()) > size.pixels {
            image = image.thumbnail(size.pixels, size.pixels);
        }
        let mut upright = image.clone();
        upright.apply_orientation(orientation);
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&on_white(&upright)).map_err(failed)?;
        made.push(jpeg.into());
    }
    made.reverse();
    Ok(made)
}

/// An image without transparency, which JPEG does not know.
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
