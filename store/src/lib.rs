//! Opens, hashes, fetches and atomically writes models: bytes in, bytes out.
//!
//! A model reference (a path, a URL, a Hub id: [`Location`]) becomes a [`Model`]: mapped safetensors files whose headers
//! were checked as if an enemy had written them, and the files that go with them. [`pair`] finds which tensor of a base
//! each tensor of a fine-tune comes from. [`Staged`] makes outputs appear whole or not at all.
//!
//! This crate knows no SQL and does no arithmetic on tensors.

mod cache;
mod error;
mod fetch;
mod fingerprint;
pub mod hash;
mod header;
mod index;
mod location;
mod lock;
mod map;
mod model;
mod options;
mod pace;
mod pairing;
mod path;
mod publish;
mod sample;
mod scan;
mod stage;
#[cfg(test)]
mod testing;

pub use cache::cache_dir;
pub use error::{ErrorKind, StoreError};
pub use fetch::{HubModel, HubQuery, fetch_dataset, fetch_prefix, list_hub_models};
pub use header::{Header, MAX_HEADER, TensorEntry};
pub use index::{INDEX_SUFFIX, ShardIndex};
pub use location::{Location, redact_url};
pub use lock::{LockGuard, lock, try_lock};
pub use map::Map;
pub use model::{CarriedFile, Model, TensorHandle, WeightFile};
pub use options::{OpenOptions, Progress, Secret};
pub use pace::pace;
pub use pairing::{Pair, PairedBy, pair};
pub use path::{check_relative, safe_join};
pub use publish::{Published, publish};
pub use stage::{Committed, Replace, Staged};
