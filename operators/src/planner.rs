//! `name => value`, `name := value` and `(SELECT ...)` as arguments: DataFusion's own table functions take positional
//! constants only.

use std::sync::Arc;

use datafusion::catalog::CatalogProviderList;
use datafusion::common::{DFSchema, Result, TableReference, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, FunctionArgOperator, ObjectName, TableFactor,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use futures::FutureExt as _;

use crate::call::{Argument, Call, Relation, Value, constant_of};
use crate::function::SparseFunction;
use crate::functions;
use crate::provider::FunctionTable;
use crate::spec::{Kind, Spec};

/// Plans calls of this crate's functions; everything else is left to DataFusion.
#[derive(Debug)]
pub struct SparsePlanner {
    catalogs: Arc<dyn CatalogProviderList>,
}

impl SparsePlanner {
    /// A planner that finds tables given as arguments in these catalogs: DataFusion resolves names in FROM only.
    #[must_use]
    pub fn new(catalogs: Arc<dyn CatalogProviderList>) -> Self {
        Self { catalogs }
    }
}

impl RelationPlanner for SparsePlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let called = match &relation {
            TableFactor::Table {
                name,
                args: Some(_),
                ..
            }
            | TableFactor::Function { name, .. } => function_named(name, context),
            _ => None,
        };
        let Some(function) = called else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let spec = function.spec();
        let (args, alias) = match relation {
            TableFactor::Table {
                args: Some(args),
                alias,
                ..
            } => (args.args, alias),
            _ => {
                return plan_err!(
                    "LATERAL {0}(...) is not supported; give the rows as a subquery: {0}((SELECT ...))",
                    spec.name
                );
            }
        };
        let arguments = args
            .into_iter()
            .enumerate()
            .map(|(at, arg)| argument(spec, at, arg, context, &self.catalogs))
            .collect::<Result<Vec<_>>>()?;
        let call = Call::new(spec, arguments)?;
        // Scans of one name are one scan to the optimizer, whatever they scan: two subqueries would become one.
        let name = TableReference::bare(format!("{}({call})", spec.name));
        let provider = Arc::new(FunctionTable::new(function, call));
        let plan = LogicalPlanBuilder::scan(name, provider_as_source(provider), None)?
            .alias(spec.name)?
            .build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(
            plan, alias,
        ))))
    }
}

fn function_named(
    name: &ObjectName,
    context: &dyn RelationPlannerContext,
) -> Option<Arc<dyn SparseFunction>> {
    let [part] = name.0.as_slice() else {
        return None;
    };
    functions::find(&context.normalize_ident(part.as_ident()?.clone()))
}

fn argument(
    spec: &Spec,
    at: usize,
    arg: FunctionArg,
    context: &mut dyn RelationPlannerContext,
    catalogs: &Arc<dyn CatalogProviderList>,
) -> Result<Argument> {
    let (name, operator, value) = match arg {
        FunctionArg::Unnamed(value) => (None, None, value),
        FunctionArg::Named {
            name,
            arg,
            operator,
        } => (Some(context.normalize_ident(name)), Some(operator), arg),
        FunctionArg::ExprNamed {
            name: SqlExpr::Identifier(name),
            arg,
            operator,
        } => (Some(context.normalize_ident(name)), Some(operator), arg),
        other => return plan_err!("{} does not understand the argument {other}", spec.name),
    };
    if let (Some(name), Some(operator)) = (&name, operator)
        && !matches!(
            operator,
            FunctionArgOperator::RightArrow | FunctionArgOperator::Assignment
        )
    {
        return plan_err!(
            "write {name} => value for the argument '{name}' of {}",
            spec.name
        );
    }
    let FunctionArgExpr::Expr(expr) = value else {
        return plan_err!(
            "{} does not take * as an argument; use {}",
            spec.name,
            spec.syntax()
        );
    };
    // What the argument is called in messages.
    let called = match &name {
        Some(name) => name.clone(),
        None => spec
            .inputs
            .get(at)
            .map_or_else(|| (at + 1).to_string(), |i| i.name.to_owned()),
    };
    Ok(Argument {
        name,
        value: value_of(spec, &called, expr, context, catalogs)?,
    })
}

fn value_of(
    spec: &Spec,
    called: &str,
    expr: SqlExpr,
    context: &mut dyn RelationPlannerContext,
    catalogs: &Arc<dyn CatalogProviderList>,
) -> Result<Value> {
    match expr {
        SqlExpr::Nested(inner) => value_of(spec, called, *inner, context, catalogs),
        SqlExpr::Subquery(subquery) => {
            let text = format!("({subquery})");
            let plan = context.plan(TableFactor::Derived {
                lateral: false,
                subquery,
                alias: None,
                sample: None,
            })?;
            if plan
                .get_parameter_names()
                .is_ok_and(|names| !names.is_empty())
            {
                return plan_err!(
                    "the subquery of {} has a parameter ($1, ...), whose value is not known when the statement is planned; \
                     write the value",
                    spec.name
                );
            }
            Ok(Value::Query(Box::new(Relation { text, plan })))
        }
        SqlExpr::Identifier(part) if takes_rows(spec, called) => {
            table(ObjectName::from(vec![part]), context, catalogs)
        }
        SqlExpr::CompoundIdentifier(parts) if takes_rows(spec, called) => {
            table(ObjectName::from(parts), context, catalogs)
        }
        SqlExpr::Identifier(_) | SqlExpr::CompoundIdentifier(_) => plan_err!(
            "argument '{called}' of {} must be a constant, not the column {expr}; write a text in single quotes, \
             or give many rows as a subquery: {}((SELECT ...))",
            spec.name,
            spec.name
        ),
        expr => {
            let expr = context.sql_to_expr(expr, &DFSchema::empty())?;
            let simplify = ExprSimplifier::new(SimplifyContext::default());
            let expr = simplify.coerce(expr, &DFSchema::empty())?;
            let expr = simplify.simplify(expr)?;
            Ok(Value::Constant(constant_of(spec, called, &expr)?))
        }
    }
}

/// Whether an argument may be the rows of a table.
fn takes_rows(spec: &Spec, called: &str) -> bool {
    spec.inputs
        .iter()
        .any(|input| input.kind == Kind::Dataset && input.is_called(called))
}

/// The rows of a table by name.
fn table(
    name: ObjectName,
    context: &mut dyn RelationPlannerContext,
    catalogs: &Arc<dyn CatalogProviderList>,
) -> Result<Value> {
    let text = format!("TABLE {name}");
    let reference = context.object_name_to_table_reference(name.clone())?;
    let defaults = &context.context_provider().options().catalog;
    let resolved = reference
        .clone()
        .resolve(&defaults.default_catalog, &defaults.default_schema);
    let schema = catalogs
        .catalog(&resolved.catalog)
        .and_then(|catalog| catalog.schema(&resolved.schema));
    let provider = match schema {
        Some(schema) => match schema.table(&resolved.table).now_or_never() {
            Some(found) => found?,
            None => {
                return plan_err!(
                    "table {name} has to be looked up outside this program; write (SELECT * FROM {name})"
                );
            }
        },
        None => None,
    };
    let plan = match provider {
        Some(provider) => {
            LogicalPlanBuilder::scan(reference, provider_as_source(provider), None)?.build()?
        }
        // The name of a common table expression, or of nothing, which DataFusion says.
        None => context.plan(TableFactor::Table {
            name,
            alias: None,
            args: None,
            with_hints: Vec::new(),
            version: None,
            with_ordinality: false,
            partitions: Vec::new(),
            json_path: None,
            sample: None,
            index_hints: Vec::new(),
        })?,
    };
    Ok(Value::Table(Box::new(Relation { text, plan })))
}
