//! The one error type of this crate. Every message says what is wrong, with what, and what to do about it.

use std::io;
use std::path::Path;

use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use parquet::errors::ParquetError;
use sparse_delta::DeltaError;
use sparse_store::StoreError;

/// Anything that can go wrong in an operation on datasets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// What can go wrong with artifacts of any kind.
    #[error(transparent)]
    Artifact(#[from] DeltaError),

    /// The base dataset is not the one the delta was made against.
    #[error(
        "{base} is not the base this delta was made against ({base_id}): its split {split:?} has the hash {found}, the delta \
         needs {expected}; give the dataset with that hash"
    )]
    WrongBase {
        /// The base as given.
        base: String,
        /// The base the artifact names.
        base_id: String,
        /// The split that differs.
        split: String,
        /// The logical hash the artifact asks for.
        expected: String,
        /// The logical hash of the base as given.
        found: String,
    },

    /// Bytes of an artifact that are not what its format promises.
    #[error("the delta is corrupt: {problem}; fetch or make it again")]
    Damaged {
        /// What is wrong.
        problem: String,
    },

    /// A column type that cannot be stored.
    #[error("columns of type {ty} are not supported; cast them in a query first")]
    Unsupported {
        /// The type.
        ty: String,
    },

    /// A dataset that cannot be read.
    #[error("{what} cannot be read: {problem}")]
    Data {
        /// The file or split.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl DatasetError {
    /// The exit code of a process that ends with this error: 1 failed, 2 usage, 4 wrong base, 5 corrupt or hostile input,
    /// 6 not found, 130 interrupted.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Artifact(error) => error.exit_code(),
            Self::Unsupported { .. } => 2,
            Self::WrongBase { .. } => 4,
            Self::Damaged { .. } | Self::Data { .. } => 5,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        DeltaError::usage(message).into()
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        DeltaError::internal(message).into()
    }

    pub(crate) fn damaged(problem: impl Into<String>) -> Self {
        Self::Damaged {
            problem: problem.into(),
        }
    }

    pub(crate) fn unsupported(ty: &DataType) -> Self {
        Self::Unsupported { ty: ty.to_string() }
    }

    pub(crate) fn data(what: impl Into<String>, problem: impl ToString) -> Self {
        Self::Data {
            what: what.into(),
            problem: problem.to_string(),
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        DeltaError::io(action, path, source).into()
    }
}

impl From<StoreError> for DatasetError {
    fn from(error: StoreError) -> Self {
        Self::Artifact(DeltaError::Store(error))
    }
}

impl From<ArrowError> for DatasetError {
    fn from(error: ArrowError) -> Self {
        match error {
            // What a table of a query engine says is passed through as it was said.
            ArrowError::ExternalError(error) => match error.downcast::<Self>() {
                Ok(error) => *error,
                Err(error) => Self::internal(error.to_string()),
            },
            error => Self::internal(error.to_string()),
        }
    }
}

impl From<ParquetError> for DatasetError {
    fn from(error: ParquetError) -> Self {
        Self::internal(error.to_string())
    }
}

/// `result.during("read", path)`: names the action and the path of an I/O error.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, DatasetError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, DatasetError> {
        self.map_err(|source| DatasetError::io(action, path, source))
    }
}
