//! `sparse_reconstruct(base, delta [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result;
use sparse_delta::{FileReport, MergeRule, Reconstruct, StagedModel, Status};

use super::{CancelOnDrop, failed_row, threads};
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_reconstruct",
    row: "file",
    description: "The fine-tune again, byte for byte: every file's SHA-256 is checked before anything is visible at `output`, and \
                  everything is there before the first row is returned. A wrong base is refused with both fingerprints.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required(
            "delta",
            "The artifact: a folder, an object-store URL, a Hub id, or a key in the delta store.",
        ),
        Parameter::optional(
            "output",
            "Where the model goes: a folder, or a file x.safetensors if the fine-tune was one. Default: the cache's \
             `reconstructed` folder, by key.",
        ),
    ],
    options: &[
        Parameter::choice(
            "merge",
            &["default", "safe"],
            None,
            "Of an adapter's artifact: the base with the adapter merged into it, to the bits of PEFT's merge_and_unload; safe as its \
             safe_merge. Without it, the adapter's files come back.",
        ),
        Parameter::flag("dry_run", "Rebuild and check everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another state of the same model at the output. A folder with files that the delta does not know is \
             never replaced.",
        ),
        Parameter::choice(
            "on_error",
            &["fail", "skip"],
            Some("fail"),
            "In the batch form, what a delta that fails does: fail the statement, or give one row with status failed and go on.",
        ),
    ],
    columns: &[
        Column::new("base", Type::Text, "The base model, as given."),
        Column::new("delta", Type::Text, "The artifact, as given."),
        Column::new("file", Type::Text, "The file, relative to the model."),
        Column::new("bytes", Type::Count, "Its bytes."),
        Column::new(
            "sha256",
            Type::Text,
            "Its SHA-256: that of the fine-tune's file, unless it is an approximation of it; null for merged weights in a dry run.",
        ),
        Column::new(
            "origin",
            Type::Text,
            "How it came about: rebuilt, merged, approximated (by a lossy delta), carried, copied (from the base) or exists.",
        ),
        Column::new("path", Type::Text, "Where the model is."),
        Column::new(
            "status",
            Type::Text,
            "created, exists (the same files were there), dry_run or failed.",
        ),
        Column::new("message", Type::Text, "Why it failed; null otherwise."),
    ],
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/sft-delta');\n\
         SELECT file, bytes, sha256, status\n\
         FROM sparse_reconstruct('examples/models/base', '{tmp}/sft-delta', '{tmp}/sft-again') ORDER BY file;",
        "SELECT count(*) FROM sparse_adapter_compress('examples/models/base', 'examples/models/lora', '{tmp}/lora-delta');\n\
         SELECT file, origin, status\n\
         FROM sparse_reconstruct('examples/models/base', '{tmp}/lora-delta', '{tmp}/merged', merge => 'default') ORDER BY file;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseReconstruct;

impl SparseFunction for SparseReconstruct {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseReconstruct {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (base, delta) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
        let (_guard, cancel) = CancelOnDrop::new();
        let mut reconstruct = Reconstruct::new(base, delta)
            .dry_run(request.options.flag("dry_run"))
            .overwrite(request.options.flag("overwrite"))
            .device(request.config.device)
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(rule) = request.options.text("merge").and_then(MergeRule::parse) {
            reconstruct = reconstruct.merge(rule);
        }
        if let Some(output) = inputs.get(2).and_then(Option::as_deref) {
            reconstruct = reconstruct.output(output);
        }
        if let Some(threads) = threads(&request) {
            reconstruct = reconstruct.threads(threads);
        }
        let model = reconstruct.stage().await.map_err(error::delta)?;
        Ok(Box::new(Rebuilt { inputs, model }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        failed_row(&SPEC, inputs, message)
    }
}

/// A model that is rebuilt, checked, and not visible yet.
struct Rebuilt {
    inputs: Inputs,
    model: StagedModel,
}

#[async_trait]
impl Staged for Rebuilt {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.model.commit().await.map_err(error::delta)?;
        let metrics = &outcome.metrics;
        Ok(Committed {
            rows: file_rows(
                &SPEC,
                &self.inputs,
                &outcome.files,
                &outcome.path,
                outcome.status,
            )?,
            bytes_read: metrics.artifact_bytes,
            bytes_written: metrics.bytes_written,
            original_bytes: metrics.bytes,
            artifact_bytes: metrics.artifact_bytes,
            counts: Vec::new(),
        })
    }
}

/// One row per rebuilt file.
pub(super) fn file_rows(
    spec: &Spec,
    inputs: &Inputs,
    files: &[FileReport],
    path: &str,
    status: Status,
) -> Result<RecordBatch> {
    let same = |value: Option<&str>| columns::texts(vec![value; files.len()]);
    // A dry run writes no weights, and hashes none where nothing says what they must be.
    let hash = |file: &FileReport| (!file.sha256.is_empty()).then(|| file.sha256.clone());
    let all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        same(inputs.get(1).and_then(Option::as_deref)),
        columns::texts(files.iter().map(|file| Some(&file.file))),
        columns::counts(files.iter().map(|file| Some(file.bytes))),
        columns::texts(files.iter().map(hash)),
        columns::texts(files.iter().map(|file| Some(&file.status))),
        same(Some(path)),
        same(Some(status.name())),
        same(None),
    ];
    columns::batch(spec.schema(), all, files.len())
}
