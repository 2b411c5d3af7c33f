//! Accounts: signing up, recovering an account, sessions, API tokens, administration.

mod api_tokens;
mod recovery;
mod sign_up;
