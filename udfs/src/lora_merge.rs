//! `lora_merge(data, dtype, shape, a, b, factor_dtype, scale [, rule])`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use sparse_codec::{Adapter, Merge, MergeWork, TensorView};

use crate::args::{self, Form, Kind, Rows};
use crate::doc;
use crate::tensor::{self, Blobs};

const NAME: &str = "lora_merge";
const SYNTAX: &str = "lora_merge(data, dtype, shape, a, b, factor_dtype, scale [, rule])";
const FORMS: &[Form] = &[
    &[
        ("data", Kind::Bytes),
        ("dtype", Kind::Text),
        ("shape", Kind::Shape),
        ("a", Kind::Bytes),
        ("b", Kind::Bytes),
        ("factor_dtype", Kind::Text),
        ("scale", Kind::Number),
    ],
    &[
        ("data", Kind::Bytes),
        ("dtype", Kind::Text),
        ("shape", Kind::Shape),
        ("a", Kind::Bytes),
        ("b", Kind::Bytes),
        ("factor_dtype", Kind::Text),
        ("scale", Kind::Number),
        ("rule", Kind::Text),
    ],
];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The bytes of a weight with a LoRA update merged into it, data + scale * b a, to the bits that PEFT's merge gives on a CPU. \
         Ranks up to 128; sums that are infinite or no numbers are errors. Null where an argument is.",
        SYNTAX,
        "SELECT w.name, lora_merge(w.data, w.dtype, w.shape, a.data, b.data, a.dtype, 2.0) = m.data AS as_peft_merged_it\n\
         FROM sparse_tensors('examples/models/base') AS w\n\
         JOIN sparse_tensors('examples/models/lora-merged') AS m ON m.name = w.name\n\
         JOIN sparse_tensors('examples/models/lora') AS a\n\
         \u{20} ON a.name = concat('base_model.model.', replace(w.name, '.weight', '.lora_A.weight'))\n\
         JOIN sparse_tensors('examples/models/lora') AS b\n\
         \u{20} ON b.name = concat('base_model.model.', replace(w.name, '.weight', '.lora_B.weight'))\n\
         ORDER BY w.name LIMIT 3;",
        &[
            doc::DATA,
            doc::DTYPE,
            (
                "shape",
                "The weight's dimensions, [out, in]: a list of two integers.",
            ),
            ("a", "The bytes of lora_A, [rank, in]."),
            ("b", "The bytes of lora_B, [out, rank]."),
            (
                "factor_dtype",
                "The element type of both: F32, F16 or BF16.",
            ),
            (
                "scale",
                "LoRA's alpha over the rank (with rslora, over its root).",
            ),
            (
                "rule",
                "default: the sum is rounded once; safe: the update is rounded before it is added, as safe_merge does. Default: \
                 default.",
            ),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn lora_merge_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(LoraMerge {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct LoraMerge {
    signature: Signature,
}

impl ScalarUDFImpl for LoraMerge {
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
            out.push(row, merged(&rows, row)?)?;
        }
        rows.finish(out.finish())
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn merged(rows: &Rows, row: usize) -> Result<Option<Vec<u8>>> {
    let shape = rows.shape(2, row)?;
    let (Some(data), Some(dtype), Some(shape), Some(a), Some(b), Some(factor), Some(scale)) = (
        rows.bytes(0, row),
        rows.text(1, row),
        shape,
        rows.bytes(3, row),
        rows.bytes(4, row),
        rows.text(5, row),
        rows.number(6, row),
    ) else {
        return Ok(None);
    };
    let rounded = match rows.text(7, row) {
        None if rows.arguments() < 8 => false,
        None => return Ok(None),
        Some("default") => false,
        Some("safe") => true,
        Some(rule) => {
            return exec_err!(
                "{NAME}: the rule of row {row} must be 'default' or 'safe', not '{rule}'"
            );
        }
    };
    let dtype = tensor::dtype(NAME, row, dtype)?;
    let factor = tensor::dtype(NAME, row, factor)?;
    let &[out, inner] = shape.as_slice() else {
        return exec_err!("{NAME}: the shape of row {row} must be [out, in], not {shape:?}");
    };
    let wanted = out.checked_mul(inner);
    if wanted != Some(tensor::elements(NAME, row, dtype, data)?) {
        return exec_err!(
            "{NAME}: the data of row {row} has {} bytes, which is not what {} of {shape:?} take",
            data.len(),
            dtype.name()
        );
    }
    let rank = tensor::elements(NAME, row, factor, a)?
        .checked_div(inner)
        .unwrap_or(0);
    let view = |shape, data| TensorView {
        dtype: Some(factor),
        shape,
        data,
    };
    let (left, right) = ([out, rank], [rank, inner]);
    let adapter = Adapter {
        left: view(&left, b),
        right: view(&right, a),
        scale: narrow(scale),
        rounded,
    };
    let failed = |error| tensor::failed(NAME, row, error);
    let merge = Merge::new(adapter, Some(dtype), &shape).map_err(failed)?;
    let mut words = data.to_vec();
    merge
        .apply(0, &mut words, &mut MergeWork::default())
        .map_err(failed)?;
    Ok(Some(words))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "to the nearest, as torch does"
)]
fn narrow(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    // [[1, 0], [0, 1]] and the factors [[1, 2]] and [[1], [1]], all F32.
    const WEIGHT: &str = "x'0000803f00000000000000000000803f', 'F32', [2, 2]";
    const A: &str = "x'0000803f00000040'";
    const B: &str = "x'0000803f0000803f'";

    #[tokio::test]
    async fn the_product_is_added() {
        let sql = format!("SELECT tensor_values(lora_merge({WEIGHT}, {A}, {B}, 'F32', 2), 'F32')");
        assert_eq!(query(&sql).await, ["[3.0, 4.0, 2.0, 5.0]"]);
        let safe = format!(
            "SELECT tensor_values(lora_merge({WEIGHT}, {A}, {B}, 'F32', 0.5, 'safe'), 'F32')"
        );
        assert_eq!(query(&safe).await, ["[1.5, 1.0, 0.5, 2.0]"]);
    }

    #[tokio::test]
    async fn nulls_propagate() {
        let sql = format!("SELECT lora_merge({WEIGHT}, NULL, {B}, 'F32', 2) IS NULL");
        assert_eq!(query(&sql).await, ["true"]);
    }

    #[tokio::test]
    async fn errors_name_what_is_wrong() {
        for (sql, needle) in [
            (format!("{WEIGHT}, {A}, {B}, 'F32', 2, 'odd'"), "'odd'"),
            (format!("{WEIGHT}, {A}, x'00', 'U8', 2"), "row 0"),
            (format!("{WEIGHT}, {A}, x'0000', 'BF16', 2"), "row 0"),
            (format!("{WEIGHT}, {A}, {B}, 'F32', 'two'"), "'scale'"),
            (
                format!("x'00', 'F32', [1, 1], {A}, {B}, 'F32', 2"),
                "1 bytes",
            ),
            (format!("{WEIGHT}, {A}, {B}, 'F32', 1e39"), "no number"),
        ] {
            let message = error(&format!("SELECT lora_merge({sql})")).await;
            assert!(message.contains(needle), "{sql}: {message}");
        }
    }
}
