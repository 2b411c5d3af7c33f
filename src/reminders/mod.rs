//! The sample feature: a message for later, mailed when it is due. A team deletes this folder.

mod digest;
mod jobs;
pub mod reminder;
mod routes;

pub use digest::{SendDigest, SendDigests};
pub use jobs::SendReminder;
pub use routes::api;
