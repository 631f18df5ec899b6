//! `tensor_cast(data, from, to)`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::cast;

use crate::args::{self, Form, Kind, Rows};
use crate::doc;
use crate::tensor::{self, Blobs};

const NAME: &str = "tensor_cast";
const SYNTAX: &str = "tensor_cast(data, from, to)";
const FORMS: &[Form] = &[&[
    ("data", Kind::Bytes),
    ("from", Kind::Text),
    ("to", Kind::Text),
]];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The bytes of a tensor in another element type. Each value is rounded once, to nearest, ties to even.",
        SYNTAX,
        "SELECT name, dtype, tensor_values(tensor_cast(data, dtype, 'F32'), 'F32')[1] AS first\n\
         FROM sparse_tensors('examples/models/base') ORDER BY name LIMIT 3;",
        &[
            doc::DATA,
            ("from", "The element type of the data."),
            ("to", "The element type wanted."),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn tensor_cast_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(TensorCast {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TensorCast {
    signature: Signature,
}

impl ScalarUDFImpl for TensorCast {
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
            let value = match (rows.bytes(0, row), rows.text(1, row), rows.text(2, row)) {
                (Some(data), Some(from), Some(to)) => {
                    let from = tensor::dtype(NAME, row, from)?;
                    let to = tensor::dtype(NAME, row, to)?;
                    tensor::elements(NAME, row, from, data)?;
                    Some(cast(from, data, to).map_err(|error| tensor::failed(NAME, row, error))?)
                }
                _ => None,
            };
            out.push(row, value)?;
        }
        rows.finish(out.finish())
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    #[tokio::test]
    async fn casts_round_once_to_even() {
        let hex = |sql: &str| format!("SELECT encode({sql}, 'hex')");
        // 1.0 and -2.0.
        assert_eq!(
            query(&hex("tensor_cast(x'803f00c0', 'BF16', 'F32')")).await,
            ["0000803f000000c0"]
        );
        // 1 + 2^-8 lies between two BF16 values: to even, down.
        assert_eq!(
            query(&hex("tensor_cast(x'0080803f', 'F32', 'BF16')")).await,
            ["803f"]
        );
    }

    #[tokio::test]
    async fn nulls_long_values_and_errors() {
        assert_eq!(
            query("SELECT tensor_cast(NULL, 'BF16', 'F32') IS NULL").await,
            ["true"]
        );
        let sql = "SELECT length(encode(tensor_cast(decode(repeat('803f', 1000), 'hex'), 'BF16', 'F32'), 'hex')) / 2";
        assert_eq!(query(sql).await, ["4000"]);
        assert!(
            error("SELECT tensor_cast(x'00', 'BF16', 'F32')")
                .await
                .contains("1 bytes")
        );
        assert!(
            error("SELECT tensor_cast(x'00', 'BF16')")
                .await
                .contains("tensor_cast(data, from, to)")
        );
    }
}
