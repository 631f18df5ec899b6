//! Rows of a statement (a table, a subquery) as the rows of a dataset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::{Result, exec_datafusion_err, internal_datafusion_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt as _, stream};
use sparse_dataset::{Batches, Dataset, DatasetError, Input, Rows};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::function::{Inputs, Request, required};
use crate::spec::Spec;

/// Batches that are read ahead.
const AHEAD: usize = 2;

/// The physical plan of rows whose order matters: in one partition, so that they come in the same order every time.
pub(crate) async fn plan(
    state: &dyn Session,
    rows: &LogicalPlan,
) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(state) = state.as_any().downcast_ref::<SessionState>() else {
        return state.create_physical_plan(rows).await;
    };
    let mut state = state.clone();
    state.config_mut().options_mut().execution.target_partitions = 1;
    state.create_physical_plan(rows).await
}

/// An input of a function as a dataset: the rows of the statement, or a reference.
pub(crate) fn dataset(spec: &Spec, inputs: &Inputs, request: &Request, at: usize) -> Result<Input> {
    let text = required(spec, inputs, at)?;
    let Some(plan) = request.rows.get(&at) else {
        return Ok(text.into());
    };
    let rows = QueryRows {
        what: text.to_owned(),
        plan: Arc::clone(plan),
        context: request
            .context
            .clone()
            .ok_or_else(|| internal_datafusion_err!("rows are read outside an execution"))?,
        runtime: Handle::try_current().map_err(|error| {
            internal_datafusion_err!("rows are read without a runtime: {error}")
        })?,
        bytes: Arc::default(),
    };
    Ok(Dataset::of_rows(text, Arc::new(rows)).into())
}

/// The rows a plan gives. Every reading executes it again.
struct QueryRows {
    what: String,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    runtime: Handle,
    /// Bytes in memory, known once they have been read.
    bytes: Arc<AtomicU64>,
}

impl Rows for QueryRows {
    fn schema(&self) -> Result<SchemaRef, DatasetError> {
        Ok(self.plan.schema())
    }

    fn read(&self) -> Result<Batches, DatasetError> {
        let plan = plan_again(&self.plan).map_err(|error| failed(&self.what, &error))?;
        let partitions = plan.properties().partitioning.partition_count();
        let context = Arc::clone(&self.context);
        let (sender, mut receiver) = mpsc::channel(AHEAD);
        let work = async move {
            // One partition after another: rows keep the order they have in the plan.
            let mut batches = stream::iter(0..partitions)
                .map(|partition| plan.execute(partition, Arc::clone(&context)))
                .try_flatten()
                .boxed();
            while let Some(batch) = batches.next().await {
                let failed = batch.is_err();
                if sender.send(Some(batch)).await.is_err() || failed {
                    return;
                }
            }
            // The end is said: work that was stopped, or that panicked, has not come to it.
            let _ = sender.send(None).await;
        };
        // Dropped with the rows: what nobody reads on is not worked on.
        let mut working = JoinSet::new();
        working.spawn_on(work, &self.runtime);
        let what = self.what.clone();
        let total = Arc::clone(&self.bytes);
        total.store(0, Ordering::Relaxed);
        let mut is_over = false;
        Ok(Box::new(std::iter::from_fn(move || {
            let _working = &working;
            if is_over {
                return None;
            }
            let next: Option<Option<Result<RecordBatch>>> = receiver.blocking_recv();
            match next {
                Some(Some(Ok(batch))) => {
                    total.fetch_add(size(&batch), Ordering::Relaxed);
                    Some(Ok(batch))
                }
                Some(Some(Err(error))) => {
                    is_over = true;
                    Some(Err(failed(&what, &error)))
                }
                Some(None) => {
                    is_over = true;
                    None
                }
                None => {
                    is_over = true;
                    let error = exec_datafusion_err!("the query stopped before its last row");
                    Some(Err(failed(&what, &error)))
                }
            }
        })))
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A plan that has not run yet: some nodes (repartitioning, joins) run once.
fn plan_again(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    datafusion::physical_plan::execution_plan::reset_plan_states(Arc::clone(plan))
}

fn size(batch: &RecordBatch) -> u64 {
    let columns = batch.columns().iter();
    columns
        .map(|column| column.to_data().get_slice_memory_size().unwrap_or(0) as u64)
        .sum()
}

fn failed(what: &str, error: &DataFusionError) -> DatasetError {
    DatasetError::Data {
        what: what.to_owned(),
        problem: crate::error::message(error),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::task::{Context, Poll};

    use arrow::array::{ArrayRef, Int64Array};
    use datafusion::common::runtime::SpawnedTask;
    use datafusion::execution::SendableRecordBatchStream;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};

    use super::*;

    /// A batch; then the end, or a panic.
    #[derive(Debug)]
    struct Source {
        schema: SchemaRef,
        batch: RecordBatch,
        stops: bool,
    }

    fn stop(_: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        std::panic::resume_unwind(Box::new("stopped"))
    }

    impl PartitionStream for Source {
        fn schema(&self) -> &SchemaRef {
            &self.schema
        }

        fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
            let batch = stream::iter([Ok(self.batch.clone())]);
            let rows = if self.stops {
                batch.chain(stream::poll_fn(stop)).boxed()
            } else {
                batch.boxed()
            };
            Box::pin(RecordBatchStreamAdapter::new(
                Arc::clone(&self.schema),
                rows,
            ))
        }
    }

    #[tokio::test]
    async fn rows_of_a_query_that_stopped_are_not_all_rows() {
        for stops in [false, true] {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
            let batch = RecordBatch::try_from_iter([("x", column)]).unwrap();
            let schema = batch.schema();
            let source = Source {
                schema: Arc::clone(&schema),
                batch,
                stops,
            };
            let plan =
                StreamingTableExec::try_new(schema, vec![Arc::new(source)], None, [], false, None)
                    .unwrap();
            let rows = QueryRows {
                what: "rows".to_owned(),
                plan: Arc::new(plan),
                context: Arc::default(),
                runtime: Handle::current(),
                bytes: Arc::default(),
            };
            let found: Vec<bool> = SpawnedTask::spawn_blocking(move || {
                let batches = rows.read().unwrap();
                batches.map(|batch| batch.is_ok()).collect()
            })
            .await
            .unwrap();
            let expected: &[bool] = if stops { &[true, false] } else { &[true] };
            assert_eq!(found, expected);
        }
    }
}
