//! Accounts: signing up, recovering an account, sessions, API tokens, administration.

mod addresses;
mod api_tokens;
mod audit;
mod confirmation;
mod ended_sessions;
mod limits;
mod mail_limit;
mod passwords;
mod races;
mod recovery;
mod sign_up;
mod statistics;
mod undo;
mod verification;
mod yesterday;
