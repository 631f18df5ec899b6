//! `sparse_models(catalog)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_catalog::{Catalog, DeclaredIn, ListOptions, ModelEntry};

use super::once;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_models",
    row: "model",
    description: "The models of a catalog and what they say of themselves: configuration, README, safetensors headers. A model that \
                  cannot be read is a row with a problem, not an error. Headers are read only where a column needs them.",
    inputs: &[Parameter::required(
        "catalog",
        "A folder, which is looked through for models; a table (.parquet, .csv, .jsonl) with a column model and perhaps base and \
         relation; hf-cache, the Hub's local cache (hf-cache:FOLDER for another); hub:ORG/BASE, what the Hub lists as descending \
         from a base, or hub:ORG, all of an owner (options as in a URL: ?relation=finetune, search, filter, limit=1000); \
         mlflow:URL, MLflow's model registry.",
    )],
    options: &[],
    columns: &[
        Column::new(
            "model",
            Type::Text,
            "The reference that other functions take: a path or a Hub id.",
        ),
        Column::new(
            "base",
            Type::Text,
            "The base it names; several, of a merge, with commas between.",
        ),
        Column::new(
            "relation",
            Type::Text,
            "How it comes from the base, as its README says: finetune, adapter, quantized, merge.",
        ),
        Column::new(
            "declared_in",
            Type::Text,
            "Where the base is named: readme, adapter_config, config (the model it was loaded from), or the catalog itself.",
        ),
        Column::new(
            "source",
            Type::Text,
            "directory, table, hf_cache, hub or mlflow.",
        ),
        Column::new(
            "architecture",
            Type::Text,
            "The class of the model, or the kind of adapter.",
        ),
        Column::new("model_type", Type::Text, "model_type of its config.json."),
        Column::new("dtype", Type::Text, "The dtype of most of its parameters."),
        Column::new("params", Type::Count, "Its parameters."),
        Column::new("tensors", Type::Count, "Its tensors."),
        Column::new("bytes", Type::Count, "Bytes of its weight files."),
        Column::new("revision", Type::Text, "Its commit, for models of the Hub."),
        Column::new(
            "problem",
            Type::Text,
            "What keeps it from being used; null otherwise.",
        ),
    ],
    examples: &[
        "SELECT model, base, architecture, dtype, params FROM sparse_models('examples/models') ORDER BY model;",
        "-- The models of a table: each is a catalog of one.\n\
         CREATE TABLE known AS VALUES ('examples/models/base'), ('examples/models/sft');\n\
         SELECT model, params FROM sparse_models((SELECT column1 AS catalog FROM known)) ORDER BY model;",
    ],
};

/// Columns that need the headers of the weights.
const OF_HEADERS: [&str; 5] = ["dtype", "params", "tensors", "bytes", "problem"];

#[derive(Debug)]
pub(super) struct SparseModels;

impl SparseFunction for SparseModels {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseModels {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let catalog = Catalog::parse(required(&SPEC, &inputs, 0)?).map_err(error::catalog)?;
            let needs_headers = |name: &&str| {
                let column = SPEC.column(name);
                column.is_some_and(|column| request.columns.contains(&column))
            };
            let options = ListOptions {
                open: request.config.open_options(),
                headers: OF_HEADERS.iter().any(needs_headers),
            };
            let entries = catalog.list(&options).await.map_err(error::catalog)?;
            request.project(&batch(&entries)?)
        })
    }
}

fn batch(entries: &[ModelEntry]) -> Result<RecordBatch> {
    let text = |f: fn(&ModelEntry) -> Option<&str>| columns::texts(entries.iter().map(f));
    let count = |f: fn(&ModelEntry) -> Option<u64>| columns::counts(entries.iter().map(f));
    let all = vec![
        text(|entry| Some(&entry.model)),
        text(|entry| entry.base.as_deref()),
        text(|entry| entry.relation.as_deref()),
        text(|entry| entry.declared_in.map(DeclaredIn::name)),
        text(|entry| Some(entry.source.name())),
        text(|entry| entry.architecture.as_deref()),
        text(|entry| entry.model_type.as_deref()),
        text(|entry| entry.dtype.as_deref()),
        count(|entry| entry.params),
        count(|entry| entry.tensors),
        count(|entry| entry.bytes),
        text(|entry| entry.revision.as_deref()),
        text(|entry| entry.problem.as_deref()),
    ];
    columns::batch(SPEC.schema(), all, entries.len())
}
