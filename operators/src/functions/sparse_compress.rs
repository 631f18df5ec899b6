//! `sparse_compress(base, finetune [, output])`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use async_trait::async_trait;
use datafusion::common::{Result, exec_datafusion_err};
use sparse_delta::{Compress, CompressOutcome, Mode, StagedDelta};

use super::sparse_info::report_columns;
use super::{CancelOnDrop, failed_row, threads};
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_compress",
    row: "tensor",
    description: "The delta of a fine-tune against its base, lossless unless another mode is asked for, written to `output` and complete there before the first \
                  row is returned. The same call again finds it and returns status `exists`. In the batch form, several deltas \
                  are made at a time; each of them appears whole or not at all, as soon as it is done.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required("finetune", "The fine-tuned model.").or(&["ft"]),
        Parameter::optional(
            "output",
            "Where the artifact goes: a folder or an object-store URL. Default: its key, in the delta store.",
        ),
    ],
    options: &[
        Parameter::choice(
            "effort",
            &["fast", "default", "max"],
            None,
            "How hard to try; the session's sparse.effort where it is not given. fast: the base alone, from a small sample; \
             default: merged adapters are found and used as predictions; max: updates that are only roughly of low rank too, and \
             more contexts, at some megabytes a second; where few weights changed smaller still, but tens of megabytes a second \
             to reconstruct.",
        ),
        Parameter::optional(
            "adapter",
            "A PEFT adapter (a path, URL or Hub id) that was merged into the base: its updates are tried as predictions, and \
             kept in the artifact where they pay.",
        ),
        Parameter::choice(
            "mode",
            &["lossless", "int8"],
            Some("lossless"),
            "What is kept: lossless: every byte; int8: of large tensors an approximation, their differences from the base as \
             8-bit codes and scales. Lossy, labelled so in the artifact, and mostly larger than lossless: see \
             sparse_validate_int8.",
        ),
        Parameter::choice(
            "granularity",
            &["tensor", "row", "group"],
            None,
            "What shares a scale in mode int8: the tensor, a row (the default), or 128 elements of a row.",
        ),
        Parameter::flag("dry_run", "Compute everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another artifact at the output. Nothing but an artifact is ever replaced.",
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
            "changed",
            Type::Count,
            "Elements whose bits differ from the base's; all where it has no base.",
        ),
        Column::new(
            "predictor",
            Type::Text,
            "What predicts it: none, base, cast, scaled (weight decay), low_rank or adapter; int8 where it is approximated.",
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
        Column::new("path", Type::Text, "Where the artifact is."),
        Column::new(
            "status",
            Type::Text,
            "created, exists (the same artifact was there), dry_run or failed.",
        ),
        Column::new("message", Type::Text, "Why it failed; null otherwise."),
    ],
    examples: &[
        "SELECT tensor, method, bytes, compressed_bytes, status\n\
         FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/delta')\n\
         ORDER BY compressed_bytes DESC LIMIT 5;",
        "SELECT round(1.0 * sum(bytes) / sum(compressed_bytes), 2) AS ratio\n\
         FROM sparse_compress('examples/models/base', 'examples/models/sft', effort => 'max', dry_run => true);",
        "SELECT finetune, sum(compressed_bytes) AS bytes, status, message\n\
         FROM sparse_compress((SELECT 'examples/models/base' AS base, 'examples/models/' || name AS ft, '{tmp}/' || name AS output\n\
         \u{20}                     FROM (VALUES ('sft'), ('lora-merged'), ('none')) AS models(name)), on_error => 'skip')\n\
         GROUP BY finetune, status, message ORDER BY finetune;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseCompress;

impl SparseFunction for SparseCompress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseCompress {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (base, finetune) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
        let options = &request.options;
        let effort = match options.text("effort") {
            Some(effort) => effort
                .parse()
                .map_err(|e| exec_datafusion_err!("effort: {e}"))?,
            None => request.config.effort,
        };
        let granularity = match options.text("granularity") {
            Some(granularity) => Some(
                granularity
                    .parse()
                    .map_err(|e| exec_datafusion_err!("granularity: {e}"))?,
            ),
            None => None,
        };
        let mode = Mode::parse(options.text("mode").unwrap_or("lossless"), granularity)
            .map_err(error::delta)?;
        let (_guard, cancel) = CancelOnDrop::new();
        let mut compress = Compress::new(base, finetune)
            .effort(effort)
            .mode(mode)
            .dry_run(options.flag("dry_run"))
            .overwrite(options.flag("overwrite"))
            .device(request.config.device)
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(adapter) = options.text("adapter") {
            compress = compress.adapter(adapter);
        }
        if let Some(output) = inputs.get(2).and_then(Option::as_deref) {
            compress = compress.output(output);
        }
        if let Some(threads) = threads(&request) {
            compress = compress.threads(threads);
        }
        let delta = compress.stage().await.map_err(error::delta)?;
        Ok(Box::new(Pair {
            spec: &SPEC,
            inputs,
            delta,
        }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        failed_row(&SPEC, inputs, message)
    }
}

/// A delta that is complete and not visible yet.
pub(super) struct Pair {
    pub(super) spec: &'static Spec,
    pub(super) inputs: Inputs,
    pub(super) delta: StagedDelta,
}

#[async_trait]
impl Staged for Pair {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.delta.commit().await.map_err(error::delta)?;
        let metrics = &outcome.metrics;
        Ok(Committed {
            rows: batch(self.spec, &self.inputs, &outcome)?,
            bytes_read: metrics.bytes_read,
            bytes_written: metrics.bytes_written,
            original_bytes: metrics.original_bytes,
            artifact_bytes: metrics.artifact_bytes,
            counts: Vec::new(),
        })
    }
}

/// One row per tensor: the two models, [`report_columns`], path, status and message.
fn batch(spec: &Spec, inputs: &Inputs, outcome: &CompressOutcome) -> Result<RecordBatch> {
    let rows = outcome.tensors.len();
    let same = |value: Option<&str>| -> ArrayRef { columns::texts(vec![value; rows]) };
    let mut all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        same(inputs.get(1).and_then(Option::as_deref)),
    ];
    all.extend(report_columns(&outcome.tensors)?);
    all.push(same(Some(&outcome.path)));
    all.push(same(Some(outcome.status.name())));
    all.push(same(None));
    columns::batch(spec.schema(), all, rows)
}
