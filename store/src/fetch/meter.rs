//! How far several downloads are, together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::options::OpenOptions;

/// Counts bytes of all files of one fetch, and reports them.
pub(crate) struct Meter<'a> {
    options: &'a OpenOptions,
    total: u64,
    done: AtomicU64,
    began: Instant,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(options: &'a OpenOptions, total: u64) -> Self {
        Self {
            options,
            total: total.max(1),
            done: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    pub(crate) fn add(&self, what: &str, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        #[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
        let fraction = done as f64 / self.total as f64;
        let pace = crate::pace(done, self.total, self.began.elapsed());
        self.options
            .report(&format!("fetching {what}, {pace}"), fraction);
    }

    /// Takes back what was counted for an attempt that failed.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}
