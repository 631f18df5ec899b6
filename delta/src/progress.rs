//! Progress for the caller, and the caller's wish to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::DeltaError;

/// Called with what is being done (bytes done, of how many, how fast) and the fraction of it that is done, 0 to 1, at most some twenty times a second.
pub type Progress = Arc<dyn Fn(&str, f64) + Send + Sync>;

/// Asks an operation to stop; clones share one wish.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks every operation that holds this token to stop soon, leaving nothing behind.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether stopping was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an operation checks between two blocks: the caller's token, and whether its own future was dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    asked: CancelToken,
    dropped: CancelToken,
}

impl Stop {
    pub(crate) fn new(asked: CancelToken) -> Self {
        Self {
            asked,
            dropped: CancelToken::default(),
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.asked.is_cancelled() || self.dropped.is_cancelled()
    }

    pub(crate) fn check(&self) -> Result<(), DeltaError> {
        if self.is_set() {
            Err(DeltaError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Stops what else is under way, after an error.
    pub(crate) fn abandon(&self) {
        self.dropped.cancel();
    }

    /// Stops the operation when dropped: kept by the future, so that dropping it stops the threads.
    pub(crate) fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.dropped.clone())
    }
}

pub(crate) struct StopOnDrop(CancelToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Counts bytes towards a total and tells the caller now and then.
pub(crate) struct Ticker {
    progress: Option<Progress>,
    message: String,
    total: u64,
    done: AtomicU64,
    began: Instant,
    told: Mutex<Instant>,
}

const EVERY: Duration = Duration::from_millis(50);

impl Ticker {
    pub(crate) fn new(progress: Option<Progress>, message: impl Into<String>, total: u64) -> Self {
        let ticker = Self {
            progress,
            message: message.into(),
            total,
            done: AtomicU64::new(0),
            began: Instant::now(),
            told: Mutex::new(Instant::now()),
        };
        ticker.tell(0);
        ticker
    }

    pub(crate) fn add(&self, bytes: u64) {
        crate::residency::relieve();
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.progress.is_none() {
            return;
        }
        if let Ok(mut told) = self.told.try_lock()
            && told.elapsed() >= EVERY
        {
            *told = Instant::now();
            self.tell(done);
        }
    }

    pub(crate) fn finish(&self) {
        self.tell(self.total);
    }

    fn tell(&self, done: u64) {
        if let Some(progress) = &self.progress {
            let fraction = if self.total == 0 {
                1.0
            } else {
                (done as f64 / self.total as f64).min(1.0)
            };
            let pace = sparse_store::pace(done, self.total, self.began.elapsed());
            progress(&format!("{}, {pace}", self.message), fraction);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_always_told() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let ticker = Ticker::new(
            Some(Arc::new(move |_: &str, f| {
                sink.lock().map(|mut v| v.push(f)).unwrap_or(())
            })),
            "x",
            10,
        );
        for _ in 0..10 {
            ticker.add(1);
        }
        ticker.finish();
        let seen = seen.lock().map(|v| v.clone()).unwrap_or_default();
        assert_eq!(
            (seen.first().copied(), seen.last().copied()),
            (Some(0.0), Some(1.0))
        );
    }

    #[test]
    fn dropping_stops() {
        let stop = Stop::new(CancelToken::default());
        drop(stop.on_drop());
        assert!(stop.check().is_err());
    }
}
