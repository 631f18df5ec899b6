//! What is at the output already, and whether it is what is asked for or may be replaced.

use std::path::{Path, PathBuf};

use rayon::ThreadPool;
use sparse_store::{LockGuard, OpenOptions, Replace};

use super::StagedDelta;
use super::job::{Job, Known};
use crate::artifact::{self, Artifact};
use crate::manifest::DeltaType;
use crate::mode::Mode;
use crate::paths::{self, Occupant, Output};
use crate::progress::Stop;
use crate::report::{CompressMetrics, CompressOutcome, Status, TensorReport};
use crate::{DeltaError, DeltaManifest, verify};

impl Job {
    /// What is at the output, and whether it may be replaced. Hashes both models only if it may be the same artifact.
    pub(super) fn look_at_output(
        &self,
        known: &mut Known,
        pool: &ThreadPool,
    ) -> Result<Found, DeltaError> {
        match &self.output {
            None => {
                for (path, manifest) in self.stored_candidates(known) {
                    if manifest.key == self.key(known, pool)? && intact(&path, &self.stop) {
                        return Ok(Found::Same {
                            path,
                            manifest: Box::new(manifest),
                        });
                    }
                }
                // A damaged artifact of the same key is replaced by a sound one.
                Ok(Found::Replaceable)
            }
            // What is there is found out when the manifest is put, which fails if there is one.
            Some(Output::Url(_)) => Ok(Found::Free),
            Some(Output::Local(path)) => self.look_at_folder(path, known, pool),
        }
    }

    fn look_at_folder(
        &self,
        path: &Path,
        known: &mut Known,
        pool: &ThreadPool,
    ) -> Result<Found, DeltaError> {
        match paths::occupant(path)? {
            Occupant::Nothing => return Ok(Found::Free),
            Occupant::EmptyDir => return Ok(Found::Replaceable),
            Occupant::File => {
                return Err(DeltaError::Refused {
                    path: path.into(),
                    why: "it is a file, and an artifact is a folder".into(),
                });
            }
            Occupant::Dir => {}
        }
        if !artifact::is_artifact(path) {
            return Err(DeltaError::Refused {
                path: path.into(),
                why: "it is a folder that holds something other than a delta".into(),
            });
        }
        match artifact::read_manifest(path) {
            Ok(manifest) => {
                if self.may_be_same(&manifest, known) && manifest.key == self.key(known, pool)? {
                    if intact(path, &self.stop) {
                        return Ok(Found::Same {
                            path: path.into(),
                            manifest: Box::new(manifest),
                        });
                    }
                    return Ok(Found::Replaceable);
                }
                if self.overwrite {
                    Ok(Found::Replaceable)
                } else {
                    Err(occupied(path, &manifest, &self.wanted()))
                }
            }
            Err(_) if self.overwrite => Ok(Found::Replaceable),
            Err(error) => Err(DeltaError::Exists {
                path: path.into(),
                what: format!("it holds a delta that cannot be read ({error})"),
            }),
        }
    }

    /// What messages compare an existing artifact with.
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            base: self.base.id(),
            finetune: self.finetune.id(),
            how: how(&self.effort.to_string(), self.mode),
        }
    }

    fn may_be_same(&self, manifest: &DeltaManifest, known: &Known) -> bool {
        manifest.base.quick_fingerprint == known.base_quick
            && manifest.finetune_quick == known.finetune_quick
            && manifest.effort == self.effort.to_string()
            && (manifest.delta_type == DeltaType::Adapter.name()) == self.packed.is_some()
            && Mode::of(manifest) == self.mode
    }

    /// Artifacts of the delta store that may be the one asked for.
    pub(super) fn stored_candidates(&self, known: &Known) -> Vec<(PathBuf, DeltaManifest)> {
        let Ok(entries) = std::fs::read_dir(paths::store_in(&self.cache)) else {
            return Vec::new();
        };
        let read = |path: PathBuf| {
            artifact::read_manifest(&path)
                .ok()
                .map(|manifest| (path, manifest))
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|e| read(e.path()))
            .filter(|(_, manifest)| self.may_be_same(manifest, known))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    pub(super) fn existing(
        self,
        path: &Path,
        manifest: DeltaManifest,
        lock: Option<LockGuard>,
    ) -> Result<StagedDelta, DeltaError> {
        let tensors = Artifact::open(path)?
            .tensors
            .iter()
            .map(TensorReport::new)
            .collect();
        let metrics = CompressMetrics {
            original_bytes: manifest.original_bytes,
            artifact_bytes: manifest.artifact_bytes,
            index_bytes: manifest.index.size,
            tensors: manifest.num_layers,
            elapsed: self.started.elapsed(),
            ..CompressMetrics::default()
        };
        let outcome = CompressOutcome {
            status: Status::Exists,
            path: path.display().to_string(),
            manifest,
            tensors,
            metrics,
        };
        Ok(StagedDelta {
            staged: None,
            replace: Replace::Never,
            url: None,
            outcome,
            started: self.started,
            open: OpenOptions::empty(),
            _lock: lock,
        })
    }
}

/// The pair that was to be compressed.
pub(super) struct Wanted<'w> {
    base: &'w str,
    finetune: &'w str,
    how: String,
}

/// Effort, and mode where it is not the usual one.
fn how(effort: &str, mode: Mode) -> String {
    match mode {
        Mode::Lossless => format!("effort {effort}"),
        mode => format!("{mode}, effort {effort}"),
    }
}

impl<'w> Wanted<'w> {
    pub(super) fn of(manifest: &'w DeltaManifest) -> Self {
        Self {
            base: &manifest.base_model_id,
            finetune: &manifest.finetune_model_id,
            how: how(&manifest.effort, Mode::of(manifest)),
        }
    }
}

pub(super) fn occupied(path: &Path, manifest: &DeltaManifest, wanted: &Wanted<'_>) -> DeltaError {
    let what = format!(
        "it holds the delta of {} against {} ({}, key {}), not that of {} against {} ({})",
        manifest.finetune_model_id,
        manifest.base_model_id,
        how(&manifest.effort, Mode::of(manifest)),
        manifest.key.get(..16).unwrap_or_default(),
        wanted.finetune,
        wanted.base,
        wanted.how,
    );
    DeltaError::Exists {
        path: path.into(),
        what,
    }
}

pub(super) enum Found {
    Free,
    Replaceable,
    Same {
        path: PathBuf,
        manifest: Box<DeltaManifest>,
    },
}

/// Whether every stored byte of an artifact is what its manifest says.
pub(super) fn intact(path: &Path, stop: &Stop) -> bool {
    Artifact::open(path).is_ok_and(|artifact| {
        verify::payloads_intact(&artifact.payload, &artifact.manifest.payloads, stop)
    })
}
