//! `tensor_norm(data, dtype [, norm])`.

use std::sync::{Arc, LazyLock};

use arrow::array::Float64Builder;
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::to_f64;

use crate::args::{self, Form, Kind, Rows};
use crate::{doc, tensor};

const NAME: &str = "tensor_norm";
const SYNTAX: &str = "tensor_norm(data, dtype [, norm])";
const FORMS: &[Form] = &[
    &[("data", Kind::Bytes), ("dtype", Kind::Text)],
    &[
        ("data", Kind::Bytes),
        ("dtype", Kind::Text),
        ("norm", Kind::Text),
    ],
];
/// Bytes converted at a time: whole elements of every dtype, small enough for the cache.
const CHUNK: usize = 48 * 1024;

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "A norm of a tensor, computed in double precision.",
        SYNTAX,
        "SELECT name, tensor_norm(data, dtype) AS l2, tensor_norm(data, dtype, 'max') AS largest\n\
         FROM sparse_tensors('examples/models/base') ORDER BY l2 DESC LIMIT 3;",
        &[
            doc::DATA,
            doc::DTYPE,
            (
                "norm",
                "'l2' (default; Euclidean), 'l1' (sum of magnitudes) or 'max' (largest magnitude).",
            ),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn tensor_norm_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(TensorNorm {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TensorNorm {
    signature: Signature,
}

impl ScalarUDFImpl for TensorNorm {
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
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = Rows::new(NAME, &args)?;
        let mut out = Float64Builder::with_capacity(rows.len());
        for row in 0..rows.len() {
            let norm = if rows.arguments() == 3 {
                rows.text(2, row)
            } else {
                Some("l2")
            };
            match (rows.bytes(0, row), rows.text(1, row), norm) {
                (Some(data), Some(dtype), Some(name)) => {
                    out.append_value(norm_of(row, data, dtype, name)?);
                }
                _ => out.append_null(),
            }
        }
        rows.finish(Arc::new(out.finish()))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn norm_of(row: usize, data: &[u8], dtype: &str, norm: &str) -> Result<f64> {
    let dtype = tensor::dtype(NAME, row, dtype)?;
    tensor::elements(NAME, row, dtype, data)?;
    let fold: fn(f64, &[f64]) -> f64 = match norm {
        "l1" => |acc, x| x.iter().fold(acc, |acc, x| acc + x.abs()),
        "l2" => |acc, x| x.iter().fold(acc, |acc, x| acc + x * x),
        // `f64::max` would hide a NaN.
        "max" => |acc, x| {
            x.iter().fold(acc, |acc, x| {
                if x.is_nan() || x.abs() > acc {
                    x.abs()
                } else {
                    acc
                }
            })
        },
        _ => return exec_err!("{NAME}: row {row} asks for norm '{norm}'; use 'l1', 'l2' or 'max'"),
    };
    let mut values = Vec::new();
    let mut acc = 0.0;
    for chunk in data.chunks(CHUNK) {
        values.clear();
        to_f64(dtype, chunk, &mut values).map_err(|error| tensor::failed(NAME, row, error))?;
        acc = fold(acc, &values);
    }
    Ok(if norm == "l2" { acc.sqrt() } else { acc })
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    /// 3.0 and -4.0 as F32.
    const DATA: &str = "x'00004040000080c0'";

    #[tokio::test]
    async fn norms() {
        let sql = format!(
            "SELECT tensor_norm({DATA}, 'F32'), tensor_norm({DATA}, 'F32', 'l1'), tensor_norm({DATA}, 'f32', 'max')"
        );
        assert_eq!(query(&sql).await, ["5.0|7.0|4.0"]);
    }

    #[tokio::test]
    async fn columns_nulls_and_errors() {
        let sql = format!(
            "SELECT tensor_norm(d, t) FROM (VALUES ({DATA}, 'F32'), (NULL, 'F32'), ({DATA}, NULL)) AS v(d, t)"
        );
        assert_eq!(query(&sql).await, ["5.0", "", ""]);
        assert!(
            error(&format!("SELECT tensor_norm({DATA}, 'F32', 'l3')"))
                .await
                .contains("'l3'")
        );
        assert!(
            error(&format!("SELECT tensor_norm({DATA}, 2)"))
                .await
                .contains("'dtype'")
        );
    }
}
