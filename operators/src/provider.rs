//! A checked call as a table, and DataFusion's own table function interface. Planning reads and writes nothing: schemas are
//! fixed by the function's description.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DFSchema, Result};
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

use crate::call::{Argument, Call, Value, constant_of};
use crate::exec::commit::RunLock;
use crate::exec::{self, Scan};
use crate::function::SparseFunction;

/// One call of a function. Scans of one call run one after another (a CTE used twice does its work once; the second finds it).
#[derive(Debug)]
pub(crate) struct FunctionTable {
    function: Arc<dyn SparseFunction>,
    call: Call,
    schema: SchemaRef,
    lock: RunLock,
}

impl FunctionTable {
    pub(crate) fn new(function: Arc<dyn SparseFunction>, call: Call) -> Self {
        let schema = table_schema(function.as_ref(), &call);
        Self {
            function,
            call,
            schema,
            lock: RunLock::default(),
        }
    }
}

/// In the batch form of a function that reads, the inputs come first: they tell rows apart. Writers have them already.
fn table_schema(function: &dyn SparseFunction, call: &Call) -> SchemaRef {
    let spec = function.spec();
    let columns = spec.schema();
    if !exec::has_input_columns(function, call) {
        return columns;
    }
    let inputs = spec.work_schema();
    let fields: Vec<Arc<Field>> = inputs
        .fields()
        .iter()
        .chain(columns.fields())
        .cloned()
        .collect();
    Arc::new(Schema::new(fields))
}

#[async_trait]
impl TableProvider for FunctionTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        let takes = self.function.takes_filters() && !self.call.is_batch();
        let one = |filter: &&Expr| {
            let volatile = filter.is_volatile();
            let touches_data = filter
                .column_refs()
                .iter()
                .any(|column| column.name == "data");
            match takes && !volatile && !touches_data && !has_subquery(filter) {
                true => TableProviderFilterPushDown::Exact,
                false => TableProviderFilterPushDown::Unsupported,
            }
        };
        Ok(filters.iter().map(one).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let dfschema = DFSchema::try_from(Arc::clone(&self.schema))?;
        let filters = filters
            .iter()
            .map(|filter| state.create_physical_expr(filter.clone(), &dfschema))
            .collect::<Result<Vec<_>>>()?;
        exec::plan(Scan {
            function: &self.function,
            call: &self.call,
            schema: &self.schema,
            projection,
            filters,
            limit,
            lock: self.lock.clone(),
            state,
        })
        .await
    }
}

fn has_subquery(expr: &Expr) -> bool {
    use datafusion::common::tree_node::TreeNode;
    expr.exists(|e| {
        Ok(matches!(
            e,
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_)
        ))
    })
    .unwrap_or(true)
}

/// The function as DataFusion knows table functions: what SHOW FUNCTIONS lists, and what sessions without the
/// [`SparsePlanner`](crate::SparsePlanner) call with positional constants.
#[derive(Debug)]
pub(crate) struct TableFunction(pub(crate) Arc<dyn SparseFunction>);

impl TableFunctionImpl for TableFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let spec = self.0.spec();
        let arguments = args
            .exprs()
            .iter()
            .enumerate()
            .map(|(at, expr)| {
                let called = spec.inputs.get(at).map_or("?", |input| input.name);
                let value = Value::Constant(constant_of(spec, called, expr)?);
                Ok(Argument { name: None, value })
            })
            .collect::<Result<Vec<_>>>()?;
        let call = Call::new(spec, arguments)?;
        Ok(Arc::new(FunctionTable::new(Arc::clone(&self.0), call)))
    }
}
