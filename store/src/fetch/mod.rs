//! Remote models, brought into a local cache.

use std::path::PathBuf;

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
    let _ = options;
    match location {
        Location::Local(path) => Ok(Fetched {
            path: path.clone(),
            keep: None,
            resolved: None,
        }),
        other => Err(StoreError::Remote {
            reference: other.to_string(),
            problem: "remote models cannot be opened by this build".to_owned(),
            remedy: "download it and give its folder".to_owned(),
        }),
    }
}
