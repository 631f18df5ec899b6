//! The prediction itself: the base plus a low-rank update, rounded once, the same on every machine.
//!
//! One element is a chain of fused multiply-adds over the rank in ascending order, in `f32`; nothing depends on how many
//! elements are computed at a time, so that vectors and plain code agree bit for bit.

use crate::{DType, word::load};

/// How the update joins the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// The sum is rounded to the dtype.
    Once,
    /// The update is rounded to the dtype first, then the sum.
    Twice,
}

/// Where an unrounded prediction lies: how far from the nearest point at which it would round to another word, in steps of
/// half an octave, and on which side of its word ([`BEYOND`]).
pub(crate) type Class = u8;
/// Distances that are told apart.
pub(crate) const CLASSES: usize = 16;
/// Class bit: the unrounded prediction is less than its word, so the word below is the likelier miss.
pub(crate) const BELOW: Class = 0x80;

/// Elements computed at a time.
pub(super) const LANES: usize = 16;
/// Rows that share what is read of the right factor.
const ROWS: usize = 4;

/// Left and right factor, ready to be multiplied.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub(crate) rank: usize,
    pub(crate) cols: usize,
    /// `rows x rank`, row after row.
    left: Vec<f32>,
    /// `rank x cols`, row after row, each with [`LANES`] zeros behind it.
    right: Vec<f32>,
    /// Multiplies the finished chain.
    scale: f32,
}

impl Factors {
    /// `left` is `rows x rank`, `right` is `rank x cols`, both row after row.
    pub(crate) fn new(left: Vec<f32>, right: &[f32], rank: usize, cols: usize, scale: f32) -> Self {
        let mut padded = vec![0.0; rank * (cols + LANES)];
        for (to, from) in padded
            .chunks_exact_mut(cols + LANES)
            .zip(right.chunks_exact(cols.max(1)))
        {
            to[..cols].copy_from_slice(from);
        }
        Self {
            rank,
            cols,
            left,
            right: padded,
            scale,
        }
    }

    /// A row of the left factor.
    #[inline(always)]
    pub(super) fn left_row(&self, row: usize) -> &[f32] {
        self.left
            .get(row * self.rank..(row + 1) * self.rank)
            .unwrap_or_default()
    }

    /// Columns of a row of the right factor, zeros behind its end.
    #[inline(always)]
    pub(super) fn right_part(&self, k: usize, col: usize) -> &[f32; LANES] {
        let from = k * (self.cols + LANES) + col;
        self.right
            .get(from..from + LANES)
            .and_then(|part| part.first_chunk())
            .unwrap_or(&[0.0; LANES])
    }

    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// The left factor, row after row.
    pub(super) fn left(&self) -> &[f32] {
        &self.left
    }

    /// The right factor, row after row, without the zeros behind each.
    pub(super) fn right(&self) -> Vec<f32> {
        self.right
            .chunks_exact(self.cols + LANES)
            .flat_map(|row| row.iter().take(self.cols).copied())
            .collect()
    }

    /// The update of one element, as the chain gives it.
    pub(super) fn element(&self, at: usize) -> f32 {
        let (row, col) = (at / self.cols.max(1), at % self.cols.max(1));
        let left = self.left_row(row).iter().enumerate();
        let sum = left.fold(0f32, |sum, (k, a)| {
            a.mul_add(self.right_part(k, col)[0], sum)
        });
        sum * self.scale
    }

    /// Replaces the words `first..` of the base in `words` by predictions and says where each lies.
    pub(crate) fn apply(
        &self,
        dtype: DType,
        rounding: Rounding,
        first: usize,
        words: &mut [u8],
        classes: &mut Vec<Class>,
    ) {
        classes.clear();
        classes.resize(words.len() / dtype.word_bytes(), 0);
        match (dtype, rounding) {
            (DType::BF16, Rounding::Once) => self.walk::<BFloat16, false>(first, words, classes),
            (DType::BF16, Rounding::Twice) => self.walk::<BFloat16, true>(first, words, classes),
            (DType::F16, Rounding::Once) => self.walk::<Float16, false>(first, words, classes),
            (DType::F16, Rounding::Twice) => self.walk::<Float16, true>(first, words, classes),
            _ => self.walk::<Float32, false>(first, words, classes),
        }
    }

    /// Whole rows four at a time, parts of rows on their own.
    fn walk<F: Kernel, const TWICE: bool>(
        &self,
        first: usize,
        words: &mut [u8],
        classes: &mut [Class],
    ) {
        let cols = self.cols.max(1);
        let mut at = 0;
        while at < classes.len() {
            let (row, col) = ((first + at) / cols, (first + at) % cols);
            let left = classes.len() - at;
            let whole = col == 0 && left >= ROWS * cols;
            let n = if whole {
                ROWS * cols
            } else {
                left.min(cols - col)
            };
            let range = at..at + n;
            let words = &mut words[range.start * F::BYTES..range.end * F::BYTES];
            let classes = &mut classes[range];
            if whole {
                self.some_rows::<F, ROWS, TWICE>(row, 0..cols, words, classes);
            } else {
                self.some_rows::<F, 1, TWICE>(row, col..col + n, words, classes);
            }
            at += n;
        }
    }

    fn some_rows<F: Kernel, const R: usize, const TWICE: bool>(
        &self,
        row: usize,
        cols: std::ops::Range<usize>,
        words: &mut [u8],
        classes: &mut [Class],
    ) {
        #[cfg(target_arch = "x86_64")]
        if super::avx2::available() {
            // SAFETY: the CPU has AVX2, FMA and F16C.
            unsafe { super::avx2::rows::<F, R, TWICE>(self, row, cols, words, classes) };
            return;
        }
        self.rows::<F, R, TWICE>(row, cols, words, classes);
    }

    /// `R` rows from `row` on, some columns of each.
    fn rows<F: Float, const R: usize, const TWICE: bool>(
        &self,
        row: usize,
        cols: std::ops::Range<usize>,
        words: &mut [u8],
        classes: &mut [Class],
    ) {
        let width = cols.len();
        let lefts: [&[f32]; R] = std::array::from_fn(|r| self.left_row(row + r));
        for start in (0..width).step_by(LANES) {
            let n = LANES.min(width - start);
            let mut sums = [[0f32; LANES]; R];
            for k in 0..self.rank {
                let v = self.right_part(k, cols.start + start);
                for (sum, left) in sums.iter_mut().zip(&lefts) {
                    let a = left.get(k).copied().unwrap_or(0.0);
                    for (s, v) in sum.iter_mut().zip(v) {
                        *s = a.mul_add(*v, *s);
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                let at = r * width + start;
                let words = &mut words[at * F::BYTES..(at + n) * F::BYTES];
                let classes = &mut classes[at..at + n];
                let mut base = [0u32; LANES];
                for (i, b) in base.iter_mut().enumerate().take(n) {
                    *b = F::load(words, i);
                }
                let mut results = [(0u32, 0u8); LANES];
                for ((result, b), sum) in results.iter_mut().zip(&base).zip(sum) {
                    *result = finish::<F, TWICE>(*b, *sum * self.scale);
                }
                for (i, ((word, class), to)) in results.iter().zip(classes).enumerate() {
                    F::store(words, i, *word);
                    *to = *class;
                }
            }
        }
    }
}

/// The distance of the class nearest to the boundary, as the upper bits of an `f32` in 2^-16 units of the last place.
pub(super) const LEAST: u32 = 269;

/// A dtype with all that this machine can use.
#[cfg(target_arch = "x86_64")]
use super::avx2::Vector as Kernel;
#[cfg(not(target_arch = "x86_64"))]
use Float as Kernel;

/// The prediction of one word and its class: the base's word itself where sum or prediction is not finite.
#[inline(always)]
fn finish<F: Float, const TWICE: bool>(base: u32, update: f32) -> (u32, Class) {
    let b = F::value(base);
    let d = if TWICE {
        F::value(F::round(update))
    } else {
        update
    };
    let y = b + d;
    let word = F::round(y);
    let p = F::value(word);
    let rest = F::rest(b, d, y, p);
    // 2^16 over the unit in the last place of p.
    let exponent = (p.to_bits() >> 23 & 0xff).max(F::LOWEST);
    let unit = f32::from_bits((F::UNIT - exponent) << 23);
    let distance = 32768.0 - rest.abs() * unit;
    let step = (distance.max(0.0).to_bits() >> 22).clamp(LEAST, LEAST + 15) - LEAST;
    let below = if rest < 0.0 { BELOW } else { 0 };
    if y.is_finite() && p.is_finite() {
        (word, low_byte(step) | below)
    } else {
        (base, 0)
    }
}

#[inline(always)]
fn low_byte(x: u32) -> u8 {
    x.to_le_bytes()[0]
}

/// A dtype that can be predicted by low rank.
pub(super) trait Float {
    const BYTES: usize;
    /// The `f32` exponent field of the smallest normal number.
    const SMALLEST: u32;
    /// The `f32` exponent field of the smallest p whose unit is told.
    const LOWEST: u32;
    /// The `f32` exponent field of 2^16 over the unit of p, plus that of p.
    const UNIT: u32;
    fn load(words: &[u8], i: usize) -> u32;
    fn store(words: &mut [u8], i: usize, word: u32);
    fn value(word: u32) -> f32;
    /// To nearest, ties to even.
    fn round(value: f32) -> u32;
    /// What rounding took away from `b + d`, whose rounding to `f32` is `y` and to the dtype `p`.
    #[inline(always)]
    fn rest(_b: f32, _d: f32, y: f32, p: f32) -> f32 {
        y - p
    }
}

pub(super) struct BFloat16;

impl Float for BFloat16 {
    const BYTES: usize = 2;
    const SMALLEST: u32 = 1;
    const LOWEST: u32 = 24;
    const UNIT: u32 = 277;

    #[inline(always)]
    fn load(words: &[u8], i: usize) -> u32 {
        low32(load::<2>(words, i))
    }

    #[inline(always)]
    fn store(words: &mut [u8], i: usize, word: u32) {
        crate::word::store::<2>(words, i, u64::from(word));
    }

    #[inline(always)]
    fn value(word: u32) -> f32 {
        f32::from_bits(word << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> u32 {
        let bits = value.to_bits();
        // A NaN may come out as anything: it is not used.
        bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
    }
}

pub(super) struct Float16;

impl Float for Float16 {
    const BYTES: usize = 2;
    const SMALLEST: u32 = 113;
    const LOWEST: u32 = 113;
    const UNIT: u32 = 280;

    #[inline(always)]
    fn load(words: &[u8], i: usize) -> u32 {
        low32(load::<2>(words, i))
    }

    #[inline(always)]
    fn store(words: &mut [u8], i: usize, word: u32) {
        crate::word::store::<2>(words, i, u64::from(word));
    }

    #[inline(always)]
    fn value(word: u32) -> f32 {
        // The fields moved to where f32 has them, then the exponent's bias made good; denormals come out right too.
        let magnitude = f32::from_bits((word & 0x7fff) << 13) * f32::from_bits(239 << 23);
        let bits = if word & 0x7c00 == 0x7c00 {
            0x7f80_0000 | (word & 0x3ff) << 13
        } else {
            magnitude.to_bits()
        };
        f32::from_bits(bits | (word & 0x8000) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> u32 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Adding a half moves a denormal's last place to f32's.
        let small = (f32::from_bits(magnitude) + 0.5)
            .to_bits()
            .wrapping_sub(0x3f00_0000);
        let normal = magnitude.wrapping_add(0xc800_0fff + (magnitude >> 13 & 1)) >> 13;
        let rounded = if magnitude < 113 << 23 { small } else { normal };
        let rounded = if magnitude >= 0x477f_f000 {
            0x7c00
        } else {
            rounded
        };
        rounded | bits >> 16 & 0x8000
    }
}

pub(super) struct Float32;

impl Float for Float32 {
    const BYTES: usize = 4;
    const SMALLEST: u32 = 1;
    const LOWEST: u32 = 40;
    const UNIT: u32 = 293;

    #[inline(always)]
    fn load(words: &[u8], i: usize) -> u32 {
        low32(load::<4>(words, i))
    }

    #[inline(always)]
    fn store(words: &mut [u8], i: usize, word: u32) {
        crate::word::store::<4>(words, i, u64::from(word));
    }

    #[inline(always)]
    fn value(word: u32) -> f32 {
        f32::from_bits(word)
    }

    #[inline(always)]
    fn round(value: f32) -> u32 {
        value.to_bits()
    }

    /// The rounding error of the sum itself (Knuth's two-sum).
    #[inline(always)]
    fn rest(b: f32, d: f32, y: f32, _p: f32) -> f32 {
        let bb = y - b;
        (b - (y - bb)) + (d - bb)
    }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "words of at most four bytes"
)]
fn low32(word: u64) -> u32 {
    word as u32
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #![expect(clippy::cast_possible_truncation, reason = "to f32")]
    use proptest::prelude::*;

    use super::*;

    fn agree<F: Kernel, const TWICE: bool>(factors: &Factors, first: usize, base: &[u8]) {
        if !super::super::avx2::available() {
            return;
        }
        let count = base.len() / F::BYTES;
        let (mut fast, mut places) = (base.to_vec(), vec![0; count]);
        factors.walk::<F, TWICE>(first, &mut fast, &mut places);
        let (mut slow, mut classes) = (base.to_vec(), vec![0; count]);
        for i in 0..count {
            let (row, col) = ((first + i) / factors.cols, (first + i) % factors.cols);
            let word = &mut slow[i * F::BYTES..(i + 1) * F::BYTES];
            factors.rows::<F, 1, TWICE>(row, col..col + 1, word, &mut classes[i..=i]);
        }
        assert_eq!(fast, slow);
        assert_eq!(places, classes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn vectors_agree_with_the_portable_prediction(
            words in proptest::collection::vec(any::<u32>(), 0..900),
            rank in 1..9usize,
            cols in 1..70usize,
            first in 0..100usize,
            size in -30..10i32,
            seed in any::<u32>(),
            scale in prop_oneof![Just(1.0f32), Just(-0.5), Just(1e30)],
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32 * 2f32.powi(size)
            };
            let rows = (first + words.len()) / cols + 1;
            let left: Vec<f32> = (0..rows * rank).map(|_| next()).collect();
            let right: Vec<f32> = (0..rank * cols).map(|_| next()).collect();
            let factors = Factors::new(left, &right, rank, cols, scale);
            let short: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()[1..3].to_vec()).collect();
            let long: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            agree::<BFloat16, false>(&factors, first, &short);
            agree::<BFloat16, true>(&factors, first, &short);
            agree::<Float16, false>(&factors, first, &short);
            agree::<Float16, true>(&factors, first, &short);
            agree::<Float32, false>(&factors, first, &long);
        }
    }
}
