//! `CommitExec`: makes everything that the write nodes below have staged visible, before it yields its first row. So a LIMIT
//! above leaves whole artifacts, and rows tell of what is there.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, exec_datafusion_err, internal_datafusion_err, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputDistributionRequirements,
    Partitioning, PhysicalExpr, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Mutex;

use super::run::Run;
use super::write::{Descriptor, describe};
use crate::function::{Action, Committed, Request, SparseFunction};

/// Held while a call of a function is executed: scans of one call (a CTE used twice, a self-join) run one after another, and
/// all but the first find the work done.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunLock(Arc<Mutex<()>>);

/// Commits what its child has staged, then tells of it.
#[derive(Debug, Clone)]
pub(crate) struct CommitExec {
    function: Arc<dyn SparseFunction>,
    request: Request,
    input: Arc<dyn ExecutionPlan>,
    lock: RunLock,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl CommitExec {
    pub(crate) fn new(
        function: Arc<dyn SparseFunction>,
        request: Request,
        input: Arc<dyn ExecutionPlan>,
        lock: RunLock,
    ) -> Self {
        let schema = function.spec().schema();
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        let metrics = ExecutionPlanMetricsSet::new();
        Self {
            function,
            request,
            input,
            lock,
            schema,
            properties,
            metrics,
        }
    }
}

impl DisplayAs for CommitExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SparseCommit: function={}", self.function.spec().name)?;
        let options = self.request.options.to_string();
        if options.is_empty() {
            Ok(())
        } else {
            write!(f, ", {options}")
        }
    }
}

impl ExecutionPlan for CommitExec {
    fn name(&self) -> &str {
        "SparseCommitExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|children| super::one_child("SparseCommitExec", children.len()))?;
        let this = self.as_ref().clone();
        Ok(Arc::new(Self::new(
            this.function,
            this.request,
            input,
            this.lock,
        )))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, super::recompute())
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("SparseCommitExec has one partition, not {partition}");
        }
        let this = self.clone();
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let batch_size = context.session_config().batch_size();
        // The work runs in its own task: a plan that polls one side of a join only must not keep the lock from the other.
        // Dropping the stream drops the task, and with it all that was staged.
        let rows = stream::once(async move {
            let task = SpawnedTask::spawn(async move { this.run(context).await });
            task.join_unwind()
                .await
                .map_err(|error| exec_datafusion_err!("the write was stopped: {error}"))?
        })
        .map_ok(move |batches| stream::iter(sliced(batches, batch_size)).map(Ok))
        .try_flatten()
        .map_ok(move |batch| batch.record_output(&baseline));
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            rows,
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

fn sliced(batches: Vec<RecordBatch>, size: usize) -> Vec<RecordBatch> {
    let size = size.max(1);
    let slices = |batch: RecordBatch| {
        (0..batch.num_rows())
            .step_by(size)
            .map(|at| batch.slice(at, size.min(batch.num_rows() - at)))
            .collect::<Vec<_>>()
    };
    batches.into_iter().flat_map(slices).collect()
}

impl CommitExec {
    /// Commits each row of work as soon as it is staged, all of them before anything is returned. Work that waits for others
    /// would keep the lock on its output, and two statements could wait for each other for ever. So a failure leaves the
    /// work done before it in place, each piece whole, and the same statement run again finds it.
    async fn run(self, context: Arc<TaskContext>) -> Result<Vec<RecordBatch>> {
        let _one_at_a_time = self.lock.0.lock().await;
        let run = Arc::new(Run::default());
        let config = context
            .session_config()
            .clone()
            .with_extension(Arc::clone(&run));
        let context = Arc::new(TaskContext::new(
            context.task_id(),
            context.session_id(),
            config,
            context.scalar_functions().clone(),
            context.higher_order_functions().clone(),
            context.aggregate_functions().clone(),
            context.window_functions().clone(),
            context.runtime_env(),
        ));
        let totals = Totals::new(&self.metrics, self.function.spec().name);
        let mut done = Vec::new();
        let mut input = self.input.execute(0, context)?;
        while let Some(batch) = input.try_next().await? {
            for descriptor in Descriptor::read(self.function.as_ref(), &batch)? {
                let rows = self.commit(&run, &descriptor, &totals).await?;
                done.push((descriptor.inputs, rows));
            }
        }
        // Work arrives as it is done; its order in the result is the same every time.
        done.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(done.into_iter().map(|(_, rows)| rows).collect())
    }

    async fn commit(
        &self,
        run: &Run,
        descriptor: &Descriptor,
        totals: &Totals,
    ) -> Result<RecordBatch> {
        let Some(token) = descriptor.token else {
            return self.failed(
                descriptor,
                descriptor.message.as_deref().unwrap_or_default(),
            );
        };
        let staged = run
            .take(token)
            .ok_or_else(|| internal_datafusion_err!("nothing is staged under token {token}"))?;
        match staged.commit().await {
            Ok(committed) => {
                totals.add(&committed);
                Ok(committed.rows)
            }
            Err(error) if self.request.options.text("on_error") == Some("skip") => {
                self.failed(descriptor, &crate::error::message(&error))
            }
            Err(error) => {
                let call = describe(&descriptor.inputs);
                Err(error.context(format!("{}({call})", self.function.spec().name)))
            }
        }
    }

    fn failed(&self, descriptor: &Descriptor, message: &str) -> Result<RecordBatch> {
        let Action::Write(writer) = self.function.action() else {
            return internal_err!("{} does not write", self.function.spec().name);
        };
        writer.failed(&descriptor.inputs, message)
    }
}

/// The node's own metrics, shown by EXPLAIN ANALYZE.
struct Totals {
    metrics: ExecutionPlanMetricsSet,
    function: &'static str,
    bytes_read: datafusion::physical_plan::metrics::Count,
    bytes_written: datafusion::physical_plan::metrics::Count,
    original_bytes: datafusion::physical_plan::metrics::Count,
    artifact_bytes: datafusion::physical_plan::metrics::Count,
    commits: datafusion::physical_plan::metrics::Count,
    ratio: datafusion::physical_plan::metrics::RatioMetrics,
}

impl Totals {
    /// Labelled with the function, so that who sums them over a plan knows what was written.
    fn new(metrics: &ExecutionPlanMetricsSet, function: &'static str) -> Self {
        let count = |name: &'static str| {
            MetricBuilder::new(metrics)
                .with_new_label("function", function)
                .counter(name, 0)
        };
        Self {
            metrics: metrics.clone(),
            function,
            bytes_read: count("bytes_read"),
            bytes_written: count("bytes_written"),
            original_bytes: count("original_bytes"),
            artifact_bytes: count("artifact_bytes"),
            commits: count("commits"),
            ratio: MetricBuilder::new(metrics).ratio_metrics("artifact_share", 0),
        }
    }

    fn add(&self, committed: &Committed) {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        self.bytes_read.add(size(committed.bytes_read));
        self.bytes_written.add(size(committed.bytes_written));
        self.original_bytes.add(size(committed.original_bytes));
        self.artifact_bytes.add(size(committed.artifact_bytes));
        self.commits.add(1);
        self.ratio.add_part(size(committed.artifact_bytes));
        self.ratio.add_total(size(committed.original_bytes));
        for (name, count) in &committed.counts {
            MetricBuilder::new(&self.metrics)
                .with_new_label("function", self.function)
                .counter(*name, 0)
                .add(size(*count));
        }
    }
}
