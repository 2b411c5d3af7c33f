//! Who may do what (factor XV: authentication and authorization): rules, the guard, sessions, API tokens, passwords, the
//! audit trail. It knows the account's row, and no feature.

pub mod api_token;
pub mod audit;
mod caller;
pub mod guard;
pub mod password;
pub mod rules;
pub mod secret;
pub mod session;
pub mod standing;

// What handlers are made of.
pub use audit::By;
pub use caller::Caller;
pub use rules::Role;
pub use session::Session;
