//! `sparse_cache()`.

use std::sync::Arc;

use ::sparse_cache::CacheEntry;
use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;

use super::once;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction};
use crate::spec::{Column, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_cache",
    row: "model",
    description: "The models in the cache of rebuilt models, the latest used first.",
    inputs: &[],
    options: &[],
    columns: &[
        Column::new("key", Type::Text, "Hash of base, delta and format version."),
        Column::new("path", Type::Text, "Where the model is."),
        Column::new("base", Type::Text, "The base it was rebuilt from."),
        Column::new("delta", Type::Text, "The delta it was rebuilt from."),
        Column::new("bytes", Type::Count, "Its bytes."),
        Column::new("created", Type::Text, "When it was rebuilt, ISO 8601, UTC."),
        Column::new(
            "last_used",
            Type::Text,
            "When it was used last, ISO 8601, UTC.",
        ),
        Column::new("seconds", Type::Real, "How long rebuilding it took."),
        Column::new("pinned", Type::Flag, "Whether it is never evicted."),
        Column::new("in_use", Type::Flag, "Whether a process uses it now."),
    ],
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/sft-delta');\n\
         SELECT state FROM sparse_prefetch('examples/models/base', '{tmp}/sft-delta', wait => true);\n\
         SELECT delta, bytes, pinned FROM sparse_cache();",
    ],
};

#[derive(Debug)]
pub(super) struct SparseCache;

impl SparseFunction for SparseCache {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseCache {
    fn read(
        &self,
        _inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let entries = super::cache(&request)?.entries().map_err(error::cache)?;
            request.project(&batch(&entries)?)
        })
    }
}

fn batch(entries: &[CacheEntry]) -> Result<RecordBatch> {
    let text = |f: fn(&CacheEntry) -> &str| columns::texts(entries.iter().map(|e| Some(f(e))));
    let all = vec![
        text(|entry| &entry.key),
        columns::texts(
            entries
                .iter()
                .map(|entry| Some(entry.path.display().to_string())),
        ),
        text(|entry| &entry.base),
        text(|entry| &entry.delta),
        columns::counts(entries.iter().map(|entry| Some(entry.bytes))),
        text(|entry| &entry.created),
        text(|entry| &entry.last_used),
        columns::reals(entries.iter().map(|entry| Some(entry.seconds))),
        columns::flags(entries.iter().map(|entry| Some(entry.pinned))),
        columns::flags(entries.iter().map(|entry| Some(entry.in_use))),
    ];
    columns::batch(SPEC.schema(), all, entries.len())
}
