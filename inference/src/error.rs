//! The one error type of this crate. Every message says what is wrong, with what, and what to do about it.

use sparse_delta::DeltaError;
use sparse_store::StoreError;

/// Anything that can go wrong while a model is run or judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InferenceError {
    /// A model that this crate cannot run. Nothing is wrong with it.
    #[error("{what}")]
    Unsupported {
        /// What about it, and what can be run.
        what: String,
    },

    /// A configuration, tokenizer or tensor that is not what a model needs.
    #[error("{model}: {problem}")]
    Model {
        /// The model as it was given.
        model: String,
        /// The file or tensor, what is wrong with it, and what to do.
        problem: String,
    },

    /// The operation makes no sense as asked for.
    #[error("{message}")]
    Usage {
        /// What is wrong, and what to write instead.
        message: String,
    },

    /// Models, deltas and files.
    #[error(transparent)]
    Delta(#[from] DeltaError),

    /// A fault of this program.
    #[error("internal error: {message}; please report it")]
    Compute {
        /// What happened.
        message: String,
    },
}

impl InferenceError {
    /// The exit code of a process that ends with this error, as [`DeltaError::exit_code`] has them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unsupported { .. } | Self::Usage { .. } => 2,
            Self::Model { .. } => 5,
            Self::Delta(error) => error.exit_code(),
            Self::Compute { .. } => 1,
        }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
        }
    }

    pub(crate) fn model(model: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Model {
            model: model.into(),
            problem: problem.into(),
        }
    }
}

impl From<candle_core::Error> for InferenceError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute {
            message: error.to_string(),
        }
    }
}

impl From<StoreError> for InferenceError {
    fn from(error: StoreError) -> Self {
        Self::Delta(error.into())
    }
}
