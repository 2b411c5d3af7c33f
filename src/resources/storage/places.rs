//! The places of uploads. One account must not take all of a process's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

/// How many uploads of an account a process receives at a time.
pub const MAX_UPLOADS_PER_ACCOUNT: usize = 8;

/// The accounts that upload now, each with the number of its uploads.
#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<HashMap<Uuid, usize>>>);

/// A place, until it is dropped.
pub struct Place {
    places: Places,
    account_id: Uuid,
}

impl Places {
    /// Takes a place. None if the account has too many.
    pub fn take(&self, account_id: Uuid) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.entry(account_id).or_default();
        if *number >= MAX_UPLOADS_PER_ACCOUNT {
            return None;
        }
        *number += 1;
        Some(Place { places: self.clone(), account_id })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = taken.get_mut(&self.account_id) {
            *number -= 1;
            if *number == 0 {
                taken.remove(&self.account_id);
            }
        }
    }
}
