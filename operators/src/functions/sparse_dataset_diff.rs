//! `sparse_dataset_diff(base, derivative)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::DataFusionError;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use sparse_dataset::{DatasetError, Diff, DiffRow};
use tokio::sync::mpsc;

use super::{CancelOnDrop, threads};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error, rows};

/// Pieces of differences that wait for their reader.
const AHEAD: usize = 4;

static SPEC: Spec = Spec {
    name: "sparse_dataset_diff",
    row: "difference",
    description: "What a derivative dataset changed: one row per value that differs, per row added or removed, and per difference of \
                  the schemas. Values of a column whose type changed are compared after the cast. Rows are counted from 0; values are \
                  JSON, extended so that nothing is lost: null and \"\", 0.0 and -0.0 differ, binary is x'00ff', a NaN that is not the \
                  usual one has its bits, NaN(0x7ff8000000000001).",
    inputs: &[
        Parameter::dataset("base", super::DATASET),
        Parameter::dataset("derivative", "The derivative dataset, given like the base."),
    ],
    options: &[
        Parameter::of(
            "key",
            Kind::Texts,
            "The columns that identify a row; rows of equal keys are matched in order. Default: rows are matched by their content.",
        ),
        Parameter::of(
            "splits",
            Kind::Texts,
            "The splits to compare. Default: all.",
        ),
        super::MEMORY,
    ],
    columns: &[
        Column::new(
            "op",
            Type::Text,
            "changed (a value), added, removed (a row), or schema.",
        ),
        Column::new("split", Type::Text, "The split."),
        Column::new("base_row", Type::Count, "The row in the base's split."),
        Column::new(
            "derivative_row",
            Type::Count,
            "The row in the derivative's split.",
        ),
        Column::new(
            "column",
            Type::Text,
            "The column; null for whole rows and whole schemas.",
        ),
        Column::new(
            "before",
            Type::Text,
            "What the base has: a value, a row as an object, a type; null where there is nothing.",
        ),
        Column::new("after", Type::Text, "What the derivative has."),
    ],
    examples: &[
        "SELECT op, split, \"column\", count(*) AS differences\n\
         FROM sparse_dataset_diff('examples/datasets/wordnet/base', 'examples/datasets/wordnet/derivative', key => 'id')\n\
         GROUP BY op, split, \"column\" ORDER BY differences DESC;",
        "SELECT op, base_row, derivative_row, \"column\", before, after\n\
         FROM sparse_dataset_diff((SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS t(id, x)),\n\
         \u{20}                        (SELECT * FROM (VALUES (2, 'c'), (3, 'd')) AS t(id, x)), key => ['id']);",
    ],
};

#[derive(Debug)]
pub(super) struct SparseDatasetDiff;

impl SparseFunction for SparseDatasetDiff {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseDatasetDiff {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        stream::once(async move { differences(&inputs, &request) })
            .try_flatten()
            .boxed()
    }
}

/// Starts comparing; dropped, the stream stops it.
fn differences(
    inputs: &Inputs,
    request: &Arc<Request>,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let (guard, cancel) = CancelOnDrop::new();
    let mut diff = Diff::new(
        rows::dataset(&SPEC, inputs, request, 0)?,
        rows::dataset(&SPEC, inputs, request, 1)?,
    )
    .key(request.options.texts("key").unwrap_or_default())
    .splits(request.options.texts("splits").unwrap_or_default())
    .memory(super::memory(request)?)
    .open_options(request.config.open_options())
    .cancel(cancel.clone());
    if let Some(threads) = threads(request) {
        diff = diff.threads(threads);
    }
    let (sender, receiver) = mpsc::channel(AHEAD);
    let task = SpawnedTask::spawn(diff.run(move |rows| {
        // Nobody reads on: the comparison is over.
        sender
            .blocking_send(rows.to_vec())
            .map_err(|_| DatasetError::from(sparse_delta::DeltaError::Cancelled))
    }));
    let wanted = Arc::clone(request);
    let batches = stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    })
    .map(move |rows: Vec<DiffRow>| wanted.project(&batch(&rows)?));
    let end = stream::once(async move {
        let _guard = guard;
        match task.join().await {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(error)) => Err(error::dataset(error)),
            Err(error) => Err(DataFusionError::Internal(error.to_string())),
        }
    });
    Ok(batches
        .map_ok(Some)
        .chain(end)
        .try_filter_map(|batch| async move { Ok(batch) })
        .boxed())
}

fn batch(rows: &[DiffRow]) -> Result<RecordBatch> {
    let all = vec![
        columns::texts(rows.iter().map(|row| Some(row.op.name()))),
        columns::texts(rows.iter().map(|row| Some(&row.split))),
        columns::counts(rows.iter().map(|row| row.base_row)),
        columns::counts(rows.iter().map(|row| row.derivative_row)),
        columns::texts(rows.iter().map(|row| row.column.as_deref())),
        columns::texts(rows.iter().map(|row| row.before.as_deref())),
        columns::texts(rows.iter().map(|row| row.after.as_deref())),
    ];
    columns::batch(SPEC.schema(), all, rows.len())
}
