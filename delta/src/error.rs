//! The one error type of this crate. Every message says what is wrong, with what, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use sparse_adapter::AdapterError;
use sparse_codec::CodecError;
use sparse_gpu::GpuError;
use sparse_store::{ErrorKind, StoreError};
use sparse_svd::SvdError;

/// Anything that can go wrong in an operation on a delta artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The operation makes no sense as asked for.
    #[error("{message}")]
    Usage {
        /// What is wrong, and what to write instead.
        message: String,
    },

    /// Something the operation needs is not there.
    #[error("{what} was not found; {remedy}")]
    NotFound {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },

    /// The base model is not the one the delta was made against.
    #[error(
        "{base} is not the base this delta was made against ({base_id}): its fingerprint is {found}, the delta needs {expected}; \
         give the base model with that fingerprint"
    )]
    WrongBase {
        /// The base as given.
        base: String,
        /// The base the artifact names.
        base_id: String,
        /// The full fingerprint the artifact asks for.
        expected: String,
        /// The full fingerprint of the base as given.
        found: String,
    },

    /// Bytes of an artifact that are not what its format promises.
    #[error("{path} is corrupt: {problem}; fetch or make the artifact again", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and in which tensor.
        problem: String,
    },

    /// An artifact written by a later version.
    #[error("{path} has format version {found}, this program reads up to {supported}; use a newer version of sparse", path = path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The version it names.
        found: u32,
        /// The latest version this program reads.
        supported: u32,
    },

    /// The output is taken by something else.
    #[error("{path} exists already: {what}; choose another output, or ask for it to be overwritten", path = path.display())]
    Exists {
        /// The output.
        path: PathBuf,
        /// What is there, and how it differs from what was asked for.
        what: String,
    },

    /// The output holds something that is never replaced.
    #[error("{path} is not replaced: {why}; choose another output", path = path.display())]
    Refused {
        /// The output.
        path: PathBuf,
        /// Why it stays.
        why: String,
    },

    /// The operating system refused.
    #[error("cannot {action} {path}: {source}{hint}", path = path.display(), hint = hint(source))]
    Io {
        /// What was tried, as in "cannot {action} {path}".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The codec refused a tensor while it was encoded.
    #[error("tensor {tensor:?} in {file} cannot be encoded: {source}")]
    Codec {
        /// The safetensors file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What the codec said.
        source: CodecError,
    },

    /// A tensor's difference that cannot be decomposed or stored as factors.
    #[error("tensor {tensor:?} in {file} cannot be approximated: {source}")]
    Svd {
        /// The safetensors file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: SvdError,
    },

    /// A GPU that was asked for is not there, or fails.
    #[error(transparent)]
    Gpu(#[from] GpuError),

    /// An adapter that cannot be read or used.
    #[error(transparent)]
    Adapter(AdapterError),

    /// Models, files and remote places.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The operation was cancelled.
    #[error("cancelled; nothing was written")]
    Cancelled,

    /// A fault of this program.
    #[error("internal error: {message}; nothing was written, please report it")]
    Internal {
        /// What happened.
        message: String,
    },
}

impl From<AdapterError> for DeltaError {
    fn from(error: AdapterError) -> Self {
        match error {
            AdapterError::Store(error) => Self::Store(error),
            AdapterError::Write { path, source } => Self::io("write", path, source),
            error => Self::Adapter(error),
        }
    }
}

impl From<SvdError> for DeltaError {
    fn from(error: SvdError) -> Self {
        match error {
            SvdError::Stopped => Self::Cancelled,
            error => Self::internal(error.to_string()),
        }
    }
}

impl DeltaError {
    /// The exit code of a process that ends with this error: 1 failed, 2 usage, 4 wrong base, 5 corrupt or hostile input,
    /// 6 not found, 130 interrupted.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Exists { .. } | Self::Refused { .. } => 2,
            Self::NotFound { .. } => 6,
            Self::WrongBase { .. } => 4,
            Self::Corrupt { .. } | Self::Version { .. } => 5,
            Self::Cancelled => 130,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => 6,
            Self::Adapter(_) | Self::Gpu(GpuError::Absent(_) | GpuError::NoBlas(_)) => 2,
            Self::Io { .. }
            | Self::Codec { .. }
            | Self::Svd { .. }
            | Self::Gpu(_)
            | Self::Internal { .. } => 1,
            Self::Store(error) => match error.kind() {
                ErrorKind::Usage | ErrorKind::Exists => 2,
                ErrorKind::NotFound => 6,
                ErrorKind::Corrupt => 5,
                _ => 1,
            },
        }
    }

    /// Shorthand for the variant of this name.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
        }
    }

    /// Shorthand for the variant of this name.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal {
            message: message.into(),
        }
    }

    /// Shorthand for the variant of this name.
    pub fn corrupt(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// Shorthand for the variant of this name.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        }
    }
}

/// `result.during("read", path)`: names the action and the path of an I/O error.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, DeltaError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, DeltaError> {
        self.map_err(|source| DeltaError::io(action, path, source))
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free some space on that disk or choose another output",
        io::ErrorKind::QuotaExceeded => {
            "; your disk quota is used up: free some space or choose another output"
        }
        io::ErrorKind::PermissionDenied => "; check its permissions or choose another output",
        io::ErrorKind::ReadOnlyFilesystem => {
            "; that file system is read-only: choose another output"
        }
        io::ErrorKind::NotFound => "; check the path",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_table() {
        assert_eq!(DeltaError::usage("x").exit_code(), 2);
        assert_eq!(DeltaError::Cancelled.exit_code(), 130);
        assert_eq!(DeltaError::corrupt("m", "x").exit_code(), 5);
        assert_eq!(
            DeltaError::io("read", "x", io::Error::from(io::ErrorKind::NotFound)).exit_code(),
            6
        );
        assert_eq!(
            DeltaError::io("write", "x", io::Error::from(io::ErrorKind::StorageFull)).exit_code(),
            1
        );
    }

    #[test]
    fn wrong_base_names_both_fingerprints() {
        let error = DeltaError::WrongBase {
            base: "b".into(),
            base_id: "org/b".into(),
            expected: "aaa".into(),
            found: "bbb".into(),
        };
        let text = error.to_string();
        assert!(
            text.contains("aaa") && text.contains("bbb") && text.contains("org/b"),
            "{text}"
        );
    }
}
