//! One call of a function: its arguments, checked against the description, with errors that name the argument.

use std::collections::BTreeMap;
use std::fmt;

use arrow::array::Array as _;
use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue, plan_datafusion_err, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};

use crate::spec::{Kind, Parameter, Spec};

/// The value of an argument, as a planner found it.
#[derive(Debug)]
pub(crate) enum Value {
    /// A constant.
    Constant(ScalarValue),
    /// A subquery: the work list of the batch form, or the rows of a dataset.
    Query(Box<Relation>),
    /// A table by name: the rows of a dataset.
    Table(Box<Relation>),
}

/// Rows that a statement gives.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    /// As it is written in SQL.
    pub(crate) text: String,
    pub(crate) plan: LogicalPlan,
}

/// An argument as written.
#[derive(Debug)]
pub(crate) struct Argument {
    /// `Some` for `name => value`.
    pub(crate) name: Option<String>,
    pub(crate) value: Value,
}

/// What to work on.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// One row of constants.
    Row(Vec<Option<String>>),
    /// The rows of a subquery, which has one text column per input.
    Query(Box<LogicalPlan>),
}

/// The options of a call: constants by name, defaults filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Options {
    values: BTreeMap<&'static str, String>,
    given: Vec<&'static str>,
}

impl Options {
    /// The value of a text option, if it was given or has a default.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The value of a flag.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// The value of a number.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.text(name)?.parse().ok()
    }

    /// The value of a whole number, where it is not one of the option's strings.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// The values of a list of whole numbers.
    pub(crate) fn counts(&self, name: &str) -> Option<Vec<u64>> {
        let parts = self.text(name)?.split(',').filter(|part| !part.is_empty());
        parts.map(|part| part.parse().ok()).collect()
    }

    /// The texts of a list.
    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        serde_json::from_str(self.text(name)?).ok()
    }
}

impl fmt::Display for Options {
    /// Only what was given, as it would be written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.given.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={}", self.text(name).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// A checked call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) work: Work,
    pub(crate) options: Options,
    /// Inputs that are rows of the statement rather than references, by position.
    pub(crate) relations: BTreeMap<usize, Relation>,
}

impl Call {
    /// Checks arguments against the function's description.
    pub(crate) fn new(spec: &Spec, arguments: Vec<Argument>) -> Result<Self> {
        let function = spec.name;
        let is_batch = !has_rows_as_inputs(spec, &arguments);
        let mut relations = BTreeMap::new();
        let mut inputs: Vec<Option<Option<String>>> = vec![None; spec.inputs.len()];
        let mut query = None;
        let mut options = Options::default();
        let mut positional = 0;
        let mut named = false;
        for argument in arguments {
            let Some(name) = argument.name else {
                if named {
                    return plan_err!(
                        "{function}: positional arguments come before named ones; use {}",
                        spec.syntax()
                    );
                }
                match argument.value {
                    Value::Query(rows) if is_batch && positional == 0 && query.is_none() => {
                        query = Some(rows.plan);
                    }
                    Value::Query(rows) | Value::Table(rows)
                        if spec.inputs.get(positional).is_some_and(takes_rows) =>
                    {
                        inputs[positional] = Some(Some(rows.text.clone()));
                        relations.insert(positional, *rows);
                        positional += 1;
                    }
                    Value::Query(_) | Value::Table(_) => {
                        return plan_err!(
                            "{function} takes one subquery, as its first argument, with the columns {}",
                            input_names(spec)
                        );
                    }
                    Value::Constant(value) => {
                        let Some(input) = spec.inputs.get(positional).filter(|_| query.is_none())
                        else {
                            return plan_err!(
                                "{function} has too many positional arguments; use {}",
                                spec.syntax()
                            );
                        };
                        inputs[positional] = Some(text(spec, input, value)?);
                        positional += 1;
                    }
                }
                continue;
            };
            named = true;
            if let Some(at) = spec.inputs.iter().position(|input| input.is_called(&name)) {
                if inputs[at].is_some() {
                    return plan_err!("argument '{name}' of {function} is given twice");
                }
                match argument.value {
                    Value::Query(rows) | Value::Table(rows) if takes_rows(&spec.inputs[at]) => {
                        inputs[at] = Some(Some(rows.text.clone()));
                        relations.insert(at, *rows);
                    }
                    value => {
                        let value = constant(spec, &name, value)?;
                        inputs[at] = Some(text(spec, &spec.inputs[at], value)?);
                    }
                }
            } else if let Some(option) = spec.options.iter().find(|option| option.is_called(&name))
            {
                let value = constant(spec, &name, argument.value)?;
                if options.given.contains(&option.name) {
                    return plan_err!("argument '{name}' of {function} is given twice");
                }
                if let Some(value) = option_value(spec, option, value)? {
                    options.given.push(option.name);
                    options.values.insert(option.name, value);
                }
            } else {
                return plan_err!(
                    "{function} has no argument '{name}'; its arguments are {}",
                    spec.argument_names()
                );
            }
        }
        for option in spec.options {
            match option.default {
                Some(default) => {
                    options
                        .values
                        .entry(option.name)
                        .or_insert_with(|| default.to_owned());
                }
                None if option.required && !options.values.contains_key(option.name) => {
                    return plan_err!(
                        "{function} needs the argument '{}'; use {}",
                        option.name,
                        spec.syntax()
                    );
                }
                None => {}
            }
        }
        let work = match query {
            Some(plan) => {
                if let Some(at) = inputs.iter().position(Option::is_some) {
                    return plan_err!(
                        "{function} has both a subquery and the argument '{}'; make it a column of the subquery",
                        spec.inputs[at].name
                    );
                }
                Work::Query(Box::new(work_list(spec, plan)?))
            }
            None => {
                let row: Vec<Option<String>> = inputs.into_iter().map(Option::flatten).collect();
                for (input, value) in spec.inputs.iter().zip(&row) {
                    if input.required && value.is_none() {
                        return plan_err!(
                            "{function} needs the argument '{}'; use {}",
                            input.name,
                            spec.syntax()
                        );
                    }
                }
                Work::Row(row)
            }
        };
        Ok(Self {
            work,
            options,
            relations,
        })
    }

    /// Whether the work comes from a subquery.
    pub(crate) fn is_batch(&self) -> bool {
        matches!(self.work, Work::Query(_))
    }
}

fn takes_rows(input: &Parameter) -> bool {
    input.kind == Kind::Dataset
}

/// Whether subqueries are rows of datasets rather than a work list: where another input stands beside them.
fn has_rows_as_inputs(spec: &Spec, arguments: &[Argument]) -> bool {
    let inputs = arguments.iter().filter(|argument| match &argument.name {
        None => true,
        Some(name) => spec
            .inputs
            .iter()
            .any(|input| takes_rows(input) && input.is_called(name)),
    });
    spec.inputs.iter().any(takes_rows) && inputs.count() > 1
}

impl fmt::Display for Call {
    /// What tells it from other calls of the function.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.work {
            Work::Row(row) => {
                let given: Vec<String> = row
                    .iter()
                    .map(|v| v.as_deref().map_or_else(|| "NULL".into(), quoted))
                    .collect();
                write!(f, "{}", given.join(", "))?;
            }
            Work::Query(plan) => write!(f, "{}", plan.display_indent())?,
        }
        match self.options.to_string() {
            options if options.is_empty() => Ok(()),
            options => write!(f, ", {options}"),
        }
    }
}

/// A literal of SQL: no two inputs look alike.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn input_names(spec: &Spec) -> String {
    spec.inputs
        .iter()
        .map(|input| input.name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn constant(spec: &Spec, name: &str, value: Value) -> Result<ScalarValue> {
    match value {
        Value::Constant(value) => Ok(value),
        Value::Query(_) | Value::Table(_) => plan_err!(
            "argument '{name}' of {} must be a constant; a subquery goes first, with the columns {}",
            spec.name,
            input_names(spec)
        ),
    }
}

fn ill_typed<T>(spec: &Spec, parameter: &Parameter, value: &ScalarValue) -> Result<T> {
    plan_err!(
        "argument '{}' of {} must be {}, not {value} ({})",
        parameter.name,
        spec.name,
        parameter.kind.describe(),
        value.data_type()
    )
}

fn text(spec: &Spec, parameter: &Parameter, value: ScalarValue) -> Result<Option<String>> {
    if value.is_null() {
        return Ok(None);
    }
    match value.try_as_str() {
        Some(Some("")) => plan_err!("argument '{}' of {} is empty", parameter.name, spec.name),
        Some(Some(text)) => Ok(Some(text.to_owned())),
        _ => ill_typed(spec, parameter, &value),
    }
}

fn option_value(spec: &Spec, option: &Parameter, value: ScalarValue) -> Result<Option<String>> {
    if value.is_null() {
        return Ok(None);
    }
    match option.kind {
        Kind::Text | Kind::Dataset => text(spec, option, value),
        Kind::Number => match number(&value) {
            Some(number) => Ok(Some(number.to_string())),
            None => ill_typed(spec, option, &value),
        },
        Kind::Count(others) => match value.try_as_str().flatten() {
            Some(text) if others.contains(&text) => Ok(Some(text.to_owned())),
            _ => match whole(&value) {
                Some(count) => Ok(Some(count.to_string())),
                None => ill_typed(spec, option, &value),
            },
        },
        Kind::Counts => match list(&value) {
            Some(counts) => Ok(Some(counts.join(","))),
            None => ill_typed(spec, option, &value),
        },
        Kind::Texts => Ok(Some(
            serde_json::json!(texts(spec, option, value)?).to_string(),
        )),
        Kind::Flag => match value {
            ScalarValue::Boolean(Some(flag)) => Ok(Some(flag.to_string())),
            _ => ill_typed(spec, option, &value),
        },
        Kind::Choice(choices) => match value.try_as_str().flatten() {
            Some(text) if choices.contains(&text) => Ok(Some(text.to_owned())),
            _ => ill_typed(spec, option, &value),
        },
    }
}

/// A finite number.
fn number(value: &ScalarValue) -> Option<f64> {
    if !value.data_type().is_numeric() {
        return None;
    }
    match value.cast_to(&DataType::Float64) {
        Ok(ScalarValue::Float64(Some(number))) if number.is_finite() => Some(number),
        _ => None,
    }
}

/// A whole number from 0 on.
fn whole(value: &ScalarValue) -> Option<u64> {
    if !value.data_type().is_integer() {
        return None;
    }
    match value.cast_to(&DataType::UInt64) {
        Ok(ScalarValue::UInt64(count)) => count,
        _ => None,
    }
}

/// Whole numbers from 0 on, as text.
fn list(value: &ScalarValue) -> Option<Vec<String>> {
    let ScalarValue::List(list) = value else {
        return None;
    };
    let items = list.value(0);
    (0..items.len())
        .map(|at| whole(&ScalarValue::try_from_array(&items, at).ok()?))
        .map(|count| count.map(|count| count.to_string()))
        .collect()
}

/// A list of texts, or one.
fn texts(spec: &Spec, option: &Parameter, value: ScalarValue) -> Result<Vec<String>> {
    let items = match &value {
        ScalarValue::List(list) => list.value(0),
        ScalarValue::LargeList(list) => list.value(0),
        _ => return Ok(text(spec, option, value)?.into_iter().collect()),
    };
    (0..items.len())
        .map(|at| {
            let item = ScalarValue::try_from_array(&items, at)?;
            match text(spec, option, item)? {
                Some(text) => Ok(text),
                None => plan_err!(
                    "argument '{}' of {} has a null in it",
                    option.name,
                    spec.name
                ),
            }
        })
        .collect()
}

/// The subquery, projected to one text column per input. Its columns are matched by name, or by position where none of them
/// has the name of an input.
fn work_list(spec: &Spec, plan: LogicalPlan) -> Result<LogicalPlan> {
    let function = spec.name;
    let columns: Vec<_> = plan.schema().columns();
    let matched: Vec<Option<usize>> = columns
        .iter()
        .map(|column| {
            spec.inputs
                .iter()
                .position(|input| input.is_called(&column.name))
        })
        .collect();
    let mut sources: Vec<Option<usize>> = vec![None; spec.inputs.len()];
    if matched.iter().all(Option::is_none) {
        if columns.len() > spec.inputs.len() {
            return plan_err!(
                "the subquery of {function} has {} columns; it may have {}",
                columns.len(),
                input_names(spec)
            );
        }
        sources
            .iter_mut()
            .zip(0..columns.len())
            .for_each(|(source, at)| *source = Some(at));
    } else {
        for (at, (column, input)) in columns.iter().zip(&matched).enumerate() {
            let Some(input) = input else {
                return plan_err!(
                    "the subquery of {function} has a column '{}', which is no input; its columns may be {}",
                    column.name,
                    input_names(spec)
                );
            };
            if sources[*input].replace(at).is_some() {
                return plan_err!(
                    "the subquery of {function} has two columns for '{}'",
                    spec.inputs[*input].name
                );
            }
        }
    }
    let mut projected = Vec::with_capacity(spec.inputs.len());
    for (input, source) in spec.inputs.iter().zip(sources) {
        let expr = match source {
            Some(at) => {
                let ty = plan.schema().field(at).data_type();
                if !is_text(ty) {
                    return plan_err!(
                        "column '{}' of {function}'s subquery must be text, not {ty}",
                        columns[at].name
                    );
                }
                cast(Expr::Column(columns[at].clone()), DataType::Utf8)
            }
            None if input.required => {
                return plan_err!(
                    "the subquery of {function} needs a column '{}'; its columns may be {}",
                    input.name,
                    input_names(spec)
                );
            }
            None => lit(ScalarValue::Utf8(None)),
        };
        projected.push(expr.alias(input.name));
    }
    LogicalPlanBuilder::from(plan)
        .project(projected)?
        .build()
        .map_err(|error| error.context(format!("{function}: its subquery cannot be planned")))
}

fn is_text(ty: &DataType) -> bool {
    match ty {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// The constant an expression stands for, or an error that names the argument.
pub(crate) fn constant_of(spec: &Spec, argument: &str, expr: &Expr) -> Result<ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Ok(value.clone()),
        Expr::Alias(alias) => constant_of(spec, argument, &alias.expr),
        Expr::Placeholder(placeholder) => plan_err!(
            "argument '{argument}' of {} is the parameter {}, whose value is not known when the statement is planned; \
             write the value, or give a subquery over a table of references",
            spec.name,
            placeholder.id
        ),
        other => Err(plan_datafusion_err!(
            "argument '{argument}' of {} must be a constant, not {other}; a text is written in single quotes",
            spec.name
        )),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;
    use crate::spec::Column;

    static SPEC: Spec = Spec {
        name: "f",
        row: "row",
        description: "",
        inputs: &[
            Parameter::required("base", ""),
            Parameter::required("finetune", "").or(&["ft"]),
            Parameter::optional("output", ""),
        ],
        options: &[
            Parameter::flag("dry_run", ""),
            Parameter::choice("effort", &["fast", "max"], None, ""),
            Parameter::of("energy", Kind::Number, ""),
            Parameter::of("top", Kind::Count(&["all"]), ""),
            Parameter::of("tops", Kind::Counts, ""),
        ],
        columns: &[] as &[Column],
        examples: &[],
    };

    fn at(value: impl Into<ScalarValue>) -> Argument {
        Argument {
            name: None,
            value: Value::Constant(value.into()),
        }
    }

    fn named(name: &str, value: impl Into<ScalarValue>) -> Argument {
        Argument {
            name: Some(name.into()),
            value: Value::Constant(value.into()),
        }
    }

    fn error(arguments: Vec<Argument>) -> String {
        Call::new(&SPEC, arguments).unwrap_err().strip_backtrace()
    }

    fn query(sql_columns: &[&str]) -> Argument {
        let exprs: Vec<Expr> = sql_columns
            .iter()
            .map(|name| lit("x").alias(*name))
            .collect();
        let plan = LogicalPlanBuilder::empty(true)
            .project(exprs)
            .unwrap()
            .build()
            .unwrap();
        let text = "(SELECT ...)".to_owned();
        Argument {
            name: None,
            value: Value::Query(Box::new(Relation { text, plan })),
        }
    }

    #[test]
    fn positions_names_and_defaults() {
        let call = Call::new(
            &SPEC,
            vec![at("b"), named("ft", "f"), named("dry_run", true)],
        )
        .unwrap();
        let Work::Row(row) = call.work else {
            unreachable!()
        };
        assert_eq!(row, [Some("b".into()), Some("f".into()), None]);
        assert!(call.options.flag("dry_run"));
        assert_eq!(call.options.text("effort"), None);
        assert_eq!(call.options.to_string(), "dry_run=true");
    }

    #[test]
    fn errors_name_the_argument() {
        assert!(error(vec![at("b")]).contains("needs the argument 'finetune'"));
        assert!(error(vec![at("b"), at("f"), named("rank", 3)]).contains("no argument 'rank'"));
        assert!(error(vec![at("b"), at("f"), named("rank", 3)]).contains("effort"));
        assert!(
            error(vec![at("b"), at("f"), named("base", "c")])
                .contains("'base' of f is given twice")
        );
        let twice = vec![
            at("b"),
            at("f"),
            named("dry_run", true),
            named("dry_run", true),
        ];
        assert!(error(twice).contains("given twice"));
        assert!(error(vec![at("b"), at("f"), named("dry_run", "yes")]).contains("true or false"));
        assert!(error(vec![at("b"), at("f"), named("effort", "slow")]).contains("'fast', 'max'"));
        assert!(error(vec![at("b"), at(5)]).contains("'finetune' of f must be text"));
        assert!(error(vec![at("b"), at("")]).contains("empty"));
        assert!(error(vec![named("base", "b"), at("f")]).contains("come before"));
        assert!(error(vec![at("b"), at("f"), at("o"), at("p")]).contains("too many"));
    }

    #[test]
    fn numbers_and_lists() {
        let options = |name: &str, value: ScalarValue| {
            let call = Call::new(&SPEC, vec![at("b"), at("f"), named(name, value)]);
            call.map(|call| call.options)
        };
        let energy = options("energy", ScalarValue::Float64(Some(0.9))).unwrap();
        assert_eq!(energy.number("energy"), Some(0.9));
        let top = options("top", ScalarValue::Int64(Some(16))).unwrap();
        assert_eq!(top.count("top"), Some(16));
        let all = options("top", ScalarValue::from("all")).unwrap();
        assert_eq!((all.count("top"), all.text("top")), (None, Some("all")));
        let items = [8i64, 16].map(|n| ScalarValue::Int64(Some(n)));
        let list = ScalarValue::List(ScalarValue::new_list_nullable(&items, &DataType::Int64));
        let tops = options("tops", list).unwrap();
        assert_eq!(tops.counts("tops"), Some(vec![8, 16]));
        for (name, value, needle) in [
            ("energy", ScalarValue::from("much"), "a number"),
            ("energy", ScalarValue::Float64(Some(f64::NAN)), "a number"),
            (
                "top",
                ScalarValue::Int64(Some(-1)),
                "a whole number or 'all'",
            ),
            ("top", ScalarValue::Float64(Some(1.5)), "a whole number"),
            ("top", ScalarValue::from("most"), "'all'"),
            (
                "tops",
                ScalarValue::Int64(Some(1)),
                "a list of whole numbers",
            ),
        ] {
            let error = options(name, value).unwrap_err().strip_backtrace();
            assert!(error.contains(needle) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn subqueries_by_name_or_position() {
        let names = |call: Call| match call.work {
            Work::Query(plan) => plan.schema().field_names(),
            Work::Row(_) => vec![],
        };
        let expected = ["base", "finetune", "output"];
        assert_eq!(
            names(Call::new(&SPEC, vec![query(&["ft", "base"])]).unwrap()),
            expected
        );
        assert_eq!(
            names(Call::new(&SPEC, vec![query(&["x", "y"])]).unwrap()),
            expected
        );
        assert!(error(vec![query(&["base"])]).contains("needs a column 'finetune'"));
        assert!(error(vec![query(&["base", "y"])]).contains("'y'"));
        assert!(error(vec![query(&["ft", "finetune"])]).contains("two columns"));
        assert!(error(vec![query(&["a", "b", "c", "d"])]).contains("4 columns"));
        assert!(error(vec![query(&["a", "b"]), named("output", "o")]).contains("'output'"));
    }

    static ROWS: Spec = Spec {
        name: "g",
        row: "row",
        description: "",
        inputs: &[
            Parameter::dataset("base", ""),
            Parameter::dataset("derivative", ""),
            Parameter::optional("output", ""),
        ],
        options: &[
            Parameter::of("splits", Kind::Texts, ""),
            Parameter::of("sample_size", Kind::Count(&[]), "").by_default("1000"),
        ],
        columns: &[] as &[Column],
        examples: &[],
    };

    #[test]
    fn subqueries_are_rows_beside_other_inputs() {
        let call = Call::new(&ROWS, vec![query(&["a"]), at("d"), at("out")]).unwrap();
        assert!(!call.is_batch() && call.relations.contains_key(&0));
        let mut second = query(&["a"]);
        second.name = Some("derivative".into());
        let call = Call::new(&ROWS, vec![query(&["a"]), second]).unwrap();
        assert_eq!(call.relations.keys().copied().collect::<Vec<_>>(), [0, 1]);
        // Alone, it is a work list.
        let call = Call::new(&ROWS, vec![query(&["base", "derivative"])]).unwrap();
        assert!(call.is_batch() && call.relations.is_empty());
        let error = |arguments| Call::new(&ROWS, arguments).unwrap_err().strip_backtrace();
        assert!(error(vec![at("b"), at("d"), query(&["o"])]).contains("subquery"));
        assert!(
            error(vec![query(&["base", "derivative"]), named("output", "o")]).contains("'output'")
        );
    }

    #[test]
    fn lists_and_numbers() {
        let list = ScalarValue::List(ScalarValue::new_list_nullable(
            &[ScalarValue::from("a"), ScalarValue::from("b")],
            &DataType::Utf8,
        ));
        let with = |name: &str, value: ScalarValue| {
            let call = Call::new(&ROWS, vec![at("b"), at("d"), named(name, value)])?;
            Ok::<_, datafusion::error::DataFusionError>(call.options)
        };
        let texts = |value| with("splits", value).unwrap().texts("splits").unwrap();
        assert_eq!(texts(list), ["a", "b"]);
        assert_eq!(texts("a".into()), ["a"]);
        assert!(with("splits", 3.into()).is_err());
        let size = |value: ScalarValue| with("sample_size", value).unwrap().count("sample_size");
        assert_eq!(size(5_i64.into()), Some(5));
        assert_eq!(size(ScalarValue::Int64(None)), Some(1000));
        assert!(with("sample_size", (-5_i64).into()).is_err());
        assert!(with("sample_size", 1.5.into()).is_err());
    }
}
