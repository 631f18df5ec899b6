//! `sparse_reconstruct(base, delta [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result;
use sparse_delta::{Reconstruct, ReconstructOutcome, StagedModel};

use super::{CancelOnDrop, threads};
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
            "Its SHA-256: that of the fine-tune's file, unless it is an approximation of it.",
        ),
        Column::new(
            "origin",
            Type::Text,
            "How it came about: rebuilt, approximated (by a lossy delta), carried, copied (from the base) or exists.",
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
            .open_options(request.config.open_options())
            .cancel(cancel);
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
        let input = |at: usize| columns::texts(vec![inputs.get(at).cloned().flatten()]);
        let none = || columns::texts(vec![None::<&str>]);
        let all = vec![
            input(0),
            input(1),
            none(),
            columns::counts([None]),
            none(),
            none(),
            input(2),
            columns::texts([Some("failed")]),
            columns::texts([Some(message)]),
        ];
        columns::batch(SPEC.schema(), all, 1)
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
            rows: batch(&self.inputs, &outcome)?,
            bytes_read: metrics.artifact_bytes,
            bytes_written: metrics.bytes_written,
            original_bytes: metrics.bytes,
            artifact_bytes: metrics.artifact_bytes,
        })
    }
}

fn batch(inputs: &Inputs, outcome: &ReconstructOutcome) -> Result<RecordBatch> {
    let files = &outcome.files;
    let same = |value: Option<&str>| columns::texts(vec![value; files.len()]);
    let all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        same(inputs.get(1).and_then(Option::as_deref)),
        columns::texts(files.iter().map(|file| Some(&file.file))),
        columns::counts(files.iter().map(|file| Some(file.bytes))),
        columns::texts(files.iter().map(|file| Some(&file.sha256))),
        columns::texts(files.iter().map(|file| Some(&file.status))),
        same(Some(&outcome.path)),
        same(Some(outcome.status.name())),
        same(None),
    ];
    columns::batch(SPEC.schema(), all, files.len())
}
