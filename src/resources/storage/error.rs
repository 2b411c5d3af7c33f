//! Why an operation on the object store failed.

use std::time::Duration;

/// Why an operation failed. The text never contains an object's key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("object store operation {operation} timed out after {limit:?}")]
    TimedOut { operation: &'static str, limit: Duration },
    #[error("object store operation {operation} failed: {text}")]
    Failed {
        operation: &'static str,
        text: String,
        /// Whether the reason is that the object does not exist.
        missing: bool,
    },
}

impl Error {
    pub(super) fn failed(operation: &'static str, error: &object_store::Error) -> Self {
        let text = describe(error);
        // If the whole bucket is missing, its objects may come back with it. So the object does not count as missing.
        let no_bucket = ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| text.ends_with(code));
        Self::Failed { operation, text, missing: matches!(error, object_store::Error::NotFound { .. }) && !no_bucket }
    }

    /// Whether the operation failed because the object does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Failed { missing: true, .. })
    }
}

/// Describes an error without the document that the store sent, because that may name a key. Only its code is kept.
fn describe(error: &object_store::Error) -> String {
    let text = error.to_string();
    let message = text.split('<').next().unwrap_or_default().trim().trim_end_matches(':');
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or_else(|| message.to_owned(), |(code, _)| format!("{message}: {code}"))
}
