//! The delta artifact and the operations on it, as library builders.
//!
//! An artifact is a folder: `manifest.json` (what it is; written last), `tensors.parquet` (where every block is) and
//! `payload-*.bin` (the blocks). `FORMAT.md` specifies it. [`Compress`] makes one from a base and a fine-tune, or from a base and
//! an adapter; [`Reconstruct`] makes the files again, byte for byte, or merges the adapter into its base; [`Verify`], [`Info`] and
//! [`Diff`] look. [`Unmerge`] finds the adapter that was merged into a model. [`SvdCompress`] approximates a fine-tune by low-rank
//! updates of its base and says how far off they are; [`SvdReconstruct`] makes the approximate model.
//!
//! Whatever writes does so under a temporary name and becomes visible in one step; dropping or cancelling it leaves
//! nothing. Memory is bounded whatever the size of the model.

mod artifact;
mod benchmark;
mod blobs;
mod carried;
mod compress;
mod diff;
mod encode;
mod error;
mod identity;
mod index;
mod info;
mod manifest;
mod merge;
mod mode;
mod modules;
mod options;
mod paths;
mod payload;
mod pipeline;
mod place;
mod progress;
mod rebuild;
mod reconstruct;
mod report;
mod residency;
mod seal;
mod share;
mod svd;
mod tensor;
mod tensors;
mod unmerge;
mod verify;
mod wrong_base;

pub use benchmark::{Benchmark, BenchmarkReport, Estimate, Measurement};
pub use compress::{Compress, StagedDelta};
pub use diff::{Diff, DiffRow};
pub use error::DeltaError;
pub use info::Info;
pub use manifest::{
    Blob, CarriedEntry, DeltaManifest, DeltaType, FORMAT_VERSION, FileEntry, Fingerprints,
    IndexEntry, Lossy, PayloadEntry,
};
pub use merge::MergeRule;
pub use mode::Mode;
pub use paths::delta_store_dir;
pub use progress::{CancelToken, Progress};
pub use reconstruct::{Reconstruct, StagedModel};
pub use report::{
    ArtifactContent, ArtifactInfo, Check, CompressMetrics, CompressOutcome, FileReport,
    ReconstructMetrics, ReconstructOutcome, Status, TensorReport,
};
pub use sparse_gpu::Choice as Device;
pub use sparse_svd::Precision;
pub use svd::{
    AdapterEntry, Kept, Profile, Quality, StagedApproximation, StagedSvd, SvdCompress,
    SvdDeltaManifest, SvdFile, SvdMetrics, SvdOutcome, SvdRank, SvdReconstruct,
    SvdReconstructOutcome, SvdRow, SvdTensor,
};
pub use tensors::DeltaTensors;
pub use unmerge::{StagedAdapter, Unmerge, UnmergeOutcome, UnmergedTensor};
pub use verify::Verify;

/// What artifacts of other kinds share with this one: where outputs may go, threads, timestamps.
pub mod support {
    pub use crate::artifact::delta_type;
    pub use crate::compress::timestamp;
    pub use crate::paths::{
        Occupant, Output, artifact_dir, occupant, rebuilt_in, refuse_inputs, store_in,
    };
    pub use crate::pipeline::{guarded, pool};
    pub use crate::residency::{Residency, relieve};

    /// Manifests as they are stored: JSON that counts its own bytes and is sealed against damage.
    pub mod seal {
        pub use crate::seal::{Sealed, open, settle, value};
    }
}
