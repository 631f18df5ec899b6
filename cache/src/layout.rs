//! Where everything of a cache is.
//!
//! ```text
//! reconstructed/<key>/              the model, as it is loaded
//! reconstructed/.state/<key>.json   what it is: base, delta, files, how long it took
//! reconstructed/.state/<key>.lock   held shared by who uses it, exclusively by who makes or removes it
//! reconstructed/.state/<key>.used   touched at each use
//! reconstructed/.state/<key>.pin    there: never evicted
//! reconstructed/.state/<key>.room   bytes reserved by the process that makes it
//! reconstructed/.state/ledger.lock  held while room is counted
//! reconstructed/.state/jobs/        jobs
//! reconstructed/.damaged/           what was found damaged, until room is needed
//! ```

use std::path::{Path, PathBuf};

use crate::CacheError;
use crate::error::During;

/// The places of one cache.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
}

impl Layout {
    pub(crate) fn new(cache_dir: &Path) -> Self {
        let root = sparse_delta::support::rebuilt_in(cache_dir);
        let state = root.join(".state");
        Self { root, state }
    }

    /// Makes the folders.
    pub(crate) fn create(&self) -> Result<(), CacheError> {
        for folder in [self.jobs(), self.damaged()] {
            std::fs::create_dir_all(&folder).during("create", &folder)?;
        }
        Ok(())
    }

    pub(crate) fn jobs(&self) -> PathBuf {
        self.state.join("jobs")
    }

    pub(crate) fn damaged(&self) -> PathBuf {
        self.root.join(".damaged")
    }

    pub(crate) fn model(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    pub(crate) fn of(&self, key: &str, what: &str) -> PathBuf {
        self.state.join(format!("{key}.{what}"))
    }

    /// Keys of which there is a state file `what`.
    pub(crate) fn keys(&self, what: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.state) else {
            return Vec::new();
        };
        let mut keys: Vec<String> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (key, ending) = name.split_once('.')?;
                (ending == what && is_key(key)).then(|| key.to_owned())
            })
            .collect();
        keys.sort();
        keys
    }
}

/// Whether this is the name of an entry.
pub(crate) fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
