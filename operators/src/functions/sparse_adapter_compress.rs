//! `sparse_adapter_compress(base, adapter [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::{Result, exec_datafusion_err};
use sparse_delta::Compress;

use super::sparse_compress::Pair;
use super::{CancelOnDrop, failed_row, threads};
use crate::error;
use crate::function::{Action, Inputs, Request, SparseFunction, Staged, Writer, required};
use crate::spec::{Column, Parameter, Spec, Type};

static SPEC: Spec = Spec {
    name: "sparse_adapter_compress",
    row: "tensor",
    description: "A PEFT (LoRA) adapter as a lossless artifact of type `adapter`, held against its base first: configuration, keys, \
                  ranks and shapes. `sparse_reconstruct` gives the adapter's files again, byte for byte, or with `merge` the base \
                  with the adapter merged into it. The artifact is complete at `output` before the first row is returned; the \
                  same call again finds it and returns status `exists`.",
    inputs: &[
        Parameter::required(
            "base",
            "The model the adapter was trained on: a path, URL or Hub id.",
        ),
        Parameter::required(
            "adapter",
            "The adapter: a folder with adapter_config.json, a URL or a Hub id.",
        ),
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
            "How hard to try to make it small; the session's sparse.effort where it is not given.",
        ),
        Parameter::flag("dry_run", "Check and compute everything, write nothing."),
        Parameter::flag(
            "overwrite",
            "Replace another artifact at the output. Nothing but an artifact is ever replaced.",
        ),
        Parameter::choice(
            "on_error",
            &["fail", "skip"],
            Some("fail"),
            "In the batch form, what an adapter that fails does: fail the statement, or give one row with status failed and go on.",
        ),
    ],
    columns: &[
        Column::new("base", Type::Text, "The base model, as given."),
        Column::new("adapter", Type::Text, "The adapter, as given."),
        Column::new("file", Type::Text, "The safetensors file."),
        Column::new("tensor", Type::Text, "The tensor's name in the adapter."),
        Column::new("dtype", Type::Text, "Its element type."),
        Column::new("shape", Type::Shape, "Its dimensions."),
        Column::new("params", Type::Count, "Its elements."),
        Column::new(
            "changed",
            Type::Count,
            "Elements whose bits differ from those of the base's tensor that it replaces; all where it replaces none.",
        ),
        Column::new(
            "predictor",
            Type::Text,
            "What predicts it: none, or what sparse_compress has.",
        ),
        Column::new(
            "method",
            Type::Text,
            "How it is stored: same, twin (equals an earlier tensor), empty, a method of the codec, or mixed.",
        ),
        Column::new("bytes", Type::Count, "Its bytes in the adapter."),
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
    examples: &["SELECT tensor, shape, bytes, compressed_bytes, status\n\
         FROM sparse_adapter_compress('examples/models/base', 'examples/models/lora', '{tmp}/lora')\n\
         ORDER BY compressed_bytes DESC LIMIT 5;"],
};

#[derive(Debug)]
pub(super) struct SparseAdapterCompress;

impl SparseFunction for SparseAdapterCompress {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseAdapterCompress {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (base, adapter) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
        let options = &request.options;
        let effort = match options.text("effort") {
            Some(effort) => effort
                .parse()
                .map_err(|e| exec_datafusion_err!("effort: {e}"))?,
            None => request.config.effort,
        };
        let (_guard, cancel) = CancelOnDrop::new();
        let mut compress = Compress::of_adapter(base, adapter)
            .effort(effort)
            .dry_run(options.flag("dry_run"))
            .overwrite(options.flag("overwrite"))
            .open_options(request.config.open_options())
            .cancel(cancel);
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
