//! `sparse_svd_compress(base, finetune [, output])`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use async_trait::async_trait;
use datafusion::common::{Result, plan_datafusion_err};
use sparse_delta::{
    Precision, Profile, StagedSvd, SvdCompress, SvdDeltaManifest, SvdOutcome, SvdRank, SvdRow,
};

use super::{CancelOnDrop, failed_row, threads};
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_svd_compress",
    row: "tensor, and per rank where there are several",
    description: "An approximation of a fine-tune: low-rank updates of the base's matrices, by a singular value decomposition of \
                  what changed; everything else is kept exactly. Lossy: each row says how far off its tensor is. The artifact \
                  at `output` holds a PEFT adapter too, and is complete there before the first row is returned. The same call \
                  again finds it and returns status `exists`. At most one of rank, ranks, energy and bytes is given.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required("finetune", "The fine-tuned model.").or(&["ft"]),
        Parameter::optional(
            "output",
            "Where the artifact goes: a folder or an object-store URL. Default: its key, in the delta store.",
        ),
    ],
    options: &[
        Parameter::of(
            "rank",
            Kind::Count(&["auto"]),
            "The rank of every update. auto: all singular values that stand out of the rounding noise of both models' dtypes. \
             Default: 16.",
        ),
        Parameter::of(
            "ranks",
            Kind::Counts,
            "Several ranks, each of which can be rebuilt from the one artifact; it is as large as the largest.",
        ),
        Parameter::of(
            "energy",
            Kind::Number,
            "The share of each difference's squared Frobenius norm that its update holds, as 0.9.",
        ),
        Parameter::of(
            "bytes",
            Kind::Number,
            "How many bytes all factors may take, as 50e6; each tensor gets the rank at which they hold the most energy.",
        ),
        Parameter::of(
            "max_rank",
            Kind::Count(&[]),
            "The largest rank that auto, energy or bytes come to. Default: 256.",
        ),
        Parameter::choice(
            "precision",
            &["f32", "f16", "bf16", "int8", "int4"],
            Some("f16"),
            "How factors are stored; integers have a scale for every 64 of them.",
        ),
        Parameter::flag(
            "signs",
            "Store one more bit for each element: the sign of what the factors leave, with one magnitude a row.",
        ),
        Parameter::flag(
            "embeddings",
            "Approximate embeddings too; otherwise they are kept exactly.",
        ),
        Parameter::choice(
            "profile",
            &["peft", "vllm", "none"],
            Some("peft"),
            "The adapter in the artifact: peft (every approximated module, each with its rank), vllm (linear layers only, one \
             rank), or none.",
        ),
        Parameter::flag("dry_run", "Compute everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another approximation at the output. Nothing but one is ever replaced.",
        ),
        Parameter::choice(
            "on_error",
            &["fail", "skip"],
            Some("fail"),
            "In the batch form, what a pair that fails does: fail the statement, or give one row with status failed and go on.",
        ),
    ],
    columns: &[
        Column::new("base", Type::Text, "The base model, as given."),
        Column::new("finetune", Type::Text, "The fine-tuned model, as given."),
        Column::new("file", Type::Text, "The safetensors file."),
        Column::new("tensor", Type::Text, "The tensor's name."),
        Column::new("dtype", Type::Text, "Its element type."),
        Column::new("shape", Type::Shape, "Its dimensions."),
        Column::new("params", Type::Count, "Its elements."),
        Column::new(
            "kept",
            Type::Text,
            "low_rank (approximated), exact, same (it equals the base's) or twin (it equals an earlier tensor).",
        ),
        Column::new("why", Type::Text, "Why it is kept exactly; null otherwise."),
        Column::new(
            "at_rank",
            Type::Count,
            "The rank of the artifact that the row tells of.",
        ),
        Column::new(
            "rank",
            Type::Count,
            "The tensor's own rank there, the largest of several matrices; null where it is exact. So are the next eight.",
        ),
        Column::new(
            "captured_energy",
            Type::Real,
            "The share of the difference's squared Frobenius norm that the factors, as stored, hold.",
        ),
        Column::new(
            "relative_error",
            Type::Real,
            "The Frobenius norm of what is left over that of the difference.",
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
            "The share of the difference's energy that rounding both models to their dtypes explains, estimated.",
        ),
        Column::new(
            "effective_rank",
            Type::Real,
            "The number of equal singular values that would spread the energy as far, at most.",
        ),
        Column::new("bytes", Type::Count, "Its bytes in the fine-tune."),
        Column::new(
            "compressed_bytes",
            Type::Count,
            "Its bytes in the artifact; those of a smaller rank are the first of a larger one's.",
        ),
        Column::new(
            "ratio",
            Type::Real,
            "bytes / compressed_bytes; null where nothing is stored.",
        ),
        Column::new("path", Type::Text, "Where the artifact is."),
        Column::new(
            "status",
            Type::Text,
            "created, exists (the same artifact was there), dry_run or failed.",
        ),
        Column::new("message", Type::Text, "Why it failed; null otherwise."),
    ],
    examples: &[
        "SELECT tensor, rank, round(captured_energy, 2) AS captured, bytes, compressed_bytes, status\n\
         FROM sparse_svd_compress('examples/models/base', 'examples/models/sft', '{tmp}/svd', rank => 8)\n\
         WHERE kept = 'low_rank' ORDER BY captured_energy LIMIT 5;",
        "SELECT at_rank, sum(bytes) / sum(compressed_bytes) AS ratio, avg(relative_error) AS error\n\
         FROM sparse_svd_compress('examples/models/base', 'examples/models/sft', ranks => [4, 8, 16], dry_run => true)\n\
         GROUP BY at_rank ORDER BY at_rank;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseSvdCompress;

impl SparseFunction for SparseSvdCompress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseSvdCompress {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (base, finetune) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
        let options = &request.options;
        let rank = SvdRank::choose(
            options.text("rank"),
            options.counts("ranks"),
            options.number("energy"),
            options.number("bytes"),
        )
        .map_err(error::delta)?;
        let precision = options.text("precision").and_then(Precision::parse);
        let (_guard, cancel) = CancelOnDrop::new();
        let mut compress = SvdCompress::new(base, finetune)
            .rank(rank)
            .precision(precision.unwrap_or(Precision::F16))
            .signs(options.flag("signs"))
            .embeddings(options.flag("embeddings"))
            .adapter(options.text("profile").and_then(Profile::parse))
            .dry_run(options.flag("dry_run"))
            .overwrite(options.flag("overwrite"))
            .device(request.config.device)
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(most) = options.count("max_rank") {
            let most = usize::try_from(most)
                .map_err(|_| plan_datafusion_err!("max_rank: {most} is too large"))?;
            compress = compress.max_rank(most);
        }
        if let Some(output) = inputs.get(2).and_then(Option::as_deref) {
            compress = compress.output(output);
        }
        if let Some(threads) = threads(&request) {
            compress = compress.threads(threads);
        }
        let approximation = compress.stage().await.map_err(error::delta)?;
        Ok(Box::new(Pair {
            inputs,
            approximation,
        }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        failed_row(&SPEC, inputs, message)
    }
}

/// An approximation that is complete and not visible yet.
struct Pair {
    inputs: Inputs,
    approximation: StagedSvd,
}

#[async_trait]
impl Staged for Pair {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.approximation.commit().await.map_err(error::delta)?;
        let metrics = &outcome.metrics;
        Ok(Committed {
            rows: batch(&self.inputs, &outcome)?,
            bytes_read: metrics.original_bytes,
            bytes_written: metrics.bytes_written,
            original_bytes: metrics.original_bytes,
            artifact_bytes: metrics.artifact_bytes,
            counts: Vec::new(),
        })
    }
}

fn batch(inputs: &Inputs, outcome: &SvdOutcome) -> Result<RecordBatch> {
    let found = outcome.manifest.rows();
    let rows = found.len();
    let same = |value: Option<&str>| -> ArrayRef { columns::texts(vec![value; rows]) };
    let mut all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        same(inputs.get(1).and_then(Option::as_deref)),
    ];
    all.extend(described(&outcome.manifest, &found)?);
    all.extend(measured(&found));
    all.extend([
        columns::counts(found.iter().map(|row| Some(row.tensor.bytes))),
        columns::counts(found.iter().map(|row| Some(row.stored_bytes))),
        columns::reals(found.iter().map(|row| {
            let ratio = row.tensor.bytes as f64 / row.stored_bytes as f64;
            Some(ratio).filter(|ratio| ratio.is_finite())
        })),
        same(Some(&outcome.path)),
        same(Some(outcome.status.name())),
        same(None),
    ]);
    columns::batch(SPEC.schema(), all, rows)
}

/// From `file` to `at_rank`.
fn described(manifest: &SvdDeltaManifest, rows: &[SvdRow<'_>]) -> Result<Vec<ArrayRef>> {
    let text = |f: fn(&SvdRow<'_>) -> String| columns::texts(rows.iter().map(|row| Some(f(row))));
    Ok(vec![
        columns::texts(rows.iter().map(|row| manifest.file_of(row.number))),
        text(|row| row.tensor.tensor.clone()),
        text(|row| row.tensor.dtype.clone()),
        columns::shapes(rows.iter().map(|row| row.tensor.shape.as_slice()))?,
        columns::counts(rows.iter().map(|row| Some(row.tensor.params()))),
        text(|row| row.tensor.kept.name().to_owned()),
        columns::texts(rows.iter().map(|row| {
            let why = &row.tensor.why;
            (!why.is_empty()).then_some(why)
        })),
        columns::counts(rows.iter().map(|row| Some(row.at_rank))),
    ])
}

/// From `rank` to `effective_rank`.
pub(super) fn measured(rows: &[SvdRow<'_>]) -> Vec<ArrayRef> {
    let of = |f: fn(&SvdRow<'_>) -> Option<f64>| columns::reals(rows.iter().map(f));
    vec![
        columns::counts(rows.iter().map(|row| row.quality.map(|q| q.rank))),
        of(|row| row.quality.map(|q| q.captured_energy)),
        of(|row| row.quality.map(|q| q.relative_error)),
        of(|row| row.quality.map(|q| q.max_abs_error)),
        of(|row| row.quality.map(|q| q.mean_abs_error)),
        of(|row| row.quality.map(|_| row.tensor.sigma_1)),
        of(|row| row.quality.map(|q| q.sigma_k)),
        of(|row| row.quality.map(|_| row.tensor.noise_share)),
        of(|row| row.quality.map(|_| row.tensor.effective_rank)),
    ]
}
