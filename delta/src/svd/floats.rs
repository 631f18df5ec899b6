//! Rows of weights as `f32`, and back with one rounding.

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use sparse_codec::DType;

/// Elements that are converted at a time.
const PIECE: usize = 256;

/// Dtypes whose differences are decomposed: every value is one of `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    pub(crate) fn of(dtype: Option<DType>) -> Option<Self> {
        match dtype? {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The values of `out.len()` elements.
    pub(crate) fn read(self, data: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => {
                for (x, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
            Self::BF16 => {
                for (x, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            Self::F16 => {
                let mut piece = [f16::ZERO; PIECE];
                let words = data.as_chunks::<2>().0;
                for (out, words) in out.chunks_mut(PIECE).zip(words.chunks(PIECE)) {
                    for (x, b) in piece.iter_mut().zip(words) {
                        *x = f16::from_le_bytes(*b);
                    }
                    piece[..out.len()].convert_to_f32_slice(out);
                }
            }
        }
    }

    /// The elements nearest to some values, ties to even; `out` has their bytes.
    pub(crate) fn write(self, values: &[f32], out: &mut [u8]) {
        match self {
            Self::F32 => {
                for (b, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *b = x.to_le_bytes();
                }
            }
            Self::BF16 => {
                for (b, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *b = bf16::from_f32(*x).to_le_bytes();
                }
            }
            Self::F16 => {
                for (b, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *b = f16::from_f32(*x).to_le_bytes();
                }
            }
        }
    }

    /// The variance of what rounding to this dtype did to a value: a twelfth of the square of its unit in the last place.
    pub(crate) fn variance(self, value: f32) -> f32 {
        let (mantissa, least) = match self {
            Self::F32 => (23, -126),
            Self::F16 => (10, -14),
            Self::BF16 => (7, -126),
        };
        let exponent = (value.to_bits() >> 23 & 0xff).cast_signed() - 127;
        let unit = exponent.max(least) - mantissa;
        // Two to the power of twice the unit, from its bits; what is too small for `f32` is no noise.
        let bits = u32::try_from(2 * unit + 127).unwrap_or(0).min(254);
        f32::from_bits(bits << 23) / 12.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_there_and_back() {
        let values: Vec<f32> = (-700i16..700).map(|i| f32::from(i) * 0.0371).collect();
        for float in [Float::F32, Float::F16, Float::BF16] {
            let mut bytes = vec![0; values.len() * float.size()];
            let (mut again, mut twice) = (vec![0.0; values.len()], bytes.clone());
            float.write(&values, &mut bytes);
            float.read(&bytes, &mut again);
            float.write(&again, &mut twice);
            assert_eq!(bytes, twice);
            for (a, b) in values.iter().zip(&again) {
                // Six standard deviations of a uniform error are more than its half unit.
                assert!(
                    (a - b).abs() <= 6.0 * float.variance(*a).sqrt(),
                    "{float:?} {a} {b}"
                );
            }
        }
    }

    #[test]
    fn units_in_the_last_place() {
        let unit = |float: Float, x: f32| (float.variance(x) * 12.0).sqrt();
        assert_eq!(unit(Float::BF16, 1.5), 2f32.powi(-7));
        assert_eq!(unit(Float::F16, -0.3), 2f32.powi(-12));
        assert_eq!(unit(Float::F16, 1e-6), 2f32.powi(-24));
        assert_eq!(unit(Float::F32, 0.02), 2f32.powi(-29));
        assert_eq!(unit(Float::F32, 0.0), 0.0);
    }
}
