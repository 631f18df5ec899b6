//! `delta_decode(delta [, base_data, base_dtype, base_shape])`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::{TensorView, decode_buffer};

use crate::args::{self, Form, Kind, Rows};
use crate::doc;
use crate::tensor::{self, Blobs};

const NAME: &str = "delta_decode";
const SYNTAX: &str = "delta_decode(delta [, base_data, base_dtype, base_shape])";
const FORMS: &[Form] = &[
    &[("delta", Kind::Bytes)],
    &[
        ("delta", Kind::Bytes),
        ("base_data", Kind::Bytes),
        ("base_dtype", Kind::Text),
        ("base_shape", Kind::Shape),
    ],
];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The bytes of the tensor that delta_encode was given, exactly. The base must be the one the delta was made against; \
         a delta made without a base needs none.",
        SYNTAX,
        "SELECT count(*) AS tensors, bool_and(rebuilt = data) AS identical\n\
         FROM (SELECT f.data, delta_decode(delta_encode(f.data, f.dtype, f.shape, b.data), b.data, b.dtype, b.shape) AS rebuilt\n\
         \u{20}     FROM sparse_tensors('examples/models/sft') AS f\n\
         \u{20}     JOIN sparse_tensors('examples/models/base') AS b ON f.name = b.name);",
        &[
            ("delta", "What delta_encode returned."),
            ("base_data", "The bytes of the base tensor; null for none."),
            ("base_dtype", "The base's element type."),
            (
                "base_shape",
                "The base's dimensions, as a list of integers.",
            ),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn delta_decode_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(DeltaDecode {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DeltaDecode {
    signature: Signature,
}

impl ScalarUDFImpl for DeltaDecode {
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
            let value = decode(&rows, row)?;
            out.push(row, value)?;
        }
        rows.finish(out.finish())
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn decode(rows: &Rows, row: usize) -> Result<Option<Vec<u8>>> {
    let Some(delta) = rows.bytes(0, row) else {
        return Ok(None);
    };
    let shape = rows.shape(3, row)?;
    let base = match (rows.bytes(1, row), rows.text(2, row), &shape) {
        (None, _, _) => None,
        (Some(data), Some(dtype), Some(shape)) => {
            let dtype = tensor::dtype(NAME, row, dtype)?;
            Some(TensorView {
                dtype: Some(dtype),
                shape,
                data,
            })
        }
        (Some(_), _, _) => {
            return exec_err!(
                "{NAME}: row {row} has base_data, but a null base_dtype or base_shape; use {SYNTAX}"
            );
        }
    };
    decode_buffer(delta, base)
        .map(|tensor| Some(tensor.data))
        .map_err(|error| tensor::failed(NAME, row, error))
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    #[tokio::test]
    async fn nulls_propagate_and_rubbish_is_refused() {
        assert_eq!(query("SELECT delta_decode(NULL) IS NULL").await, ["true"]);
        assert!(
            error("SELECT delta_decode(x'0011223344')")
                .await
                .contains("delta_decode: row 0")
        );
        assert!(
            error("SELECT delta_decode(x'00', x'00', 'U8', NULL)")
                .await
                .contains("base_shape")
        );
        assert!(
            error("SELECT delta_decode(x'00', x'00')")
                .await
                .contains("2 argument(s)")
        );
        assert!(error("SELECT delta_decode('00')").await.contains("'delta'"));
    }

    #[tokio::test]
    async fn a_missing_base_is_refused() {
        let delta = "delta_encode(decode(repeat('813f', 999), 'hex'), 'BF16', [999], decode(repeat('803f', 999), 'hex'))";
        let message = error(&format!("SELECT delta_decode({delta})")).await;
        assert!(message.contains("base"), "{message}");
    }
}
