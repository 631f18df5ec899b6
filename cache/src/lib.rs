//! A cache of rebuilt models: rebuild once, load at once ever after, within a limit of disk space, shared by any number of processes.
//!
//! [`DeltaCache`] gives the path of a model that other programs load. What keeps it right:
//! - An entry is named by a hash of base, delta and format version, and appears whole, by one rename.
//! - One process rebuilds an entry, the others wait for it: a lock of the entry (`flock`), which dies with its process.
//! - Whoever uses an entry holds its lock shared ([`Lease`]); eviction tries the lock and passes over what is in use or pinned.
//! - Room is reserved before work begins, so that the limit is never exceeded, not even for a moment.
//! - Every hit is checked by a glance, [`DeltaCache::verify`] checks every byte; what is damaged is set aside and rebuilt.
//! - Jobs are files: they outlive the process, and what a killed one left is taken up by the next.

mod artifact;
mod cache;
mod entry;
mod error;
mod files;
mod jobs;
mod layout;
mod ledger;
mod lock;
mod resolve;
mod stats;

pub use cache::{DeltaCache, Found, Lease, Verified};
pub use entry::{CacheEntry, EntryFile};
pub use error::CacheError;
pub use jobs::{Job, JobState};
pub use ledger::Collected;
pub use resolve::{DeltaMode, Resolved};
pub use stats::CacheStats;
