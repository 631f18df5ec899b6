//! How a command ends that did not do what it was asked: one line for people, or JSON, and an exit code.

use std::io::{self, Write as _};

use datafusion::error::DataFusionError;
use sparse_cache::CacheError;
use sparse_catalog::CatalogError;
use sparse_dataset::DatasetError;
use sparse_delta::DeltaError;
use sparse_inference::InferenceError;
use sparse_pipelines::serve::ServeError;
use sparse_pipelines::state::StateError;
use sparse_pipelines::{EngineError, PipelineError, SpecError};

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    /// The exit code of the process.
    pub(crate) code: u8,
    /// Nothing is said: whoever read the output has left.
    silent: bool,
}

impl Failure {
    /// The operation failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(message, 1)
    }

    /// What was asked for makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(message, 2)
    }

    pub(crate) fn new(message: impl Into<String>, code: u8) -> Self {
        Self {
            message: message.into(),
            code,
            silent: false,
        }
    }

    /// The message with something before it.
    pub(crate) fn within(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What an exit code means, in one word.
    fn kind(&self) -> &'static str {
        match self.code {
            2 => "usage",
            3 => "check_failed",
            4 => "wrong_base",
            5 => "corrupt",
            6 => "not_found",
            130 => "interrupted",
            _ => "failed",
        }
    }

    /// Says it on standard error.
    pub(crate) fn report(&self, json: bool) {
        if self.silent {
            return;
        }
        if json {
            let error = serde_json::json!({
                "error": { "kind": self.kind(), "message": self.message, "exit_code": self.code }
            });
            say(&error.to_string());
        } else {
            say(&format!("error: {}", self.message));
        }
    }
}

/// A line on standard error. Where nobody reads that, there is nobody to tell.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

impl From<InferenceError> for Failure {
    fn from(error: InferenceError) -> Self {
        Self::new(error.to_string(), error.exit_code())
    }
}

impl From<DeltaError> for Failure {
    fn from(error: DeltaError) -> Self {
        Self::new(error.to_string(), error.exit_code())
    }
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        Self::new(error.to_string(), error.exit_code())
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::new(error.to_string(), error.exit_code())
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        Self::new(error.to_string(), error.exit_code())
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        Self::from(&error)
    }
}

impl From<&DataFusionError> for Failure {
    fn from(error: &DataFusionError) -> Self {
        Self::new(
            sparse_operators::error::message(error),
            sparse_operators::error::exit_code(error),
        )
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Output { source, .. } => source.into(),
            error => Self::usage(error.to_string()),
        }
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match &error {
            ServeError::Spec(_) | ServeError::SameName { .. } => Self::usage(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::Spec(_) | EngineError::Unknown(_) => Self::usage(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

/// Only output is written with plain `io` results.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self {
                message: String::new(),
                code: 0,
                silent: true,
            };
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}
