//! `sparse_diff(base, finetune)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_delta::{Diff, DiffRow};

use super::{CancelOnDrop, once, threads};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_diff",
    row: "tensor",
    description: "What a fine-tune changed, tensor by tensor. Tensors are paired by name, then by content (renamed ones). \
                  Statistics are over the rows both have, in double precision; they are null where one side is missing.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required("finetune", "The fine-tuned model.").or(&["ft"]),
    ],
    options: &[],
    columns: &[
        Column::new(
            "tensor",
            Type::Text,
            "The tensor's name in the fine-tune; in the base, if it was removed.",
        ),
        Column::new("file", Type::Text, "The file it is in."),
        Column::new(
            "status",
            Type::Text,
            "same, changed, added, removed, reshaped or retyped.",
        ),
        Column::new(
            "base_tensor",
            Type::Text,
            "Its name in the base, where that is another one.",
        ),
        Column::new("dtype", Type::Text, "Its element type."),
        Column::new("shape", Type::Shape, "Its dimensions."),
        Column::new("params", Type::Count, "Its elements."),
        Column::new("changed", Type::Count, "Elements whose bits differ."),
        Column::new("l2", Type::Real, "Euclidean norm of the difference."),
        Column::new("max_abs", Type::Real, "Largest absolute difference."),
        Column::new("mean", Type::Real, "Mean difference."),
        Column::new("std", Type::Real, "Standard deviation of the differences."),
        Column::new("sparsity", Type::Real, "Share of unchanged elements."),
        Column::new(
            "cosine",
            Type::Real,
            "Cosine of the angle between base and fine-tune.",
        ),
    ],
    examples: &[
        "SELECT tensor, status, changed, l2 FROM sparse_diff('examples/models/base', 'examples/models/sft')\n\
         ORDER BY l2 DESC LIMIT 5;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseDiff;

impl SparseFunction for SparseDiff {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseDiff {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let (_guard, cancel) = CancelOnDrop::new();
            let mut diff = Diff::new(required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?)
                .device(request.config.device)
                .open_options(request.config.open_options())
                .cancel(cancel);
            if let Some(threads) = threads(&request) {
                diff = diff.threads(threads);
            }
            let rows = diff.run().await.map_err(error::delta)?;
            request.project(&batch(&rows)?)
        })
    }
}

fn batch(rows: &[DiffRow]) -> Result<RecordBatch> {
    let text = |f: fn(&DiffRow) -> &str| columns::texts(rows.iter().map(|row| Some(f(row))));
    let count = |f: fn(&DiffRow) -> u64| columns::counts(rows.iter().map(|row| Some(f(row))));
    let real = |f: fn(&DiffRow) -> Option<f64>| columns::reals(rows.iter().map(f));
    let all = vec![
        text(|row| &row.tensor),
        text(|row| &row.file),
        text(|row| &row.status),
        columns::texts(rows.iter().map(|row| row.base_tensor.as_deref())),
        text(|row| &row.dtype),
        columns::shapes(rows.iter().map(|row| row.shape.as_slice()))?,
        count(|row| row.params),
        count(|row| row.changed),
        real(|row| row.l2),
        real(|row| row.max_abs),
        real(|row| row.mean),
        real(|row| row.std),
        real(|row| row.sparsity),
        real(|row| row.cosine),
    ];
    columns::batch(SPEC.schema(), all, rows.len())
}
