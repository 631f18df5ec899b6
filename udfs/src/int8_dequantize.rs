//! `int8_dequantize(codes, scales, dtype, shape [, base_data [, granularity]])`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::int8_dequantize;

use crate::args::{self, Form, Kind, Rows};
use crate::doc;
use crate::int8_quantize::{GRANULARITY_DOC, granularity};
use crate::tensor::{self, Blobs};

const NAME: &str = "int8_dequantize";
const SYNTAX: &str = "int8_dequantize(codes, scales, dtype, shape [, base_data [, granularity]])";
const CODED: [(&str, Kind); 4] = [
    ("codes", Kind::Bytes),
    ("scales", Kind::Bytes),
    ("dtype", Kind::Text),
    ("shape", Kind::Shape),
];
const BASE: (&str, Kind) = ("base_data", Kind::Bytes);
const FORMS: &[Form] = &[
    &CODED,
    &[CODED[0], CODED[1], CODED[2], CODED[3], BASE],
    &[
        CODED[0],
        CODED[1],
        CODED[2],
        CODED[3],
        BASE,
        ("granularity", Kind::Text),
    ],
];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The tensor that codes and scales of int8_quantize make of a base: base + code * scale, rounded once to dtype; the \
         base's own bits where the code is 0. Null where codes, scales, dtype or shape is null; a null base_data gives \
         code * scale.",
        SYNTAX,
        "SELECT name, dtype, tensor_norm(int8_dequantize(q['codes'], q['scales'], dtype, shape, base), dtype) AS norm\n\
         FROM (SELECT f.name, f.dtype, f.shape, b.data AS base, int8_quantize(f.data, f.dtype, f.shape, b.data) AS q\n\
         \u{20}     FROM sparse_tensors('examples/models/sft') AS f\n\
         \u{20}     JOIN sparse_tensors('examples/models/base') AS b ON f.name = b.name) AS f\n\
         ORDER BY name LIMIT 3;",
        &[
            ("codes", "One signed byte an element, -127 to 127."),
            (
                "scales",
                "Little-endian F32, or F64 for F64 tensors, one for each tensor, row or group.",
            ),
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
pub(crate) fn int8_dequantize_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Int8Dequantize {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Int8Dequantize {
    signature: Signature,
}

impl ScalarUDFImpl for Int8Dequantize {
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
        Ok(DataType::BinaryView)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = Rows::new(NAME, &args)?;
        let mut out = Blobs::new(NAME, rows.len());
        for row in 0..rows.len() {
            out.push(row, dequantise(&rows, row)?)?;
        }
        rows.finish(out.finish())
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn dequantise(rows: &Rows, row: usize) -> Result<Option<Vec<u8>>> {
    let (Some(codes), Some(scales), Some(dtype), Some(shape), Some(granularity)) = (
        rows.bytes(0, row),
        rows.bytes(1, row),
        rows.text(2, row),
        rows.shape(3, row)?,
        granularity(NAME, rows, 5, row)?,
    ) else {
        return Ok(None);
    };
    let dtype = tensor::dtype(NAME, row, dtype)?;
    let base = rows.bytes(4, row).map(|data| (dtype, data));
    int8_dequantize(codes, scales, dtype, &shape, base, granularity)
        .map(Some)
        .map_err(|error| tensor::failed(NAME, row, error))
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    #[tokio::test]
    async fn base_plus_code_times_scale() {
        // 1.0 and 2.0 as BF16; codes 4 and -2 times 0.25.
        let sql = "SELECT tensor_values(int8_dequantize(x'04fe', x'0000803e', 'BF16', [1, 2], x'803f0040'), 'BF16')";
        assert_eq!(query(sql).await, ["[2.0, 1.5]"]);
        let sql = "SELECT tensor_values(int8_dequantize(x'04fe', x'0000803e', 'F32', [2]), 'F32')";
        assert_eq!(query(sql).await, ["[1.0, -0.5]"]);
    }

    #[tokio::test]
    async fn nulls_and_errors() {
        assert_eq!(
            query("SELECT int8_dequantize(NULL, x'00', 'F32', [1]) IS NULL").await,
            ["true"]
        );
        for (sql, needle) in [
            ("int8_dequantize(x'00', x'0000803e', 'F32', [2])", "row 0"),
            ("int8_dequantize(x'00', x'0000', 'F32', [1])", "scales"),
            ("int8_dequantize(x'00', x'0000c07f', 'F32', [1])", "finite"),
            (
                "int8_dequantize(x'00', x'0000803e', 'F32', [1], x'00')",
                "row 0",
            ),
            ("int8_dequantize(x'00', x'0000803e', 'I32', [1])", "floats"),
        ] {
            let found = error(&format!("SELECT {sql}")).await;
            assert!(found.contains(needle), "{sql}: {found}");
        }
    }
}
