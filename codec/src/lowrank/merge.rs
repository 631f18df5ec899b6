//! Merging an adapter into a weight, to the bits that PEFT gives on a CPU.
//!
//! The prediction of [`super::predict`] is PEFT's rule: `round(f32(w) + scale * chain)`, or with the update rounded first. Torch's
//! product sums up to 128 terms in ascending order by fused multiply-adds; longer ones it splits in ways of its own.

use super::predict::{Class, Factors, Rounding};
use super::{Adapter, matrix};
use crate::DType;
use crate::cast::{to_f32, word_value};
use crate::error::CodecError;
use crate::word::load;

/// The largest rank whose sums are known to the last bit.
pub const MAX_MERGED_RANK: u64 = 128;

/// An adapter's update, ready to be added to one weight.
#[derive(Clone, Debug)]
pub struct Merge {
    dtype: DType,
    rounding: Rounding,
    factors: Factors,
}

impl Merge {
    /// The update of a weight of `dtype` and `shape`.
    ///
    /// # Errors
    /// Weights that are no matrices of F32, F16 or BF16, factors of other shapes or dtypes, and ranks above
    /// [`MAX_MERGED_RANK`].
    pub fn new(
        adapter: Adapter<'_>,
        dtype: Option<DType>,
        shape: &[u64],
    ) -> Result<Self, CodecError> {
        let unsupported = |what: String| CodecError::Unsupported { what };
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let elements = elements.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let Some((dtype, rows, cols)) = matrix(dtype, shape, elements) else {
            return Err(unsupported(
                "a weight that an adapter is merged into must be a matrix of F32, F16 or BF16"
                    .to_owned(),
            ));
        };
        let (&[left_rows, rank], &[right_rank, right_cols]) =
            (adapter.left.shape, adapter.right.shape)
        else {
            return Err(unsupported(
                "an adapter's factors must be matrices".to_owned(),
            ));
        };
        if (left_rows, right_cols) != (rows as u64, cols as u64) || rank != right_rank || rank == 0
        {
            return Err(unsupported(format!(
                "an adapter's factors of [{left_rows}, {rank}] and [{right_rank}, {right_cols}] make no update of [{rows}, {cols}]"
            )));
        }
        if rank > MAX_MERGED_RANK {
            return Err(unsupported(format!(
                "an adapter of rank {rank} is not merged: above {MAX_MERGED_RANK} the order in which PEFT's sums are taken, and \
                 so their last bits, depend on its matrix library; merge it with PEFT"
            )));
        }
        let values = |factor: crate::TensorView<'_>| {
            let Some(from @ (DType::F32 | DType::F16 | DType::BF16)) = factor.dtype else {
                return Err(unsupported(
                    "an adapter's factors must be F32, F16 or BF16".to_owned(),
                ));
            };
            factor.check()?;
            let mut values = Vec::new();
            to_f32(from, factor.data, &mut values)?;
            Ok(values)
        };
        let (left, right) = (values(adapter.left)?, values(adapter.right)?);
        let rank = usize::try_from(rank).unwrap_or(0);
        Ok(Self {
            dtype,
            rounding: if adapter.rounded {
                Rounding::Twice
            } else {
                Rounding::Once
            },
            factors: Factors::new(left, &right, rank, cols, adapter.scale),
        })
    }

    /// Adds the update to the words of the weight from number `first` on. `work` is scratch.
    ///
    /// # Errors
    /// Sums that are infinite or no numbers: PEFT's safe merge refuses those, and nobody wants them.
    pub fn apply(
        &self,
        first: usize,
        words: &mut [u8],
        work: &mut MergeWork,
    ) -> Result<(), CodecError> {
        work.before.clear();
        work.before.extend_from_slice(words);
        self.factors
            .apply(self.dtype, self.rounding, first, words, &mut work.classes);
        let width = self.dtype.word_bytes();
        let all = words
            .chunks_exact(width)
            .zip(work.before.chunks_exact(width))
            .zip(&work.classes);
        for (at, ((word, before), class)) in all.enumerate() {
            // A word that stays with class 0 may be one whose sum is not finite, which the prediction leaves alone.
            if *class == 0 && word == before && !self.is_finite(first + at, before) {
                return Err(CodecError::Unsupported {
                    what: format!(
                        "element {} of the merged weight is infinite or no number: base or adapter is broken",
                        first + at
                    ),
                });
            }
        }
        Ok(())
    }

    fn is_finite(&self, at: usize, before: &[u8]) -> bool {
        let word = match before.len() {
            2 => load::<2>(before, 0),
            _ => load::<4>(before, 0),
        };
        let update = f64::from(self.factors.element(at));
        let sum = word_value(self.dtype, word) + update;
        let limit = match self.dtype {
            DType::F16 => 65_520.0,
            DType::BF16 => f64::from(f32::from_bits(0x7f7f_8000)),
            _ => f64::from(f32::MAX),
        };
        // Written so that no number is beyond the limit.
        sum.abs() < limit && (self.rounding == Rounding::Once || update.abs() < limit)
    }
}

/// What [`Merge::apply`] writes its notes in.
#[derive(Clone, Debug, Default)]
pub struct MergeWork {
    before: Vec<u8>,
    classes: Vec<Class>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]
    use super::*;
    use crate::TensorView;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn merge(left: &[f32], right: &[f32], scale: f32, base: &[f32]) -> Result<Vec<u8>, CodecError> {
        let (rows, cols) = (left.len() as u64, right.len() as u64);
        let (left, right) = (bytes(left), bytes(right));
        let view = |shape, data| TensorView {
            dtype: Some(DType::F32),
            shape,
            data,
        };
        let merge = Merge::new(
            Adapter {
                left: view(&[rows, 1], &left),
                right: view(&[1, cols], &right),
                scale,
                rounded: false,
            },
            Some(DType::F32),
            &[rows, cols],
        )?;
        let mut words = bytes(base);
        merge.apply(0, &mut words, &mut MergeWork::default())?;
        Ok(words)
    }

    #[test]
    fn sums_are_added() {
        let merged = merge(&[1.0, 2.0], &[3.0, 4.0], 0.5, &[1.0; 4]).unwrap();
        assert_eq!(merged, bytes(&[2.5, 3.0, 4.0, 5.0]));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = merge(&[1.0, bad], &[3.0, 4.0], 0.5, &[1.0; 4]).unwrap_err();
            assert!(error.to_string().contains("no number"), "{error}");
            assert!(merge(&[1.0, 1.0], &[3.0, 4.0], 0.5, &[1.0, bad, 1.0, 1.0]).is_err());
        }
        assert!(merge(&[1.0, 3e38], &[3.0, 4.0], 1.0, &[0.0; 4]).is_err());
    }

    #[test]
    fn large_ranks_and_other_shapes_are_refused() {
        let data = bytes(&vec![0.0; 129 * 4]);
        let view = |shape| TensorView {
            dtype: Some(DType::F32),
            shape,
            data: &data,
        };
        let adapter = |left, right| Adapter {
            left: view(left),
            right: view(right),
            scale: 1.0,
            rounded: false,
        };
        let f32 = Some(DType::F32);
        let error = Merge::new(adapter(&[4, 129], &[129, 4]), f32, &[4, 4]).unwrap_err();
        assert!(error.to_string().contains("merge it with PEFT"), "{error}");
        assert!(Merge::new(adapter(&[4, 129], &[129, 4]), f32, &[4, 5]).is_err());
        assert!(Merge::new(adapter(&[4, 2], &[2, 4]), Some(DType::F64), &[4, 4]).is_err());
        // Data of another length than the shape says.
        assert!(Merge::new(adapter(&[4, 2], &[2, 4]), f32, &[4, 4]).is_err());
    }
}
