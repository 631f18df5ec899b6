//! `int8_quantize(data, dtype, shape [, base_data] [, granularity])`.

use std::sync::{Arc, LazyLock};

use arrow::array::StructArray;
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::{Granularity, Int8, TensorView};

use crate::args::{self, Form, Kind, Rows};
use crate::doc;
use crate::tensor::{self, Blobs};

const NAME: &str = "int8_quantize";
const SYNTAX: &str = "int8_quantize(data, dtype, shape [, base_data [, granularity]])";
const TARGET: [(&str, Kind); 3] = [
    ("data", Kind::Bytes),
    ("dtype", Kind::Text),
    ("shape", Kind::Shape),
];
const BASE: (&str, Kind) = ("base_data", Kind::Bytes);
const FORMS: &[Form] = &[
    &TARGET,
    &[TARGET[0], TARGET[1], TARGET[2], BASE],
    &[TARGET[0], TARGET[1], TARGET[2], BASE, GRANULARITY],
];
/// What shares a scale.
const GRANULARITY: (&str, Kind) = ("granularity", Kind::Text);
pub(crate) const GRANULARITY_DOC: (&str, &str) = (
    "granularity",
    "What shares a scale: 'tensor', 'row' (the last dimension; the default) or 'group' (128 elements of a row).",
);

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The difference of a tensor from its base as 8-bit codes and scales: scale = largest magnitude / 127 of what shares it \
         (0 where nothing differs), code = nearest integer to difference / scale, ties to even. A struct of codes (one byte \
         an element, as I8) and scales (F32; F64 for F64 tensors). Null where data, dtype or shape is null; a null base_data \
         quantises the tensor itself. Lossy.",
        SYNTAX,
        "SELECT f.name, tensor_stats(q['codes'], 'I8')['max'] AS largest_code, tensor_stats(q['scales'], 'F32')['count'] AS scales\n\
         FROM (SELECT f.name, int8_quantize(f.data, f.dtype, f.shape, b.data) AS q\n\
         \u{20}     FROM sparse_tensors('examples/models/sft') AS f\n\
         \u{20}     JOIN sparse_tensors('examples/models/base') AS b ON f.name = b.name) AS f\n\
         ORDER BY f.name LIMIT 3;",
        &[
            doc::DATA,
            doc::DTYPE,
            ("shape", "The tensor's dimensions, as a list of integers."),
            (
                "base_data",
                "The bytes of the base tensor, of the same dtype and shape.",
            ),
            GRANULARITY_DOC,
        ],
    )
});

/// The function, ready to register.
pub(crate) fn int8_quantize_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Int8Quantize {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Int8Quantize {
    signature: Signature,
}

fn fields() -> Fields {
    ["codes", "scales"]
        .map(|name| Field::new(name, DataType::BinaryView, true))
        .to_vec()
        .into()
}

/// The granularity an argument names; rows where it is not given. `None` is SQL's null.
pub(crate) fn granularity(
    function: &str,
    rows: &Rows,
    argument: usize,
    row: usize,
) -> Result<Option<Granularity>> {
    if rows.arguments() <= argument {
        return Ok(Some(Granularity::default()));
    }
    rows.text(argument, row)
        .map(str::parse)
        .transpose()
        .map_err(|error| exec_datafusion_err!("{function}: row {row}: {error}"))
}

impl ScalarUDFImpl for Int8Quantize {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        args::coerce(NAME, SYNTAX, FORMS, given)
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = Rows::new(NAME, &args)?;
        let mut codes = Blobs::new(NAME, rows.len());
        let mut scales = Blobs::new(NAME, rows.len());
        let mut valid = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            let (c, s) = quantise(&rows, row)?.unzip();
            valid.push(c.is_some());
            codes.push(row, c)?;
            scales.push(row, s)?;
        }
        let columns = vec![codes.finish(), scales.finish()];
        let array = StructArray::try_new(fields(), columns, Some(NullBuffer::from(valid)))?;
        rows.finish(Arc::new(array))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

/// Codes and scales.
fn quantise(rows: &Rows, row: usize) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let (Some(data), Some(dtype), Some(shape), Some(granularity)) = (
        rows.bytes(0, row),
        rows.text(1, row),
        rows.shape(2, row)?,
        granularity(NAME, rows, 4, row)?,
    ) else {
        return Ok(None);
    };
    let dtype = tensor::dtype(NAME, row, dtype)?;
    let view = |data| TensorView {
        dtype: Some(dtype),
        shape: &shape,
        data,
    };
    let int8 = Int8::new(view(data), rows.bytes(3, row).map(view), granularity)
        .map_err(|error| tensor::failed(NAME, row, error))?;
    Ok(Some((int8.all_codes(), int8.scales().to_bytes())))
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    /// 1.0, 2.0, -4.0 and 0.0 as F32.
    const DATA: &str = "x'0000803f00000040000080c000000000'";

    #[tokio::test]
    async fn codes_and_scales() {
        let sql = format!(
            "SELECT tensor_values(q['codes'], 'I8'), round(tensor_values(q['scales'], 'F32')[1] * 127, 4) \
             FROM (SELECT int8_quantize({DATA}, 'F32', [2, 2], NULL, 'tensor') AS q)"
        );
        assert_eq!(query(&sql).await, ["[32.0, 64.0, -127.0, 0.0]|4.0"]);
        let sql =
            format!("SELECT tensor_values(int8_quantize({DATA}, 'F32', [2, 2])['codes'], 'I8')");
        assert_eq!(query(&sql).await, ["[64.0, 127.0, -127.0, 0.0]"]);
        // Nothing differs: scales are zero, and so are codes.
        let sql = format!(
            "SELECT tensor_values(q['codes'], 'I8'), tensor_values(q['scales'], 'F32') \
             FROM (SELECT int8_quantize({DATA}, 'F32', [2, 2], {DATA}) AS q)"
        );
        assert_eq!(query(&sql).await, ["[0.0, 0.0, 0.0, 0.0]|[0.0, 0.0]"]);
    }

    #[tokio::test]
    async fn nulls_and_errors() {
        assert_eq!(
            query("SELECT int8_quantize(NULL, 'F32', [1]) IS NULL").await,
            ["true"]
        );
        for (sql, needle) in [
            ("int8_quantize(x'00', 'U8', [1])", "floats"),
            ("int8_quantize(x'0000c07f', 'F32', [1])", "element 0"),
            ("int8_quantize(x'00000000', 'F32', [2])", "row 0"),
            (
                "int8_quantize(x'00000000', 'F32', [1], x'00000000', 'column')",
                "'column'",
            ),
        ] {
            let found = error(&format!("SELECT {sql}")).await;
            assert!(found.contains(needle), "{sql}: {found}");
        }
    }
}
