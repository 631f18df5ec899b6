//! `sparse_dataset_reconstruct(delta [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result;
use sparse_dataset::{Reconstruct, ReconstructOutcome, StagedDataset};

use super::{CancelOnDrop, failed_row, threads};
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error, rows};

/// The position of the input `base`.
const BASE: usize = 2;

static SPEC: Spec = Spec {
    name: "sparse_dataset_reconstruct",
    row: "file",
    description: "The derivative dataset again: the same schema and the same rows in the same order. The logical hash of every split \
                  is checked before anything is visible at `output`, and a base that is not the one of the delta is refused.",
    inputs: &[
        Parameter::required(
            "delta",
            "The artifact: a folder, an object-store URL, or a key in the delta store.",
        ),
        Parameter::optional(
            "output",
            "Where the dataset goes: a folder, or a file if the derivative was one. Default: the cache's `reconstructed` \
             folder, by key.",
        ),
        Parameter::optional(
            "base",
            "The base dataset, given like that of sparse_dataset_compress. Default: the one the artifact names; a delta whose \
             base was a table or a query needs it.",
        )
        .taking(Kind::Dataset),
    ],
    options: &[
        super::MEMORY,
        Parameter::flag(
            "rows_only",
            "Write files anew, with the same rows, even where they could come back byte for byte.",
        ),
        Parameter::flag("dry_run", "Rebuild and check everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another state of the same dataset at the output. A folder with other files in it is never replaced.",
        ),
        super::ON_ERROR,
    ],
    columns: &[
        Column::new("delta", Type::Text, "The artifact, as given."),
        Column::new("split", Type::Text, "The split."),
        Column::new(
            "file",
            Type::Text,
            "A file of it, relative to the dataset.",
        ),
        Column::new("rows", Type::Count, "Its rows."),
        Column::new("hash", Type::Text, "The logical hash of the split, as checked."),
        Column::new("path", Type::Text, "Where the dataset is; null after a dry run."),
        Column::new(
            "status",
            Type::Text,
            "created, exists (the same rows were there), dry_run or failed.",
        ),
        Column::new("message", Type::Text, "Why it failed; null otherwise."),
    ],
    examples: &[
        "SELECT count(*) FROM sparse_dataset_compress('examples/datasets/wordnet/base', 'examples/datasets/wordnet/derivative', '{tmp}/delta');\n\
         SELECT split, file, rows, status FROM sparse_dataset_reconstruct('{tmp}/delta', '{tmp}/again');\n\
         SELECT count(*) AS rows FROM '{tmp}/again/train.parquet';",
    ],
};

#[derive(Debug)]
pub(super) struct SparseDatasetReconstruct;

impl SparseFunction for SparseDatasetReconstruct {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseDatasetReconstruct {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (_guard, cancel) = CancelOnDrop::new();
        let mut reconstruct = Reconstruct::new(required(&SPEC, &inputs, 0)?)
            .memory(super::memory(&request)?)
            .rows_only(request.options.flag("rows_only"))
            .dry_run(request.options.flag("dry_run"))
            .overwrite(request.options.flag("overwrite"))
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(output) = inputs.get(1).and_then(Option::as_deref) {
            reconstruct = reconstruct.output(output);
        }
        if inputs.get(BASE).is_some_and(Option::is_some) {
            reconstruct = reconstruct.base(rows::dataset(&SPEC, &inputs, &request, BASE)?);
        }
        if let Some(threads) = threads(&request) {
            reconstruct = reconstruct.threads(threads);
        }
        let dataset = reconstruct.stage().await.map_err(error::dataset)?;
        Ok(Box::new(Rebuilt { inputs, dataset }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        failed_row(&SPEC, inputs, message)
    }
}

/// A dataset that is rebuilt, checked, and not visible yet.
struct Rebuilt {
    inputs: Inputs,
    dataset: StagedDataset,
}

#[async_trait]
impl Staged for Rebuilt {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.dataset.commit().await.map_err(error::dataset)?;
        let sizes = &outcome.manifest.size_stats;
        Ok(Committed {
            rows: batch(&self.inputs, &outcome)?,
            bytes_read: sizes.base_size_bytes + sizes.delta_size_bytes,
            bytes_written: 0,
            original_bytes: sizes.derivative_size_bytes,
            artifact_bytes: sizes.delta_size_bytes,
            counts: Vec::new(),
        })
    }
}

fn batch(inputs: &Inputs, outcome: &ReconstructOutcome) -> Result<RecordBatch> {
    let files: Vec<_> = outcome
        .manifest
        .splits
        .iter()
        .flat_map(|split| split.files.iter().map(move |file| (split, file)))
        .collect();
    let same = |value: Option<&str>| columns::texts(vec![value; files.len()]);
    let all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        columns::texts(files.iter().map(|(split, _)| Some(&split.name))),
        columns::texts(files.iter().map(|(_, (path, _))| Some(path))),
        columns::counts(files.iter().map(|(_, (_, rows))| Some(*rows))),
        columns::texts(files.iter().map(|(split, _)| Some(&split.hash))),
        same(outcome.path.as_deref()),
        same(Some(outcome.status.name())),
        same(None),
    ];
    columns::batch(SPEC.schema(), all, files.len())
}
