//! The object store: files, which no process keeps on a disk of its own (factor VI).
//!
//! It is attached by `STORAGE_URL` and by the variables that platforms set, and speaks S3. Google's and Azure's stores are
//! cargo features. A large object goes up in parts, so that nobody holds the whole of it in memory.

mod writer;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::http::Method;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, RetryConfig,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug_span};
use url::Url;
use uuid::Uuid;

use crate::config::{self, Problems, Scheme, StorageUrl};
use crate::lifecycle::Lifecycle;
use crate::telemetry::metrics::Metrics;

use object_store::multipart::PartId;
pub use writer::Writer;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an operation without content may take, with its retries.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an operation with content may take, with its retries: a part at 180 KB a second.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How often an operation is tried again, and for how long: a store answers a burst with 503.
const RETRIES: usize = 2;

/// What a part of an object has, in bytes: the least that S3 takes of all but the last.
const PART: usize = 5 * 1024 * 1024;

/// The largest object: S3 takes 10,000 parts.
const LARGEST: u64 = 48 * 1024 * 1024 * 1024;

/// Why an operation failed. No text holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the object store did not {operation} in {limit:?}")]
    Late { operation: &'static str, limit: Duration },
    #[error("the object store did not {operation}: {text}")]
    Failed {
        operation: &'static str,
        text: String,
        /// The object is not there.
        missing: bool,
    },
}

impl Error {
    /// Whether the object is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Failed { missing: true, .. })
    }
}

/// What may be stored, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest object that a person may store.
    pub object: u64,
    /// What all objects of one account may take.
    pub account: u64,
}

/// What a browser makes of an object.
#[derive(Debug, Clone)]
pub struct Presentation {
    pub content_type: String,
    pub content_disposition: String,
}

impl From<Presentation> for Attributes {
    fn from(presentation: Presentation) -> Self {
        let Presentation { content_type, content_disposition } = presentation;
        Self::from_iter([(Attribute::ContentType, content_type), (Attribute::ContentDisposition, content_disposition)])
    }
}

/// An object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
}

/// What each of the clouds' stores can do.
trait Store: ObjectStore + MultipartStore + Signer {}
impl<S: ObjectStore + MultipartStore + Signer> Store for S {}

/// A handle on the object store, cheap to clone.
#[derive(Clone)]
pub struct Storage(Arc<Shared>);

struct Shared {
    config: RwLock<config::Storage>,
    /// Made at the first operation: a client with TLS takes memory, and the system's authorities, which may be missing.
    stores: Mutex<Option<Arc<Stores>>>,
    prefix: String,
    limits: Limits,
    metrics: Option<Metrics>,
}

struct Stores {
    store: Box<dyn Store>,
    /// Signs addresses at which people reach the store, where they reach it elsewhere.
    public: Option<Box<dyn Store>>,
}

impl Storage {
    /// Attaches the object store, which is first asked at the first operation. None where `STORAGE_URL` is unset.
    ///
    /// # Errors
    /// Variables that belong together are not all set, or a limit is too large.
    pub fn attach(config: &config::Storage, metrics: Option<&Metrics>) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.storage_url else { return Ok(None) };
        if config.file_size_limit.0 > LARGEST {
            return Err(Problems::of("FILE_SIZE_LIMIT", "must be 48GiB at most: an object has no more than 10,000 parts").into());
        }
        // The one provider of cryptography for whatever asks the process for its default; another attach has set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match (&config.aws_access_key_id, &config.aws_secret_access_key) {
            (Some(_), None) => return Err(Problems::of("AWS_SECRET_ACCESS_KEY", "is missing, and AWS_ACCESS_KEY_ID is set").into()),
            (None, Some(_)) => return Err(Problems::of("AWS_ACCESS_KEY_ID", "is missing, and AWS_SECRET_ACCESS_KEY is set").into()),
            _ => {}
        }
        Ok(Some(Self::new(config.clone(), url.prefix.clone(), metrics.cloned())))
    }

    fn new(config: config::Storage, prefix: String, metrics: Option<Metrics>) -> Self {
        let limits = Limits { object: config.file_size_limit.0, account: config.file_quota.0 };
        Self(Arc::new(Shared { config: RwLock::new(config), stores: Mutex::default(), prefix, limits, metrics }))
    }

    /// Follows the keys where they stand in files.
    pub fn follow(&self, lifecycle: &mut Lifecycle, config: &config::Storage) {
        let storage = self.clone();
        super::follow(lifecycle, "AWS_SECRET_ACCESS_KEY", config, keys, move |config| storage.clone().renew(config));
    }

    async fn renew(self, config: config::Storage) -> anyhow::Result<()> {
        let new = Self::new(config.clone(), self.0.prefix.clone(), None);
        new.check().await?;
        *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        *self.0.stores.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// # Errors
    /// No client can be made, such as where there are no authorities to trust.
    fn stores(&self) -> Result<Arc<Stores>, Error> {
        let mut stores = self.0.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stores) = &*stores {
            return Ok(stores.clone());
        }
        let config = self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let made = Stores::new(&config).map_err(|e| Error::Failed { operation: "attach", text: format!("{e:#}"), missing: false })?;
        Ok(stores.insert(Arc::new(made)).clone())
    }

    fn path(&self, key: &str) -> Path {
        Path::from(format!("{}/{key}", self.0.prefix))
    }

    /// Stores an object whole. One with this key is replaced.
    ///
    /// # Errors
    /// The store is unavailable or refuses.
    pub async fn put(&self, key: &str, content: Bytes, presentation: Presentation) -> Result<(), Error> {
        let (path, stores, size) = (self.path(key), self.stores()?, content.len());
        let options = PutOptions { attributes: presentation.into(), ..PutOptions::default() };
        self.run("put", CONTENT_TIMEOUT, stores.store.put_opts(&path, content.into(), options)).await?;
        self.0.metrics.iter().for_each(|metrics| metrics.stored(size));
        Ok(())
    }

    /// Begins an object that comes in parts; returns what names the upload. Nothing is there until it is complete.
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn begin(&self, key: &str, presentation: Presentation) -> Result<String, Error> {
        let (path, stores) = (self.path(key), self.stores()?);
        let options = PutMultipartOptions { attributes: presentation.into(), ..PutMultipartOptions::default() };
        self.run("begin", CONTROL_TIMEOUT, stores.store.create_multipart_opts(&path, options)).await
    }

    /// Stores a part of an upload: all have [`PART`] bytes but the last.
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn put_part(&self, key: &str, upload: &str, index: usize, content: Bytes) -> Result<PartId, Error> {
        let (path, stores, size) = (self.path(key), self.stores()?, content.len());
        let (upload, content) = (upload.to_owned(), content.into());
        let part = self.run("put_part", CONTENT_TIMEOUT, stores.store.put_part(&path, &upload, index, content)).await?;
        self.0.metrics.iter().for_each(|metrics| metrics.stored(size));
        Ok(part)
    }

    /// Makes an object of the parts of an upload.
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn complete(&self, key: &str, upload: &str, parts: Vec<PartId>) -> Result<(), Error> {
        let (path, stores, upload) = (self.path(key), self.stores()?, upload.to_owned());
        self.run("complete", CONTENT_TIMEOUT, stores.store.complete_multipart(&path, &upload, parts)).await.map(drop)
    }

    /// Forgets an upload and its parts. One that is complete or unknown stays as it is.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn abort(&self, key: &str, upload: &str) -> Result<(), Error> {
        let (path, stores, upload) = (self.path(key), self.stores()?, upload.to_owned());
        let aborted = self.run("abort", CONTROL_TIMEOUT, stores.store.abort_multipart(&path, &upload)).await;
        aborted.or_else(|error| if error.is_missing() { Ok(()) } else { Err(error) })
    }

    /// The size of an object, in bytes.
    ///
    /// # Errors
    /// It is missing, or as [`Self::put`].
    pub async fn size(&self, key: &str) -> Result<u64, Error> {
        let (path, stores) = (self.path(key), self.stores()?);
        Ok(self.run("head", CONTROL_TIMEOUT, stores.store.head(&path)).await?.size)
    }

    /// Reads a whole object into memory.
    ///
    /// # Errors
    /// It is missing, or as [`Self::put`].
    pub async fn get(&self, key: &str) -> Result<Bytes, Error> {
        let (path, stores) = (self.path(key), self.stores()?);
        self.run("get", CONTENT_TIMEOUT, async { stores.store.get(&path).await?.bytes().await }).await
    }

    /// Deletes an object; says nothing of one that is not there.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let (path, stores) = (self.path(key), self.stores()?);
        let deleted = self.run("delete", CONTROL_TIMEOUT, stores.store.delete(&path)).await;
        deleted.or_else(|error| if error.is_missing() { Ok(()) } else { Err(error) })
    }

    /// The objects whose keys begin with a folder's name, in the order of their keys, from behind `after`; at most `limit`.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn list(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, Error> {
        let (path, stores, mut found) = (self.path(folder), self.stores()?, Vec::new());
        let listing = async {
            let mut objects = match after {
                Some(after) => stores.store.list_with_offset(Some(&path), &self.path(after)),
                None => stores.store.list(Some(&path)),
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

    /// An address at which anybody may read an object for so long.
    ///
    /// # Errors
    /// The platform gives no credentials to sign it with.
    pub async fn address(&self, key: &str, lifetime: Duration) -> Result<Url, Error> {
        let (path, stores) = (self.path(key), self.stores()?);
        let signer = stores.public.as_ref().unwrap_or(&stores.store);
        self.run("sign", CONTROL_TIMEOUT, signer.signed_url(Method::GET, &path, lifetime)).await
    }

    /// Writes, reads and deletes a small object.
    ///
    /// # Errors
    /// The store does not do one of them, or gives back something else.
    pub async fn check(&self) -> anyhow::Result<()> {
        let (key, content) = (format!("check/{}", Uuid::new_v4()), Bytes::from_static(b"written by a check, which deletes it"));
        let presentation = Presentation { content_type: "text/plain".to_owned(), content_disposition: "attachment".to_owned() };
        self.put(&key, content.clone(), presentation).await?;
        let read = self.get(&key).await;
        self.delete(&key).await?;
        anyhow::ensure!(read? == content, "it gives back something else than was written");
        Ok(())
    }

    /// Runs an operation within its time, counted and in a span.
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
            Ok(Err(error)) => {
                let text = words(&error);
                // What lay in a bucket that is gone may come back with it.
                let whole = ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| text.ends_with(code));
                Err(Error::Failed { operation, text, missing: matches!(error, object_store::Error::NotFound { .. }) && !whole })
            }
            Err(_) => Err(Error::Late { operation, limit }),
        };
        let outcome = match &done {
            Ok(_) => "done",
            Err(error) if error.is_missing() => "missing",
            Err(_) => "failed",
        };
        self.0.metrics.iter().for_each(|metrics| metrics.storage(operation, outcome, started.elapsed()));
        done
    }
}

/// What an error says, up to the store's own document, which may name a key; and of that its code.
fn words(error: &object_store::Error) -> String {
    let text = error.to_string();
    let ours = text.split('<').next().unwrap_or_default().trim().trim_end_matches(':');
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or_else(|| ours.to_owned(), |(code, _)| format!("{ours}: {code}"))
}

fn keys(config: &config::Storage) -> Vec<&SecretString> {
    let keys = [&config.aws_access_key_id, &config.aws_secret_access_key, &config.aws_session_token, &config.azure_storage_account_key];
    keys.into_iter().flatten().collect()
}

impl Stores {
    fn new(config: &config::Storage) -> anyhow::Result<Self> {
        let url = config.storage_url.as_ref().context("STORAGE_URL is unset")?;
        let public = config.storage_public_url.as_ref().map(|public| store(config, url, Some(&public.0))).transpose()?;
        Ok(Self { store: store(config, url, None)?, public })
    }
}

/// The store that a URL names, at another address than its own where there is one.
fn store(config: &config::Storage, url: &StorageUrl, elsewhere: Option<&Url>) -> anyhow::Result<Box<dyn Store>> {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(1), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: CONTROL_TIMEOUT };
    let client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(CONTENT_TIMEOUT);
    Ok(match url.scheme {
        Scheme::S3 => Box::new(s3(config, url, elsewhere, client).with_retry(retry).build()?),
        #[cfg(feature = "gcs")]
        Scheme::Gcs => {
            let mut store = object_store::gcp::GoogleCloudStorageBuilder::new().with_bucket_name(&url.bucket);
            if let Some(file) = &config.google_application_credentials {
                store = store.with_application_credentials(file);
            }
            Box::new(store.with_client_options(client).with_retry(retry).build()?)
        }
        #[cfg(feature = "azure")]
        Scheme::Azure => {
            let mut store = object_store::azure::MicrosoftAzureBuilder::new().with_container_name(&url.bucket);
            if let Some(account) = &config.azure_storage_account_name {
                store = store.with_account(account);
            }
            if let Some(key) = &config.azure_storage_account_key {
                store = store.with_access_key(key.expose_secret());
            }
            Box::new(store.with_client_options(client).with_retry(retry).build()?)
        }
    })
}

fn s3(config: &config::Storage, url: &StorageUrl, elsewhere: Option<&Url>, client: ClientOptions) -> AmazonS3Builder {
    let mut store = AmazonS3Builder::new().with_bucket_name(&url.bucket).with_region(&config.aws_region);
    let endpoint = elsewhere.or(config.aws_endpoint_url_s3.as_ref().map(|endpoint| &endpoint.0));
    let plain = endpoint.is_some_and(|endpoint| endpoint.scheme() == "http");
    if let Some(endpoint) = endpoint {
        store = store.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    store = store.with_client_options(client.with_allow_http(plain));
    if let (Some(name), Some(key)) = (&config.aws_access_key_id, &config.aws_secret_access_key) {
        store = store.with_access_key_id(name.expose_secret()).with_secret_access_key(key.expose_secret());
        if let Some(token) = &config.aws_session_token {
            store = store.with_token(token.expose_secret());
        }
        return store;
    }
    let full_uri = config.aws_container_credentials_full_uri.as_ref().map(|uri| uri.0.to_string());
    let from_platform = [
        (AmazonS3ConfigKey::RoleArn, &config.aws_role_arn),
        (AmazonS3ConfigKey::WebIdentityTokenFile, &config.aws_web_identity_token_file),
        (AmazonS3ConfigKey::ContainerCredentialsRelativeUri, &config.aws_container_credentials_relative_uri),
        (AmazonS3ConfigKey::ContainerCredentialsFullUri, &full_uri),
        (AmazonS3ConfigKey::ContainerAuthorizationTokenFile, &config.aws_container_authorization_token_file),
    ];
    for (key, value) in from_platform {
        if let Some(value) = value {
            store = store.with_config(key, value);
        }
    }
    store
}
