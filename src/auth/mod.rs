//! Authentication and authorization (factor XV): access rules, the guard, sessions, API tokens, passwords and the audit
//! trail. Knows the account's row, and no feature.

pub mod api_token;
pub mod audit;
mod caller;
pub mod guard;
pub mod password;
pub mod rules;
pub mod secret;
pub mod session;
pub mod standing;

// The types that handlers use.
pub use audit::By;
pub use caller::Caller;
pub use rules::Role;
pub use session::Session;
