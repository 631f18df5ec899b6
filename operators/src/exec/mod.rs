//! Physical plans. A function that reads is `Read <- work list`; one that writes is `Commit <- Write <- work list`. Our nodes
//! are interior and take their partitions from their child, as a distributed scheduler needs.

pub(crate) mod commit;
pub(crate) mod read;
mod run;
mod work;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::Result;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use crate::call::{Call, Work};
use crate::config::SparseConfig;
use crate::function::{Action, Request, SparseFunction};

use commit::{CommitExec, RunLock};
use read::ReadExec;
use write::WriteExec;

/// What a table provider's scan was asked for.
pub(crate) struct Scan<'a> {
    pub(crate) function: &'a Arc<dyn SparseFunction>,
    pub(crate) call: &'a Call,
    pub(crate) schema: &'a SchemaRef,
    pub(crate) projection: Option<&'a Vec<usize>>,
    pub(crate) filters: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) limit: Option<usize>,
    pub(crate) lock: RunLock,
    pub(crate) state: &'a dyn Session,
}

/// Whether the result starts with the inputs: readers in the batch form.
pub(crate) fn has_input_columns(function: &dyn SparseFunction, call: &Call) -> bool {
    call.is_batch() && matches!(function.action(), Action::Read(_))
}

/// The physical plan of a call.
pub(crate) async fn plan(scan: Scan<'_>) -> Result<Arc<dyn ExecutionPlan>> {
    let spec = scan.function.spec();
    let config = SparseConfig::of(scan.state.config_options());
    let batch = scan.call.is_batch();
    let work: Arc<dyn ExecutionPlan> = match &scan.call.work {
        Work::Row(row) => work::constant(spec, row)?,
        Work::Query(plan) => scan.state.create_physical_plan(plan).await?,
    };
    let mut rows = BTreeMap::new();
    for (at, relation) in &scan.call.relations {
        rows.insert(*at, crate::rows::plan(scan.state, &relation.plan).await?);
    }
    let request = Request {
        options: scan.call.options.clone(),
        config,
        columns: (0..spec.columns.len()).collect(),
        filters: scan.filters,
        batch_size: scan.state.config().batch_size(),
        threads: 0,
        rows,
        context: None,
    };
    if matches!(scan.function.action(), Action::Read(_)) {
        let columns = match scan.projection {
            Some(projection) => projection.clone(),
            None => (0..scan.schema.fields().len()).collect(),
        };
        let inputs = if has_input_columns(scan.function.as_ref(), scan.call) {
            spec.inputs.len()
        } else {
            0
        };
        let node = ReadExec::new(
            Arc::clone(scan.function),
            request,
            work,
            columns,
            inputs,
            batch,
            scan.limit,
        )?;
        return Ok(Arc::new(node));
    }
    let write: Arc<dyn ExecutionPlan> = Arc::new(WriteExec::new(
        Arc::clone(scan.function),
        request.clone(),
        work,
        batch,
    ));
    let write = match write.properties().partitioning.partition_count() {
        1 => write,
        _ => Arc::new(CoalescePartitionsExec::new(write)),
    };
    let commit: Arc<dyn ExecutionPlan> = Arc::new(CommitExec::new(
        Arc::clone(scan.function),
        request,
        write,
        scan.lock,
    ));
    let Some(projection) = scan.projection else {
        return Ok(commit);
    };
    let exprs = projection
        .iter()
        .map(|at| {
            let name = scan.schema.field(*at).name();
            Ok((col(name, scan.schema)?, name.clone()))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(ProjectionExec::try_new(exprs, commit)?))
}

fn one_child(node: &str, given: usize) -> datafusion::error::DataFusionError {
    datafusion::common::internal_datafusion_err!("{node} has one child, not {given}")
}

fn recompute() -> datafusion::physical_plan::execution_plan::ReplaceChildrenOptions {
    use datafusion::physical_plan::execution_plan::{
        ChildrenPropertiesMode, ReplaceChildrenOptions,
    };
    ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute)
}
