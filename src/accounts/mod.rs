//! Accounts: signing up, showing that the address is one's own, logging in and out.

pub mod account;
pub mod jobs;
pub mod password;
mod routes;
pub mod verification;

pub use account::Account;
pub use routes::routes;
