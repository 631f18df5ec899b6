//! Catalog references, and listing what they hold.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sparse_store::{HubQuery, OpenOptions, StoreError};

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
    /// Models that the Hub lists.
    Hub(HubQuery),
    /// A Parquet, CSV or JSON-lines file with a column `model` and perhaps `base` and `relation`.
    Table(PathBuf),
    /// MLflow's model registry, at this address.
    Mlflow(String),
}

/// What a catalog may be, for messages.
const FORMS: &str = "give a folder of models, a table (.parquet, .csv, .jsonl), hf-cache, hub:ORG/BASE or mlflow:URL";

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
    /// Reads a catalog reference: a folder; a table; `hf-cache[:FOLDER]`; `hub:ORG/BASE`, `hub:ORG`, with `?relation=`, `search=`,
    /// `filter=`, `limit=`; `mlflow:URL`.
    ///
    /// # Errors
    /// A reference that is none of these.
    pub fn parse(reference: &str) -> Result<Self, CatalogError> {
        let text = reference.trim();
        if text.is_empty() || text.contains('\0') {
            return Err(CatalogError::usage(format!(
                "the catalog is empty; {FORMS}"
            )));
        }
        if text == "hf-cache" {
            return Ok(Self::HfCache(None));
        }
        if let Some(folder) = text.strip_prefix("hf-cache:") {
            return Ok(Self::HfCache(Some(PathBuf::from(folder))));
        }
        if let Some(query) = text.strip_prefix("hub:") {
            return crate::hub::parse(query).map(Self::Hub);
        }
        if let Some(address) = text.strip_prefix("mlflow:") {
            return crate::mlflow::parse(address).map(Self::Mlflow);
        }
        if text.contains("://") && !text.starts_with("file://") {
            return Err(CatalogError::usage(format!(
                "{text} is no catalog; {FORMS}"
            )));
        }
        let path = match sparse_store::Location::parse(text)? {
            sparse_store::Location::Local(path) => path,
            _ => PathBuf::from(text),
        };
        if crate::table::is_table(&path) {
            return Ok(Self::Table(path));
        }
        Ok(Self::Directory(path))
    }

    /// The models of the catalog, in a fixed order.
    ///
    /// # Errors
    /// A catalog that cannot be read. A model in it that cannot is an entry with a `problem`.
    pub async fn list(&self, options: &ListOptions) -> Result<Vec<ModelEntry>, CatalogError> {
        let listed = match self {
            Self::Hub(query) => {
                Some(crate::hub::list(query, &options.open, &hub_cache(options)).await?)
            }
            Self::Mlflow(address) => Some(crate::mlflow::list(address, &options.open).await?),
            _ => None,
        };
        let (this, options) = (self.clone(), options.clone());
        blocking(move || this.list_here(listed, &options)).await
    }

    /// What is on this machine of the catalog: all of it, or what of `listed` is.
    fn list_here(
        &self,
        listed: Option<Vec<ModelEntry>>,
        options: &ListOptions,
    ) -> Result<Vec<ModelEntry>, CatalogError> {
        let mut entries = match self {
            Self::Hub(_) | Self::Mlflow(_) => listed.unwrap_or_default(),
            Self::Table(path) => crate::table::read(path)?,
            Self::Directory(path) => {
                if !path.exists() {
                    return Err(not_there(path));
                }
                directory::scan(path)?
            }
            Self::HfCache(folder) => {
                let root = folder.clone().unwrap_or_else(|| hub_cache(options));
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

/// Where the Hub's local cache is.
fn hub_cache(options: &ListOptions) -> PathBuf {
    let set = options.open.hub_cache.clone();
    set.unwrap_or_else(|| options.open.cache().join("hub"))
}

fn not_there(path: &Path) -> CatalogError {
    StoreError::NotFound {
        what: format!("the catalog {}", path.display()),
        remedy: FORMS.to_owned(),
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
