//! What operations return.

use std::time::Duration;

use serde::Serialize;

use crate::{DeltaManifest, SvdDeltaManifest, index::TensorRow};

/// What an operation did to its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The output was written.
    Created,
    /// The output held the same already; it was verified and left as it is.
    Exists,
    /// Everything was computed and nothing written.
    DryRun,
}

impl Status {
    /// "created", "exists" or "dry_run".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Exists => "exists",
            Self::DryRun => "dry_run",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One tensor of a delta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorReport {
    /// The safetensors file it is in.
    pub file: String,
    /// Its name.
    pub tensor: String,
    /// Its dtype as the file writes it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements.
    pub params: u64,
    /// Elements whose bits differ from the base's; all where it has no base.
    pub changed: u64,
    /// What predicts it: "none", "base", "cast" and so on.
    pub predictor: String,
    /// How it is stored: "same", "twin" (equals an earlier tensor), "empty", a method of the codec, or "mixed".
    pub method: String,
    /// Its bytes in the fine-tune.
    pub bytes: u64,
    /// Its bytes in the artifact: header and blocks.
    pub compressed_bytes: u64,
    /// Its blocks.
    pub blocks: u64,
}

impl TensorReport {
    pub(crate) fn new(row: &TensorRow) -> Self {
        let params = row.shape.iter().fold(1_u64, |n, d| n.saturating_mul(*d));
        let bits =
            sparse_codec::DType::parse(&row.dtype).map_or(8, |dtype| u64::from(dtype.bits()));
        Self {
            file: row.file.to_string(),
            tensor: row.name.clone(),
            dtype: row.dtype.clone(),
            shape: row.shape.clone(),
            params,
            changed: row.changed(),
            predictor: row.predictor.clone(),
            method: row.method(),
            bytes: params.saturating_mul(bits) / 8,
            compressed_bytes: row.header + row.stored(),
            blocks: match &row.source {
                crate::index::Source::Coded(blocks) => blocks.len() as u64,
                _ => 0,
            },
        }
    }

    /// Original over compressed bytes; infinite where nothing is stored.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.compressed_bytes == 0 {
            f64::INFINITY
        } else {
            self.bytes as f64 / self.compressed_bytes as f64
        }
    }
}

/// What `compress` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompressMetrics {
    /// Bytes of base and fine-tune that were read (mapped), hashing aside.
    pub bytes_read: u64,
    /// Bytes written to the artifact; none where it existed or in a dry run.
    pub bytes_written: u64,
    /// Bytes of the fine-tune: weights and carried files.
    pub original_bytes: u64,
    /// Bytes of the artifact.
    pub artifact_bytes: u64,
    /// Bytes of block payloads in it.
    pub block_bytes: u64,
    /// Bytes of tensor headers and tables in it, as stored.
    pub header_bytes: u64,
    /// Bytes of carried files and safetensors headers in it, as stored.
    pub carried_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Tensors of the fine-tune.
    pub tensors: u64,
    /// Blocks encoded.
    pub blocks: u64,
    /// Threads that encoded.
    pub threads: usize,
    /// Blocks that a GPU encoded, or decoded again to check them.
    pub device_blocks: u64,
    /// Wall time from open to commit.
    pub elapsed: Duration,
}

/// What `compress` did.
#[derive(Clone, Debug)]
pub struct CompressOutcome {
    /// What became of the output.
    pub status: Status,
    /// Where the artifact is: a folder or URL; in a dry run, where it would be.
    pub path: String,
    /// Its manifest.
    pub manifest: DeltaManifest,
    /// Its tensors, in the order of the files.
    pub tensors: Vec<TensorReport>,
    /// What was measured.
    pub metrics: CompressMetrics,
}

/// One rebuilt file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Relative path.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its SHA-256: that of the fine-tune's file, where it is not an approximation of it.
    pub sha256: String,
    /// How it came about: "rebuilt", "approximated" (by a lossy delta), "carried", "copied" (from the base) or "exists".
    pub status: String,
}

/// What `reconstruct` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReconstructMetrics {
    /// Bytes of the artifact.
    pub artifact_bytes: u64,
    /// Bytes rebuilt: weights and carried files.
    pub bytes: u64,
    /// Bytes written; none where the output existed or in a dry run.
    pub bytes_written: u64,
    /// Files rebuilt.
    pub files: u64,
    /// Threads that decoded.
    pub threads: usize,
    /// Blocks that a GPU decoded.
    pub device_blocks: u64,
    /// Wall time up to the commit, everything decoded and hashed.
    pub decode: Duration,
    /// Wall time from open to commit.
    pub elapsed: Duration,
}

/// What `reconstruct` did.
#[derive(Clone, Debug)]
pub struct ReconstructOutcome {
    /// What became of the output.
    pub status: Status,
    /// Where the model is.
    pub path: String,
    /// Its files, weights first.
    pub files: Vec<FileReport>,
    /// The manifest of the delta.
    pub manifest: DeltaManifest,
    /// What was measured.
    pub metrics: ReconstructMetrics,
}

/// One thing that `verify` looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The file or tensor.
    pub item: String,
    /// "manifest", "index", "payload", "adapter", "tensor", "carried" or "file" (rebuilt from the base).
    pub kind: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was checked, or what is wrong.
    pub detail: String,
}

impl Check {
    /// A check of an item: what was found, or what is wrong with it.
    pub(crate) fn new(item: &str, kind: &str, found: Result<String, String>) -> Self {
        Self {
            item: item.to_owned(),
            kind: kind.to_owned(),
            ok: found.is_ok(),
            detail: found.unwrap_or_else(|problem| problem),
        }
    }
}

/// What an artifact holds.
#[derive(Clone, Debug)]
pub struct ArtifactInfo {
    /// Where it is.
    pub path: String,
    /// What it holds.
    pub content: ArtifactContent,
}

/// An artifact by its kind.
#[derive(Clone, Debug)]
pub enum ArtifactContent {
    /// A lossless delta, of a model or of an adapter.
    Delta {
        /// Its manifest.
        manifest: Box<DeltaManifest>,
        /// Its tensors, in the order of the files.
        tensors: Vec<TensorReport>,
    },
    /// A low-rank approximation, whose manifest has its tensors.
    Svd(Box<SvdDeltaManifest>),
}
