//! The one error type of this crate. Every message says what is wrong, with what, and what to do about it.

use sparse_store::{ErrorKind, StoreError};

/// Anything that can go wrong while catalogs are listed and bases are looked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The catalog or model makes no sense as given.
    #[error("{message}")]
    Usage {
        /// What is wrong, and what to write instead.
        message: String,
    },

    /// Files and remote places.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The operation was cancelled.
    #[error("cancelled")]
    Cancelled,

    /// A fault of this program.
    #[error("internal error: {message}; please report it")]
    Internal {
        /// What happened.
        message: String,
    },
}

impl CatalogError {
    /// The exit code of a process that ends with this error, as in `docs/cli.md`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Store(error) => match error.kind() {
                ErrorKind::Usage | ErrorKind::Exists => 2,
                ErrorKind::NotFound => 6,
                ErrorKind::Corrupt => 5,
                ErrorKind::Io | ErrorKind::Access | ErrorKind::Remote => 1,
            },
            Self::Cancelled => 130,
            Self::Internal { .. } => 1,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
        }
    }
}
