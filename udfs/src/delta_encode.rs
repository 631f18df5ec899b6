//! `delta_encode(data, dtype, shape, base_data [, base_dtype, base_shape] [, effort])`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::{EncodeOptions, TensorView, encode_buffer};

use crate::args::{self, Form, Kind, Rows};
use crate::doc;
use crate::tensor::{self, Blobs};

const NAME: &str = "delta_encode";
const SYNTAX: &str =
    "delta_encode(data, dtype, shape, base_data [, base_dtype, base_shape] [, effort])";
const TARGET: [(&str, Kind); 4] = [
    ("data", Kind::Bytes),
    ("dtype", Kind::Text),
    ("shape", Kind::Shape),
    ("base_data", Kind::Bytes),
];
const BASE: [(&str, Kind); 2] = [("base_dtype", Kind::Text), ("base_shape", Kind::Shape)];
const EFFORT: (&str, Kind) = ("effort", Kind::Text);
const FORMS: &[Form] = &[
    &TARGET,
    &[TARGET[0], TARGET[1], TARGET[2], TARGET[3], EFFORT],
    &[TARGET[0], TARGET[1], TARGET[2], TARGET[3], BASE[0], BASE[1]],
    &[
        TARGET[0], TARGET[1], TARGET[2], TARGET[3], BASE[0], BASE[1], EFFORT,
    ],
];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The lossless delta of a tensor against a base tensor, as one self-contained value. Null where data, dtype, shape \
         or effort is null; a null base_data encodes the tensor on its own (what an outer join gives for added tensors).",
        SYNTAX,
        "SELECT f.name, f.bytes, length(encode(delta_encode(f.data, f.dtype, f.shape, b.data), 'hex')) / 2 AS delta_bytes\n\
         FROM sparse_tensors('examples/models/sft') AS f\n\
         JOIN sparse_tensors('examples/models/base') AS b ON f.name = b.name\n\
         ORDER BY f.name LIMIT 3;",
        &[
            doc::DATA,
            doc::DTYPE,
            ("shape", "The tensor's dimensions, as a list of integers."),
            ("base_data", "The bytes of the base tensor."),
            (
                "base_dtype",
                "The base's element type; the tensor's own where it is not given.",
            ),
            (
                "base_shape",
                "The base's dimensions; the tensor's own where they are not given.",
            ),
            ("effort", "'fast', 'default' or 'max'."),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn delta_encode_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(DeltaEncode {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DeltaEncode {
    signature: Signature,
}

impl ScalarUDFImpl for DeltaEncode {
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
            let value = encode(&rows, row)?;
            out.push(row, value)?;
        }
        rows.finish(out.finish())
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn encode(rows: &Rows, row: usize) -> Result<Option<Vec<u8>>> {
    let (Some(data), Some(dtype), Some(shape)) =
        (rows.bytes(0, row), rows.text(1, row), rows.shape(2, row)?)
    else {
        return Ok(None);
    };
    let dtype = tensor::dtype(NAME, row, dtype)?;
    let with_base = rows.arguments() >= 6;
    let mut options = EncodeOptions::default();
    if matches!(rows.arguments(), 5 | 7) {
        let Some(effort) = rows.text(rows.arguments() - 1, row) else {
            return Ok(None);
        };
        options.effort = effort
            .parse()
            .map_err(|error| exec_datafusion_err!("{NAME}: row {row}: {error}"))?;
    }
    let base_dtype = match rows.text(4, row).filter(|_| with_base) {
        Some(name) => tensor::dtype(NAME, row, name)?,
        None => dtype,
    };
    let base_shape = match with_base {
        true => rows.shape(5, row)?.unwrap_or_else(|| shape.clone()),
        false => shape.clone(),
    };
    let target = TensorView {
        dtype: Some(dtype),
        shape: &shape,
        data,
    };
    let base = rows.bytes(3, row).map(|data| TensorView {
        dtype: Some(base_dtype),
        shape: &base_shape,
        data,
    });
    encode_buffer(target, base, &options)
        .map(Some)
        .map_err(|error| tensor::failed(NAME, row, error))
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    const TUNED: &str = "decode(repeat('813f', 999) || 'ff3f', 'hex')";
    const BASE: &str = "decode(repeat('803f', 1000), 'hex')";

    #[tokio::test]
    async fn what_is_encoded_comes_back() {
        let sql = format!(
            "SELECT delta_decode(d, {BASE}, 'BF16', [1000]) = {TUNED}, length(encode(d, 'hex')) < 400 \
             FROM (SELECT delta_encode({TUNED}, 'BF16', [1000], {BASE}, 'max') AS d)"
        );
        assert_eq!(query(&sql).await, ["true|true"]);
    }

    #[tokio::test]
    async fn without_a_base_and_with_another_shape() {
        let alone = format!(
            "SELECT delta_decode(delta_encode({TUNED}, 'BF16', [10, 100], NULL)) = {TUNED}"
        );
        assert_eq!(query(&alone).await, ["true"]);
        let base = "decode(repeat('803f', 500), 'hex')";
        let grown = format!(
            "SELECT delta_decode(delta_encode({TUNED}, 'BF16', [10, 100], {base}, 'BF16', [5, 100]), {base}, 'BF16', [5, 100]) = {TUNED}"
        );
        assert_eq!(query(&grown).await, ["true"]);
    }

    #[tokio::test]
    async fn nulls_and_errors() {
        assert_eq!(
            query("SELECT delta_encode(NULL, 'U8', [1], x'00') IS NULL").await,
            ["true"]
        );
        assert!(
            error("SELECT delta_encode(x'0000', 'U8', [3], x'000000')")
                .await
                .contains("row 0")
        );
        assert!(
            error("SELECT delta_encode(x'00', 'U8', 'one', x'00')")
                .await
                .contains("'shape'")
        );
        assert!(
            error("SELECT delta_encode(x'00', 'U8', [1], x'00', 'turbo')")
                .await
                .contains("turbo")
        );
        assert!(
            error("SELECT delta_encode(x'00', 'U8', [-1], x'00')")
                .await
                .contains("-1")
        );
    }
}
