//! Quantised factors as bits: integers about zero, column after column, by the range coder.

use crate::{
    error::{CodecError, corrupt},
    rc::{Bit, Coder},
};

/// Bits of a magnitude, at most.
pub(crate) const BITS: usize = 22;
/// Bits below the leading one that have a model; the rest are as good as random.
const MODELLED: usize = 2;

/// The distribution of the entries of a factor, which follows them from column to column.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    length: [Bit; BITS + 1],
    /// By bit length: the first bit below the leading one, then the second by the first.
    below: [[Bit; 3]; BITS + 1],
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            length: [Bit::steady(); BITS + 1],
            below: [[Bit::steady(); 3]; BITS + 1],
        }
    }
}

impl Entry {
    /// Codes one entry: the bit length of its magnitude in unary, the bits below the leading one, the sign.
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, value: i32) -> Result<i32, CodecError> {
        let magnitude = value.unsigned_abs();
        let bits = usize::try_from(32 - magnitude.leading_zeros()).unwrap_or(0);
        let mut length = 0;
        while length <= BITS {
            if !coder.bit(&mut self.length[length], length < bits)? {
                break;
            }
            length += 1;
        }
        if length > BITS {
            return Err(corrupt("a factor's entry is too large"));
        }
        if length == 0 {
            return Ok(0);
        }
        let mut result = 1u32;
        for i in (0..length - 1).rev() {
            let bit = magnitude >> i & 1 == 1;
            let depth = length - 2 - i;
            let bit = if depth < MODELLED {
                let node = if depth == 0 {
                    0
                } else {
                    1 + usize::try_from(result & 1).unwrap_or(0)
                };
                coder.bit(&mut self.below[length][node], bit)?
            } else {
                coder.bit(&mut Bit::default(), bit)?
            };
            result = result << 1 | u32::from(bit);
        }
        let negative = coder.bit(&mut Bit::default(), value < 0)?;
        let result = result.cast_signed();
        Ok(if negative { -result } else { result })
    }
}
