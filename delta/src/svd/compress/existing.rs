//! What is at the output already, and whether it may be replaced.

use std::path::Path;

use sparse_store::{LockGuard, OpenOptions};

use super::job::Job;
use super::{StagedSvd, SvdMetrics, SvdOutcome};
use crate::paths::{self, Occupant};
use crate::svd::artifact::{self, SvdArtifact};
use crate::svd::manifest::{Kept, SvdDeltaManifest};
use crate::{DeltaError, Status, verify};

impl Job {
    pub(super) fn look(&self, path: &Path, key: &str) -> Result<Found, DeltaError> {
        match paths::occupant(path)? {
            Occupant::Nothing => return Ok(Found::Free),
            Occupant::EmptyDir => return Ok(Found::Replaceable),
            Occupant::File => {
                return Err(DeltaError::Refused {
                    path: path.into(),
                    why: "it is a file, and an approximation is a folder".into(),
                });
            }
            Occupant::Dir => {}
        }
        let manifest = match artifact::read_manifest(path) {
            Ok(manifest) => manifest,
            Err(DeltaError::Corrupt { .. } | DeltaError::Version { .. })
                if self.options.overwrite || self.output.is_none() =>
            {
                return Ok(Found::Replaceable);
            }
            Err(error @ (DeltaError::Corrupt { .. } | DeltaError::Version { .. })) => {
                return Err(DeltaError::Exists {
                    path: path.into(),
                    what: format!("it holds an approximation that cannot be read ({error})"),
                });
            }
            Err(_) => {
                return Err(DeltaError::Refused {
                    path: path.into(),
                    why: "it is a folder that holds something other than a low-rank approximation"
                        .into(),
                });
            }
        };
        if manifest.key == key {
            let intact = SvdArtifact::open(path).is_ok_and(|artifact| {
                verify::payloads_intact(&artifact.payload, &artifact.manifest.payloads, &self.stop)
                    && artifact.adapters_intact()
            });
            return Ok(if intact {
                Found::Same(Box::new(manifest))
            } else {
                Found::Replaceable
            });
        }
        if self.options.overwrite {
            return Ok(Found::Replaceable);
        }
        let named = [self.finetune.id(), self.base.id()];
        let how = [&self.options.rule(), self.options.precision.name()];
        Err(taken(path, &manifest, named, how))
    }

    pub(super) fn existing(
        &self,
        path: &Path,
        manifest: SvdDeltaManifest,
        lock: Option<LockGuard>,
    ) -> StagedSvd {
        let metrics = metrics_of(&manifest);
        StagedSvd {
            staged: None,
            url: None,
            resume: None,
            open: OpenOptions::empty(),
            outcome: SvdOutcome {
                status: Status::Exists,
                path: path.display().to_string(),
                manifest,
                metrics,
            },
            started: self.started,
            _lock: lock,
        }
    }
}

pub(super) fn occupied(
    path: &Path,
    there: &SvdDeltaManifest,
    wanted: &SvdDeltaManifest,
) -> DeltaError {
    let named = [&*wanted.finetune_model_id, &*wanted.base_model_id];
    taken(path, there, named, [&wanted.rule, &wanted.precision])
}

/// The output holds another approximation than that of fine-tune and base as `named`, made by a rule and in a precision.
fn taken(path: &Path, there: &SvdDeltaManifest, named: [&str; 2], how: [&str; 2]) -> DeltaError {
    let ([finetune, base], [rule, precision]) = (named, how);
    let what = format!(
        "it holds the approximation of {} on top of {} ({}, {}), not that of {finetune} on top of {base} ({rule}, {precision})",
        there.finetune_model_id, there.base_model_id, there.rule, there.precision,
    );
    DeltaError::Exists {
        path: path.into(),
        what,
    }
}

pub(super) enum Found {
    Free,
    Replaceable,
    Same(Box<SvdDeltaManifest>),
}

pub(super) fn metrics_of(manifest: &SvdDeltaManifest) -> SvdMetrics {
    SvdMetrics {
        original_bytes: manifest.original_size_bytes,
        artifact_bytes: manifest.compressed_size_bytes,
        adapter_bytes: manifest.adapters.iter().map(|a| a.bytes).sum(),
        factor_bytes: manifest
            .tensors
            .iter()
            .filter(|t| t.kept == Kept::LowRank)
            .map(|t| t.stored_bytes)
            .sum(),
        tensors: manifest.tensors.len() as u64,
        approximated: manifest.num_layers,
        ..SvdMetrics::default()
    }
}
