//! A bound on the memory that models use at the same time, and on that of what they make.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::DatasetError;

/// Lets work begin as long as a quarter of the memory has room for what it uses; a single piece of work always may.
#[derive(Debug)]
pub(crate) struct Gate {
    memory: u64,
    used: Mutex<u64>,
    freed: Condvar,
    kept: AtomicU64,
}

/// Room taken; given back when dropped.
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    bytes: u64,
}

impl Gate {
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            memory,
            used: Mutex::new(0),
            freed: Condvar::new(),
            kept: AtomicU64::new(0),
        }
    }

    /// Takes room for values that stay: an error once they need more than there is.
    pub(crate) fn keep(&self, bytes: u64) -> Result<(), DatasetError> {
        // No more than what is too much: the sum is not to wrap.
        let bytes = bytes.min(self.memory.saturating_add(1));
        let before = self.kept.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= self.memory {
            return Ok(());
        }
        Err(DatasetError::usage(format!(
            "the values that are rebuilt need more than {} MiB of memory; allow more (`memory`)",
            self.memory >> 20
        )))
    }

    /// Waits until there is room. Whoever holds some must not wait for other threads' work.
    pub(crate) fn take(&self, bytes: u64) -> Held<'_> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used > 0 && used.saturating_add(bytes) > self.memory / 4 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_there_is() {
        let gate = Gate::new(100);
        assert!(gate.keep(60).is_ok() && gate.keep(40).is_ok());
        assert!(gate.keep(1).is_err() && gate.keep(u64::MAX).is_err());
        assert!(gate.keep(u64::MAX).is_err());
    }
}
