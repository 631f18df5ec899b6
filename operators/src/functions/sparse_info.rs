//! `sparse_info(path)`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_delta::{
    ArtifactContent, ArtifactInfo, DeltaManifest, Info, Kept, SvdDeltaManifest, SvdRow, SvdTensor,
    TensorReport,
};

use super::once;
use super::sparse_svd_compress::measured;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction, required};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_info",
    row: "tensor",
    description: "What an artifact holds (a delta, an adapter, a low-rank approximation), tensor by tensor, beside the models and the \
                  key of its manifest.",
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
            "Elements whose bits differ from the base's; null where they were not counted.",
        ),
        Column::new(
            "predictor",
            Type::Text,
            "What predicts it: none, base, cast, low_rank, ...",
        ),
        Column::new(
            "method",
            Type::Text,
            "How it is stored: same, twin (equals an earlier tensor), empty, a method of the codec, or mixed; of an approximation, \
             low_rank, exact, same or twin.",
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
        Column::new(
            "effort",
            Type::Text,
            "fast, default or max; null of an approximation.",
        ),
        Column::new("key", Type::Text, "The artifact's key."),
        Column::new("path", Type::Text, "Where it is."),
        Column::new(
            "delta_type",
            Type::Text,
            "model_delta, adapter or svd_delta (a low-rank approximation).",
        ),
        Column::new(
            "rank",
            Type::Count,
            "The rank of an approximated tensor at the artifact's largest rank; null for all others. So are the next eight, which \
             are those of sparse_svd_compress.",
        ),
        Column::new(
            "captured_energy",
            Type::Real,
            "The share of the difference's energy that the factors hold.",
        ),
        Column::new(
            "relative_error",
            Type::Real,
            "What is left over the difference, Frobenius norms.",
        ),
        Column::new(
            "max_abs_error",
            Type::Real,
            "The largest magnitude of what is left.",
        ),
        Column::new(
            "mean_abs_error",
            Type::Real,
            "The mean magnitude of what is left.",
        ),
        Column::new(
            "sigma_1",
            Type::Real,
            "The largest singular value of the difference.",
        ),
        Column::new(
            "sigma_k",
            Type::Real,
            "The smallest singular value that is kept.",
        ),
        Column::new(
            "noise_share",
            Type::Real,
            "The share of the difference's energy that rounding explains, estimated.",
        ),
        Column::new(
            "effective_rank",
            Type::Real,
            "How many equal singular values would spread the energy as far, at most.",
        ),
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
    match &info.content {
        ArtifactContent::Delta { manifest, tensors } => delta(&info.path, manifest, tensors),
        ArtifactContent::Svd(manifest) => svd(&info.path, manifest),
    }
}

fn delta(path: &str, manifest: &DeltaManifest, rows: &[TensorReport]) -> Result<RecordBatch> {
    let mut all = report_columns(rows)?;
    all.push(columns::counts(rows.iter().map(|row| Some(row.blocks))));
    let values = [
        &manifest.base_model_id,
        &manifest.finetune_model_id,
        &manifest.created_at,
        &manifest.effort,
        &manifest.key,
        path,
        &manifest.delta_type,
    ];
    all.extend(values.map(|value| columns::texts(vec![Some(value); rows.len()])));
    let rest = SPEC.columns.get(all.len()..).unwrap_or_default();
    let nulls = rest
        .iter()
        .map(|column| new_null_array(&column.ty.data_type(), rows.len()));
    all.extend(nulls.collect::<Vec<_>>());
    columns::batch(SPEC.schema(), all, rows.len())
}

/// A low-rank approximation, at its largest rank.
fn svd(path: &str, manifest: &SvdDeltaManifest) -> Result<RecordBatch> {
    let all = manifest.rows();
    let last = manifest.ranks.last().copied();
    let rows: Vec<SvdRow<'_>> = all
        .into_iter()
        .filter(|row| Some(row.at_rank) == last)
        .collect();
    let mut all = described(manifest, &rows)?;
    let values = [
        Some(&manifest.base_model_id),
        Some(&manifest.finetune_model_id),
        Some(&manifest.created_at),
        None,
        Some(&manifest.key),
        Some(&path.to_owned()),
        Some(&manifest.delta_type),
    ];
    all.extend(values.map(|value| columns::texts(vec![value; rows.len()])));
    all.extend(measured(&rows));
    columns::batch(SPEC.schema(), all, rows.len())
}

/// What is known of an approximated tensor: from `file` to `blocks`.
fn described(manifest: &SvdDeltaManifest, rows: &[SvdRow<'_>]) -> Result<Vec<ArrayRef>> {
    let text =
        |f: fn(&SvdTensor) -> &str| columns::texts(rows.iter().map(|row| Some(f(row.tensor))));
    let count = |f: fn(&SvdRow<'_>) -> u64| columns::counts(rows.iter().map(|row| Some(f(row))));
    let predictor = |row: &SvdRow<'_>| match row.tensor.kept {
        Kept::LowRank => "low_rank",
        _ if row.tensor.base.is_some() => "base",
        _ => "none",
    };
    Ok(vec![
        columns::texts(rows.iter().map(|row| manifest.file_of(row.number))),
        text(|tensor| &tensor.tensor),
        text(|tensor| &tensor.dtype),
        columns::shapes(rows.iter().map(|row| row.tensor.shape.as_slice()))?,
        count(|row| row.tensor.params()),
        // How many weights differ was not counted.
        columns::counts(rows.iter().map(|row| match row.tensor.kept {
            Kept::Same => Some(0),
            _ => None,
        })),
        columns::texts(rows.iter().map(|row| Some(predictor(row)))),
        text(|tensor| tensor.kept.name()),
        count(|row| row.tensor.bytes),
        count(|row| row.stored_bytes),
        columns::reals(rows.iter().map(|row| {
            let ratio = row.tensor.bytes as f64 / row.stored_bytes as f64;
            Some(ratio).filter(|ratio| ratio.is_finite())
        })),
        columns::counts(rows.iter().map(|_| None)),
    ])
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
