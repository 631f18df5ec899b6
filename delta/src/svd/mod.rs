//! Low-rank approximations of a fine-tune: [`SvdCompress`] makes one, with adapters for PEFT, [`SvdReconstruct`] makes the
//! approximate model of it.

mod adapters;
mod apply;
mod artifact;
mod compress;
mod floats;
mod manifest;
mod plan;
mod rank;
mod reconstruct;
mod resume;
mod source;
mod units;
mod verify;

pub(crate) use artifact::SvdArtifact;

pub use adapters::Profile;
pub(crate) use artifact::read_manifest;
pub use compress::{StagedSvd, SvdCompress, SvdMetrics, SvdOutcome};
pub use manifest::{AdapterEntry, Kept, Quality, SvdDeltaManifest, SvdFile, SvdRow, SvdTensor};
pub use rank::SvdRank;
pub(crate) use verify::verify;

pub use reconstruct::{StagedApproximation, SvdReconstruct, SvdReconstructOutcome};
