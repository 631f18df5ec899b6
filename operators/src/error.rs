//! Errors at the SQL edge. What an operation reports stays a typed error inside DataFusion's, so that a program can get at it
//! (and at its exit code), with the function named around it.

use std::error::Error;

use datafusion::error::DataFusionError;
use sparse_cache::CacheError;
use sparse_catalog::CatalogError;
use sparse_codec::CodecError;
use sparse_dataset::DatasetError;
use sparse_delta::DeltaError;
use sparse_inference::InferenceError;
use sparse_store::StoreError;

/// An operation's error as DataFusion's: faults of this program are internal errors, lack of memory is exhausted resources,
/// and the rest stays what it is.
pub(crate) fn delta(error: DeltaError) -> DataFusionError {
    match error {
        DeltaError::Internal { message } => DataFusionError::Internal(message),
        DeltaError::Io {
            source,
            action,
            path,
        } if source.kind() == std::io::ErrorKind::OutOfMemory => {
            DataFusionError::ResourcesExhausted(format!(
                "cannot {action} {}: {source}",
                path.display()
            ))
        }
        error => DataFusionError::External(Box::new(error)),
    }
}

/// An operation's error on datasets as DataFusion's.
pub(crate) fn dataset(error: DatasetError) -> DataFusionError {
    match error {
        DatasetError::Artifact(error) => delta(error),
        error => DataFusionError::External(Box::new(error)),
    }
}

/// An error of running or judging a model as DataFusion's.
pub(crate) fn inference(error: InferenceError) -> DataFusionError {
    match error {
        InferenceError::Delta(error) => delta(error),
        InferenceError::Compute { message } => DataFusionError::Internal(message),
        error => DataFusionError::External(Box::new(error)),
    }
}

/// A store's error as DataFusion's.
pub(crate) fn store(error: StoreError) -> DataFusionError {
    delta(DeltaError::Store(error))
}

/// A catalog's error as DataFusion's.
pub(crate) fn catalog(error: CatalogError) -> DataFusionError {
    match error {
        CatalogError::Store(error) => store(error),
        CatalogError::Internal { message } => DataFusionError::Internal(message),
        error => DataFusionError::External(Box::new(error)),
    }
}

/// The cache's error as DataFusion's.
pub(crate) fn cache(error: CacheError) -> DataFusionError {
    match error {
        CacheError::Delta(error) => delta(error),
        CacheError::Internal { message } => DataFusionError::Internal(message),
        error => DataFusionError::External(Box::new(error)),
    }
}

/// The operation's error inside DataFusion's, if there is one.
pub fn operation_error(error: &DataFusionError) -> Option<&DeltaError> {
    find(error)
}

/// The exit code of a process that ends with this error: an operation's own, 2 for a statement that is wrong, 5 for data
/// that a codec refuses, 1 otherwise.
pub fn exit_code(error: &DataFusionError) -> u8 {
    if let Some(error) = operation_error(error) {
        return error.exit_code();
    }
    if let Some(error) = find::<DatasetError>(error) {
        return error.exit_code();
    }
    if let Some(error) = find::<InferenceError>(error) {
        return error.exit_code();
    }
    if find::<CodecError>(error).is_some() {
        return 5;
    }
    if let Some(error) = find::<CatalogError>(error) {
        return error.exit_code();
    }
    if let Some(error) = find::<CacheError>(error) {
        return error.exit_code();
    }
    match error.find_root() {
        DataFusionError::Plan(_)
        | DataFusionError::SQL(..)
        | DataFusionError::SchemaError(..)
        | DataFusionError::Configuration(_)
        | DataFusionError::NotImplemented(_) => 2,
        DataFusionError::ObjectStore(error) => match error.as_ref() {
            object_store::Error::NotFound { .. } => 6,
            _ => 1,
        },
        _ => 1,
    }
}

/// The message a person reads: the operation's own words where there are some, DataFusion's otherwise.
pub fn message(error: &DataFusionError) -> String {
    if let Some(error) = operation_error(error) {
        return error.to_string();
    }
    if let Some(error) = find::<DatasetError>(error) {
        return error.to_string();
    }
    if let Some(error) = find::<InferenceError>(error) {
        return error.to_string();
    }
    if let Some(error) = find::<CatalogError>(error) {
        return error.to_string();
    }
    if let Some(error) = find::<CacheError>(error) {
        return error.to_string();
    }
    error.strip_backtrace()
}

fn find<T: Error + 'static>(error: &DataFusionError) -> Option<&T> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An error that is shared by several readers is behind an Arc, which `source` sees through.
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_error_is_reachable() {
        let error = delta(DeltaError::Cancelled).context("sparse_compress('a', 'b')");
        assert!(matches!(
            operation_error(&error),
            Some(DeltaError::Cancelled)
        ));
        assert_eq!(exit_code(&error), 130);
        assert_eq!(message(&error), DeltaError::Cancelled.to_string());
        let shared = DataFusionError::Shared(std::sync::Arc::new(error));
        assert_eq!(exit_code(&shared), 130);
        assert_eq!(exit_code(&DataFusionError::Plan("x".into())), 2);
    }
}
