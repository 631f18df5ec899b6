//! `ReadExec`: rows of work in, rows of the function out.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
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
    PhysicalExpr, PlanProperties,
};
use futures::{StreamExt, TryStreamExt, future, stream};

use super::work;
use crate::function::{Action, Inputs, Request, SparseFunction};

/// Reads what each row of its child names.
#[derive(Debug, Clone)]
pub(crate) struct ReadExec {
    function: Arc<dyn SparseFunction>,
    request: Arc<Request>,
    input: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    /// What each result column is.
    outputs: Vec<Output>,
    /// Whether the child is a subquery, whose rows are spread over partitions.
    batch: bool,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// A result column: an input of the row of work, or a column that the function returns.
#[derive(Debug, Clone, Copy)]
enum Output {
    Input(usize),
    Column(usize),
}

impl ReadExec {
    /// `columns` are positions in `inputs` input columns followed by the function's own.
    pub(crate) fn new(
        function: Arc<dyn SparseFunction>,
        mut request: Request,
        input: Arc<dyn ExecutionPlan>,
        columns: Vec<usize>,
        inputs: usize,
        batch: bool,
        limit: Option<usize>,
    ) -> Result<Self> {
        let spec = function.spec();
        let (work, own) = (spec.work_schema(), spec.schema());
        let mut fields = Vec::new();
        let mut outputs = Vec::new();
        let mut wanted: Vec<usize> = Vec::new();
        for at in columns {
            let Some(column) = at.checked_sub(inputs) else {
                fields.push(Arc::clone(&work.fields()[at]));
                outputs.push(Output::Input(at));
                continue;
            };
            fields.push(Arc::clone(&own.fields()[column]));
            let position = wanted.iter().position(|w| *w == column).unwrap_or_else(|| {
                wanted.push(column);
                wanted.len() - 1
            });
            outputs.push(Output::Column(position));
        }
        request.columns = wanted;
        let schema: SchemaRef = Arc::new(arrow::datatypes::Schema::new(fields));
        let properties = properties(&schema, &input);
        Ok(Self {
            function,
            request: Arc::new(request),
            input,
            schema,
            outputs,
            batch,
            limit,
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

/// Partitions are the child's, their order and values unknown.
pub(super) fn properties(
    schema: &SchemaRef,
    input: &Arc<dyn ExecutionPlan>,
) -> Arc<PlanProperties> {
    let partitions = input.properties().partitioning.partition_count();
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(Arc::clone(schema)),
        datafusion::physical_plan::Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// Rows of a subquery go to partitions by their values: a small subquery is one batch, which round robin would not split.
pub(super) fn spread(input: &Arc<dyn ExecutionPlan>, batch: bool) -> InputDistributionRequirements {
    let schema = input.schema();
    let keys: Vec<Arc<dyn PhysicalExpr>> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| {
            Arc::new(datafusion::physical_expr::expressions::Column::new(
                field.name(),
                at,
            )) as _
        })
        .collect();
    InputDistributionRequirements::new(vec![match batch {
        true => Distribution::KeyPartitioned(keys),
        false => Distribution::UnspecifiedDistribution,
    }])
}

impl DisplayAs for ReadExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self
            .schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        write!(
            f,
            "SparseRead: function={}, columns=[{}]",
            self.function.spec().name,
            columns.join(", ")
        )?;
        if !self.request.filters.is_empty() {
            let filters: Vec<String> = self
                .request
                .filters
                .iter()
                .map(ToString::to_string)
                .collect();
            write!(f, ", filters=[{}]", filters.join(" AND "))?;
        }
        if let Some(limit) = self.limit {
            write!(f, ", limit={limit}")?;
        }
        self.request.fmt_rows(self.function.spec(), f)?;
        let options = self.request.options.to_string();
        if options.is_empty() {
            Ok(())
        } else {
            write!(f, ", {options}")
        }
    }
}

impl ExecutionPlan for ReadExec {
    fn name(&self) -> &str {
        "SparseReadExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        spread(&self.input, self.batch)
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![self.batch]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        datafusion::physical_plan::apply_expression_roots(self.request.filters.iter(), f)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|children| super::one_child("SparseReadExec", children.len()))?;
        let properties = properties(&self.schema, &input);
        Ok(Arc::new(Self {
            input,
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
            ..self.as_ref().clone()
        }))
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
        let child = self.input.execute(partition, Arc::clone(&context))?;
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let function = Arc::clone(&self.function);
        let mut request = self.request.as_ref().clone();
        request.context = Some(context);
        let request = Arc::new(request);
        let outputs = self.outputs.clone();
        let schema = Arc::clone(&self.schema);
        let rows = child
            .map(move |batch| {
                let rows = batch.and_then(|batch| work::rows(function.spec(), &batch))?;
                let one = (
                    Arc::clone(&function),
                    Arc::clone(&request),
                    outputs.clone(),
                    Arc::clone(&schema),
                );
                Ok::<_, datafusion::error::DataFusionError>(
                    stream::iter(
                        rows.into_iter()
                            .map(Ok::<_, datafusion::error::DataFusionError>),
                    )
                    .map_ok(move |inputs| read_row(&one.0, &one.1, &one.2, &one.3, inputs))
                    .try_flatten(),
                )
            })
            .try_flatten();
        // Checks that failed are counted whatever the statement does with their rows.
        let checks = self.schema.index_of("ok").ok().map(|at| {
            let failed = MetricBuilder::new(&self.metrics).counter("failed_checks", partition);
            (at, failed)
        });
        let rows = rows.map_ok(move |batch| {
            if let Some((at, failed)) = &checks
                && let Some(ok) = batch.column(*at).as_boolean_opt()
            {
                failed.add(ok.false_count());
            }
            batch.record_output(&baseline)
        });
        let rows = match self.limit {
            Some(limit) => limited(rows.boxed(), limit),
            None => rows.boxed(),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            rows,
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

type Batches = stream::BoxStream<'static, Result<RecordBatch>>;

fn read_row(
    function: &Arc<dyn SparseFunction>,
    request: &Arc<Request>,
    outputs: &[Output],
    schema: &SchemaRef,
    inputs: Inputs,
) -> Batches {
    let Action::Read(reader) = function.action() else {
        let name = function.spec().name;
        return stream::once(future::ready(internal_err!("{name} does not read"))).boxed();
    };
    let batches = reader.read(inputs.clone(), Arc::clone(request));
    let (outputs, schema) = (outputs.to_vec(), Arc::clone(schema));
    batches
        .map(move |batch| {
            let batch = batch?;
            let rows = batch.num_rows();
            let columns: Vec<ArrayRef> = outputs
                .iter()
                .map(|output| match output {
                    Output::Column(at) => Arc::clone(batch.column(*at)),
                    Output::Input(at) => {
                        let value = inputs.get(*at).cloned().flatten();
                        Arc::new(StringArray::from(vec![value; rows])) as ArrayRef
                    }
                })
                .collect();
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            Ok(RecordBatch::try_new_with_options(
                Arc::clone(&schema),
                columns,
                &options,
            )?)
        })
        .boxed()
}

/// At most `limit` rows of a partition: the plan above has the final say.
fn limited(rows: Batches, limit: usize) -> Batches {
    rows.scan(limit, |left, batch| {
        let next = match batch {
            _ if *left == 0 => None,
            Ok(batch) => {
                let take = batch.num_rows().min(*left);
                *left -= take;
                Some(Ok(batch.slice(0, take)))
            }
            Err(error) => Some(Err(error)),
        };
        future::ready(next)
    })
    .boxed()
}
