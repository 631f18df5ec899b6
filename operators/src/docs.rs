//! `docs/sql.md`, generated from the functions' own descriptions.

use std::fmt::Write;

use datafusion::logical_expr::Documentation;

use crate::config::SparseConfig;
use crate::function::{Action, SparseFunction};
use crate::functions;
use crate::spec::{Kind, Parameter, Spec};

const INTRODUCTION: &str = include_str!("docs/introduction.md");
const FORMAT: &str = include_str!("docs/format.md");

/// The whole page.
pub fn sql_docs() -> String {
    let mut out = String::from(INTRODUCTION);
    let _ = writeln!(out, "\n## Table functions\n");
    for function in functions::all() {
        table_function(&mut out, function.as_ref());
    }
    let _ = writeln!(out, "{}", FORMAT.replace("{tmp}", SHOWN));
    let _ = writeln!(out, "## Scalar functions\n");
    for function in sparse_udfs::functions() {
        if let Some(doc) = function.documentation() {
            scalar_function(&mut out, function.name(), doc);
        }
    }
    options(&mut out);
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// Every example of the page, as (function, statements). `{tmp}` stands for a scratch folder.
pub fn examples() -> Vec<(String, String)> {
    let tables = functions::all().into_iter().flat_map(|function| {
        let spec = function.spec();
        spec.examples
            .iter()
            .map(move |sql| (spec.name.to_owned(), (*sql).to_owned()))
    });
    let scalars = sparse_udfs::functions().into_iter().filter_map(|function| {
        Some((
            function.name().to_owned(),
            function.documentation()?.sql_example.clone()?,
        ))
    });
    let format = FORMAT.split("```sql\n").skip(1).filter_map(|block| {
        Some((
            "SAFETENSORS".to_owned(),
            block.split("```").next()?.to_owned(),
        ))
    });
    tables.chain(scalars).chain(format).collect()
}

/// The scratch folder as the page shows it.
const SHOWN: &str = "/tmp/sparse";

fn table_function(out: &mut String, function: &dyn SparseFunction) {
    let spec = function.spec();
    let _ = writeln!(out, "### {}\n", spec.name);
    let _ = writeln!(out, "```\n{}\n```\n", spec.syntax());
    let writes = match function.action() {
        Action::Read(_) => "",
        Action::Write(_) => " Writes.",
    };
    let _ = writeln!(
        out,
        "One row per {}.{writes} {}\n",
        spec.row, spec.description
    );
    if !spec.inputs.is_empty() || !spec.options.is_empty() {
        arguments(out, spec);
    }
    let _ = writeln!(out, "| column | type | |\n|---|---|---|");
    for column in spec.columns {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} |",
            column.name,
            column.ty.describe(),
            column.description
        );
    }
    for example in spec.examples {
        let _ = writeln!(out, "\n```sql\n{}\n```", example.replace("{tmp}", SHOWN));
    }
    out.push('\n');
}

fn arguments(out: &mut String, spec: &Spec) {
    let _ = writeln!(out, "| argument | | |\n|---|---|---|");
    let inputs = spec
        .inputs
        .iter()
        .map(|input| (input, "positional or named"));
    let options = spec.options.iter().map(|option| (option, "named"));
    for (parameter, how) in inputs.chain(options) {
        let _ = writeln!(
            out,
            "| `{}` | {how}{} | {}{} |",
            parameter.name,
            if parameter.required { ", required" } else { "" },
            parameter.description,
            values(parameter),
        );
    }
    out.push('\n');
}

fn values(parameter: &Parameter) -> String {
    let mut text = String::new();
    if matches!(parameter.kind, Kind::Choice(_)) {
        let _ = write!(text, " One of {}.", parameter.kind.describe());
    }
    if let Some(default) = parameter.default {
        let _ = write!(text, " Default: {default}.");
    }
    if !parameter.aliases.is_empty() {
        let _ = write!(text, " Also called {}.", parameter.aliases.join(", "));
    }
    text
}

fn scalar_function(out: &mut String, name: &str, doc: &Documentation) {
    let _ = writeln!(
        out,
        "### {name}\n\n```\n{}\n```\n\n{}\n",
        doc.syntax_example, doc.description
    );
    let _ = writeln!(out, "| argument | |\n|---|---|");
    for (argument, description) in doc.arguments.iter().flatten() {
        let _ = writeln!(out, "| `{argument}` | {description} |");
    }
    if let Some(example) = &doc.sql_example {
        let _ = writeln!(out, "\n```sql\n{example}\n```\n");
    }
}

fn options(out: &mut String) {
    let _ = writeln!(
        out,
        "## Options\n\n`SET sparse.effort = 'max'`, `SHOW sparse.effort`. Credentials are no options: they come from the environment.\n"
    );
    let _ = writeln!(out, "| option | default | |\n|---|---|---|");
    for (name, value, description) in SparseConfig::default().documented() {
        let value = value.map_or_else(|| "unset".to_owned(), |value| format!("`{value}`"));
        let _ = writeln!(out, "| `{name}` | {value} | {description} |");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sql.md");
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == super::sql_docs(),
            "docs/sql.md differs from what the functions say: cargo run -p sparse-operators --example sql_docs > docs/sql.md"
        );
    }
}
