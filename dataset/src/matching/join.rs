//! The join of rows by hash, as a plan of DataFusion: a hash join where the base's side fits the memory there is, part by part,
//! else a merge join of sorted runs that go to temporary files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use datafusion::common::{JoinType, NullEquality};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::config::SessionConfig;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_expr::{LexOrdering, PhysicalExprRef, PhysicalSortExpr};
use datafusion::physical_plan::expressions::Column;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{
    ExecutionPlan, ExecutionPlanProperties as _, SendableRecordBatchStream,
};
use futures::StreamExt as _;

use super::repeated::Repeated;
use super::{NEW, TASK, narrow};
use crate::DatasetError;
use crate::pair::Check;
use crate::table::Room;

/// Bytes that a row of the base takes in a hash join, at most: hash and number, and a table that is half empty.
const EACH: usize = 64;
/// How often a hash join may go through all rows, each time with a part of the base's: with more, sorted runs take over.
const MOST_TURNS: usize = 4;

type Plan = Arc<dyn ExecutionPlan>;

/// The hashes of the rows of both sides. Those that repeat in the base are not joined: each would find all of its like.
pub(super) struct Sides {
    pub(super) base: Arc<Vec<u64>>,
    pub(super) derivative: Arc<Vec<u64>>,
    pub(super) repeated: Arc<Repeated>,
}

impl Sides {
    /// The base row of each derivative row whose hash does not repeat in the base.
    pub(super) fn join(
        &self,
        room: &Room<'_>,
        check: &Check<'_>,
    ) -> Result<Vec<u32>, DatasetError> {
        let found = (0..self.derivative.len()).map(|_| AtomicU32::new(NEW));
        let found: Vec<AtomicU32> = found.collect();
        if !self.base.is_empty() && !self.derivative.is_empty() {
            let is_small = self.base.len() + self.derivative.len() <= 2 * TASK;
            let threads = if is_small {
                1
            } else {
                rayon::current_num_threads()
            };
            let run = Run {
                found: &found,
                room,
                threads,
                check,
            };
            run.join(self).map_err(|error| told(error, room))?;
        }
        Ok(found.into_iter().map(AtomicU32::into_inner).collect())
    }

    /// A side as a source of `parts` partitions, by hash. Rows go out in batches of `most`, with their number as `name`.
    fn source(&self, name: &str, parts: usize, most: usize) -> Result<Plan, DataFusionError> {
        let hashes = if name == BASE {
            &self.base
        } else {
            &self.derivative
        };
        let schema = Arc::new(Schema::new(vec![
            Field::new(HASH, DataType::UInt64, false),
            Field::new(name, DataType::UInt32, false),
        ]));
        let partitions = (0..parts).map(|part| -> Arc<dyn PartitionStream> {
            Arc::new(Part {
                schema: Arc::clone(&schema),
                rows: Rows {
                    schema: Arc::clone(&schema),
                    hashes: Arc::clone(hashes),
                    repeated: Arc::clone(&self.repeated),
                    part,
                    parts,
                    most,
                    at: 0,
                },
            })
        });
        let partitions = partitions.collect();
        let source =
            StreamingTableExec::try_new(schema, partitions, None, Vec::new(), false, None)?;
        Ok(Arc::new(source))
    }

    /// Builds tables of the base's rows, one of each part, and looks the derivative's up in them.
    fn by_tables(&self, parts: usize) -> Result<Plan, DataFusionError> {
        // A part of the base in one batch is not put together from several, which would take it twice.
        Ok(Arc::new(HashJoinExec::try_new(
            self.source(BASE, parts, usize::MAX)?,
            self.source(DERIVATIVE, parts, TASK)?,
            vec![(by_hash(), by_hash())],
            None,
            &JoinType::Inner,
            Some(vec![1, 3]),
            PartitionMode::Partitioned,
            NullEquality::NullEqualsNothing,
            false,
        )?))
    }

    /// Sorts both sides, in files where there is no room, and goes through them side by side.
    fn by_sorting(&self, parts: usize) -> Result<Plan, DataFusionError> {
        let sorted = |name| -> Result<Plan, DataFusionError> {
            let order = LexOrdering::from([PhysicalSortExpr::new_default(by_hash())]);
            let source = self.source(name, parts, TASK)?;
            let sort = SortExec::new(order, source).with_preserve_partitioning(true);
            Ok(Arc::new(sort))
        };
        // The second side is the one of which rows of the same hash are held: the base has but one.
        Ok(Arc::new(SortMergeJoinExec::try_new(
            sorted(DERIVATIVE)?,
            sorted(BASE)?,
            vec![(by_hash(), by_hash())],
            None,
            JoinType::Inner,
            vec![SortOptions::default()],
            NullEquality::NullEqualsNothing,
        )?))
    }
}

const HASH: &str = "hash";
const BASE: &str = "base";
const DERIVATIVE: &str = "derivative";

fn by_hash() -> PhysicalExprRef {
    Arc::new(Column::new(HASH, 0))
}

/// A partition of a side.
#[derive(Debug)]
struct Part {
    schema: SchemaRef,
    rows: Rows,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = futures::stream::iter(self.rows.clone());
        let schema = Arc::clone(&self.schema);
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

/// The rows of a partition, batch by batch.
#[derive(Clone, Debug)]
struct Rows {
    schema: SchemaRef,
    hashes: Arc<Vec<u64>>,
    repeated: Arc<Repeated>,
    part: usize,
    parts: usize,
    most: usize,
    at: usize,
}

impl Iterator for Rows {
    type Item = Result<RecordBatch, DataFusionError>;

    fn next(&mut self) -> Option<Self::Item> {
        // About as many as there will be: tables are built of what is taken here, not of what it grew to.
        let left = (self.hashes.len() - self.at) / self.parts;
        let room = (left + left / 16 + 64).min(self.most);
        let (mut hashes, mut rows) = (Vec::with_capacity(room), Vec::with_capacity(room));
        while self.at < self.hashes.len() && rows.len() < self.most {
            let hash = self.hashes[self.at];
            let part = ((hash >> 32) * self.parts as u64) >> 32;
            if part == self.part as u64 && !self.repeated.has(hash) {
                hashes.push(hash);
                rows.push(narrow(self.at));
            }
            self.at += 1;
        }
        if rows.is_empty() {
            return None;
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(hashes)),
            Arc::new(UInt32Array::from(rows)),
        ];
        Some(RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(Into::into))
    }
}

/// What a plan is run with.
struct Run<'a> {
    /// Where the base row of each derivative row goes.
    found: &'a [AtomicU32],
    room: &'a Room<'a>,
    threads: usize,
    check: &'a Check<'a>,
}

impl Run<'_> {
    fn join(&self, sides: &Sides) -> Result<(), DataFusionError> {
        let needed = sides.base.len().saturating_mul(EACH);
        let turns = needed.div_ceil(self.room.joined.max(1));
        if turns <= MOST_TURNS {
            // Hashes that crowd in one part take more than was thought.
            match self.go(&sides.by_tables(self.threads * turns.max(1))?) {
                Err(error) if is_full(&error) => {}
                done => return done,
            }
        }
        self.go(&sides.by_sorting(self.threads)?)
    }

    /// Runs the partitions of a plan, one at a time on each thread.
    ///
    /// The threads are not those of the pool that this is called from: a runtime must not be entered within another, and nobody
    /// knows what a thread of the pool is in the middle of.
    fn go(&self, plan: &Plan) -> Result<(), DataFusionError> {
        let context = self.context()?;
        let parts = plan.output_partitioning().partition_count();
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), DataFusionError> {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= parts {
                    return Ok(());
                }
                let done = runtime.block_on(self.take(plan, part, &context));
                if done.is_err() {
                    // The others need not begin another.
                    next.store(parts, Ordering::Relaxed);
                    return done;
                }
            }
        };
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for _ in 0..self.threads.min(parts) {
                let name = "sparse-join".to_owned();
                let thread = std::thread::Builder::new().name(name);
                threads.push(thread.spawn_scoped(scope, work)?);
            }
            threads
                .into_iter()
                .try_for_each(|thread| match thread.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })
    }

    async fn take(
        &self,
        plan: &Plan,
        part: usize,
        context: &Arc<TaskContext>,
    ) -> Result<(), DataFusionError> {
        let mut batches = plan.execute(part, Arc::clone(context))?;
        while let Some(batch) = batches.next().await {
            (self.check)().map_err(|error| DataFusionError::External(Box::new(error)))?;
            let batch = batch?;
            let rows = |name| -> Result<&UInt32Array, DataFusionError> {
                let column = batch.column_by_name(name);
                column
                    .and_then(|column| column.as_primitive_opt::<UInt32Type>())
                    .ok_or_else(|| DataFusionError::Internal(format!("no column {name:?} of rows")))
            };
            let (from, to) = (rows(BASE)?, rows(DERIVATIVE)?);
            for (&from, &to) in from.values().iter().zip(to.values()) {
                self.found[to as usize].store(from, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn context(&self) -> Result<Arc<TaskContext>, DataFusionError> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(self.room.joined)))
            .with_temp_file_path(self.room.scratch)
            .build_arc()?;
        // Each thread sorts two sides, and merges what they spilled in what it set aside for that.
        let aside = self.room.joined / (8 * self.threads);
        let config = SessionConfig::new()
            .with_batch_size(TASK)
            .with_sort_spill_reservation_bytes(aside);
        let context = TaskContext::default().with_session_config(config);
        Ok(Arc::new(context.with_runtime(runtime)))
    }
}

fn is_full(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

/// An error of a plan, for people.
fn told(error: DataFusionError, room: &Room<'_>) -> DatasetError {
    if is_full(&error) {
        return DatasetError::usage(format!(
            "the rows cannot be matched in {} MiB, a quarter of the memory; allow more (`memory`)",
            room.joined >> 20
        ));
    }
    let is_io = match error.find_root() {
        DataFusionError::IoError(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(**error, ArrowError::IoError(..)),
        _ => false,
    };
    if is_io {
        let source = std::io::Error::other(error);
        return DatasetError::io("write temporary files in", room.scratch, source);
    }
    match error {
        DataFusionError::External(error) => match error.downcast::<DatasetError>() {
            Ok(error) => *error,
            Err(error) => DatasetError::internal(error.to_string()),
        },
        error => DatasetError::internal(error.to_string()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
impl Sides {
    /// What is found one way or the other, and how often something was written to files for it.
    pub(super) fn join_by(&self, room: &Room<'_>, sorts: bool) -> (Vec<u32>, usize) {
        let found = (0..self.derivative.len()).map(|_| AtomicU32::new(NEW));
        let found: Vec<AtomicU32> = found.collect();
        let run = Run {
            found: &found,
            room,
            threads: 2,
            check: &|| Ok(()),
        };
        let plan = if sorts {
            self.by_sorting(2)
        } else {
            self.by_tables(6)
        };
        let plan = plan.unwrap();
        run.go(&plan).unwrap();
        let children = plan.children().into_iter();
        let spilled = children.filter_map(|child| child.metrics()?.spill_count());
        let spilled = spilled.sum();
        let found = found.into_iter().map(AtomicU32::into_inner).collect();
        (found, spilled)
    }
}
