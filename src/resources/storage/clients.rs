//! Builds the clients of the object store from the config.

use std::time::Duration;

use anyhow::Context;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::MultipartStore;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use secrecy::ExposeSecret;
use url::Url;

use super::{CONTENT_TIMEOUT, CONTROL_TIMEOUT};
use crate::config::{self, Scheme, StorageUrl};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a failed request is retried. Stores respond to bursts with 503.
const MAX_RETRIES: usize = 2;

/// What every supported store can do.
pub trait Store: ObjectStore + MultipartStore + Signer {}
impl<S: ObjectStore + MultipartStore + Signer> Store for S {}

/// The clients of one configuration.
pub struct Clients {
    pub store: Box<dyn Store>,
    /// Signs URLs for `STORAGE_PUBLIC_URL`, if it is set.
    pub public: Option<Box<dyn Store>>,
}

impl Clients {
    /// # Errors
    /// The configuration names no store, or no client can be built.
    pub fn new(config: &config::Storage) -> anyhow::Result<Self> {
        let url = config.storage_url.as_ref().context("STORAGE_URL is unset")?;
        let public = config.storage_public_url.as_ref().map(|public| build(config, url, Some(&public.0))).transpose()?;
        Ok(Self { store: build(config, url, None)?, public })
    }
}

/// Builds a client for the store that a URL names. `endpoint` replaces the configured address.
fn build(config: &config::Storage, url: &StorageUrl, endpoint: Option<&Url>) -> anyhow::Result<Box<dyn Store>> {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(1), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: MAX_RETRIES, retry_timeout: CONTROL_TIMEOUT };
    let client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(CONTENT_TIMEOUT);
    // Otherwise `HTTP_PROXY` and its like would name a proxy. This one is for no host.
    let client = client.with_proxy_url("http://none.invalid").with_proxy_excludes("*,0.0.0.0/0,::/0");
    Ok(match url.scheme {
        Scheme::S3 => Box::new(s3(config, url, endpoint, client).with_retry(retry).build()?),
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

fn s3(config: &config::Storage, url: &StorageUrl, endpoint: Option<&Url>, client: ClientOptions) -> AmazonS3Builder {
    let mut store = AmazonS3Builder::new().with_bucket_name(&url.bucket).with_region(&config.aws_region);
    let endpoint = endpoint.or(config.aws_endpoint_url_s3.as_ref().map(|endpoint| &endpoint.0));
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
