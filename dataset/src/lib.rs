//! Derivative datasets as deltas of their base: rows are matched, columns predicted, and what is left is coded.
//!
//! [`Compress`] makes an artifact from a base and a derivative, [`Reconstruct`] makes the derivative again: the same schema and
//! the same rows in the same order, checked by an order-sensitive hash. `FORMAT.md` specifies the artifact.

mod artifact;
mod canonical;
mod cell;
mod coding;
mod column;
mod compress;
mod effort;
mod error;
mod free;
mod gate;
mod input;
mod manifest;
mod matching;
mod order;
mod output;
mod pair;
#[cfg(test)]
mod property;
mod reconstruct;
mod shuffle;
mod split;
mod table;

pub use compress::{Compress, CompressOutcome, Input, StagedDelta};
pub use error::DatasetError;
pub use input::{Dataset, Format, Rows};
pub use manifest::{BaseSplit, DatasetManifest, SizeStats, SplitEntry};
pub use reconstruct::{Reconstruct, ReconstructOutcome, StagedDataset};
pub use table::Batches;
