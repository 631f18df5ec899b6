//! `sparse_dataset_estimate(base, derivative)`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;
use futures::stream::BoxStream;
use sparse_dataset::{Estimate, EstimateOutcome};

use super::{CancelOnDrop, once, threads};
use crate::function::{Action, Inputs, Reader, Request, SparseFunction};
use crate::spec::{Column, Kind, Parameter, Spec, Type};
use crate::{columns, error, rows};

static SPEC: Spec = Spec {
    name: "sparse_dataset_estimate",
    row: "pair of datasets",
    description: "How large the delta of a derivative dataset would be, at the session's sparse.effort, without making it. Both sides are \
                  read and their rows matched, so the counts are exact; what is to be stored is coded for a sample of the edited and \
                  the new rows. Where the sample holds all of them, the size is that of the delta.",
    inputs: &[
        Parameter::dataset("base", super::DATASET),
        Parameter::dataset("derivative", "The derivative dataset, given like the base."),
    ],
    options: &[
        Parameter::optional("split", "The split of the derivative.").by_default("train"),
        Parameter::of(
            "sample_size",
            Kind::Count(&[]),
            "How many edited rows, and how many new ones, are coded to know what they cost.",
        )
        .by_default("1000"),
        super::MEMORY,
    ],
    columns: &[
        Column::new("base_dataset_id", Type::Text, "The base, as given."),
        Column::new(
            "derivative_dataset_id",
            Type::Text,
            "The derivative, as given.",
        ),
        Column::new("split", Type::Text, "The split."),
        Column::new("base_size_bytes", Type::Count, "Bytes of the base's split."),
        Column::new(
            "derivative_size_bytes",
            Type::Count,
            "Bytes of the derivative's split.",
        ),
        Column::new(
            "delta_size_bytes",
            Type::Count,
            "Bytes the delta of the split would have, manifest included.",
        ),
        Column::new(
            "savings_pct",
            Type::Real,
            "What it would save of the derivative's bytes, in percent.",
        ),
        Column::new(
            "num_shared_samples",
            Type::Count,
            "Rows that the base has, edited or not.",
        ),
        Column::new("num_new_samples", Type::Count, "Rows that it has not."),
        Column::new("sampled", Type::Count, "Rows that were coded."),
        Column::new(
            "exact",
            Type::Flag,
            "Whether these were all: the size is that of the delta, but for some bytes of its manifest.",
        ),
    ],
    examples: &[
        "SELECT delta_size_bytes, savings_pct, num_shared_samples, num_new_samples\n\
         FROM sparse_dataset_estimate('examples/datasets/wordnet/base', 'examples/datasets/wordnet/derivative', split => 'test');",
    ],
};

#[derive(Debug)]
pub(super) struct SparseDatasetEstimate;

impl SparseFunction for SparseDatasetEstimate {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseDatasetEstimate {
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let (_guard, cancel) = CancelOnDrop::new();
            let options = &request.options;
            let mut estimate = Estimate::new(
                rows::dataset(&SPEC, &inputs, &request, 0)?,
                rows::dataset(&SPEC, &inputs, &request, 1)?,
            )
            .split(options.text("split").unwrap_or("train"))
            .sample_size(options.count("sample_size").unwrap_or(1000))
            .effort(request.config.effort)
            .memory(super::memory(&request)?)
            .open_options(request.config.open_options())
            .cancel(cancel);
            if let Some(threads) = threads(&request) {
                estimate = estimate.threads(threads);
            }
            let outcome = estimate.run().await.map_err(error::dataset)?;
            request.project(&batch(&outcome)?)
        })
    }
}

fn batch(outcome: &EstimateOutcome) -> Result<RecordBatch> {
    let stats = &outcome.stats;
    let all = vec![
        columns::texts([Some(&stats.base_dataset_id)]),
        columns::texts([Some(&stats.derivative_dataset_id)]),
        columns::texts([Some(&outcome.split)]),
        columns::counts([Some(stats.base_size_bytes)]),
        columns::counts([Some(stats.derivative_size_bytes)]),
        columns::counts([Some(stats.delta_size_bytes)]),
        columns::reals([Some(stats.savings_pct)]),
        columns::counts([Some(stats.num_shared_samples)]),
        columns::counts([Some(stats.num_new_samples)]),
        columns::counts([Some(outcome.sampled)]),
        columns::flags([Some(outcome.exact)]),
    ];
    columns::batch(SPEC.schema(), all, 1)
}
