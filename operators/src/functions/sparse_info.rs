//! `sparse_info(path)`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_delta::{ArtifactInfo, Info, TensorReport};

use super::once;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_info",
    row: "tensor",
    description: "What a delta artifact holds, tensor by tensor, beside the models and the key of its manifest.",
    inputs: &[Parameter::required(
        "path",
        "The artifact: a folder, an object-store URL, a Hub id, or a key in the delta store.",
    )],
    options: &[],
    columns: &[
        Column::new("file", Type::Text, "The safetensors file."),
        Column::new("tensor", Type::Text, "The tensor's name."),
        Column::new("dtype", Type::Text, "Its element type."),
        Column::new("shape", Type::Shape, "Its dimensions."),
        Column::new("params", Type::Count, "Its elements."),
        Column::new(
            "changed",
            Type::Count,
            "Elements whose bits differ from the base's.",
        ),
        Column::new(
            "predictor",
            Type::Text,
            "What predicts it: none, base, cast, ...",
        ),
        Column::new(
            "method",
            Type::Text,
            "How it is stored: same, twin (equals an earlier tensor), empty, a method of the codec, or mixed.",
        ),
        Column::new("bytes", Type::Count, "Its bytes in the fine-tune."),
        Column::new(
            "compressed_bytes",
            Type::Count,
            "Its bytes in the artifact.",
        ),
        Column::new(
            "ratio",
            Type::Real,
            "bytes / compressed_bytes; null where nothing is stored.",
        ),
        Column::new("blocks", Type::Count, "Its blocks."),
        Column::new("base", Type::Text, "The base model, as it was given."),
        Column::new(
            "finetune",
            Type::Text,
            "The fine-tuned model, as it was given.",
        ),
        Column::new(
            "created_at",
            Type::Text,
            "When the artifact was made (ISO 8601, UTC).",
        ),
        Column::new("effort", Type::Text, "fast, default or max."),
        Column::new("key", Type::Text, "The artifact's key."),
        Column::new("path", Type::Text, "Where it is."),
    ],
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/info-delta');\n\
         SELECT tensor, method, bytes, compressed_bytes, ratio FROM sparse_info('{tmp}/info-delta')\n\
         ORDER BY compressed_bytes DESC LIMIT 5;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseInfo;

impl SparseFunction for SparseInfo {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseInfo {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let info = Info::new(required(&SPEC, &inputs, 0)?)
                .open_options(request.config.open_options())
                .run()
                .await
                .map_err(error::delta)?;
            request.project(&batch(&info)?)
        })
    }
}

fn batch(info: &ArtifactInfo) -> Result<RecordBatch> {
    let rows = &info.tensors;
    let manifest = &info.manifest;
    let mut all = report_columns(rows)?;
    all.push(columns::counts(rows.iter().map(|row| Some(row.blocks))));
    for value in [
        &manifest.base_model_id,
        &manifest.finetune_model_id,
        &manifest.created_at,
        &manifest.effort,
        &manifest.key,
        &info.path,
    ] {
        all.push(columns::texts(vec![Some(value); rows.len()]));
    }
    columns::batch(SPEC.schema(), all, rows.len())
}

/// What is known of a compressed tensor: from `file` to `ratio`.
pub(super) fn report_columns(rows: &[TensorReport]) -> Result<Vec<ArrayRef>> {
    let text = |f: fn(&TensorReport) -> &str| columns::texts(rows.iter().map(|row| Some(f(row))));
    let count = |f: fn(&TensorReport) -> u64| columns::counts(rows.iter().map(|row| Some(f(row))));
    Ok(vec![
        text(|row| &row.file),
        text(|row| &row.tensor),
        text(|row| &row.dtype),
        columns::shapes(rows.iter().map(|row| row.shape.as_slice()))?,
        count(|row| row.params),
        count(|row| row.changed),
        text(|row| &row.predictor),
        text(|row| &row.method),
        count(|row| row.bytes),
        count(|row| row.compressed_bytes),
        columns::reals(
            rows.iter()
                .map(|row| Some(row.ratio()).filter(|ratio| ratio.is_finite())),
        ),
    ])
}
