//! A predictor: the base plus an update of low rank.
//!
//! A fine-tune that is a merged adapter, `round(b + scale * B A)`, is predicted (nearly) exactly by factors of the adapter's
//! rank: given ones, or ones found from the rounding intervals ([`solve`]). Where an update is only roughly of low rank, the
//! factors are worth their bytes as far as they make the residual smaller ([`fit`]). What the residual is depends on where the
//! unrounded prediction lies within its rounding interval, so that is its context ([`predict`]).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod factors;
mod fit;
mod gram;
mod merge;
mod predict;
mod solve;

use std::sync::Arc;

use crate::{
    DType, Effort, EncodeOptions, TensorView,
    analysis::Analysis,
    bits::{put_varint, take_byte, take_bytes, take_size},
    buffer::{decode_matrix, encode_buffer},
    error::{CodecError, corrupt},
    rc::{Decoder, Encoder},
};
use factors::Entry;
pub(crate) use fit::promising;
pub use fit::{Unmerged, unmerge};
use fit::{cheapest, fit};
pub use merge::{MAX_MERGED_RANK, Merge, MergeWork};
pub(crate) use predict::{BELOW, CLASSES, Class};
use predict::{Factors, Rounding};

/// Form bit: the factors are an adapter's, to the last bit.
const GIVEN: u8 = 1;
/// Form bit: the update is rounded to the dtype before it joins the base.
const TWICE: u8 = 2;
/// Largest rank.
const MAX_RANK: usize = 512;

/// An adapter's update of one matrix, to predict a merged model by: `f32(base) + scale * left x right`, with the products
/// summed by fused multiply-adds in order of the rank.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// `[rows, rank]`, F32, F16 or BF16: LoRA's B.
    pub left: TensorView<'a>,
    /// `[rank, columns]`: LoRA's A.
    pub right: TensorView<'a>,
    /// LoRA's alpha over rank.
    pub scale: f32,
    /// The update is rounded to the tensor's dtype before it is added, as PEFT's `safe_merge` does.
    pub rounded: bool,
}

/// A low-rank prediction of one tensor, found by [`Self::find`] or made of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowRank {
    /// As it stands in the tensor's header.
    coded: Vec<u8>,
}

impl LowRank {
    /// The low-rank prediction of `target` by `base`, where one pays: at `fast` never, at `default` where the update is of low
    /// rank but for rounding, as that of a merged adapter is, at `max` wherever the factors cost less than they save.
    ///
    /// # Errors
    /// Data that does not have the length dtype and shape ask for.
    pub fn find(
        target: TensorView<'_>,
        base: TensorView<'_>,
        effort: Effort,
    ) -> Result<Option<Self>, CodecError> {
        fit(&Analysis::new(target, Some(base), None)?, effort)
    }

    /// The candidate that makes the tensor smallest, if one makes it smaller; else what [`Self::find`] finds, if it is `sought`.
    pub(crate) fn best(
        analysis: &Analysis<'_>,
        candidates: &[Self],
        effort: Effort,
        sought: bool,
    ) -> Result<Option<Self>, CodecError> {
        if let Some(best) = cheapest(analysis, candidates, effort)? {
            return Ok(Some(best));
        }
        if sought {
            fit(analysis, effort)
        } else {
            Ok(None)
        }
    }

    /// The prediction that an adapter makes.
    ///
    /// # Errors
    /// Factors of other dtypes or of shapes that do not match.
    pub fn adapter(adapter: Adapter<'_>) -> Result<Self, CodecError> {
        let unsupported = |what: &str| CodecError::Unsupported {
            what: format!(
                "an adapter's factors {what}: they must be [rows, rank] and [rank, columns] in F32, F16 or BF16"
            ),
        };
        let (&[_, rank], &[right, _]) = (adapter.left.shape, adapter.right.shape) else {
            return Err(unsupported("are not matrices"));
        };
        if rank != right || rank == 0 || rank > MAX_RANK as u64 {
            return Err(unsupported("do not match or have too large a rank"));
        }
        let mut coded = vec![GIVEN | if adapter.rounded { TWICE } else { 0 }];
        put_varint(&mut coded, rank);
        coded.extend_from_slice(&adapter.scale.to_le_bytes());
        for factor in [adapter.left, adapter.right] {
            if !matches!(factor.dtype, Some(DType::F32 | DType::F16 | DType::BF16)) {
                return Err(unsupported("have another dtype"));
            }
            let buffer = encode_buffer(factor, None, &EncodeOptions::default())?;
            put_varint(&mut coded, buffer.len() as u64);
            coded.extend_from_slice(&buffer);
        }
        Ok(Self { coded })
    }

    /// The name of the predictor.
    pub(crate) fn name(&self) -> &'static str {
        match self.coded.first() {
            Some(form) if form & GIVEN != 0 => "adapter",
            _ => "low_rank",
        }
    }

    /// Bytes of the factors in the tensor's header.
    pub fn size(&self) -> usize {
        self.coded.len()
    }

    /// The factors, ready to be multiplied, of a tensor of this dtype and shape.
    ///
    /// # Errors
    /// A tensor that is no matrix of F32, F16 or BF16, and factors that do not fit it.
    pub fn matrices(&self, dtype: DType, shape: &[u64]) -> Result<Matrices, CodecError> {
        let common = shape
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(*d))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| corrupt("dtype and shape make no tensor"))?;
        Update::open(self, Some(dtype), shape, common).map(|update| Arc::new(update).into())
    }

    /// Appends the section of the tensor's header.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.coded.len() as u64);
        out.extend_from_slice(&self.coded);
    }
}

/// Factors as integers: entry `i, k` of the left one and `k, j` of the right one multiply to `left * right * steps[k]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Quantised {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) steps: Vec<f32>,
    /// Column after column.
    pub(crate) left: Vec<i32>,
    /// Row after row.
    pub(crate) right: Vec<i32>,
}

impl Quantised {
    fn rank(&self) -> usize {
        self.steps.len()
    }

    pub(crate) fn to_low_rank(&self) -> LowRank {
        let mut coded = vec![0];
        put_varint(&mut coded, self.rank() as u64);
        for step in &self.steps {
            coded.extend_from_slice(&step.to_le_bytes());
        }
        let mut coder = Encoder::new();
        for factor in [&self.left, &self.right] {
            let mut entries = Entry::default();
            for value in factor {
                let _infallible = entries.code(&mut coder, *value);
            }
        }
        coded.extend_from_slice(&coder.finish());
        LowRank { coded }
    }

    fn take(data: &mut &[u8], rank: usize, rows: usize, cols: usize) -> Result<Self, CodecError> {
        let steps = (0..rank)
            .map(|_| take_f32(data))
            .collect::<Result<Vec<_>, _>>()?;
        let mut coder = Decoder::new(std::mem::take(data));
        let mut factor = |count: usize| {
            let mut entries = Entry::default();
            // Grown as the coder gives them: a hostile rank without data to back it ends in an error first.
            let mut values = Vec::with_capacity(count.min(1 << 12));
            for _ in 0..count {
                values.push(entries.code(&mut coder, 0)?);
            }
            Ok::<_, CodecError>(values)
        };
        let left = factor(rank * rows)?;
        let right = factor(rank * cols)?;
        Ok(Self {
            rows,
            cols,
            steps,
            left,
            right,
        })
    }

    fn factors(&self) -> Factors {
        let rank = self.rank();
        let mut left = vec![0f32; rank * self.rows];
        for (k, step) in self.steps.iter().enumerate() {
            let column = self.left.iter().skip(k * self.rows).take(self.rows);
            for (i, u) in column.enumerate() {
                left[i * rank + k] = exact(*u) * step;
            }
        }
        let right: Vec<f32> = self.right.iter().map(|v| exact(*v)).collect();
        Factors::new(left, &right, rank, self.cols, 1.0)
    }
}

/// Entries have at most 22 bits.
#[expect(clippy::cast_precision_loss, reason = "at most 22 bits")]
fn exact(x: i32) -> f32 {
    x as f32
}

fn take_f32(data: &mut &[u8]) -> Result<f32, CodecError> {
    let bytes = take_bytes(data, 4)?;
    let value = f32::from_le_bytes(
        bytes
            .try_into()
            .map_err(|_| corrupt("a factor's step ends early"))?,
    );
    if value.is_finite() {
        Ok(value)
    } else {
        Err(corrupt("a factor's step is no number"))
    }
}

/// The predictor at work.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    dtype: DType,
    rounding: Rounding,
    factors: Factors,
}

impl Update {
    /// Opens the predictor of a tensor's first `common` words, which are rows of `cols`.
    pub(crate) fn open(
        low_rank: &LowRank,
        dtype: Option<DType>,
        shape: &[u64],
        common: usize,
    ) -> Result<Self, CodecError> {
        let (dtype, rows, cols) = matrix(dtype, shape, common)
            .ok_or_else(|| corrupt("a tensor that is no matrix has a low-rank prediction"))?;
        let mut data = &low_rank.coded[..];
        let form = take_byte(&mut data)?;
        if form & !(GIVEN | TWICE) != 0 {
            return Err(corrupt(
                "an unknown form of factors: a newer version may read it",
            ));
        }
        let rank = take_size(&mut data, MAX_RANK)?;
        if rank == 0 || rank.saturating_mul(rows + cols) > common.saturating_mul(4) {
            return Err(corrupt("a low-rank prediction's rank is out of range"));
        }
        let factors = if form & GIVEN != 0 {
            let scale = take_f32(&mut data)?;
            let mut factor = |shape: [usize; 2]| {
                let left = data.len();
                let length = take_size(&mut data, left)?;
                decode_matrix(take_bytes(&mut data, length)?, shape)
            };
            let left = factor([rows, rank])?;
            let right = factor([rank, cols])?;
            if !data.is_empty() {
                return Err(corrupt("bytes follow an adapter's factors"));
            }
            Factors::new(left, &right, rank, cols, scale)
        } else {
            Quantised::take(&mut data, rank, rows, cols)?.factors()
        };
        Ok(Self {
            dtype,
            rounding: if form & TWICE != 0 {
                Rounding::Twice
            } else {
                Rounding::Once
            },
            factors,
        })
    }

    /// Takes the section that [`LowRank::put`] wrote off the front of `data`.
    pub(crate) fn take(
        data: &mut &[u8],
        dtype: Option<DType>,
        shape: &[u64],
        common: usize,
    ) -> Result<Self, CodecError> {
        let length = take_size(data, data.len())?;
        let coded = take_bytes(data, length)?.to_vec();
        Self::open(&LowRank { coded }, dtype, shape, common)
    }

    /// Makes predictions of the base's words from `first` on.
    pub(crate) fn apply(&self, first: usize, words: &mut [u8], classes: &mut Vec<Class>) {
        self.factors
            .apply(self.dtype, self.rounding, first, words, classes);
    }
}

/// The factors of a low-rank prediction as they are multiplied: what another device needs to predict the same words.
#[derive(Clone, Debug)]
pub struct Matrices(Arc<Update>);

impl From<Arc<Update>> for Matrices {
    fn from(update: Arc<Update>) -> Self {
        Self(update)
    }
}

impl Matrices {
    /// The dtype of base and prediction.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Columns of both factors' product.
    pub fn cols(&self) -> usize {
        self.0.factors.cols
    }

    /// Columns of the left factor and rows of the right one.
    pub fn rank(&self) -> usize {
        self.0.factors.rank
    }

    /// What multiplies the finished sum.
    pub fn scale(&self) -> f32 {
        self.0.factors.scale()
    }

    /// Whether the update is rounded to the dtype before it joins the base.
    pub fn rounded(&self) -> bool {
        self.0.rounding == Rounding::Twice
    }

    /// The left factor, row after row.
    pub fn left(&self) -> &[f32] {
        self.0.factors.left()
    }

    /// The right factor, row after row.
    pub fn right(&self) -> Vec<f32> {
        self.0.factors.right()
    }

    /// Replaces the base's words from the `first` on by predictions. Each has a class: how far its unrounded value lies from
    /// where it would round to another word (0 to 15, in half octaves; 0x80 is added below the word), the residual's context.
    pub fn predict(&self, first: usize, words: &mut [u8], classes: &mut Vec<u8>) {
        self.0.apply(first, words, classes);
    }
}

/// A tensor's predicted part as a matrix: rows by the first dimension, columns by the others; `None` for what no low-rank
/// update predicts.
pub(crate) fn matrix(
    dtype: Option<DType>,
    shape: &[u64],
    common: usize,
) -> Option<(DType, usize, usize)> {
    let dtype = dtype.filter(|d| matches!(d, DType::BF16 | DType::F16 | DType::F32))?;
    let [_, rest @ ..] = shape else { return None };
    if rest.is_empty() || rest.len() > 3 {
        return None;
    }
    let cols = rest.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    let cols = usize::try_from(cols).ok().filter(|c| *c > 0)?;
    let rows = common / cols;
    (rows > 0 && common.is_multiple_of(cols)).then_some((dtype, rows, cols))
}
