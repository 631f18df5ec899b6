//! `resolve`: a folder to load, whatever a reference is: the drop-in for `from_pretrained`.

use std::path::{Path, PathBuf};

use sparse_delta::DeltaError;
use sparse_store::{Location, Model};

use crate::CacheError;
use crate::artifact::Artifact;
use crate::cache::{DeltaCache, Lease, blocking};

/// What to do with a reference that is, or holds, a delta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeltaMode {
    /// Full weights where the reference has them, else its delta.
    #[default]
    Auto,
    /// Its delta where the reference has one, else full weights.
    PreferDelta,
    /// Full weights only: a delta is an error.
    FullOnly,
}

impl std::str::FromStr for DeltaMode {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        match text {
            "auto" => Ok(Self::Auto),
            "prefer_delta" => Ok(Self::PreferDelta),
            "full_only" => Ok(Self::FullOnly),
            _ => Err(CacheError::usage(format!(
                "'{text}' is no delta mode; use auto, prefer_delta or full_only"
            ))),
        }
    }
}

/// A model that can be loaded.
#[derive(Debug)]
pub struct Resolved {
    /// The folder (or file) to load.
    pub path: PathBuf,
    /// The cache's entry, if it was rebuilt from a delta; it stays at least as long as this is held.
    pub lease: Option<Lease>,
}

impl DeltaCache {
    /// A path that transformers loads: of a full model where it is (models of the Hub in the Hub's own cache), of a delta in this
    /// cache. Without `base`, the one that the delta names is used.
    ///
    /// # Errors
    /// A reference that is neither, and what rebuilding or fetching fails with.
    pub async fn resolve(
        &self,
        model: &str,
        base: Option<&str>,
        mode: DeltaMode,
    ) -> Result<Resolved, CacheError> {
        let delta = self.as_delta(model).await?;
        let has_full = match Location::parse(model)? {
            Location::Local(path) => delta.is_none() || has_weights(&path),
            // A key of the delta store is a delta and nothing else.
            _ => delta.is_none(),
        };
        match (mode, delta) {
            (DeltaMode::FullOnly, Some(_)) if !has_full => Err(CacheError::usage(format!(
                "{model} is a delta, and full weights only were asked for; use auto or prefer_delta"
            ))),
            (DeltaMode::Auto, Some(artifact)) if !has_full => {
                self.rebuilt(model, base, &artifact).await
            }
            (DeltaMode::PreferDelta, Some(artifact)) => self.rebuilt(model, base, &artifact).await,
            _ => {
                let opened = Model::open(model, &self.options).await?;
                Ok(Resolved {
                    path: opened.path().to_path_buf(),
                    lease: None,
                })
            }
        }
    }

    async fn rebuilt(
        &self,
        delta: &str,
        base: Option<&str>,
        artifact: &Artifact,
    ) -> Result<Resolved, CacheError> {
        let base = base.unwrap_or(artifact.base());
        let lease = self.get_or_reconstruct(base, delta).await?;
        Ok(Resolved {
            path: lease.path().to_path_buf(),
            lease: Some(lease),
        })
    }

    /// The delta that the reference is, if it is one.
    async fn as_delta(&self, reference: &str) -> Result<Option<Artifact>, CacheError> {
        let dir = match sparse_delta::support::artifact_dir(reference, &self.options).await {
            Ok(dir) => dir,
            // A model of the Hub, or an object store's prefix without a manifest.
            Err(_) => return Ok(None),
        };
        blocking(move || match Artifact::read(&dir) {
            Ok(artifact) => Ok(Some(artifact)),
            Err(DeltaError::NotFound { .. }) => Ok(None),
            // A full model may have a file of that name, too.
            Err(_) if has_weights(&dir) => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await
    }
}

/// Whether weights are at the top of a folder, or the path is a file.
fn has_weights(path: &Path) -> bool {
    if path.is_file() {
        return true;
    }
    std::fs::read_dir(path).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .ends_with(".safetensors")
        })
    })
}
