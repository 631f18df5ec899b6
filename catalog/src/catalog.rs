//! Catalog references, and listing what they hold.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sparse_store::{OpenOptions, StoreError};

use crate::CatalogError;
use crate::directory;
use crate::entry::ModelEntry;
use crate::local::describe;

/// Where models are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// A folder (or one model) on this machine.
    Directory(PathBuf),
    /// The Hub's local cache; none: where the environment says it is.
    HfCache(Option<PathBuf>),
}

/// How a catalog is listed.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// How remote places are reached, and where caches are.
    pub open: OpenOptions,
    /// Whether the headers of safetensors files on this machine are read: dtype, parameters, tensors, bytes.
    pub headers: bool,
}

impl Default for ListOptions {
    fn default() -> Self {
        Self {
            open: OpenOptions::default(),
            headers: true,
        }
    }
}

impl Catalog {
    /// Reads a catalog reference: a folder, or `hf-cache[:FOLDER]`.
    ///
    /// # Errors
    /// A reference that is neither.
    pub fn parse(reference: &str) -> Result<Self, CatalogError> {
        let text = reference.trim();
        if text.is_empty() || text.contains('\0') {
            return Err(CatalogError::usage(
                "the catalog is empty; give a folder of models, or hf-cache",
            ));
        }
        if text == "hf-cache" {
            return Ok(Self::HfCache(None));
        }
        if let Some(folder) = text.strip_prefix("hf-cache:") {
            return Ok(Self::HfCache(Some(PathBuf::from(folder))));
        }
        if text.contains("://") && !text.starts_with("file://") {
            return Err(CatalogError::usage(format!(
                "{text} is no catalog; give a folder of models, or hf-cache"
            )));
        }
        match sparse_store::Location::parse(text)? {
            sparse_store::Location::Local(path) => Ok(Self::Directory(path)),
            _ => Ok(Self::Directory(PathBuf::from(text))),
        }
    }

    /// The models of the catalog, in a fixed order.
    ///
    /// # Errors
    /// A catalog that cannot be read. A model in it that cannot is an entry with a `problem`.
    pub async fn list(&self, options: &ListOptions) -> Result<Vec<ModelEntry>, CatalogError> {
        let (this, options) = (self.clone(), options.clone());
        blocking(move || this.list_now(&options)).await
    }

    fn list_now(&self, options: &ListOptions) -> Result<Vec<ModelEntry>, CatalogError> {
        let mut entries = match self {
            Self::Directory(path) => {
                if !path.exists() {
                    return Err(not_there(path));
                }
                directory::scan(path)?
            }
            Self::HfCache(folder) => {
                let root = folder.clone().or_else(|| options.open.hub_cache.clone());
                let root = root.unwrap_or_else(|| options.open.cache().join("hub"));
                directory::hub_cache(&root)?
            }
        };
        entries.par_iter_mut().for_each(|entry| {
            if let Some(path) = entry.path.clone() {
                describe(entry, &path, options.headers);
            }
        });
        Ok(entries)
    }
}

fn not_there(path: &Path) -> CatalogError {
    StoreError::NotFound {
        what: format!("the catalog {}", path.display()),
        remedy: "give a folder of models, or hf-cache for the Hub's local cache".to_owned(),
    }
    .into()
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CatalogError> + Send + 'static,
) -> Result<T, CatalogError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| CatalogError::Internal {
            message: error.to_string(),
        })?
}
