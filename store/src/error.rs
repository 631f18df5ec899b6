//! The one error type of this crate.
//!
//! Every message names the file, tensor or URL it is about, says what is wrong, and ends with what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, coarsely: enough for a caller to choose an exit code or an SQL error class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The reference, path or option makes no sense as given.
    Usage,
    /// Nothing is there.
    NotFound,
    /// The bytes are not what their format promises.
    Corrupt,
    /// The operating system said no: full disk, missing permission, and so on.
    Io,
    /// The output is there already.
    Exists,
    /// A token or right is missing.
    Access,
    /// A server failed, or cannot be reached.
    Remote,
}

/// Anything that can go wrong while models are opened, fetched, hashed or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A reference that is no path, URL or Hub id.
    #[error("cannot read {reference:?} as a model reference: {problem}; {remedy}")]
    Reference {
        /// The reference as given, secrets removed.
        reference: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        remedy: String,
    },

    /// A path, URL or Hub repository that does not exist.
    #[error("{what} does not exist{}", remedy_suffix(.remedy))]
    NotFound {
        /// What was looked for.
        what: String,
        /// What to do about it; may be empty.
        remedy: String,
    },

    /// A folder or repository that holds no safetensors weights.
    #[error("{path} holds no model: {problem}; {remedy}")]
    NotAModel {
        /// The folder, file or URL.
        path: String,
        /// What was found instead.
        problem: String,
        /// What to do about it.
        remedy: String,
    },

    /// A safetensors file whose header cannot be trusted.
    #[error("{file} is not a valid safetensors file: {problem}; {remedy}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },

    /// A tensor whose description contradicts itself, its neighbours or the file.
    #[error("tensor {tensor:?} in {file} is not valid: {problem}; {remedy}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },

    /// A `*.safetensors.index.json` that does not describe the shards beside it.
    #[error("shard index {file} is not valid: {problem}; {remedy}")]
    Index {
        /// The index file.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },

    /// A relative path that would leave the folder it belongs to, or cannot be written everywhere.
    #[error("path {path:?} is refused: {problem}")]
    UnsafePath {
        /// The path as found.
        path: String,
        /// Why it is refused.
        problem: String,
    },

    /// A symbolic link, in a model folder, that is not followed.
    #[error("{} is refused: {problem}; replace the link by the file itself", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Why it is refused.
        problem: String,
    },

    /// The output exists and was not to be replaced.
    #[error("{} exists already; choose another output, remove it, or ask for it to be overwritten", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },

    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), io_hint(source))]
    Io {
        /// What was tried, as in "cannot {action} {path}".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Offline, and the cache does not hold what was asked for.
    #[error("{reference} is not in the cache ({cache}) and offline mode is on; {remedy}")]
    Offline {
        /// The reference.
        reference: String,
        /// The cache folder that was searched.
        cache: String,
        /// What to do about it.
        remedy: String,
    },

    /// The server asks for credentials, or refuses those given.
    #[error("{reference}: access was refused ({problem}); {remedy}")]
    Access {
        /// The reference.
        reference: String,
        /// What the server said.
        problem: String,
        /// What to do about it.
        remedy: String,
    },

    /// The server asks to slow down, and went on asking.
    #[error("{reference}: the server limits the rate of requests{}; wait, or use a token with a higher limit", wait_suffix(.retry_after))]
    RateLimited {
        /// The reference.
        reference: String,
        /// Seconds the server asked to wait.
        retry_after: Option<u64>,
    },

    /// A server or the network failed.
    #[error("{reference}: {problem}; {remedy}")]
    Remote {
        /// The URL or reference, secrets removed.
        reference: String,
        /// What happened.
        problem: String,
        /// What to do about it.
        remedy: String,
    },

    /// What arrived is not what was announced.
    #[error(
        "{reference} arrived damaged: {problem}; run again, and if it stays so ask the publisher"
    )]
    Damaged {
        /// The URL or reference.
        reference: String,
        /// What differs.
        problem: String,
    },

    /// A background task was lost (the runtime is shutting down).
    #[error("a background task of {what} was stopped before it ended; run again")]
    Stopped {
        /// What was being done.
        what: String,
    },
}

impl StoreError {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference { .. } | Self::UnsafePath { .. } | Self::Link { .. } => {
                ErrorKind::Usage
            }
            Self::NotFound { .. } | Self::NotAModel { .. } | Self::Offline { .. } => {
                ErrorKind::NotFound
            }
            Self::Header { .. }
            | Self::Tensor { .. }
            | Self::Index { .. }
            | Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::Io { .. } | Self::Stopped { .. } => ErrorKind::Io,
            Self::Access { .. } => ErrorKind::Access,
            Self::RateLimited { .. } | Self::Remote { .. } => ErrorKind::Remote,
        }
    }

    /// An I/O error with what was being done, and to what.
    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        }
    }
}

/// `result.during("read", path)`: names the action and the path of an I/O error.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::io(action, path, source))
    }
}

fn remedy_suffix(remedy: &str) -> String {
    if remedy.is_empty() {
        String::new()
    } else {
        format!("; {remedy}")
    }
}

fn wait_suffix(seconds: &Option<u64>) -> String {
    seconds
        .map(|s| format!(" and asked to wait {s} s"))
        .unwrap_or_default()
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free some space on that disk or choose another place",
        io::ErrorKind::QuotaExceeded => {
            "; your disk quota is used up: free some space or choose another place"
        }
        io::ErrorKind::PermissionDenied => "; check who owns it and its permissions",
        io::ErrorKind::ReadOnlyFilesystem => {
            "; that file system is read-only: choose another place"
        }
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::ResourceBusy => {
            "; something is mounted there or uses it: choose a path below it"
        }
        _ => "",
    }
}

/// How sizes are written in messages.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            n => write!(f, "{n} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_thing_and_the_remedy() {
        let error = StoreError::io(
            "write",
            "/data/out",
            io::Error::from(io::ErrorKind::StorageFull),
        );
        let text = error.to_string();
        assert!(
            text.contains("/data/out") && text.contains("free some space"),
            "{text}"
        );
        assert_eq!(error.kind(), ErrorKind::Io);
        let error = StoreError::RateLimited {
            reference: "org/name".into(),
            retry_after: Some(7),
        };
        assert!(error.to_string().contains("wait 7 s"));
        assert_eq!(
            StoreError::io("open", "x", io::Error::from(io::ErrorKind::NotFound)).kind(),
            ErrorKind::NotFound
        );
    }
}
