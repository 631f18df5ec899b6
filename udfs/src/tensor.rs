//! Rows as tensors.

use arrow::array::{ArrayRef, BinaryViewBuilder};
use arrow::buffer::Buffer;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err, exec_err};
use sparse_codec::{CodecError, DType};
use std::sync::Arc;

/// The dtype a row names.
pub(crate) fn dtype(function: &str, row: usize, name: &str) -> Result<DType> {
    DType::parse(name)
        .or_else(|| DType::parse(&name.to_ascii_uppercase()))
        .ok_or_else(|| {
            exec_datafusion_err!(
                "{function}: row {row} has dtype '{name}', which is not a safetensors dtype; \
             use BF16, F16, F32, F64, F8_E4M3, F8_E5M2, I8, I32, I64, U8, BOOL, ..."
            )
        })
}

/// How many elements the bytes hold.
pub(crate) fn elements(function: &str, row: usize, dtype: DType, data: &[u8]) -> Result<u64> {
    let bits = u64::try_from(data.len())
        .unwrap_or(u64::MAX)
        .saturating_mul(8);
    let width = u64::from(dtype.bits());
    if !bits.is_multiple_of(width) {
        return exec_err!(
            "{function}: the data of row {row} has {} bytes, which is not a whole number of {} elements",
            data.len(),
            dtype.name()
        );
    }
    Ok(bits / width)
}

/// A codec failure, with the function and the row.
pub(crate) fn failed(function: &str, row: usize, error: CodecError) -> DataFusionError {
    DataFusionError::External(Box::new(error)).context(format!("{function}: row {row}"))
}

/// Collects one binary value per row without copying: every value becomes a block of the view array.
pub(crate) struct Blobs {
    builder: BinaryViewBuilder,
    function: &'static str,
}

/// Values up to this size live inside the view itself.
const INLINE: usize = 12;

impl Blobs {
    pub(crate) fn new(function: &'static str, rows: usize) -> Self {
        Self {
            builder: BinaryViewBuilder::with_capacity(rows),
            function,
        }
    }

    pub(crate) fn push(&mut self, row: usize, value: Option<Vec<u8>>) -> Result<()> {
        match value {
            None => self.builder.append_null(),
            Some(value) if value.len() <= INLINE => self.builder.append_value(value),
            Some(value) => {
                let length = u32::try_from(value.len())
                    .ok()
                    .filter(|length| i32::try_from(*length).is_ok())
                    .ok_or_else(|| {
                        exec_datafusion_err!(
                            "{}: the result of row {row} is over 2 GiB, more than one value can hold",
                            self.function
                        )
                    })?;
                let block = self.builder.append_block(Buffer::from_vec(value));
                self.builder.try_append_view(block, 0, length)?;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> ArrayRef {
        Arc::new(self.builder.finish())
    }
}
