//! `sparse_jobs()`.

use std::sync::Arc;

use ::sparse_cache::Job;
use arrow::array::{ArrayRef, RecordBatch};
use datafusion::common::Result;
use futures::stream::BoxStream;

use super::once;
use crate::columns;
use crate::function::{Action, Inputs, Reader, Request, SparseFunction};
use crate::spec::{Column, Spec, Type};

/// The columns of a job.
pub(super) const COLUMNS: [Column; 9] = [
    Column::new("job", Type::Text, "The job's name."),
    Column::new("delta", Type::Text, "The delta."),
    Column::new("base", Type::Text, "The base model."),
    Column::new(
        "state",
        Type::Text,
        "queued, running, done, failed or cancelled.",
    ),
    Column::new("progress", Type::Real, "How far it is, 0 to 1."),
    Column::new(
        "message",
        Type::Text,
        "What it is doing, how it ended, or why it failed.",
    ),
    Column::new("path", Type::Text, "Where the model is, once it is done."),
    Column::new(
        "created",
        Type::Text,
        "When it was asked for, ISO 8601, UTC.",
    ),
    Column::new(
        "updated",
        Type::Text,
        "When its state changed last, ISO 8601, UTC.",
    ),
];

static SPEC: Spec = Spec {
    name: "sparse_jobs",
    row: "job",
    description: "The jobs that rebuild models in the background, oldest first. A job outlives its process: what a killed one left is \
                  queued, for `sparse cache jobs --run` or the next sparse_prefetch.",
    inputs: &[],
    options: &[],
    columns: &COLUMNS,
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/sft-delta');\n\
         SELECT job FROM sparse_prefetch('examples/models/base', '{tmp}/sft-delta');\n\
         SELECT delta, state, progress FROM sparse_jobs();",
    ],
};

#[derive(Debug)]
pub(super) struct SparseJobs;

impl SparseFunction for SparseJobs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Read(self)
    }
}

impl Reader for SparseJobs {
    fn read(
        &self,
        _inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        once(async move {
            let jobs = super::cache(&request)?.jobs();
            let all = columns(&jobs);
            request.project(&columns::batch(SPEC.schema(), all, jobs.len())?)
        })
    }
}

/// Jobs as [`COLUMNS`].
pub(super) fn columns(jobs: &[Job]) -> Vec<ArrayRef> {
    let text = |f: fn(&Job) -> &str| columns::texts(jobs.iter().map(|job| Some(f(job))));
    vec![
        text(|job| &job.id),
        text(|job| &job.delta),
        text(|job| &job.base),
        text(|job| job.state.name()),
        columns::reals(jobs.iter().map(|job| Some(job.progress))),
        text(|job| &job.message),
        columns::texts(
            jobs.iter()
                .map(|job| job.path.as_ref().map(|path| path.display().to_string())),
        ),
        text(|job| &job.created),
        text(|job| &job.updated),
    ]
}
