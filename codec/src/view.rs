//! A borrowed tensor.

use crate::{CodecError, DType};

/// A borrowed tensor: little-endian, row-major bytes as safetensors stores them.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type; `None` where the name is unknown and the data are bytes.
    pub dtype: Option<DType>,
    /// Elements per dimension; empty for a scalar.
    pub shape: &'a [u64],
    /// The elements.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Checks that the data has the length dtype and shape ask for (unknown dtypes: any length).
    ///
    /// # Errors
    /// [`CodecError::Length`].
    pub fn check(&self) -> Result<(), CodecError> {
        let found = self.data.len() as u64;
        match byte_len(self.dtype, self.shape) {
            Some(expected) if expected == found => Ok(()),
            None if self.dtype.is_none() => Ok(()),
            expected => Err(CodecError::Length {
                expected: expected.unwrap_or(u64::MAX),
                found,
            }),
        }
    }
}

/// Bytes that dtype and shape ask for; `None` on overflow, on packed elements that do not fill whole bytes, and for
/// unknown dtypes.
pub(crate) fn byte_len(dtype: Option<DType>, shape: &[u64]) -> Option<u64> {
    let bits = shape
        .iter()
        .try_fold(u64::from(dtype?.bits()), |n, d| n.checked_mul(*d))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
