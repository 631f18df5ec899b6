//! A bound on the memory that models use at the same time.

use std::sync::{Condvar, Mutex, PoisonError};

/// Lets work begin as long as there is room for what it uses; a single piece of work always may.
pub(crate) struct Gate {
    most: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

/// Room taken; given back when dropped.
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    bytes: u64,
}

impl Gate {
    pub(crate) fn new(most: u64) -> Self {
        Self {
            most,
            used: Mutex::new(0),
            freed: Condvar::new(),
        }
    }

    /// Waits until there is room. Whoever holds some must not wait for other threads' work.
    pub(crate) fn take(&self, bytes: u64) -> Held<'_> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used > 0 && used.saturating_add(bytes) > self.most {
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *used = used.saturating_add(bytes);
        Held { gate: self, bytes }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut used = self
            .gate
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.bytes);
        self.gate.freed.notify_all();
    }
}
