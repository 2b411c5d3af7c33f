//! The URL of an object store: its bucket and a prefix.

use url::Url;

use super::Setting;

/// `s3://bucket/prefix`. It is not secret, because credentials are in separate variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageUrl {
    pub scheme: Scheme,
    pub bucket: String,
    /// The prefix of every key: empty, or a path without a leading or trailing slash.
    pub prefix: String,
}

/// The API that the store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    S3,
    #[cfg(feature = "gcs")]
    Gcs,
    #[cfg(feature = "azure")]
    Azure,
}

impl Setting for StorageUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let shape = || "must be a URL such as s3://bucket or s3://bucket/prefix, without credentials, port or query".to_owned();
        let url = Url::parse(text).map_err(|_| shape())?;
        let scheme = match url.scheme() {
            "s3" => Scheme::S3,
            #[cfg(feature = "gcs")]
            "gs" => Scheme::Gcs,
            #[cfg(feature = "azure")]
            "az" => Scheme::Azure,
            #[cfg(not(feature = "gcs"))]
            "gs" => return Err("needs a build with the cargo feature gcs".to_owned()),
            #[cfg(not(feature = "azure"))]
            "az" => return Err("needs a build with the cargo feature azure".to_owned()),
            _ => return Err(shape()),
        };
        let bare = url.username().is_empty() && url.password().is_none() && url.port().is_none();
        let bare = bare && url.query().is_none() && url.fragment().is_none();
        let bucket = url.host_str().filter(|bucket| bare && !bucket.is_empty()).ok_or_else(shape)?.to_owned();
        let prefix = url.path().trim_matches('/').to_owned();
        if prefix.split('/').any(|part| part.is_empty() && !prefix.is_empty()) {
            return Err(shape());
        }
        // Others would be encoded in keys, and listings would not fit the prefix.
        if !prefix.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
            return Err("may have only letters, digits, `-`, `_`, `.` and `/` after the bucket".to_owned());
        }
        Ok(Self { scheme, bucket, prefix })
    }
}
