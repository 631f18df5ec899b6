//! Rows to columns.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, ListArray, RecordBatch, RecordBatchOptions, StringArray,
    UInt64Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::common::{Result, exec_datafusion_err};

/// A text column.
pub(crate) fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = Option<T>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<StringArray>())
}

/// A column of counts.
pub(crate) fn counts(values: impl IntoIterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<UInt64Array>())
}

/// A column of real numbers.
pub(crate) fn reals(values: impl IntoIterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<Float64Array>())
}

/// A column of truths.
pub(crate) fn flags(values: impl IntoIterator<Item = Option<bool>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<BooleanArray>())
}

/// A column of shapes.
pub(crate) fn shapes<'a>(values: impl IntoIterator<Item = &'a [u64]>) -> Result<ArrayRef> {
    let mut all = Vec::new();
    let mut offsets = vec![0_i32];
    for shape in values {
        all.extend_from_slice(shape);
        let end = i32::try_from(all.len())
            .map_err(|_| exec_datafusion_err!("one batch holds too many dimensions"))?;
        offsets.push(end);
    }
    let item = Arc::new(Field::new_list_field(DataType::UInt64, true));
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(Arc::new(ListArray::try_new(
        item,
        offsets,
        Arc::new(UInt64Array::from(all)),
        None,
    )?))
}

/// A batch, also where it has no columns.
pub(crate) fn batch(schema: SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(
        schema, columns, &options,
    )?)
}
