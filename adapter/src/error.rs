//! What can be wrong with an adapter.

use std::path::PathBuf;

use sparse_codec::CodecError;
use sparse_store::StoreError;
use thiserror::Error;

/// An adapter that cannot be read or used.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// Not an adapter that this version can use.
    #[error("{adapter}: {what}")]
    Unusable {
        /// The adapter, as it was given.
        adapter: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A file of it cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of it cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The codec refuses a factor.
    #[error("{adapter}: module {module}: {source}")]
    Codec {
        /// The adapter, as it was given.
        adapter: String,
        /// The module.
        module: String,
        /// Why.
        source: CodecError,
    },
}
