//! The table functions: one file each, named after it.

mod sparse_adapter_compress;
mod sparse_benchmark;
mod sparse_cache;
mod sparse_compress;
mod sparse_dataset_compress;
mod sparse_dataset_diff;
mod sparse_dataset_estimate;
mod sparse_dataset_reconstruct;
mod sparse_diff;
mod sparse_features;
mod sparse_find_base;
mod sparse_info;
mod sparse_jobs;
mod sparse_models;
mod sparse_prefetch;
mod sparse_reconstruct;
mod sparse_svd_compress;
mod sparse_svd_reconstruct;
mod sparse_tensors;
mod sparse_unmerge;
mod sparse_validate;
mod sparse_validate_int8;
mod sparse_verify;
mod validation;

use std::sync::Arc;

use ::sparse_cache::DeltaCache;
use arrow::array::{RecordBatch, new_null_array};
use datafusion::common::Result;
use futures::stream::{self, BoxStream, StreamExt};
use sparse_delta::CancelToken;

use crate::columns;
use crate::function::{Inputs, Request, SparseFunction};
use crate::spec::{Column, Parameter, Spec, Type};

/// Every table function, sorted by name.
pub fn all() -> Vec<Arc<dyn SparseFunction>> {
    vec![
        Arc::new(sparse_adapter_compress::SparseAdapterCompress),
        Arc::new(sparse_benchmark::SparseBenchmark),
        Arc::new(sparse_cache::SparseCache),
        Arc::new(sparse_compress::SparseCompress),
        Arc::new(sparse_dataset_compress::SparseDatasetCompress),
        Arc::new(sparse_dataset_diff::SparseDatasetDiff),
        Arc::new(sparse_dataset_estimate::SparseDatasetEstimate),
        Arc::new(sparse_dataset_reconstruct::SparseDatasetReconstruct),
        Arc::new(sparse_diff::SparseDiff),
        Arc::new(sparse_features::SparseFeatures),
        Arc::new(sparse_find_base::SparseFindBase),
        Arc::new(sparse_info::SparseInfo),
        Arc::new(sparse_jobs::SparseJobs),
        Arc::new(sparse_models::SparseModels),
        Arc::new(sparse_prefetch::SparsePrefetch),
        Arc::new(sparse_reconstruct::SparseReconstruct),
        Arc::new(sparse_svd_compress::SparseSvdCompress),
        Arc::new(sparse_svd_reconstruct::SparseSvdReconstruct),
        Arc::new(sparse_tensors::SparseTensors),
        Arc::new(sparse_unmerge::SparseUnmerge),
        Arc::new(sparse_validate::SparseValidate),
        Arc::new(sparse_validate_int8::SparseValidateInt8),
        Arc::new(sparse_verify::SparseVerify),
    ]
}

/// The function of a name.
pub fn find(name: &str) -> Option<Arc<dyn SparseFunction>> {
    all()
        .into_iter()
        .find(|function| function.spec().name == name)
}

/// What a dataset may be given as.
const DATASET: &str = "The base dataset: a Parquet, Arrow IPC, CSV or JSONL file, a folder of splits, an object-store URL or a Hub id as \
                       text; or a table by its name, or a subquery beside the other inputs, whose rows are the split train. Rows of \
                       a subquery need ORDER BY where their order is to be the same another time.";

/// What a failure in the batch form does.
const ON_ERROR: Parameter = Parameter::choice(
    "on_error",
    &["fail", "skip"],
    Some("fail"),
    "In the batch form, what a row of work that fails does: fail the statement, or give one row with status failed and go on.",
);

/// How much memory an operation on datasets may use.
const MEMORY: Parameter = Parameter::optional(
    "memory",
    "Memory to use, about; what is larger goes to temporary files: bytes, or with a unit ('512MB', '2GiB'). The session's sparse.memory \
     where it is not given.",
);

/// The value of [`MEMORY`].
fn memory(request: &Request) -> Result<u64> {
    match request.options.text(MEMORY.name) {
        Some(text) => crate::config::parse_bytes(text)
            .map_err(|error| datafusion::common::plan_datafusion_err!("memory: {error}")),
        None => Ok(request.config.memory),
    }
}

/// The row that tells of work that failed: its inputs, where it would have gone, and why.
fn failed_row(spec: &Spec, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
    let input = |name: &str| {
        let at = spec.inputs.iter().position(|input| input.name == name)?;
        inputs.get(at).cloned().flatten()
    };
    let known = |name: &str| match name {
        "path" => input("output"),
        "status" => Some("failed".to_owned()),
        "message" => Some(message.to_owned()),
        name => input(name),
    };
    let column = |column: &Column| match column.ty {
        Type::Text => columns::texts(vec![known(column.name)]),
        ty => new_null_array(&ty.data_type(), 1),
    };
    let all = spec.columns.iter().map(column).collect();
    columns::batch(spec.schema(), all, 1)
}

/// A stream of the one batch that a future gives.
fn once(
    future: impl Future<Output = Result<RecordBatch>> + Send + 'static,
) -> BoxStream<'static, Result<RecordBatch>> {
    stream::once(future).boxed()
}

/// Cancels an operation when the future that awaits it is dropped.
struct CancelOnDrop(CancelToken);

impl CancelOnDrop {
    fn new() -> (Self, CancelToken) {
        let token = CancelToken::default();
        (Self(token.clone()), token)
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The session's cache of rebuilt models.
fn cache(request: &Request) -> Result<DeltaCache> {
    let mut cache = DeltaCache::new()
        .device(request.config.device)
        .open_options(request.config.open_options());
    if let Some(threads) = threads(request) {
        cache = cache.threads(threads);
    }
    cache.open().map_err(crate::error::cache)
}

/// The number of threads an operation may use, if it is limited.
fn threads(request: &Request) -> Option<usize> {
    [request.config.threads, request.threads]
        .into_iter()
        .find(|threads| *threads > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_described() {
        let functions = all();
        let names: Vec<&str> = functions.iter().map(|f| f.spec().name).collect();
        assert!(names.is_sorted(), "{names:?}");
        for function in &functions {
            let spec = function.spec();
            assert!(
                !spec.examples.is_empty() && !spec.description.is_empty(),
                "{}",
                spec.name
            );
            assert!(
                spec.columns
                    .iter()
                    .all(|column| !column.description.is_empty())
            );
        }
    }
}
