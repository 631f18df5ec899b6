//! How a tensor is cut: rows that share a scale, strips that are coded on their own, blocks that are stored on their own.

use std::ops::Range;

use crate::{dtype::DType, view::TensorView};

/// Elements (words) of a block.
pub(crate) const BLOCK: usize = 1 << 19;
/// Shortest row that gets a scale of its own; shorter ones are joined.
pub(crate) const MIN_ROW: usize = 64;
/// Longest row; longer ones are cut.
const MAX_ROW: usize = 1 << 14;

/// How much of the base a target can be predicted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Nothing.
    None,
    /// The first `words` words, of the same dtype.
    Same { words: usize },
    /// The first `words` words, after a cast from another dtype.
    Cast { words: usize, from: DType },
}

impl Relation {
    /// Decided by dtypes and shapes alone, so that the decoder comes to the same result.
    pub(crate) fn of(
        dtype: Option<DType>,
        shape: &[u64],
        base: Option<(Option<DType>, &[u64])>,
    ) -> Self {
        let Some((base_dtype, base_shape)) = base else {
            return Self::None;
        };
        let tail = |s: &[u64]| s.get(1..).map(<[u64]>::to_vec);
        let same_rows = shape == base_shape
            || (!shape.is_empty()
                && shape.len() == base_shape.len()
                && tail(shape) == tail(base_shape));
        let elements = |s: &[u64]| {
            s.iter()
                .try_fold(1u64, |n, d| n.checked_mul(*d))
                .and_then(|n| usize::try_from(n).ok())
        };
        let (Some(mine), Some(theirs), true) = (elements(shape), elements(base_shape), same_rows)
        else {
            return Self::None;
        };
        let common = mine.min(theirs);
        match (dtype, base_dtype) {
            (Some(d), Some(b)) if d == b => {
                let words = u64::from(d.bits()) * common as u64 / 8 / d.word_bytes() as u64;
                Self::Same {
                    words: usize::try_from(words).unwrap_or(0),
                }
            }
            (Some(d), Some(b))
                if d.is_float() && b.is_float() && d != DType::C64 && b != DType::C64 =>
            {
                Self::Cast {
                    words: common,
                    from: b,
                }
            }
            _ => Self::None,
        }
    }

    /// Words of the target that have a prediction.
    pub(crate) fn words(self) -> usize {
        match self {
            Self::None => 0,
            Self::Same { words } | Self::Cast { words, .. } => words,
        }
    }
}

/// The cuts of one tensor, in words.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Bytes of a word.
    pub(crate) width: usize,
    /// Words in all.
    pub(crate) words: usize,
    /// Words with a prediction; a block never crosses this line.
    pub(crate) common: usize,
    /// Words of a row.
    pub(crate) row: usize,
}

impl Geometry {
    /// `words`: of the whole tensor; `common`: with a prediction.
    pub(crate) fn new(dtype: Option<DType>, shape: &[u64], words: usize, common: usize) -> Self {
        let width = dtype.map_or(1, DType::word_bytes);
        let per_row = match shape {
            [_, rest @ ..] if !rest.is_empty() => rest
                .iter()
                .try_fold(1u64, |n, d| n.checked_mul(*d))
                .unwrap_or(u64::MAX),
            _ => u64::MAX,
        };
        let per_row = usize::try_from(per_row)
            .unwrap_or(usize::MAX)
            .clamp(1, words.max(1));
        let row = if per_row < MIN_ROW {
            per_row * MIN_ROW.div_ceil(per_row)
        } else if per_row > MAX_ROW {
            // Equal pieces, so that a piece does not straddle two rows.
            per_row.div_ceil(per_row.div_ceil(MAX_ROW))
        } else {
            per_row
        };
        Self {
            width,
            words,
            common: common.min(words),
            row,
        }
    }

    /// Of a target view and its relation to the base.
    pub(crate) fn of(target: TensorView<'_>, relation: Relation) -> Self {
        let width = target.dtype.map_or(1, DType::word_bytes);
        Self::new(
            target.dtype,
            target.shape,
            target.data.len() / width,
            relation.words(),
        )
    }

    pub(crate) fn rows(&self) -> usize {
        self.common.div_ceil(self.row.max(1))
    }

    pub(crate) fn blocks(&self) -> usize {
        self.common.div_ceil(BLOCK) + (self.words - self.common).div_ceil(BLOCK)
    }

    /// The words of a block; empty past the last.
    pub(crate) fn block(&self, block: usize) -> Range<usize> {
        let predicted = self.common.div_ceil(BLOCK);
        if block < predicted {
            block * BLOCK..self.common.min((block + 1) * BLOCK)
        } else {
            let start = self
                .common
                .saturating_add((block - predicted).saturating_mul(BLOCK))
                .min(self.words);
            start..self.words.min(start + BLOCK)
        }
    }

    /// The bytes of a block.
    pub(crate) fn bytes(&self, block: usize) -> Range<usize> {
        let words = self.block(block);
        words.start * self.width..words.end * self.width
    }
}
