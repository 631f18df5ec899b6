//! Decompositions that a killed run leaves for the next one.

use std::path::{Path, PathBuf};

use sparse_store::{Replace, Staged};
use sparse_svd::Svd;

use crate::DeltaError;
use crate::error::During;

/// Bytes of the hash that a file begins with.
const HASH: usize = 32;

/// A folder of finished decompositions of one pair of models by one rule, in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Resume {
    dir: PathBuf,
}

impl Resume {
    pub(crate) fn new(cache: &Path, key: &str) -> Self {
        Self {
            dir: cache.join("svd").join(key),
        }
    }

    fn path(&self, tensor: usize, matrix: usize) -> PathBuf {
        self.dir.join(format!("{tensor}-{matrix}.svd"))
    }

    /// A decomposition that was finished before, if it is there and whole.
    pub(crate) fn take(&self, tensor: usize, matrix: usize, shape: (usize, usize)) -> Option<Svd> {
        let bytes = std::fs::read(self.path(tensor, matrix)).ok()?;
        let (hash, content) = bytes.split_at_checked(HASH)?;
        if blake3::hash(content).as_bytes() != hash {
            return None;
        }
        Svd::from_bytes(content).filter(|svd| svd.shape() == shape)
    }

    /// Keeps one.
    pub(crate) fn keep(&self, tensor: usize, matrix: usize, svd: &Svd) -> Result<(), DeltaError> {
        let content = svd.to_bytes();
        let mut bytes = blake3::hash(&content).as_bytes().to_vec();
        bytes.extend_from_slice(&content);
        let staged = Staged::file(&self.path(tensor, matrix))?;
        std::fs::write(staged.path(), bytes).during("write", staged.path())?;
        staged.commit(Replace::Allow)?;
        Ok(())
    }

    /// Removes all of them: the artifact is there.
    pub(crate) fn done(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.dir.display(), %error, "finished decompositions could not be removed");
        }
    }
}
