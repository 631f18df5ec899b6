//! `Info`: what an artifact holds, from its manifest and index alone.

use sparse_store::OpenOptions;

use crate::artifact::{self, Artifact};
use crate::report::{ArtifactContent, ArtifactInfo, TensorReport};
use crate::{DeltaError, paths, pipeline, svd};

/// Reads the manifest and index of an artifact.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Info {
    path: String,
    open: OpenOptions,
}

impl Info {
    /// The artifact at `path`: a folder, URL, Hub id, or key in the delta store.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            open: OpenOptions::default(),
        }
    }

    /// How remote artifacts are opened: caches, credentials.
    pub fn open_options(mut self, options: OpenOptions) -> Self {
        self.open = options;
        self
    }

    /// The manifest, and one report per tensor.
    pub async fn run(self) -> Result<ArtifactInfo, DeltaError> {
        let dir = paths::artifact_dir(&self.path, &self.open).await?;
        let read = move || {
            let content = if artifact::is_svd(&dir)? {
                ArtifactContent::Svd(Box::new(svd::read_manifest(&dir)?))
            } else {
                let artifact = Artifact::open(&dir)?;
                ArtifactContent::Delta {
                    tensors: artifact.tensors.iter().map(TensorReport::new).collect(),
                    manifest: Box::new(artifact.manifest),
                }
            };
            Ok(ArtifactInfo {
                path: dir.display().to_string(),
                content,
            })
        };
        tokio::task::spawn_blocking(move || pipeline::guarded(read))
            .await
            .map_err(|error| DeltaError::internal(error.to_string()))?
    }
}
