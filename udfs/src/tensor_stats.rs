//! `tensor_stats(data, dtype)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{Float64Builder, StructArray, UInt64Builder};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::{TensorStats as Stats, TensorView};

use crate::args::{self, Form, Kind, Rows};
use crate::{doc, tensor};

const NAME: &str = "tensor_stats";
const SYNTAX: &str = "tensor_stats(data, dtype)";
const FORMS: &[Form] = &[&[("data", Kind::Bytes), ("dtype", Kind::Text)]];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "Statistics of a tensor in one pass, as a struct: count, nan, inf, zeros (numbers of elements), min, max, mean, std \
         (of the finite elements) and l2 (their Euclidean norm).",
        SYNTAX,
        "SELECT name, s.mean, s.std, s.zeros\n\
         FROM (SELECT name, tensor_stats(data, dtype) AS s FROM sparse_tensors('examples/models/base'))\n\
         ORDER BY s.std DESC LIMIT 3;",
        &[doc::DATA, doc::DTYPE],
    )
});

/// The function, ready to register.
pub(crate) fn tensor_stats_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(TensorStats {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TensorStats {
    signature: Signature,
}

fn fields() -> Fields {
    static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
        let count = |name| Field::new(name, DataType::UInt64, true);
        let value = |name| Field::new(name, DataType::Float64, true);
        Fields::from(vec![
            count("count"),
            count("nan"),
            count("inf"),
            count("zeros"),
            value("min"),
            value("max"),
            value("mean"),
            value("std"),
            value("l2"),
        ])
    });
    FIELDS.clone()
}

impl ScalarUDFImpl for TensorStats {
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
        let mut counts: [UInt64Builder; 4] = Default::default();
        let mut values: [Float64Builder; 5] = Default::default();
        let mut valid = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            let stats = match (rows.bytes(0, row), rows.text(1, row)) {
                (Some(data), Some(dtype)) => Some(stats(row, data, dtype)?),
                _ => None,
            };
            valid.push(stats.is_some());
            let (c, v) = stats.map_or(([None; 4], [None; 5]), |s| {
                let finite = s.count.saturating_sub(s.nan).saturating_sub(s.inf) > 0;
                let known = |value: f64| finite.then_some(value);
                (
                    [Some(s.count), Some(s.nan), Some(s.inf), Some(s.zeros)],
                    [
                        known(s.min),
                        known(s.max),
                        known(s.mean()),
                        known(s.std()),
                        known(s.l2()),
                    ],
                )
            });
            counts
                .iter_mut()
                .zip(c)
                .for_each(|(builder, value)| builder.append_option(value));
            values
                .iter_mut()
                .zip(v)
                .for_each(|(builder, value)| builder.append_option(value));
        }
        let columns = counts
            .into_iter()
            .map(|mut b| Arc::new(b.finish()) as _)
            .chain(values.into_iter().map(|mut b| Arc::new(b.finish()) as _))
            .collect();
        let array = StructArray::try_new(fields(), columns, Some(NullBuffer::from(valid)))?;
        rows.finish(Arc::new(array))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn stats(row: usize, data: &[u8], dtype: &str) -> Result<Stats> {
    let dtype = tensor::dtype(NAME, row, dtype)?;
    let shape = [tensor::elements(NAME, row, dtype, data)?];
    Stats::of(TensorView {
        dtype: Some(dtype),
        shape: &shape,
        data,
    })
    .ok_or_else(|| {
        exec_datafusion_err!(
            "{NAME}: row {row} has dtype {}, which has no numeric statistics",
            dtype.name()
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    #[tokio::test]
    async fn counts_and_moments() {
        // 1.0, -3.0, 0.0, NaN as F32.
        let sql = "SELECT s.* FROM (SELECT tensor_stats(x'0000803f000040c0000000000000c07f', 'F32') AS s)";
        let out = query(&sql.replace("s.*", "s.count, s.nan, s.inf, s.zeros, s.min, s.max")).await;
        assert_eq!(out, ["4|1|0|1|-3.0|1.0"]);
    }

    #[tokio::test]
    async fn nulls_propagate_and_empty_is_empty() {
        assert_eq!(
            query("SELECT tensor_stats(NULL, 'F32') IS NULL").await,
            ["true"]
        );
        assert_eq!(
            query("SELECT tensor_stats(x'', NULL) IS NULL").await,
            ["true"]
        );
        let out =
            query("SELECT s.count, s.min IS NULL FROM (SELECT tensor_stats(x'', 'BF16') AS s)")
                .await;
        assert_eq!(out, ["0|true"]);
    }

    #[tokio::test]
    async fn errors_name_the_argument_or_the_row() {
        assert!(
            error("SELECT tensor_stats(1, 'F32')")
                .await
                .contains("'data'")
        );
        assert!(
            error("SELECT tensor_stats(x'00')")
                .await
                .contains("tensor_stats(data, dtype)")
        );
        assert!(
            error("SELECT tensor_stats(x'00', 'F99')")
                .await
                .contains("'F99'")
        );
        assert!(
            error("SELECT tensor_stats(x'000000', 'F32')")
                .await
                .contains("3 bytes")
        );
    }
}
