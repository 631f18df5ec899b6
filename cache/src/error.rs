//! The one error type of this crate. Every message says what is wrong, with what, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use sparse_delta::DeltaError;
use sparse_store::StoreError;

/// Anything that can go wrong in the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// What was asked for makes no sense.
    #[error("{message}")]
    Usage {
        /// What is wrong, and what to write instead.
        message: String,
    },

    /// A model larger than the whole cache.
    #[error(
        "the model takes {needed} bytes and the cache may hold {limit}; raise the limit, or rebuild it elsewhere with `sparse reconstruct -o`"
    )]
    TooLarge {
        /// Bytes of the model.
        needed: u64,
        /// Bytes the cache may hold.
        limit: u64,
    },

    /// No room, and nothing that may be evicted.
    #[error(
        "the cache is full: {needed} bytes are needed, and of {limit} bytes {used} are pinned, in use or being rebuilt; wait, unpin models, or raise the limit"
    )]
    Full {
        /// Bytes of the model.
        needed: u64,
        /// Bytes that cannot be evicted.
        used: u64,
        /// Bytes the cache may hold.
        limit: u64,
    },

    /// An entry or job that is not there.
    #[error("the cache {} has no {what}; `{list}` shows what it has", dir.display())]
    NotFound {
        /// The entry or job.
        what: String,
        /// The cache folder.
        dir: PathBuf,
        /// The command that lists them.
        list: &'static str,
    },

    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot {action} {path}".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The delta, its base, or the rebuilding of the model.
    #[error(transparent)]
    Delta(#[from] DeltaError),

    /// A fault of this program.
    #[error("internal error: {message}; please report it")]
    Internal {
        /// What happened.
        message: String,
    },
}

impl CacheError {
    /// The exit code of a process that ends with this error, as in `docs/cli.md`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::NotFound { .. } => 6,
            Self::Delta(error) => error.exit_code(),
            Self::TooLarge { .. } | Self::Full { .. } | Self::Io { .. } | Self::Internal { .. } => {
                1
            }
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
        }
    }
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        Self::Delta(DeltaError::Store(error))
    }
}

/// `result.during("read", path)`: names the action and the path of an I/O error.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, CacheError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, CacheError> {
        self.map_err(|source| CacheError::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        })
    }
}
