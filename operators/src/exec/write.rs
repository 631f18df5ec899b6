//! `WriteExec`: rows of work in, one descriptor per row out. Everything is written under temporary names; the descriptors
//! go to the commit node.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, PhysicalExpr,
    PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::run::{self, Run};
use super::{read, work};
use crate::function::{Action, Inputs, Request, SparseFunction};

/// What a write node tells the commit node about one row of work.
#[derive(Debug)]
pub(super) struct Descriptor {
    /// Where the staged work is kept; none where it failed.
    pub(super) token: Option<u64>,
    /// Why it failed, where failures are skipped.
    pub(super) message: Option<String>,
    /// The row of work.
    pub(super) inputs: Inputs,
}

static DESCRIPTORS: LazyLock<[Field; 2]> = LazyLock::new(|| {
    [
        Field::new("token", DataType::UInt64, true),
        Field::new("message", DataType::Utf8, true),
    ]
});

/// Descriptor columns, then the row of work.
fn descriptor_schema(function: &dyn SparseFunction) -> SchemaRef {
    let work = function.spec().work_schema();
    let own = DESCRIPTORS.iter().cloned().map(Arc::new);
    Arc::new(Schema::new(
        own.chain(work.fields().iter().cloned()).collect::<Vec<_>>(),
    ))
}

impl Descriptor {
    fn to_batch(&self, schema: &SchemaRef) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(vec![self.token])),
            Arc::new(StringArray::from(vec![self.message.as_deref()])),
        ];
        for input in &self.inputs {
            columns.push(Arc::new(StringArray::from(vec![input.as_deref()])));
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    /// The descriptors of a batch.
    pub(super) fn read(function: &dyn SparseFunction, batch: &RecordBatch) -> Result<Vec<Self>> {
        let [tokens, messages, ..] = batch.columns() else {
            return internal_err!("a write node gave {} columns", batch.num_columns());
        };
        let own = DESCRIPTORS.len();
        let inputs = batch.project(&(own..batch.num_columns()).collect::<Vec<_>>())?;
        let inputs = work::rows(function.spec(), &inputs)?;
        let (Some(tokens), Some(messages)) = (
            tokens.as_any().downcast_ref::<UInt64Array>(),
            messages.as_any().downcast_ref::<StringArray>(),
        ) else {
            return internal_err!("a write node gave {}", batch.schema());
        };
        Ok(tokens
            .iter()
            .zip(messages.iter())
            .zip(inputs)
            .map(|((token, message), inputs)| Self {
                token,
                message: message.map(str::to_owned),
                inputs,
            })
            .collect())
    }
}

/// Stages the work of each row of its child.
#[derive(Debug, Clone)]
pub(crate) struct WriteExec {
    function: Arc<dyn SparseFunction>,
    request: Request,
    input: Arc<dyn ExecutionPlan>,
    batch: bool,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl WriteExec {
    pub(crate) fn new(
        function: Arc<dyn SparseFunction>,
        request: Request,
        input: Arc<dyn ExecutionPlan>,
        batch: bool,
    ) -> Self {
        let schema = descriptor_schema(function.as_ref());
        let properties = read::properties(&schema, &input);
        let metrics = ExecutionPlanMetricsSet::new();
        Self {
            function,
            request,
            input,
            batch,
            schema,
            properties,
            metrics,
        }
    }
}

impl DisplayAs for WriteExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SparseWrite: function={}", self.function.spec().name)?;
        self.request.fmt_rows(self.function.spec(), f)?;
        let options = self.request.options.to_string();
        if options.is_empty() {
            Ok(())
        } else {
            write!(f, ", {options}")
        }
    }
}

impl ExecutionPlan for WriteExec {
    fn name(&self) -> &str {
        "SparseWriteExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        read::spread(&self.input, self.batch)
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![self.batch]
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
            .map_err(|children| super::one_child("SparseWriteExec", children.len()))?;
        let this = self.as_ref().clone();
        Ok(Arc::new(Self::new(
            this.function,
            this.request,
            input,
            this.batch,
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
        let name = self.function.spec().name;
        let Some(run) = run::of(&context) else {
            return internal_err!(
                "{name}: a write node runs below a commit node of the same process"
            );
        };
        let child = self.input.execute(partition, Arc::clone(&context))?;
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let failures = MetricBuilder::new(&self.metrics).counter("failed", partition);
        let mut request = self.request.clone();
        request.threads = threads_per_partition(self.properties.partitioning.partition_count());
        request.context = Some(context);
        let stage = Arc::new(Stage {
            function: Arc::clone(&self.function),
            request: Arc::new(request),
            run,
            failures,
            schema: Arc::clone(&self.schema),
        });
        let rows = child
            .map(move |batch| {
                let rows = batch.and_then(|batch| work::rows(stage.function.spec(), &batch))?;
                let stage = Arc::clone(&stage);
                let rows = stream::iter(rows).then(move |inputs| {
                    let stage = Arc::clone(&stage);
                    async move { stage.one(inputs).await }
                });
                Ok::<_, datafusion::error::DataFusionError>(rows)
            })
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

/// One operation uses every core; several at a time share them.
fn threads_per_partition(partitions: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if partitions <= 1 {
        0
    } else {
        (cores / partitions).max(1)
    }
}

struct Stage {
    function: Arc<dyn SparseFunction>,
    request: Arc<Request>,
    run: Arc<Run>,
    failures: Count,
    schema: SchemaRef,
}

impl Stage {
    async fn one(&self, inputs: Inputs) -> Result<RecordBatch> {
        let spec = self.function.spec();
        let Action::Write(writer) = self.function.action() else {
            return internal_err!("{} does not write", spec.name);
        };
        let staged = writer
            .stage(inputs.clone(), Arc::clone(&self.request))
            .await;
        let descriptor = match staged {
            Ok(staged) => Descriptor {
                token: Some(self.run.put(staged)),
                message: None,
                inputs,
            },
            Err(error) if self.request.options.text("on_error") == Some("skip") => {
                self.failures.add(1);
                let message = Some(crate::error::message(&error));
                Descriptor {
                    token: None,
                    message,
                    inputs,
                }
            }
            Err(error) => {
                return Err(error.context(format!("{}({})", spec.name, describe(&inputs))));
            }
        };
        descriptor.to_batch(&self.schema)
    }
}

/// A row of work, for messages.
pub(super) fn describe(inputs: &Inputs) -> String {
    inputs
        .iter()
        .flatten()
        .map(|input| format!("'{input}'"))
        .collect::<Vec<_>>()
        .join(", ")
}
