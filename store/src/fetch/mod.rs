//! Remote models, brought into a local cache.

mod bucket;
mod download;
mod hub;
mod hub_api;
mod hub_cache;
mod hub_file;
mod hub_models;
mod meter;
mod objects;
mod space;
mod wanted;

use std::path::PathBuf;

pub(crate) use bucket::Bucket;
pub use hub_models::{HubModel, HubQuery, list_hub_models};
pub(crate) use meter::Meter;
pub use objects::fetch_prefix;

use crate::error::StoreError;
use crate::location::Location;
use crate::options::OpenOptions;

/// Where a model is now.
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    /// Which files of the folder belong to the model; all if none.
    pub(crate) keep: Option<fn(&str) -> bool>,
    /// What the reference was found to mean.
    pub(crate) resolved: Option<String>,
}

/// Makes sure that a model is on this machine.
pub(crate) async fn model(
    location: &Location,
    options: &OpenOptions,
) -> Result<Fetched, StoreError> {
    match location {
        Location::Local(path) => Ok(Fetched {
            path: path.clone(),
            keep: None,
            resolved: None,
        }),
        Location::Url(url) => Ok(Fetched {
            path: objects::model(url, options).await?,
            keep: None,
            resolved: None,
        }),
        Location::Hub { repo, revision } => {
            hub::repository(hub::RepoKind::Model, repo, revision.as_deref(), options).await
        }
    }
}

/// Brings the data files of a dataset of the Hub into the Hub's cache; the folder they are in.
///
/// # Errors
/// A repository that does not exist, is not open to the token, or has no data files; a network that fails.
pub async fn fetch_dataset(
    repo: &str,
    revision: Option<&str>,
    options: &OpenOptions,
) -> Result<PathBuf, StoreError> {
    let fetched = hub::repository(hub::RepoKind::Dataset, repo, revision, options).await?;
    Ok(fetched.path)
}
