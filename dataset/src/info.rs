//! `Info`: what an artifact holds, from its manifest alone.

use sparse_delta::support;
use sparse_store::OpenOptions;

use crate::DatasetError;
use crate::artifact::stored_bytes;
use crate::manifest::DatasetManifest;

/// The `delta_type` of the manifest of a dataset delta.
pub(crate) const DELTA_TYPE: &str = "dataset_delta";

/// Whether a reference (a folder, a URL, a key in the delta store) names the delta of a dataset rather than of a model. One
/// whose manifest cannot be read is none.
///
/// # Errors
/// A reference that names nothing, and remote places that cannot be reached.
pub async fn is_dataset_delta(
    reference: &str,
    options: &OpenOptions,
) -> Result<bool, DatasetError> {
    let folder = support::artifact_dir(reference, options).await?;
    Ok(support::delta_type(&folder).as_deref() == Some(DELTA_TYPE))
}

/// What a dataset delta holds.
#[derive(Clone, Debug)]
pub struct DatasetInfo {
    /// Where it is.
    pub path: String,
    /// Its manifest.
    pub manifest: DatasetManifest,
    /// For each split, the bytes that are stored for it.
    pub stored: Vec<u64>,
}

/// Reads the manifest of a dataset delta.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Info {
    path: String,
    open: OpenOptions,
}

impl Info {
    /// The artifact at `path`: a folder, URL, or key in the delta store.
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

    /// The manifest, and what is stored for each split.
    ///
    /// # Errors
    /// An artifact that is not there or is damaged.
    pub async fn run(self) -> Result<DatasetInfo, DatasetError> {
        let folder = support::artifact_dir(&self.path, &self.open).await?;
        tokio::task::spawn_blocking(move || {
            let manifest = DatasetManifest::read(&folder)?;
            let stored = stored_bytes(&folder, &manifest)?;
            Ok(DatasetInfo {
                path: folder.display().to_string(),
                manifest,
                stored,
            })
        })
        .await
        .map_err(|error| DatasetError::internal(error.to_string()))?
    }
}
