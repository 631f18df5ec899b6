//! Small files of state: JSON that is replaced whole, and what is left over of it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::CacheError;
use crate::error::During;

/// Begins the name of a file that is being written.
const TEMP: &str = ".tmp-";
/// No state file takes so long to be written: its process is gone.
const STALE: Duration = Duration::from_secs(600);

/// Replaces a JSON file in one step. After a power failure an older state may be there, never a torn one that is believed: what does
/// not parse counts as absent.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CacheError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| CacheError::Internal {
        message: error.to_string(),
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temp = folder.join(format!("{TEMP}{}-{number}", std::process::id()));
    std::fs::write(&temp, bytes).during("write", &temp)?;
    std::fs::rename(&temp, path).during("write", path)
}

/// A JSON file; none if it is not there or not valid.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a damaged state file is ignored");
            None
        }
    }
}

/// Removes files that killed processes were writing.
pub(crate) fn remove_stale(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let stale = || {
            let modified = entry.metadata().ok()?.modified().ok()?;
            Some(SystemTime::now().duration_since(modified).ok()? > STALE)
        };
        if entry.file_name().to_string_lossy().starts_with(TEMP) && stale() == Some(true) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes a file; none there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.during("remove", path),
    }
}

/// Removes a folder with all it holds; none there is fine.
pub(crate) fn remove_dir(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.during("remove", path),
    }
}

/// Bytes of all files below a folder.
pub(crate) fn size_of(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size_of(&entry.path()),
            Ok(_) => entry.metadata().map_or(0, |meta| meta.len()),
            Err(_) => 0,
        })
        .sum()
}
