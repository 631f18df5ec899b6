//! `sparse_svd_reconstruct(base, delta [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result;
use sparse_delta::{StagedApproximation, SvdReconstruct};

use super::sparse_reconstruct::file_rows;
use super::{CancelOnDrop, failed_row, threads};
use crate::error;
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Column, Kind, Parameter, Spec, Type};

static SPEC: Spec = Spec {
    name: "sparse_svd_reconstruct",
    row: "file",
    description: "The approximate model that base and low-rank approximation make: the same bits on every machine, each tensor \
                  held to its hash, everything at `output` before the first row is returned. A wrong base is refused with both \
                  fingerprints.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required(
            "delta",
            "The approximation: a folder, an object-store URL, or a key in the delta store.",
        ),
        Parameter::optional(
            "output",
            "The folder the model goes to. Default: the cache's `reconstructed` folder, by key and rank.",
        ),
    ],
    options: &[
        Parameter::of(
            "rank",
            Kind::Count(&[]),
            "Which of the artifact's ranks. Default: its largest.",
        ),
        Parameter::flag("dry_run", "Rebuild and check everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another model at the output, where it has no file that this one has not.",
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
            "Its SHA-256; null for weights in a dry run.",
        ),
        Column::new(
            "origin",
            Type::Text,
            "How it came about: approximated, carried (as the fine-tune has it) or copied (from the base).",
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
        "SELECT count(*) FROM sparse_svd_compress('examples/models/base', 'examples/models/sft', '{tmp}/svd', ranks => [4, 16]);\n\
         SELECT file, origin, bytes, status\n\
         FROM sparse_svd_reconstruct('examples/models/base', '{tmp}/svd', '{tmp}/approximate', rank => 4) ORDER BY file;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseSvdReconstruct;

impl SparseFunction for SparseSvdReconstruct {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseSvdReconstruct {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (base, delta) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
        let (_guard, cancel) = CancelOnDrop::new();
        let mut reconstruct = SvdReconstruct::new(base, delta)
            .dry_run(request.options.flag("dry_run"))
            .overwrite(request.options.flag("overwrite"))
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(rank) = request.options.count("rank") {
            reconstruct = reconstruct.rank(rank);
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
    model: StagedApproximation,
}

#[async_trait]
impl Staged for Rebuilt {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.model.commit().await.map_err(error::delta)?;
        let artifact_bytes = outcome.manifest.compressed_size_bytes;
        let written = outcome.status == sparse_delta::Status::Created;
        Ok(Committed {
            rows: file_rows(
                &SPEC,
                &self.inputs,
                &outcome.files,
                &outcome.path,
                outcome.status,
            )?,
            bytes_read: artifact_bytes,
            bytes_written: if written { outcome.bytes } else { 0 },
            counts: Vec::new(),
            original_bytes: outcome.bytes,
            artifact_bytes,
        })
    }
}
