//! `tensor_values(data, dtype [, width])`.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Float32Array, Float64Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, internal_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use sparse_codec::{CodecError, DType, to_f32, to_f64};

use crate::args::{self, Form, Kind, Rows};
use crate::{doc, tensor};

const NAME: &str = "tensor_values";
const SYNTAX: &str = "tensor_values(data, dtype [, width])";
const FORMS: &[Form] = &[
    &[("data", Kind::Bytes), ("dtype", Kind::Text)],
    &[
        ("data", Kind::Bytes),
        ("dtype", Kind::Text),
        ("width", Kind::Text),
    ],
];

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    doc::document(
        "The elements of a tensor as a list of numbers, in memory order. Every float up to 64 bits and every integer up to \
         53 bits is exact in the default List<Float64>.",
        SYNTAX,
        "SELECT name, tensor_values(data, dtype)[1:4] AS first_four\n\
         FROM sparse_tensors('examples/models/base') ORDER BY name LIMIT 3;",
        &[
            doc::DATA,
            doc::DTYPE,
            (
                "width",
                "'f64' (default) or 'f32': the type of the list's numbers. Must be a constant.",
            ),
        ],
    )
});

/// The function, ready to register.
pub(crate) fn tensor_values_udf() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(TensorValues {
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TensorValues {
    signature: Signature,
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

impl ScalarUDFImpl for TensorValues {
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
        internal_err!("{NAME} has its type from return_field_from_args")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let item = match args.scalar_arguments {
            [_, _] => DataType::Float64,
            [_, _, Some(width)] => match text(width) {
                Some("f32") => DataType::Float32,
                Some("f64") | None => DataType::Float64,
                Some(other) => {
                    return plan_err!(
                        "argument 'width' of {NAME} is '{other}'; use 'f32' or 'f64'"
                    );
                }
            },
            _ => return plan_err!("argument 'width' of {NAME} must be a constant: 'f32' or 'f64'"),
        };
        Ok(Arc::new(Field::new(NAME, list(item), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = Rows::new(NAME, &args)?;
        if args.return_type() == &list(DataType::Float32) {
            let (values, offsets, nulls) = collect(&rows, to_f32)?;
            return rows.finish(list_array(
                Arc::new(Float32Array::from(values)),
                offsets,
                nulls,
            )?);
        }
        let (values, offsets, nulls) = collect(&rows, to_f64)?;
        rows.finish(list_array(
            Arc::new(Float64Array::from(values)),
            offsets,
            nulls,
        )?)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

fn text(value: &ScalarValue) -> Option<&str> {
    value.try_as_str().flatten()
}

fn list_array(values: ArrayRef, offsets: Vec<i32>, valid: Vec<bool>) -> Result<ArrayRef> {
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(Arc::new(ListArray::try_new(
        field,
        offsets,
        values,
        Some(NullBuffer::from(valid)),
    )?))
}

/// Values of all rows, the offset of each row, and which rows are not null.
type Collected<T> = (Vec<T>, Vec<i32>, Vec<bool>);

/// Appends the values of a tensor's bytes to a list.
type Convert<T> = fn(DType, &[u8], &mut Vec<T>) -> Result<(), CodecError>;

fn collect<T: Copy>(rows: &Rows, convert: Convert<T>) -> Result<Collected<T>> {
    let mut all = Vec::new();
    let mut one = Vec::new();
    let mut offsets = vec![0_i32];
    let mut valid = Vec::with_capacity(rows.len());
    for row in 0..rows.len() {
        let present = match (rows.bytes(0, row), rows.text(1, row)) {
            (Some(data), Some(dtype)) => {
                let dtype = tensor::dtype(NAME, row, dtype)?;
                tensor::elements(NAME, row, dtype, data)?;
                one.clear();
                convert(dtype, data, &mut one).map_err(|error| tensor::failed(NAME, row, error))?;
                all.extend_from_slice(&one);
                true
            }
            _ => false,
        };
        valid.push(present);
        offsets.push(i32::try_from(all.len()).map_err(|_| {
            exec_datafusion_err!(
                "{NAME}: one batch holds over 2 147 483 647 values; select fewer tensors, or SET datafusion.execution.batch_size = 1"
            )
        })?);
    }
    Ok((all, offsets, valid))
}

#[cfg(test)]
mod tests {
    use crate::testing::{error, query};

    #[tokio::test]
    async fn values_of_both_widths() {
        // 1.5 and -2.0 as BF16.
        assert_eq!(
            query("SELECT tensor_values(x'c03f00c0', 'BF16')").await,
            ["[1.5, -2.0]"]
        );
        let typed = "SELECT arrow_typeof(tensor_values(x'c03f00c0', 'BF16', 'f32'))";
        assert!(query(typed).await[0].contains("Float32"));
        assert_eq!(
            query("SELECT tensor_values(x'ff01', 'I8')").await,
            ["[-1.0, 1.0]"]
        );
    }

    #[tokio::test]
    async fn nulls_and_errors() {
        let sql = "SELECT tensor_values(d, 'U8') FROM (VALUES (x'0102'), (NULL), (x'')) AS v(d)";
        assert_eq!(query(sql).await, ["[1.0, 2.0]", "", "[]"]);
        assert!(
            error("SELECT tensor_values(x'00', 'U8', 'f16')")
                .await
                .contains("'f16'")
        );
        let sql = "SELECT tensor_values(x'00', 'U8', w) FROM (VALUES ('f32'), ('f64')) AS v(w)";
        assert!(error(sql).await.contains("'width'"));
    }
}
