//! `svd_factors(data, base_data, dtype, shape, rank)`.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayBuilder, Float32Builder, Float64Array, Float64Builder, ListBuilder, StructArray,
    UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::DType;
use sparse_svd::{Difference, Measured, Rank, Svd};

use crate::args::{self, Form, Kind, Rows};
use crate::{doc, tensor};

const NAME: &str = "svd_factors";
const SYNTAX: &str = "svd_factors(data, base_data, dtype, shape, rank)";
const FORMS: &[Form] = &[&[
    ("data", Kind::Bytes),
    ("base_data", Kind::Bytes),
    ("dtype", Kind::Text),
    ("shape", Kind::Shape),
    ("rank", Kind::Number),
]];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The leading singular triplets of data - base_data (of data itself where base_data is null), as a struct: rank (how many), u \
         (rows x rank values, row after row), s (the singular values, largest first), v (rank x columns), captured_energy (the share \
         of the squared Frobenius norm that they hold) and relative_error (the norm of what is left over that of the whole).",
        SYNTAX,
        "SELECT name, f.s[1] AS sigma_1, f.captured_energy\n\
         FROM (SELECT t.name, svd_factors(t.data, b.data, t.dtype, t.shape, 4) AS f\n\
         \u{20}     FROM sparse_tensors('examples/models/sft') AS t\n\
         \u{20}     JOIN sparse_tensors('examples/models/base') AS b ON t.name = b.name\n\
         \u{20}     WHERE t.name LIKE '%q_proj.weight')\n\
         ORDER BY sigma_1 DESC LIMIT 3;",
        &[
            doc::DATA,
            (
                "base_data",
                "The bytes of the base's matrix, of the same element type and shape; null for none.",
            ),
            (
                "dtype",
                "The element type of both: F32, F16, BF16 or F64 and others with values.",
            ),
            ("shape", "[rows, columns]: a list of two integers."),
            (
                "rank",
                "How many triplets, from 1 on; never more than rows or columns.",
            ),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn svd_factors_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(SvdFactors {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SvdFactors {
    signature: Signature,
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

fn fields() -> Fields {
    static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
        Fields::from(vec![
            Field::new("rank", DataType::UInt64, true),
            Field::new("u", list(DataType::Float32), true),
            Field::new("s", list(DataType::Float64), true),
            Field::new("v", list(DataType::Float32), true),
            Field::new("captured_energy", DataType::Float64, true),
            Field::new("relative_error", DataType::Float64, true),
        ])
    });
    FIELDS.clone()
}

impl ScalarUDFImpl for SvdFactors {
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
        let (mut u, mut v) = (
            ListBuilder::new(Float32Builder::new()),
            ListBuilder::new(Float32Builder::new()),
        );
        let mut s = ListBuilder::new(Float64Builder::new());
        let (mut ranks, mut measured, mut valid) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..rows.len() {
            let found = factors(&rows, row)?;
            valid.push(found.is_some());
            ranks.push(found.as_ref().map(|(svd, _)| svd.rank() as u64));
            measured.push(found.as_ref().map(|(_, measured)| *measured));
            if let Some((svd, _)) = &found {
                let (left, right) = svd.vectors();
                let held = u.values().len() + v.values().len() + left.len() + right.len();
                if i32::try_from(held).is_err() {
                    return exec_err!(
                        "{NAME}: the factors of one batch hold more than 2^31 values; set a smaller batch size"
                    );
                }
                u.values().append_slice(&left);
                v.values().append_slice(&right);
                s.values().append_slice(svd.sigmas());
            }
            u.append(found.is_some());
            s.append(found.is_some());
            v.append(found.is_some());
        }
        let real = |of: fn(&Measured) -> f64| {
            let values = measured.iter().map(|m| m.as_ref().map(of));
            values.collect::<Float64Array>()
        };
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(UInt64Array::from(ranks)),
            Arc::new(u.finish()),
            Arc::new(s.finish()),
            Arc::new(v.finish()),
            Arc::new(real(Measured::captured)),
            Arc::new(real(Measured::relative)),
        ];
        let array = StructArray::try_new(fields(), columns, Some(NullBuffer::from(valid)))?;
        rows.finish(Arc::new(array))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn factors(rows: &Rows, row: usize) -> Result<Option<(Svd, Measured)>> {
    let shape = rows.shape(3, row)?;
    let (Some(data), Some(dtype), Some(shape), Some(rank)) = (
        rows.bytes(0, row),
        rows.text(2, row),
        shape,
        rows.number(4, row),
    ) else {
        return Ok(None);
    };
    let dtype = tensor::dtype(NAME, row, dtype)?;
    let &[height, width] = shape.as_slice() else {
        return exec_err!(
            "{NAME}: the shape of row {row} must be [rows, columns], not {shape:?}; give experts one by one"
        );
    };
    if rank < 1.0 || rank.fract() != 0.0 {
        return exec_err!(
            "{NAME}: the rank of row {row} must be a whole number from 1 on, not {rank}"
        );
    }
    let values = |data: &[u8]| read(row, dtype, data, height.checked_mul(width));
    let tuned = values(data)?;
    let base = match rows.bytes(1, row) {
        Some(base) => values(base)?,
        None => vec![0.0; tuned.len()],
    };
    let cols = usize::try_from(width).unwrap_or(usize::MAX);
    let failed = |error: sparse_svd::SvdError| exec_datafusion_err!("{NAME}: row {row}: {error}");
    if tuned.is_empty() {
        return exec_err!("{NAME}: the matrix of row {row} is empty");
    }
    let source = Difference::new(&base, &tuned, cols).map_err(failed)?;
    // A float beyond all sizes becomes the largest.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number from 1 on, and never more than the smaller side is used"
    )]
    let rank = Rank::Fixed(rank as usize);
    let svd = Svd::new(&source, rank).map_err(failed)?;
    let measured = Measured::new(&source, &svd.factors()).map_err(failed)?;
    Ok(Some((svd, measured)))
}

/// A matrix's elements, which must be as many as its shape says.
fn read(row: usize, dtype: DType, data: &[u8], wanted: Option<u64>) -> Result<Vec<f32>> {
    if wanted != Some(tensor::elements(NAME, row, dtype, data)?) {
        return exec_err!(
            "{NAME}: a matrix of row {row} has {} bytes, which is not what its dtype and shape take",
            data.len()
        );
    }
    let mut values = Vec::new();
    sparse_codec::to_f32(dtype, data, &mut values)
        .map_err(|error| tensor::failed(NAME, row, error))?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    #[tokio::test]
    async fn a_matrix_of_rank_one() {
        // [[3, 4], [6, 8]]: one singular value, the root of 125.
        let sql = "SELECT f.rank, round(f.s[1] * f.s[1], 3), round(f.captured_energy, 3), array_length(f.u), \
                   round(abs(f.u[1] * f.s[1] * f.v[1]), 3) \
                   FROM (SELECT svd_factors(x'00004040000080400000c04000000041', NULL, 'F32', [2, 2], 1) AS f)";
        assert_eq!(query(sql).await, ["1|125.0|1.0|2|3.0"]);
    }

    #[tokio::test]
    async fn nulls_and_errors() {
        assert_eq!(
            query("SELECT svd_factors(NULL, NULL, 'F32', [1, 1], 1) IS NULL").await,
            ["true"]
        );
        for (arguments, needle) in [
            ("x'0000803f', NULL, 'F32', [1], 1", "[rows, columns]"),
            ("x'0000803f', NULL, 'F32', [1, 1], 0", "from 1 on"),
            ("x'0000803f', NULL, 'F32', [1, 2], 1", "4 bytes"),
            ("x'0000c07f', NULL, 'F32', [1, 1], 1", "NaN"),
            ("x'0000803f', x'00', 'F32', [1, 1], 1", "row 0"),
            ("x'', NULL, 'F32', [0, 4], 1", "empty"),
            ("x'0000803f', NULL, 'F32', [1, 1], 'four'", "'rank'"),
        ] {
            let message = error(&format!("SELECT svd_factors({arguments})")).await;
            assert!(message.contains(needle), "{arguments}: {message}");
        }
    }
}
