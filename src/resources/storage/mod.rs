//! The object store, which keeps uploaded files. A process keeps nothing on its local disk (factor VI).
//!
//! `STORAGE_URL` and the variables that platforms set describe it. The store speaks S3. Support for Google's and Azure's
//! stores is behind cargo features. Large objects are uploaded in parts, so that no process holds a whole one in memory.

mod clients;
mod error;
mod places;
mod writer;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use futures_util::TryStreamExt;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStoreExt, PutMultipartOptions, PutOptions};
use secrecy::SecretString;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug_span};
use url::Url;
use uuid::Uuid;

use crate::config::{self, Problems, Scheme};
use crate::lifecycle::Lifecycle;
use crate::telemetry::metrics::Metrics;

use clients::Clients;
pub use error::Error;
pub use places::{MAX_UPLOADS_PER_ACCOUNT, Places};
pub use writer::Writer;

/// How long an operation without content may take, including retries.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an operation with content may take, including retries. A part fits at 180 KB a second.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The size of a part in bytes. It is the smallest that S3 accepts, except for the last part.
const PART_SIZE: usize = 5 * 1024 * 1024;

/// The largest object in bytes. S3 accepts at most 10,000 parts.
const MAX_OBJECT_SIZE: u64 = 48 * 1024 * 1024 * 1024;

/// Limits of what may be stored, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest object that may be uploaded.
    pub object: u64,
    /// The total size of one account's objects.
    pub account: u64,
}

/// The headers that the store sends with an object.
#[derive(Debug, Clone)]
pub struct ObjectHeaders {
    pub content_type: String,
    pub content_disposition: String,
}

impl From<ObjectHeaders> for Attributes {
    fn from(headers: ObjectHeaders) -> Self {
        let ObjectHeaders { content_type, content_disposition } = headers;
        Self::from_iter([(Attribute::ContentType, content_type), (Attribute::ContentDisposition, content_disposition)])
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
}

/// A handle on the object store. Cheap to clone.
#[derive(Clone)]
pub struct Storage(Arc<Shared>);

struct Shared {
    config: RwLock<config::Storage>,
    /// Built at the first operation. A TLS client needs memory and the system's certificate authorities, which may be
    /// missing.
    clients: Mutex<Option<Arc<Clients>>>,
    prefix: String,
    /// The key of the object that [`Storage::check`] writes. A check that failed between writing and deleting leaves one object
    /// behind, and the next one replaces it.
    check_key: String,
    limits: Limits,
    places: Places,
    metrics: Option<Metrics>,
}

impl Storage {
    /// Attaches the object store. It connects at the first operation. None if `STORAGE_URL` is unset.
    ///
    /// # Errors
    /// Only one of two variables that belong together is set, or a limit is too large.
    pub fn attach(config: &config::Storage, metrics: Option<&Metrics>) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.storage_url else { return Ok(None) };
        if config.file_size_limit.0 > MAX_OBJECT_SIZE {
            return Err(Problems::of("FILE_SIZE_LIMIT", "must be at most 48GiB, because an object has at most 10,000 parts").into());
        }
        // Sets the process's default provider of cryptography. An error means that it is already set, always to this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match (&config.aws_access_key_id, &config.aws_secret_access_key) {
            (Some(_), None) => return Err(Problems::of("AWS_SECRET_ACCESS_KEY", "is missing, although AWS_ACCESS_KEY_ID is set").into()),
            (None, Some(_)) => return Err(Problems::of("AWS_ACCESS_KEY_ID", "is missing, although AWS_SECRET_ACCESS_KEY is set").into()),
            _ => {}
        }
        let check_key = format!("check/{}", Uuid::new_v4());
        Ok(Some(Self::new(config.clone(), url.prefix.clone(), check_key, metrics.cloned())))
    }

    fn new(config: config::Storage, prefix: String, check_key: String, metrics: Option<Metrics>) -> Self {
        let limits = Limits { object: config.file_size_limit.0, account: config.file_quota.0 };
        Self(Arc::new(Shared {
            config: RwLock::new(config),
            clients: Mutex::default(),
            prefix,
            check_key,
            limits,
            places: Places::default(),
            metrics,
        }))
    }

    /// Follows changes of the keys if they are in files.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Storage) {
        let storage = self.clone();
        super::follow(lifecycle, "AWS_SECRET_ACCESS_KEY", config, secrets, move |config| storage.clone().renew(config));
    }

    async fn renew(self, config: config::Storage) -> anyhow::Result<()> {
        let new = Self::new(config.clone(), self.0.prefix.clone(), self.0.check_key.clone(), None);
        new.check().await?;
        *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        *self.0.clients.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    pub fn places(&self) -> &Places {
        &self.0.places
    }

    /// # Errors
    /// No client can be built, for example because the system has no certificate authorities.
    fn clients(&self) -> Result<Arc<Clients>, Error> {
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = &*clients {
            return Ok(clients.clone());
        }
        let config = self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let built = Clients::new(&config).map_err(|e| Error::Failed { operation: "attach", text: format!("{e:#}"), missing: false })?;
        Ok(clients.insert(Arc::new(built)).clone())
    }

    fn path(&self, key: &str) -> Path {
        Path::from(format!("{}/{key}", self.0.prefix))
    }

    /// Stores a whole object. It replaces an object with the same key.
    ///
    /// # Errors
    /// The store is unavailable or refuses the request.
    pub async fn put(&self, key: &str, content: Bytes, headers: ObjectHeaders) -> Result<(), Error> {
        let (path, clients, size) = (self.path(key), self.clients()?, content.len());
        let options = PutOptions { attributes: headers.into(), ..PutOptions::default() };
        self.run("put", CONTENT_TIMEOUT, clients.store.put_opts(&path, content.into(), options)).await?;
        self.0.metrics.iter().for_each(|metrics| metrics.storage_written(size));
        Ok(())
    }

    /// Begins an upload in parts and returns its id. The object does not exist until the upload is complete.
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn begin(&self, key: &str, headers: ObjectHeaders) -> Result<String, Error> {
        let (path, clients) = (self.path(key), self.clients()?);
        let options = PutMultipartOptions { attributes: headers.into(), ..PutMultipartOptions::default() };
        self.run("begin", CONTROL_TIMEOUT, clients.store.create_multipart_opts(&path, options)).await
    }

    /// Stores one part of an upload. Every part except the last has [`PART_SIZE`] bytes.
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn put_part(&self, key: &str, upload: &str, index: usize, content: Bytes) -> Result<PartId, Error> {
        let (path, clients, size) = (self.path(key), self.clients()?, content.len());
        let (upload, content) = (upload.to_owned(), content.into());
        let part = self.run("put_part", CONTENT_TIMEOUT, clients.store.put_part(&path, &upload, index, content)).await?;
        self.0.metrics.iter().for_each(|metrics| metrics.storage_written(size));
        Ok(part)
    }

    /// Completes an upload: combines its parts into the object.
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn complete(&self, key: &str, upload: &str, parts: Vec<PartId>) -> Result<(), Error> {
        let (path, clients, upload) = (self.path(key), self.clients()?, upload.to_owned());
        self.run("complete", CONTENT_TIMEOUT, clients.store.complete_multipart(&path, &upload, parts)).await.map(drop)
    }

    /// Aborts an upload and deletes its parts. Does nothing for an upload that is complete or unknown.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn abort(&self, key: &str, upload: &str) -> Result<(), Error> {
        let (path, clients, upload) = (self.path(key), self.clients()?, upload.to_owned());
        let aborted = self.run("abort", CONTROL_TIMEOUT, clients.store.abort_multipart(&path, &upload)).await;
        aborted.or_else(|error| if error.is_missing() { Ok(()) } else { Err(error) })
    }

    /// Returns the size of an object in bytes.
    ///
    /// # Errors
    /// It is missing, or as [`Self::put`].
    pub async fn size(&self, key: &str) -> Result<u64, Error> {
        let (path, clients) = (self.path(key), self.clients()?);
        Ok(self.run("head", CONTROL_TIMEOUT, clients.store.head(&path)).await?.size)
    }

    /// Reads a part of an object: up to [`PART_SIZE`] bytes, from an offset before its end.
    ///
    /// # Errors
    /// It is missing, or as [`Self::put`].
    pub async fn get_part(&self, key: &str, offset: u64) -> Result<Bytes, Error> {
        let (path, clients) = (self.path(key), self.clients()?);
        self.run("get_part", CONTENT_TIMEOUT, clients.store.get_range(&path, offset..offset + PART_SIZE as u64)).await
    }

    /// Reads a whole object into memory.
    ///
    /// # Errors
    /// It is missing, or as [`Self::put`].
    pub async fn get(&self, key: &str) -> Result<Bytes, Error> {
        let (path, clients) = (self.path(key), self.clients()?);
        self.run("get", CONTENT_TIMEOUT, async { clients.store.get(&path).await?.bytes().await }).await
    }

    /// Deletes an object. Does nothing if it does not exist.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let (path, clients) = (self.path(key), self.clients()?);
        let deleted = self.run("delete", CONTROL_TIMEOUT, clients.store.delete(&path)).await;
        deleted.or_else(|error| if error.is_missing() { Ok(()) } else { Err(error) })
    }

    /// Lists up to `limit` objects in a folder, sorted by key. The list starts after the key `after`.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn list(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, Error> {
        let (path, clients, mut found) = (self.path(folder), self.clients()?, Vec::new());
        let listing = async {
            let mut objects = match after {
                Some(after) => clients.store.list_with_offset(Some(&path), &self.path(after)),
                None => clients.store.list(Some(&path)),
            };
            while found.len() < limit
                && let Some(object) = objects.try_next().await?
            {
                let whole = object.location.as_ref();
                let key = whole.strip_prefix(&self.0.prefix).unwrap_or(whole).trim_start_matches('/');
                found.push(Listed { key: key.to_owned(), size: object.size });
            }
            Ok(())
        };
        self.run("list", CONTENT_TIMEOUT, listing).await?;
        Ok(found)
    }

    /// Returns a signed URL. Until it expires, anyone who has it can read the object.
    ///
    /// # Errors
    /// The platform provides no credentials to sign it with.
    pub async fn signed_url(&self, key: &str, lifetime: Duration) -> Result<Url, Error> {
        let (path, clients) = (self.path(key), self.clients()?);
        let signer = clients.public.as_ref().unwrap_or(&clients.store);
        self.run("sign", CONTROL_TIMEOUT, signer.signed_url(Method::GET, &path, lifetime)).await
    }

    /// The origin of the addresses at which people read objects, which pages with such images must allow. Empty if it
    /// cannot be told.
    pub fn public_origin(&self) -> String {
        let config = self.0.config.read().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = config.storage_public_url.as_ref().or(config.aws_endpoint_url_s3.as_ref());
        match (elsewhere, config.storage_url.as_ref().map(|url| url.scheme)) {
            (Some(endpoint), Some(Scheme::S3)) => endpoint.0.origin().ascii_serialization(),
            (None, Some(Scheme::S3)) => format!("https://s3.{}.amazonaws.com", config.aws_region),
            #[cfg(feature = "gcs")]
            (_, Some(Scheme::Gcs)) => "https://storage.googleapis.com".to_owned(),
            #[cfg(feature = "azure")]
            (_, Some(Scheme::Azure)) => {
                let account = config.azure_storage_account_name.as_deref().unwrap_or_default();
                format!("https://{account}.blob.core.windows.net")
            }
            (_, None) => String::new(),
        }
    }

    /// Writes, reads and deletes a small object.
    ///
    /// # Errors
    /// One of these operations fails, or the object read differs from the one written.
    pub async fn check(&self) -> anyhow::Result<()> {
        let (key, content) = (&self.0.check_key, Bytes::from_static(b"written by a check, which deletes it"));
        let headers = ObjectHeaders { content_type: "text/plain".to_owned(), content_disposition: "attachment".to_owned() };
        self.put(key, content.clone(), headers).await?;
        let read = self.get(key).await;
        self.delete(key).await?;
        anyhow::ensure!(read? == content, "the object read differs from the one written");
        Ok(())
    }

    /// Runs an operation with a time limit and records it in a span and in the metrics.
    async fn run<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Error> {
        let span = debug_span!("storage", otel.name = format!("storage {operation}"), otel.kind = "client");
        let started = Instant::now();
        let done = match timeout(limit, work.instrument(span)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Error::failed(operation, &error)),
            Err(_) => Err(Error::TimedOut { operation, limit }),
        };
        let outcome = match &done {
            Ok(_) => "done",
            Err(error) if error.is_missing() => "missing",
            Err(_) => "failed",
        };
        self.0.metrics.iter().for_each(|metrics| metrics.storage_operation(operation, outcome, started.elapsed()));
        done
    }
}

/// The secrets that may be in files.
fn secrets(config: &config::Storage) -> Vec<&SecretString> {
    let secrets = [&config.aws_access_key_id, &config.aws_secret_access_key, &config.aws_session_token, &config.azure_storage_account_key];
    secrets.into_iter().flatten().collect()
}
