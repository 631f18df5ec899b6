//! The work list: one row per unit of work, one text column per input of the function.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use datafusion::common::{Result, internal_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_plan::ExecutionPlan;

use crate::function::Inputs;
use crate::spec::Spec;

/// A work list of one row of constants.
pub(crate) fn constant(spec: &Spec, row: &Inputs) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = spec.work_schema();
    let columns: Vec<ArrayRef> = row
        .iter()
        .map(|value| Arc::new(StringArray::from(vec![value.as_deref()])) as ArrayRef)
        .collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
    let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?;
    Ok(MemorySourceConfig::try_new_exec(
        &[vec![batch]],
        schema,
        None,
    )?)
}

/// The rows of a batch of a work list.
pub(crate) fn rows(spec: &Spec, batch: &RecordBatch) -> Result<Vec<Inputs>> {
    let columns = batch
        .columns()
        .iter()
        .map(
            |column| match column.as_any().downcast_ref::<StringArray>() {
                Some(column) => Ok(column),
                None => internal_err!(
                    "{}: the work list has a column of {}",
                    spec.name,
                    column.data_type()
                ),
            },
        )
        .collect::<Result<Vec<_>>>()?;
    Ok((0..batch.num_rows())
        .map(|row| {
            columns
                .iter()
                .map(|column| column.is_valid(row).then(|| column.value(row).to_owned()))
                .collect()
        })
        .collect())
}
