//! What an entry is, and whether it is whole.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use sparse_delta::FileReport;
use sparse_store::Model;

use crate::layout::Layout;

/// A file of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryFile {
    /// Its path in the model's folder.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// The state file of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) base: String,
    pub(crate) delta: String,
    pub(crate) created: String,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// The quick fingerprint of its weights.
    pub(crate) quick: String,
    pub(crate) files: Vec<EntryFile>,
}

impl Meta {
    pub(crate) fn new(
        base: &str,
        delta: &str,
        files: &[FileReport],
        quick: String,
        seconds: f64,
    ) -> Self {
        let files: Vec<EntryFile> = files
            .iter()
            .map(|file| EntryFile {
                path: file.file.clone(),
                size: file.bytes,
                sha256: file.sha256.clone(),
            })
            .collect();
        Self {
            base: absolute(base),
            delta: absolute(delta),
            created: time(SystemTime::now()),
            bytes: files.iter().map(|file| file.size).sum(),
            seconds,
            quick,
            files,
        }
    }

    /// What is wrong with the model, by a glance: the size of every file, and the quick fingerprint of the weights.
    pub(crate) fn glance(&self, model: &Path) -> Result<(), String> {
        for file in &self.files {
            let path =
                sparse_store::safe_join(model, &file.path).map_err(|error| error.to_string())?;
            match std::fs::metadata(&path) {
                Ok(meta) if meta.is_file() && meta.len() == file.size => {}
                Ok(meta) => {
                    return Err(format!(
                        "{} has {} bytes, not {}",
                        file.path,
                        meta.len(),
                        file.size
                    ));
                }
                Err(error) => return Err(format!("{}: {error}", file.path)),
            }
        }
        let opened = Model::open_local(model).map_err(|error| error.to_string())?;
        let quick = opened
            .quick_fingerprint()
            .map_err(|error| error.to_string())?;
        if quick == self.quick {
            Ok(())
        } else {
            Err("its weights are not those that were rebuilt".to_owned())
        }
    }

    /// What is wrong with the model, every byte of it.
    pub(crate) fn check(&self, model: &Path) -> Result<(), String> {
        self.glance(model)?;
        for file in &self.files {
            let path =
                sparse_store::safe_join(model, &file.path).map_err(|error| error.to_string())?;
            let found =
                sparse_store::hash::sha256_file(&path).map_err(|error| error.to_string())?;
            if found != file.sha256 {
                return Err(format!(
                    "{} has SHA-256 {found}, not {}",
                    file.path, file.sha256
                ));
            }
        }
        Ok(())
    }
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheEntry {
    /// Hash of base, delta and format version.
    pub key: String,
    /// Where the model is.
    pub path: PathBuf,
    /// The base it was rebuilt from.
    pub base: String,
    /// The delta it was rebuilt from.
    pub delta: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it was rebuilt, ISO 8601, UTC.
    pub created: String,
    /// When it was used last, ISO 8601, UTC.
    pub last_used: String,
    /// How long rebuilding it took.
    pub seconds: f64,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Whether a process uses it now.
    pub in_use: bool,
}

/// When an entry was used last.
pub(crate) fn last_used(layout: &Layout, key: &str) -> SystemTime {
    std::fs::metadata(layout.of(key, "used"))
        .and_then(|meta| meta.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// ISO 8601, UTC.
pub(crate) fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A local path made independent of the current folder; other references as they are.
pub(crate) fn absolute(reference: &str) -> String {
    let path = Path::new(reference);
    match path.exists() {
        true => std::path::absolute(path)
            .map_or_else(|_| reference.to_owned(), |path| path.display().to_string()),
        false => reference.to_owned(),
    }
}
