//! What a SQL function takes and gives: one description from which arguments are checked, result schemas are built and
//! `docs/sql.md` is generated.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// Type of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// true or false.
    Flag,
    /// A whole number from 0 on, or one of these strings.
    Count(&'static [&'static str]),
    /// A list of strings.
    Texts,
}

impl Kind {
    /// As it is written in documentation and error messages.
    pub fn describe(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(choices) => quoted(choices),
            Self::Count([]) => "a whole number".to_owned(),
            Self::Count(others) => format!("a whole number or {}", quoted(others)),
            Self::Texts => "a list of texts, such as ['one', 'two']".to_owned(),
        }
    }
}

fn quoted(choices: &[&str]) -> String {
    let quoted: Vec<String> = choices.iter().map(|choice| format!("'{choice}'")).collect();
    quoted.join(", ")
}

/// One argument.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name in `name => value`.
    pub name: &'static str,
    /// Other names it may be given by.
    pub aliases: &'static [&'static str],
    /// Its type.
    pub kind: Kind,
    /// Its value where it is not given; `None` for one that must be given, or that has no fixed default.
    pub default: Option<&'static str>,
    /// Whether a call without it is refused.
    pub required: bool,
    /// What it means.
    pub description: &'static str,
}

impl Parameter {
    /// A text argument that must be given.
    pub const fn required(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            kind: Kind::Text,
            default: None,
            required: true,
            description,
        }
    }

    /// A text argument that may be left out.
    pub const fn optional(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            kind: Kind::Text,
            default: None,
            required: false,
            description,
        }
    }

    /// A true-or-false argument, false where it is not given.
    pub const fn flag(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            kind: Kind::Flag,
            default: Some("false"),
            required: false,
            description,
        }
    }

    /// An argument with listed values.
    pub const fn choice(
        name: &'static str,
        choices: &'static [&'static str],
        default: Option<&'static str>,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            aliases: &[],
            kind: Kind::Choice(choices),
            default,
            required: false,
            description,
        }
    }

    /// An argument of a kind, which may be left out.
    pub const fn of(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            kind,
            default: None,
            required: false,
            description,
        }
    }

    /// The same argument, with this value where it is not given.
    pub const fn by_default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// The same argument, known by other names too.
    pub const fn or(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// Whether it goes by this name.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// Type of a result column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Utf8.
    Text,
    /// UInt64.
    Count,
    /// Float64.
    Real,
    /// Boolean.
    Flag,
    /// List of UInt64.
    Shape,
    /// BinaryView.
    Bytes,
}

impl Type {
    /// The Arrow type.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Count => DataType::UInt64,
            Self::Real => DataType::Float64,
            Self::Flag => DataType::Boolean,
            Self::Shape => DataType::List(Arc::new(Field::new_list_field(DataType::UInt64, true))),
            Self::Bytes => DataType::BinaryView,
        }
    }

    /// As it is written in documentation.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Text => "Utf8",
            Self::Count => "UInt64",
            Self::Real => "Float64",
            Self::Flag => "Boolean",
            Self::Shape => "List<UInt64>",
            Self::Bytes => "BinaryView",
        }
    }
}

/// One result column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub ty: Type,
    /// What it holds.
    pub description: &'static str,
}

impl Column {
    /// A column.
    pub const fn new(name: &'static str, ty: Type, description: &'static str) -> Self {
        Self {
            name,
            ty,
            description,
        }
    }
}

/// The whole description of a table function.
#[derive(Debug)]
pub struct Spec {
    /// The SQL name.
    pub name: &'static str,
    /// One row of the result is one of these.
    pub row: &'static str,
    /// What it does.
    pub description: &'static str,
    /// The references it works on, in the order of positional arguments; columns of a subquery in the batch form.
    pub inputs: &'static [Parameter],
    /// Arguments given by name.
    pub options: &'static [Parameter],
    /// The result.
    pub columns: &'static [Column],
    /// Statements that run as they stand from the repository's root. `{tmp}` stands for a scratch folder.
    pub examples: &'static [&'static str],
}

impl Spec {
    /// The call, as documentation and error messages show it.
    pub fn syntax(&self) -> String {
        let mut out = format!("{}(", self.name);
        for (at, input) in self.inputs.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            if input.required {
                out += &format!("{comma}{}", input.name);
            } else {
                out += &format!(" [{comma}{}]", input.name).replace("[, ", "[, ");
            }
        }
        for option in self.options {
            let value = match (option.kind, option.default) {
                (Kind::Flag, default) => default.unwrap_or("false").to_owned(),
                (Kind::Count(_), Some(default)) if default.parse::<f64>().is_ok() => {
                    default.to_owned()
                }
                (_, Some(default)) => format!("'{default}'"),
                (Kind::Choice(choices), None) => choices.join("|"),
                (Kind::Text | Kind::Count(_), None) => "...".to_owned(),
                (Kind::Texts, None) => "[...]".to_owned(),
            };
            out += &format!(" [, {} => {value}]", option.name);
        }
        out + ")"
    }

    /// The names of every argument, for error messages.
    pub fn argument_names(&self) -> String {
        let names: Vec<&str> = self
            .inputs
            .iter()
            .chain(self.options)
            .map(|parameter| parameter.name)
            .collect();
        names.join(", ")
    }

    /// The result's schema.
    pub fn schema(&self) -> SchemaRef {
        let field = |column: &Column| Field::new(column.name, column.ty.data_type(), true);
        Arc::new(Schema::new(
            self.columns.iter().map(field).collect::<Vec<_>>(),
        ))
    }

    /// The schema of a work list: one text column per input.
    pub fn work_schema(&self) -> SchemaRef {
        let field = |input: &Parameter| Field::new(input.name, DataType::Utf8, true);
        Arc::new(Schema::new(
            self.inputs.iter().map(field).collect::<Vec<_>>(),
        ))
    }

    /// The position of a result column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_shows_what_may_be_left_out() {
        static SPEC: Spec = Spec {
            name: "f",
            row: "row",
            description: "",
            inputs: &[Parameter::required("a", ""), Parameter::optional("b", "")],
            options: &[
                Parameter::flag("c", ""),
                Parameter::choice("d", &["x", "y"], Some("x"), ""),
            ],
            columns: &[],
            examples: &[],
        };
        assert_eq!(SPEC.syntax(), "f(a [, b] [, c => false] [, d => 'x'])");
    }
}
