//! What a stage's SQL reads and writes, found in its parsed statements: tables, and the paths that functions, files as tables
//! and COPY are given.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, ObjectNamePart, SetExpr,
    Statement as Sql, TableFactor, Value, Visit as _, Visitor,
};

use crate::script::placeholders;
use crate::spec::{Pipeline, SpecError, StageSpec};
use crate::{ParamValue, Params, PipelineError, Script};

/// Around the name of a column of an item, inside a text that is known per item only. No text of a person holds it.
const MARK: char = '\u{1}';

/// A text that may hold columns of an item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Template(String);

impl Template {
    /// The text for an item; `None` where it lacks a column.
    pub(crate) fn fill<'v>(&self, column: impl Fn(&str) -> Option<&'v str>) -> Option<String> {
        if !self.0.contains(MARK) {
            return Some(self.0.clone());
        }
        let mut out = String::new();
        for (at, part) in self.0.split(MARK).enumerate() {
            out += if at % 2 == 0 { part } else { column(part)? };
        }
        Some(out)
    }

    /// The text before the first column of an item.
    pub(crate) fn prefix(&self) -> &str {
        self.0.split(MARK).next().unwrap_or_default()
    }

    /// For people: `deltas/$name`.
    pub(crate) fn shown(&self) -> String {
        let parts = self.0.split(MARK).enumerate();
        parts
            .map(|(at, part)| {
                if at % 2 == 0 {
                    part.to_owned()
                } else {
                    format!("${part}")
                }
            })
            .collect()
    }
}

/// What a statement is to a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rows, which become a table.
    Query,
    /// `CREATE TABLE name AS query`: rows, which become the table of that name.
    Table(String),
    /// A view or external table: said again wherever it is read.
    Declare(String),
    /// `SET`: said again as well.
    Set,
    /// `COPY ... TO`: staged, then renamed.
    Copy,
    /// EXPLAIN, SHOW: run, and forgotten.
    Other,
}

/// What one stage reads and writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Analysis {
    /// One per statement.
    pub(crate) kinds: Vec<Kind>,
    /// Tables that it does not make itself.
    pub(crate) reads: BTreeSet<String>,
    /// Tables read by the query of `for_each`.
    pub(crate) item_reads: BTreeSet<String>,
    /// Tables read by its checks.
    pub(crate) check_reads: BTreeSet<String>,
    /// Tables it makes; the last query's goes by the stage's name.
    pub(crate) makes: BTreeSet<String>,
    /// Paths, URLs and ids it reads.
    pub(crate) inputs: BTreeSet<Template>,
    /// Paths and URLs it writes.
    pub(crate) outputs: BTreeSet<Template>,
    /// Parameters of the pipeline that it uses.
    pub(crate) params: BTreeSet<String>,
    /// Columns of an item that it uses.
    pub(crate) columns: BTreeSet<String>,
    /// Why its inputs are known only while it runs.
    pub(crate) open: Option<String>,
}

/// Analyses a stage. Errors name the file, the line and the stage.
pub(crate) fn analyse(pipeline: &Pipeline, stage: &StageSpec) -> Result<Analysis, SpecError> {
    let mut found = Analysis::default();
    let names = placeholders(&stage.sql).map_err(|error| wrong(pipeline, stage, &error))?;
    let mut params = Params::default();
    for name in names {
        if let Some(param) = pipeline.params.get(&name) {
            // A secret's value goes nowhere but into the statement that runs: what is found here is stored.
            let value = match param.secret {
                true => ParamValue::Text("***".to_owned()),
                false => param.value.clone(),
            };
            params = params.with(&name, value);
            found.params.insert(name);
        } else if stage.for_each.is_some() {
            params = params.with(&name, ParamValue::Text(format!("{MARK}{name}{MARK}")));
            found.columns.insert(name);
        }
    }
    let (script, _) =
        Script::parse_using(&stage.sql, &params).map_err(|error| wrong(pipeline, stage, &error))?;
    if script.stages().is_empty() {
        return Err(at(
            pipeline,
            stage,
            stage.line,
            "its SQL holds no statement".into(),
            "write a SELECT, COPY or CREATE".into(),
        ));
    }
    for statement in script.stages() {
        let line = line_of(stage, statement.line);
        let kind = read_statement(&statement.statement, &mut found)
            .map_err(|(problem, remedy)| at(pipeline, stage, line, problem, remedy))?;
        match &kind {
            Kind::Table(name) | Kind::Declare(name) => {
                found.makes.insert(name.clone());
            }
            _ => {}
        }
        found.kinds.push(kind);
    }
    if found.kinds.contains(&Kind::Query) {
        found.makes.insert(stage.name.clone());
    }
    if stage.for_each.is_some()
        && let Some(name) = found.kinds.iter().find_map(|kind| match kind {
            Kind::Declare(name) => Some(name.clone()),
            _ => None,
        })
    {
        return Err(at(
            pipeline,
            stage,
            stage.line,
            format!("every item would make the view or external table {name} anew"),
            "make it in a stage of its own, without for_each".into(),
        ));
    }
    let own = found.makes.clone();
    let read_own = found.reads.contains(&stage.name);
    found.reads.retain(|name| !own.contains(name));
    if read_own && found.kinds.contains(&Kind::Query) {
        return Err(at(
            pipeline,
            stage,
            stage.line,
            format!("it reads {}, the table it makes", stage.name),
            "give the stage another name".into(),
        ));
    }
    found.inputs.extend(
        stage
            .inputs
            .iter()
            .map(|path| template(path, &mut found.columns)),
    );
    found.outputs.extend(
        stage
            .outputs
            .iter()
            .map(|path| template(path, &mut found.columns)),
    );
    // Who says what is read is believed.
    if !stage.inputs.is_empty() {
        found.open = None;
    }
    if let Some(each) = &stage.for_each {
        let (reads, query_params) =
            query_reads(pipeline, stage, &each.query, each.line, &BTreeSet::new())?;
        found.item_reads = reads;
        found.params.extend(query_params);
    }
    for check in &stage.checks {
        let (reads, check_params) = query_reads(pipeline, stage, &check.sql, check.line, &own)?;
        found.check_reads.extend(reads);
        found.params.extend(check_params);
    }
    Ok(found)
}

/// `$name` in a declared path is a column of the item.
fn template(path: &str, columns: &mut BTreeSet<String>) -> Template {
    let mut out = String::new();
    let mut rest = path;
    while let Some(dollar) = rest.find('$') {
        out += &rest[..dollar];
        let after = &rest[dollar + 1..];
        let end = after
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        if end == 0 {
            out.push('$');
        } else {
            columns.insert(after[..end].to_owned());
            out.push(MARK);
            out += &after[..end];
            out.push(MARK);
        }
        rest = &after[end..];
    }
    Template(out + rest)
}

/// The tables that one query reads, and the parameters it uses.
fn query_reads(
    pipeline: &Pipeline,
    stage: &StageSpec,
    sql: &str,
    line: u64,
    own: &BTreeSet<String>,
) -> Result<(BTreeSet<String>, BTreeSet<String>), SpecError> {
    let wrong = |error: &PipelineError| {
        at(
            pipeline,
            stage,
            line,
            error.to_string().replace("; nothing was run", ""),
            "correct this query".into(),
        )
    };
    let (script, used) =
        Script::parse_using(sql, &all_params(pipeline)).map_err(|error| wrong(&error))?;
    let mut found = Analysis::default();
    let kinds: Result<Vec<Kind>, _> = script
        .stages()
        .iter()
        .map(|statement| read_statement(&statement.statement, &mut found))
        .collect();
    match kinds.as_deref() {
        Ok([Kind::Query]) => {}
        _ => {
            return Err(at(
                pipeline,
                stage,
                line,
                "one query belongs here".into(),
                "write one SELECT".into(),
            ));
        }
    }
    found.reads.retain(|name| !own.contains(name));
    Ok((found.reads, used))
}

/// The values of a pipeline's parameters.
pub(crate) fn all_params(pipeline: &Pipeline) -> Params {
    pipeline
        .params
        .iter()
        .fold(Params::default(), |params, (name, param)| {
            params.with(name, param.value.clone())
        })
}

/// The line in the YAML file for a line of the SQL; of the SQL's own file where it has one.
fn line_of(stage: &StageSpec, line: u64) -> u64 {
    match stage.sql_file {
        Some(_) => line,
        None => stage.line,
    }
}

fn at(
    pipeline: &Pipeline,
    stage: &StageSpec,
    line: u64,
    problem: String,
    remedy: String,
) -> SpecError {
    let file = stage.sql_file.as_deref().unwrap_or(&pipeline.file);
    SpecError::new(
        file,
        line,
        &format!("stage {:?}: sql", stage.name),
        pipeline.redact(&problem),
        remedy,
    )
}

fn wrong(pipeline: &Pipeline, stage: &StageSpec, error: &PipelineError) -> SpecError {
    let problem = error.to_string().replace("; nothing was run", "");
    let line = match error {
        PipelineError::Syntax { line, .. } => line_of(stage, *line),
        _ => stage.line,
    };
    if let PipelineError::MissingParam { name, .. } = error {
        return at(
            pipeline,
            stage,
            line,
            format!("${name} is no parameter of the pipeline"),
            format!(
                "add `{name}: ...` to `params:`, or a for_each whose query has a column {name}"
            ),
        );
    }
    at(pipeline, stage, line, problem, "correct the SQL".into())
}

type Refused = (String, String);

fn read_statement(statement: &Statement, found: &mut Analysis) -> Result<Kind, Refused> {
    let mut finder = Finder::default();
    let kind = match statement {
        Statement::Statement(sql) => {
            let kind = sql_kind(sql)?;
            let _ = sql.visit(&mut finder);
            kind
        }
        Statement::CopyTo(copy) => {
            if let CopyToSource::Query(query) = &copy.source {
                let _ = query.visit(&mut finder);
            }
            found.outputs.insert(Template(copy.target.clone()));
            Kind::Copy
        }
        Statement::CreateExternalTable(table) => {
            found
                .inputs
                .extend(table.locations.iter().map(|path| Template(path.clone())));
            Kind::Declare(last(&table.name))
        }
        Statement::Explain(_) => Kind::Other,
        Statement::Reset(_) => Kind::Set,
    };
    let (reads, _) = resolve_table_references(statement, true)
        .map_err(|error| (error.strip_backtrace(), "correct the SQL".to_owned()))?;
    let creates = match &kind {
        Kind::Table(name) | Kind::Declare(name) => Some(name.clone()),
        _ => None,
    };
    found.reads.extend(
        reads
            .into_iter()
            .filter(|table| table.schema() != Some("information_schema"))
            .map(|table| table.table().to_owned())
            .filter(|table| {
                !finder.functions.contains(table)
                    && !finder.files.contains(table)
                    && creates.as_ref() != Some(table)
            }),
    );
    found.inputs.extend(finder.files.into_iter().map(Template));
    found.inputs.extend(finder.inputs);
    found.outputs.extend(finder.outputs);
    if found.open.is_none() {
        found.open = finder.open;
    }
    Ok(kind)
}

fn sql_kind(sql: &Sql) -> Result<Kind, Refused> {
    let refuse = |what: &str, remedy: &str| {
        Err((
            format!("{what} has no place in a pipeline"),
            remedy.to_owned(),
        ))
    };
    match sql {
        Sql::Query(query) => match query.body.as_ref() {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) => refuse(
                "a statement that changes rows",
                "write COPY ... TO, or a SELECT: its rows become a table",
            ),
            _ => Ok(Kind::Query),
        },
        Sql::CreateTable(table) if table.query.is_some() => Ok(Kind::Table(last(&table.name))),
        Sql::CreateTable(_) => refuse(
            "a table without a query",
            "write CREATE TABLE ... AS SELECT, or CREATE EXTERNAL TABLE",
        ),
        Sql::CreateView(view) => Ok(Kind::Declare(last(&view.name))),
        Sql::Set(_) => Ok(Kind::Set),
        Sql::Insert(_) | Sql::Update { .. } | Sql::Delete(_) => refuse(
            "a statement that changes rows, which a kill would leave half-done,",
            "write COPY ... TO, or a SELECT: its rows become a table",
        ),
        Sql::Explain { .. }
        | Sql::ExplainTable { .. }
        | Sql::ShowVariable { .. }
        | Sql::ShowTables { .. } => Ok(Kind::Other),
        other => {
            let text = other.to_string();
            let word: Vec<&str> = text.split_whitespace().take(2).collect();
            refuse(
                &word.join(" "),
                "use SELECT, COPY ... TO, CREATE TABLE ... AS, CREATE VIEW, CREATE EXTERNAL TABLE or SET",
            )
        }
    }
}

fn ident(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_ascii_lowercase(),
        Some(_) => ident.value.clone(),
    }
}

fn last(name: &ObjectName) -> String {
    match name.0.last() {
        Some(ObjectNamePart::Identifier(name)) => ident(name),
        _ => name.to_string(),
    }
}

/// Finds functions and files in FROM.
#[derive(Default)]
struct Finder {
    functions: BTreeSet<String>,
    files: BTreeSet<String>,
    inputs: BTreeSet<Template>,
    outputs: BTreeSet<Template>,
    open: Option<String>,
}

impl Visitor for Finder {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { name, args, .. } = factor else {
            return ControlFlow::Continue(());
        };
        if let Some(args) = args {
            self.function(&last(name), &args.args);
        } else if let [ObjectNamePart::Identifier(name)] = name.0.as_slice()
            && name.quote_style == Some('\'')
        {
            self.files.insert(name.value.clone());
        }
        ControlFlow::Continue(())
    }
}

impl Finder {
    fn function(&mut self, name: &str, args: &[FunctionArg]) {
        self.functions.insert(name.to_owned());
        if matches!(name, "range" | "generate_series" | "unnest") {
            return;
        }
        let function = sparse_operators::functions::find(name);
        let spec = function.as_ref().map(|function| function.spec());
        let mut outputs = Vec::new();
        let mut dry = false;
        for (at, arg) in args.iter().enumerate() {
            let (given, value) = match arg {
                FunctionArg::Unnamed(value) => (None, value),
                FunctionArg::Named { name, arg, .. } => (Some(ident(name)), arg),
                FunctionArg::ExprNamed { name, arg, .. } => {
                    (Some(name.to_string().to_ascii_lowercase()), arg)
                }
            };
            let FunctionArgExpr::Expr(value) = value else {
                continue;
            };
            let position = spec.and_then(|spec| match &given {
                Some(name) => spec.inputs.iter().position(|input| input.is_called(name)),
                None => (at < spec.inputs.len()).then_some(at),
            });
            let called = match (spec, position) {
                (Some(spec), Some(position)) => spec.inputs.get(position).map(|input| input.name),
                _ => None,
            };
            if given.as_deref() == Some("dry_run") {
                dry = value.to_string().eq_ignore_ascii_case("true");
            }
            // Options hold no paths, but for adapters.
            let is_path = spec.is_none() || called.is_some() || given.as_deref() == Some("adapter");
            if !is_path {
                continue;
            }
            match fold(value) {
                Folded::Text(text) if called == Some("output") => outputs.push(Template(text)),
                Folded::Text(text) => {
                    self.inputs.insert(Template(text));
                }
                Folded::Other => {}
                Folded::Unknown => {
                    self.open = Some(format!("what {name} is given is known only while it runs"));
                }
            }
        }
        if !dry {
            self.outputs.extend(outputs);
        }
    }
}

enum Folded {
    Text(String),
    /// A constant that is no text.
    Other,
    Unknown,
}

fn fold(value: &Expr) -> Folded {
    match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text)
            | Value::DollarQuotedString(datafusion::sql::sqlparser::ast::DollarQuotedString {
                value: text,
                ..
            }) => Folded::Text(text.clone()),
            _ => Folded::Other,
        },
        Expr::Nested(inner) => fold(inner),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::StringConcat,
            right,
        } => match (fold(left), fold(right)) {
            (Folded::Text(left), Folded::Text(right)) => Folded::Text(left + &right),
            _ => Folded::Unknown,
        },
        Expr::UnaryOp { .. } => Folded::Other,
        _ => Folded::Unknown,
    }
}
