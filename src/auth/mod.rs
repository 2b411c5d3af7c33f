//! Authentication and authorization (factor XV): access rules, the guard, sessions, API tokens, an issuer's access
//! tokens, passwords and the audit trail. Knows the account's row, and no feature.

pub mod access_token;
pub mod api_token;
pub mod audit;
mod caller;
pub mod cookie;
pub mod guard;
pub mod issuer;
pub mod password;
pub mod provider;
pub mod rules;
pub mod secret;
pub mod service_account;
pub mod session;
mod signature;
pub mod standing;

// The types that handlers use.
pub use audit::By;
pub use caller::Caller;
pub use rules::Role;
pub use session::Session;
