//! Documentation in DataFusion's own form, so that SHOW FUNCTIONS and docs/sql.md read it from one place.

use datafusion::logical_expr::{DocSection, Documentation};

/// Builds a function's documentation. The example must run as it stands (`docs/sql.md`'s test runs it).
pub(crate) fn document(
    description: &str,
    syntax: &str,
    example: &str,
    arguments: &[(&str, &str)],
) -> Documentation {
    let section = DocSection {
        include: true,
        label: "Tensor functions",
        description: Some("Functions over the columns data, dtype and shape."),
    };
    arguments
        .iter()
        .fold(
            Documentation::builder(section, description, syntax).with_sql_example(example),
            |doc, (name, text)| doc.with_argument(*name, *text),
        )
        .build()
}

/// What every `data` argument is.
pub(crate) const DATA: (&str, &str) = (
    "data",
    "The tensor's bytes, little-endian and row-major, as safetensors stores them.",
);

/// What every `dtype` argument is.
pub(crate) const DTYPE: (&str, &str) = (
    "dtype",
    "The element type as safetensors names it: BF16, F16, F32, F8_E4M3, I64, ...",
);
