//! `sparse_prefetch(base, deltas)`.

use std::sync::Arc;

use ::sparse_cache::{DeltaCache, Job};
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::common::{Result, plan_err};

use super::CancelOnDrop;
use super::sparse_jobs::{COLUMNS, columns};
use crate::function::{
    Action, Committed, Inputs, Request, SparseFunction, Staged, Writer, required,
};
use crate::spec::{Parameter, Spec};
use crate::{columns as rows, error};

static SPEC: Spec = Spec {
    name: "sparse_prefetch",
    row: "job",
    description: "Rebuilds models into the cache in the background: one job per delta, at once in this process, and by the next one if \
                  this one ends before (`sparse cache jobs --run`, or another sparse_prefetch). The same delta is the same job.",
    inputs: &[
        Parameter::required("base", "The base model: a path, URL or Hub id."),
        Parameter::required(
            "deltas",
            "The delta, or several with commas between; many are better rows of a subquery.",
        )
        .or(&["delta"]),
    ],
    options: &[
        Parameter::flag("wait", "Return when the jobs have ended."),
        Parameter::choice(
            "on_error",
            &["fail", "skip"],
            Some("fail"),
            "With wait, what a job that fails does: fail the statement, or be a row with the state failed.",
        ),
    ],
    columns: &COLUMNS,
    examples: &[
        "SELECT count(*) FROM sparse_compress('examples/models/base', 'examples/models/sft', '{tmp}/sft-delta');\n\
         SELECT delta, state FROM sparse_prefetch('examples/models/base', '{tmp}/sft-delta', wait => true);",
    ],
};

#[derive(Debug)]
pub(super) struct SparsePrefetch;

impl SparseFunction for SparsePrefetch {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn action(&self) -> Action<'_> {
        Action::Write(self)
    }
}

#[async_trait]
impl Writer for SparsePrefetch {
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>> {
        let deltas: Vec<String> = required(&SPEC, &inputs, 1)?
            .split(',')
            .map(|delta| delta.trim().to_owned())
            .filter(|delta| !delta.is_empty())
            .collect();
        if deltas.is_empty() {
            return plan_err!("argument 'deltas' of sparse_prefetch names no delta");
        }
        Ok(Box::new(Wanted {
            base: required(&SPEC, &inputs, 0)?.to_owned(),
            deltas,
            cache: super::cache(&request)?,
            wait: request.options.flag("wait"),
            skip: request.options.text("on_error") == Some("skip"),
        }))
    }

    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch> {
        let text = |value: Option<&str>| rows::texts([value]);
        let input = |at: usize| text(inputs.get(at).and_then(Option::as_deref));
        let all = vec![
            text(None),
            input(1),
            input(0),
            text(Some("failed")),
            rows::reals([None]),
            text(Some(message)),
            text(None),
            text(None),
            text(None),
        ];
        rows::batch(SPEC.schema(), all, 1)
    }
}

/// Jobs that are not queued yet.
struct Wanted {
    base: String,
    deltas: Vec<String>,
    cache: DeltaCache,
    wait: bool,
    skip: bool,
}

#[async_trait]
impl Staged for Wanted {
    async fn commit(self: Box<Self>) -> Result<Committed> {
        let jobs = if self.wait {
            self.run().await?
        } else {
            self.cache
                .prefetch_deltas(&self.base, &self.deltas)
                .map_err(error::cache)?
        };
        Ok(Committed {
            rows: rows::batch(SPEC.schema(), columns(&jobs), jobs.len())?,
            bytes_read: 0,
            bytes_written: 0,
            original_bytes: 0,
            artifact_bytes: 0,
            counts: Vec::new(),
        })
    }
}

impl Wanted {
    /// Runs the jobs to their end.
    async fn run(&self) -> Result<Vec<Job>> {
        let (_guard, cancel) = CancelOnDrop::new();
        let cache = self.cache.clone().cancel(cancel);
        let jobs = cache
            .enqueue(&self.base, &self.deltas)
            .map_err(error::cache)?;
        cache.run_jobs().await.map_err(error::cache)?;
        let ids: Vec<String> = jobs.into_iter().map(|job| job.id).collect();
        let jobs = cache.wait_for(&ids).await.map_err(error::cache)?;
        let failed = jobs
            .iter()
            .find(|job| job.state != ::sparse_cache::JobState::Done);
        match failed {
            Some(job) if !self.skip => Err(datafusion::common::exec_datafusion_err!(
                "sparse_prefetch: the job {} for {} is {}: {}",
                job.id,
                job.delta,
                job.state.name(),
                job.message
            )),
            _ => Ok(jobs),
        }
    }
}
