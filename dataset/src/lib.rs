//! Derivative datasets as deltas of their base: rows are matched, columns predicted, and what is left is coded.
//!
//! [`Compress`] makes an artifact from a base and a derivative, [`Reconstruct`] makes the derivative again: the same schema and
//! the same rows in the same order, checked by an order-sensitive hash. `FORMAT.md` specifies the artifact.

mod artifact;
mod canonical;
mod carried;
mod cell;
mod coding;
mod column;
mod compress;
mod diff;
mod effort;
mod error;
mod estimate;
mod exact;
mod free;
mod gate;
mod info;
mod input;
mod manifest;
mod matching;
mod order;
mod output;
mod pair;
mod places;
#[cfg(test)]
mod property;
mod quoted;
mod reconstruct;
mod shuffle;
mod split;
mod table;
mod verify;

pub use carried::Carried;
pub use compress::{Compress, CompressOutcome, Input, Restore, StagedDelta};
pub use diff::{ColumnDiff, Diff, DiffOp, DiffRow, DiffSummary, HTML_ROWS, Report, SplitDiff};
pub use error::DatasetError;
pub use estimate::{DatasetDeltaStats, Estimate, EstimateOutcome};
pub use info::{DatasetInfo, Info, is_dataset_delta};
pub use input::{Dataset, Format, Rows};
pub use manifest::{BaseSplit, DatasetManifest, Restores, RowCounts, SizeStats, SplitEntry};
pub use places::MetadataPlaces;
pub use reconstruct::{Reconstruct, ReconstructOutcome, StagedDataset};
pub use table::Batches;
pub use verify::Verify;
