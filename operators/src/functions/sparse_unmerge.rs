//! `sparse_unmerge(base, merged [, output])`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::Result;
use sparse_delta::{StagedAdapter, Unmerge, UnmergeOutcome};

use super::{CancelOnDrop, failed_row, threads};
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Column, Parameter, Spec, Type};
use crate::{columns, error};

static SPEC: Spec = Spec {
    name: "sparse_unmerge",
    row: "tensor",
    description: "The adapter that was merged into a model, found again from the rounding intervals of the merged weights, and the \
                  share of weights that merging it gives exactly. With `output`, written there as a PEFT adapter (F32 factors, \
                  alpha equal to the rank), complete before the first row is returned.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required("merged", "The model with the adapter in it."),
        Parameter::optional(
            "output",
            "The folder the adapter goes to. Without it nothing is written.",
        ),
    ],
    options: &[
        Parameter::flag(
            "overwrite",
            "Replace another adapter at the output. Nothing but an adapter is ever replaced.",
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
        Column::new("merged", Type::Text, "The merged model, as given."),
        Column::new("tensor", Type::Text, "The tensor's name."),
        Column::new("shape", Type::Shape, "Its dimensions."),
        Column::new(
            "kind",
            Type::Text,
            "adapter (its update is in the adapter), same (it equals its base) or left_out (its update is not of low rank).",
        ),
        Column::new(
            "rank",
            Type::Count,
            "The rank of its update; null where it is not in the adapter.",
        ),
        Column::new("params", Type::Count, "Its weights."),
        Column::new(
            "exact",
            Type::Count,
            "Weights that base and adapter give exactly.",
        ),
        Column::new(
            "path",
            Type::Text,
            "Where the adapter is; null without an output.",
        ),
        Column::new(
            "status",
            Type::Text,
            "created, exists (the same adapter was there), dry_run (no output was given) or failed.",
        ),
        Column::new("message", Type::Text, "Why it failed; null otherwise."),
    ],
    examples: &[
        "SELECT kind, rank, count(*) AS tensors, sum(exact) >= 0.99 * sum(params) AS nearly_all_exact\n\
         FROM sparse_unmerge('examples/models/base', 'examples/models/lora-merged', '{tmp}/adapter')\n\
         GROUP BY kind, rank ORDER BY kind;",
    ],
};

#[derive(Debug)]
pub(super) struct SparseUnmerge;

impl SparseFunction for SparseUnmerge {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparseUnmerge {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let (base, merged) = (required(&SPEC, &inputs, 0)?, required(&SPEC, &inputs, 1)?);
        let (_guard, cancel) = CancelOnDrop::new();
        let mut unmerge = Unmerge::new(base, merged)
            .overwrite(request.options.flag("overwrite"))
            .open_options(request.config.open_options())
            .cancel(cancel);
        if let Some(output) = inputs.get(2).and_then(Option::as_deref) {
            unmerge = unmerge.output(output);
        }
        if let Some(threads) = threads(&request) {
            unmerge = unmerge.threads(threads);
        }
        let adapter = unmerge.stage().await.map_err(error::delta)?;
        Ok(Box::new(Found { inputs, adapter }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        failed_row(&SPEC, inputs, message)
    }
}

/// An adapter that is complete and not visible yet.
struct Found {
    inputs: Inputs,
    adapter: StagedAdapter,
}

#[async_trait]
impl Staged for Found {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let outcome = self.adapter.commit().await.map_err(error::delta)?;
        Ok(Committed {
            rows: batch(&self.inputs, &outcome)?,
            bytes_read: 0,
            bytes_written: 0,
            original_bytes: 0,
            artifact_bytes: 0,
            counts: Vec::new(),
        })
    }
}

fn batch(inputs: &Inputs, outcome: &UnmergeOutcome) -> Result<RecordBatch> {
    let tensors = &outcome.tensors;
    let same = |value: Option<&str>| columns::texts(vec![value; tensors.len()]);
    let all = vec![
        same(inputs.first().and_then(Option::as_deref)),
        same(inputs.get(1).and_then(Option::as_deref)),
        columns::texts(tensors.iter().map(|t| Some(&t.tensor))),
        columns::shapes(tensors.iter().map(|t| t.shape.as_slice()))?,
        columns::texts(tensors.iter().map(|t| Some(&t.status))),
        columns::counts(tensors.iter().map(|t| t.rank)),
        columns::counts(tensors.iter().map(|t| Some(t.params))),
        columns::counts(tensors.iter().map(|t| Some(t.exact))),
        same(outcome.path.as_deref()),
        same(Some(outcome.status.name())),
        same(None),
    ];
    columns::batch(SPEC.schema(), all, tensors.len())
}
