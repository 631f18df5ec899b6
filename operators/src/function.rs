//! What a table function implements. It is either a [`Reader`] or a [`Writer`]; both work on rows of references.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use futures::stream::BoxStream;

use crate::call::Options;
use crate::config::SparseConfig;
use crate::spec::Spec;

/// A table function.
pub trait SparseFunction: Debug + Send + Sync + 'static {
    /// Its description.
    fn spec(&self) -> &'static Spec;

    /// What it does when a plan is executed.
    fn action(&self) -> Action<'_>;

    /// Whether filters over every column but `data` are evaluated by the function itself.
    fn takes_filters(&self) -> bool {
        false
    }
}

/// What executing a function means.
pub enum Action<'a> {
    /// It reads.
    Read(&'a dyn Reader),
    /// It writes.
    Write(&'a dyn Writer),
}

/// One row of work: a value per input of the function.
pub type Inputs = Vec<Option<String>>;

/// The value of an input that the planner has seen to be there; a subquery may still give a null.
pub(crate) fn required<'a>(spec: &Spec, inputs: &'a Inputs, at: usize) -> Result<&'a str> {
    inputs.get(at).and_then(Option::as_deref).ok_or_else(|| {
        datafusion::common::exec_datafusion_err!(
            "{}: a row of the subquery has a null '{}'",
            spec.name,
            spec.inputs.get(at).map_or("", |input| input.name)
        )
    })
}

/// What a scan asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The options of the call.
    pub(crate) options: Options,
    /// The session's options.
    pub(crate) config: SparseConfig,
    /// The columns wanted, as positions in the function's description.
    pub(crate) columns: Vec<usize>,
    /// Conditions over the function's columns, all of which rows must meet (only where `takes_filters`).
    pub(crate) filters: Vec<Arc<dyn PhysicalExpr>>,
    /// Rows per batch.
    pub(crate) batch_size: usize,
    /// CPU threads one operation may use; 0 for all.
    pub(crate) threads: usize,
    /// Inputs that are rows of the statement, by position.
    pub(crate) rows: BTreeMap<usize, Arc<dyn ExecutionPlan>>,
    /// What those rows are read with: set when the plan is executed.
    pub(crate) context: Option<Arc<TaskContext>>,
}

impl Request {
    /// The schema of what is to be returned.
    pub(crate) fn schema(&self, spec: &Spec) -> Result<SchemaRef> {
        Ok(Arc::new(spec.schema().project(&self.columns)?))
    }

    /// Which inputs are rows of the statement, as a part of a plan node's text.
    pub(crate) fn fmt_rows(&self, spec: &Spec, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self
            .rows
            .keys()
            .filter_map(|at| spec.inputs.get(*at))
            .map(|input| input.name)
            .collect();
        write!(f, ", rows=[{}]", names.join(", "))
    }

    /// The wanted columns of a batch that has all of them.
    pub(crate) fn project(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        Ok(batch.project(&self.columns)?)
    }
}

/// A function that reads: batches of the wanted columns for one row of work.
pub trait Reader: Send + Sync {
    /// Starts reading; nothing happens before the stream is polled.
    fn read(
        &self,
        inputs: Inputs,
        request: Arc<Request>,
    ) -> BoxStream<'static, Result<RecordBatch>>;
}

/// A function that writes. Staging does the work under a temporary name; committing makes it visible, whole, in one step.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Does the work for one row, leaving nothing visible. Dropping the future or the result leaves nothing at all.
    async fn stage(&self, inputs: Inputs, request: Arc<Request>) -> Result<Box<dyn Staged>>;

    /// The rows that tell of a row of work that failed (`on_error => 'skip'`).
    fn failed(&self, inputs: &Inputs, message: &str) -> Result<RecordBatch>;
}

/// Work that is done and not visible yet.
#[async_trait]
pub trait Staged: Send + Sync {
    /// Makes it visible and tells what was made.
    async fn commit(self: Box<Self>) -> Result<Committed>;
}

/// What a commit made.
#[derive(Debug)]
pub struct Committed {
    /// The function's rows, all columns.
    pub rows: RecordBatch,
    /// Bytes read, as the operation counts them.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of the models.
    pub original_bytes: u64,
    /// Bytes of the artifacts.
    pub artifact_bytes: u64,
    /// What else was counted, by the metric's name.
    pub counts: Vec<(&'static str, u64)>,
}
