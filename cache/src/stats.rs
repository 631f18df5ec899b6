//! How the cache does, over all processes and since it was made.

use serde::{Deserialize, Serialize};

use crate::CacheError;
use crate::files::{read_json, write_json};
use crate::layout::Layout;
use crate::lock::LockFile;

/// Counters of a cache, and its size now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CacheStats {
    /// Requests that found the model there.
    pub cache_hits: u64,
    /// Requests that had to rebuild it.
    pub cache_misses: u64,
    /// Requests that waited for another process to rebuild it.
    pub cache_waits: u64,
    /// Models rebuilt.
    pub reconstructions: u64,
    /// Mean time of a rebuild, in seconds; 0 before the first.
    pub avg_reconstruction_time_s: f64,
    /// Models evicted.
    pub evictions: u64,
    /// Models found damaged and set aside.
    pub quarantined: u64,
    /// Models in the cache.
    pub entries: u64,
    /// Bytes of models in the cache, damaged ones and room reserved for models being rebuilt included.
    pub cache_size_bytes: u64,
    /// Bytes it may hold.
    pub cache_limit_bytes: u64,
    /// Jobs that are queued or running.
    pub pending_jobs: u64,
}

/// The counters as stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counters {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) waits: u64,
    pub(crate) builds: u64,
    pub(crate) build_seconds: f64,
    pub(crate) evictions: u64,
    pub(crate) quarantined: u64,
}

impl Counters {
    pub(crate) fn read(layout: &Layout) -> Self {
        read_json(&layout.state.join("stats.json")).unwrap_or_default()
    }

    /// Changes the counters, one process at a time.
    pub(crate) fn update(
        layout: &Layout,
        change: impl FnOnce(&mut Self),
    ) -> Result<(), CacheError> {
        let lock = LockFile::open(&layout.state.join("stats.lock"))?;
        lock.wait_exclusive()?;
        let mut counters = Self::read(layout);
        change(&mut counters);
        write_json(&layout.state.join("stats.json"), &counters)
    }
}
