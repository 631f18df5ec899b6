//! The table functions: one file each, named after it.

mod sparse_benchmark;
mod sparse_cache;
mod sparse_compress;
mod sparse_diff;
mod sparse_features;
mod sparse_find_base;
mod sparse_info;
mod sparse_jobs;
mod sparse_models;
mod sparse_prefetch;
mod sparse_reconstruct;
mod sparse_tensors;
mod sparse_unmerge;
mod sparse_verify;

use std::sync::Arc;

use ::sparse_cache::DeltaCache;
use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::{self, BoxStream, StreamExt};
use sparse_delta::CancelToken;

use crate::function::{Request, SparseFunction};

/// Every table function, sorted by name.
pub fn all() -> Vec<Arc<dyn SparseFunction>> {
    vec![
        Arc::new(sparse_benchmark::SparseBenchmark),
        Arc::new(sparse_cache::SparseCache),
        Arc::new(sparse_compress::SparseCompress),
        Arc::new(sparse_diff::SparseDiff),
        Arc::new(sparse_features::SparseFeatures),
        Arc::new(sparse_find_base::SparseFindBase),
        Arc::new(sparse_info::SparseInfo),
        Arc::new(sparse_jobs::SparseJobs),
        Arc::new(sparse_models::SparseModels),
        Arc::new(sparse_prefetch::SparsePrefetch),
        Arc::new(sparse_reconstruct::SparseReconstruct),
        Arc::new(sparse_tensors::SparseTensors),
        Arc::new(sparse_unmerge::SparseUnmerge),
        Arc::new(sparse_verify::SparseVerify),
    ]
}

/// The function of a name.
pub fn find(name: &str) -> Option<Arc<dyn SparseFunction>> {
    all()
        .into_iter()
        .find(|function| function.spec().name == name)
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
    let mut cache = DeltaCache::new().open_options(request.config.open_options());
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
