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
    /// A subquery: the work list of the batch form.
    Query(Box<LogicalPlan>),
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

    /// The value of a whole number, where it is not one of the option's strings.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// The texts of a list.
    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        serde_json::from_str(self.text(name)?).ok()
    }

    /// The value of a flag.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
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
}

impl Call {
    /// Checks arguments against the function's description.
    pub(crate) fn new(spec: &Spec, arguments: Vec<Argument>) -> Result<Self> {
        let function = spec.name;
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
                    Value::Query(plan) if positional == 0 && query.is_none() => query = Some(plan),
                    Value::Query(_) => {
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
                let value = constant(spec, &name, argument.value)?;
                if inputs[at].is_some() {
                    return plan_err!("argument '{name}' of {function} is given twice");
                }
                inputs[at] = Some(text(spec, &spec.inputs[at], value)?);
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
                Work::Query(Box::new(work_list(spec, *plan)?))
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
        Ok(Self { work, options })
    }

    /// Whether the work comes from a subquery.
    pub(crate) fn is_batch(&self) -> bool {
        matches!(self.work, Work::Query(_))
    }
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
        Value::Query(_) => plan_err!(
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
        Kind::Text => text(spec, option, value),
        Kind::Flag => match value {
            ScalarValue::Boolean(Some(flag)) => Ok(Some(flag.to_string())),
            _ => ill_typed(spec, option, &value),
        },
        Kind::Choice(choices) => match value.try_as_str().flatten() {
            Some(text) if choices.contains(&text) => Ok(Some(text.to_owned())),
            _ => ill_typed(spec, option, &value),
        },
        Kind::Count(others) => match value.try_as_str().flatten() {
            Some(text) if others.contains(&text) => Ok(Some(text.to_owned())),
            _ => match whole(&value) {
                Some(count) => Ok(Some(count.to_string())),
                None => ill_typed(spec, option, &value),
            },
        },
        Kind::Texts => match texts(&value) {
            Some(texts) => Ok(Some(serde_json::Value::from(texts).to_string())),
            None => ill_typed(spec, option, &value),
        },
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

/// Texts, none of them null.
fn texts(value: &ScalarValue) -> Option<Vec<String>> {
    let ScalarValue::List(list) = value else {
        return None;
    };
    let items = list.value(0);
    (0..items.len())
        .map(|at| {
            let item = ScalarValue::try_from_array(&items, at).ok()?;
            item.try_as_str().flatten().map(str::to_owned)
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
            Parameter::of("top", Kind::Count(&["all"]), ""),
            Parameter::of("texts", Kind::Texts, ""),
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
        Argument {
            name: None,
            value: Value::Query(Box::new(plan)),
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
    fn lists_of_texts() {
        let items = ["a, b", "it's"].map(ScalarValue::from);
        let list = ScalarValue::List(ScalarValue::new_list_nullable(&items, &DataType::Utf8));
        let call = Call::new(&SPEC, vec![at("b"), at("f"), named("texts", list)]).unwrap();
        let expected = ["a, b", "it's"].map(str::to_owned).to_vec();
        assert_eq!(call.options.texts("texts"), Some(expected));
        let wrong = error(vec![at("b"), at("f"), named("texts", "a")]);
        assert!(wrong.contains("a list of texts"), "{wrong}");
    }

    #[test]
    fn whole_numbers() {
        let options = |value: ScalarValue| {
            let call = Call::new(&SPEC, vec![at("b"), at("f"), named("top", value)]);
            call.map(|call| call.options)
        };
        let top = options(ScalarValue::Int64(Some(16))).unwrap();
        assert_eq!(top.count("top"), Some(16));
        let all = options(ScalarValue::from("all")).unwrap();
        assert_eq!((all.count("top"), all.text("top")), (None, Some("all")));
        for value in [
            ScalarValue::Int64(Some(-1)),
            ScalarValue::Float64(Some(1.5)),
            ScalarValue::from("most"),
        ] {
            let error = options(value).unwrap_err().strip_backtrace();
            assert!(error.contains("a whole number or 'all'"), "{error}");
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
}
