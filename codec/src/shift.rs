//! A predictor: the base moved by a step that depends on its mantissa.
//!
//! Weights that got no gradient still shrink by the optimizer's weight decay: a factor so near to one that each step moves the
//! float by a few units of the last place or by none, depending on its mantissa alone. Many steps make a step function of the
//! mantissa, the same for all weights of a tensor, which a table over the mantissa's top bits holds nearly exactly.

use std::borrow::Cow;

use crate::{
    dtype::{DType, FloatLayout},
    error::{CodecError, corrupt},
    rc::{Bit, Coder, Decoder, Encoder, Number},
    word::load,
};

/// Mantissa bits that the table tells apart.
const BITS: u32 = 8;
/// Largest step, in units of the last place.
const LARGEST: i32 = 1 << 12;
/// Steps that are counted when a table is made.
const COUNTED: i32 = 512;

/// A step for every mantissa.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shift {
    layout: FloatLayout,
    steps: Vec<i32>,
}

impl Shift {
    /// The step of each value of the mantissa's top bits.
    pub(crate) fn steps(&self) -> &[i32] {
        &self.steps
    }

    /// The table's size for a layout.
    fn entries(layout: FloatLayout) -> usize {
        1 << layout.mantissa.min(BITS)
    }

    /// Whether a few pairs look as if steps followed mantissas: words move as the one before of the same mantissa did.
    pub(crate) fn seems(dtype: Option<DType>, pairs: &[(&[u8], Cow<'_, [u8]>)]) -> bool {
        let Some((dtype, layout)) = dtype.and_then(|d| Some((d, d.layout()?))) else {
            return false;
        };
        let none = Self {
            layout,
            steps: Vec::new(),
        };
        match dtype.word_bytes() {
            2 => none.seems_so::<2>(pairs),
            4 => none.seems_so::<4>(pairs),
            _ => false,
        }
    }

    fn seems_so<const W: usize>(&self, pairs: &[(&[u8], Cow<'_, [u8]>)]) -> bool {
        let mut last = [i64::MAX; 1 << BITS];
        let (mut words, mut alike) = (0usize, 0usize);
        for (target, prediction) in pairs {
            let both = target
                .as_chunks::<W>()
                .0
                .iter()
                .zip(prediction.as_chunks::<W>().0);
            words += both.len();
            for (t, p) in both {
                let (t, p) = (load::<W>(t, 0), load::<W>(p, 0));
                let step = t.wrapping_sub(p).cast_signed();
                if let Some(entry) = self.entry(p) {
                    let before = std::mem::replace(&mut last[entry & 255], step);
                    alike += usize::from(step != 0) & usize::from(before == step);
                }
            }
        }
        alike * 12 > words
    }

    /// The most frequent steps of a sample of pairs, where they explain much more than no step does.
    pub(crate) fn fit(dtype: Option<DType>, pairs: &[(&[u8], Cow<'_, [u8]>)]) -> Option<Self> {
        let dtype = dtype?;
        let layout = dtype
            .layout()
            .filter(|_| matches!(dtype.word_bytes(), 2 | 4))?;
        let none = Self {
            layout,
            steps: Vec::new(),
        };
        let row = usize::try_from(2 * COUNTED + 1).ok()?;
        let mut counts = vec![0u32; Self::entries(layout) * row];
        let mut words = 0u64;
        for (target, prediction) in pairs {
            let width = dtype.word_bytes();
            for i in 0..target.len() / width {
                let (t, p) = match width {
                    2 => (load::<2>(target, i), load::<2>(prediction, i)),
                    _ => (load::<4>(target, i), load::<4>(prediction, i)),
                };
                words += 1;
                let step = t.wrapping_sub(p).cast_signed();
                if let Some(entry) = none.entry(p)
                    && step.abs() <= i64::from(COUNTED)
                    && let Ok(at) = usize::try_from(step + i64::from(COUNTED))
                {
                    counts[entry * row + at] += 1;
                }
            }
        }
        let (mut hits, mut still) = (0u64, 0u64);
        let steps = counts
            .chunks(row)
            .map(|counts| {
                let zero = counts.get(row / 2).copied().unwrap_or(0);
                let (best, count) = counts
                    .iter()
                    .enumerate()
                    .max_by_key(|(_, n)| **n)
                    .map_or((row / 2, 0), |(i, n)| (i, *n));
                hits += u64::from(count);
                still += u64::from(zero);
                i32::try_from(best).unwrap_or(COUNTED) - COUNTED
            })
            .collect();
        (hits * 8 > words && hits > 2 * still).then_some(Self { layout, steps })
    }

    /// The table's entry for a word; none for zeros, denormals, infinities and NaNs, which stay as they are.
    #[inline(always)]
    fn entry(&self, word: u64) -> Option<usize> {
        let FloatLayout { exponent, mantissa } = self.layout;
        let top = (1u64 << exponent) - 1;
        let field = word >> mantissa & top;
        let kept = mantissa.min(BITS);
        let entry = word >> (mantissa - kept) & ((1 << kept) - 1);
        if field == 0 || field == top {
            None
        } else {
            usize::try_from(entry).ok()
        }
    }

    /// Moves the words.
    pub(crate) fn apply(&self, words: &mut [u8], width: usize) {
        match width {
            2 => self.apply_to::<2>(words),
            _ => self.apply_to::<4>(words),
        }
    }

    fn apply_to<const W: usize>(&self, words: &mut [u8]) {
        let mut steps = [0; 1 << BITS];
        for (step, known) in steps.iter_mut().zip(&self.steps) {
            *step = *known;
        }
        let kept = self.layout.mantissa.min(BITS);
        #[cfg(target_arch = "x86_64")]
        let words = if crate::avx512::available() {
            // SAFETY: the CPU has AVX-512; there is a step for every value of `kept` bits.
            let done = unsafe { crate::avx512::shift::<W>(self.layout, kept, &steps, words) };
            &mut words[done * W..]
        } else {
            words
        };
        apply_plainly::<W>(self.layout, kept, &steps, words);
    }

    /// Appends the table.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let mut coder = Encoder::new();
        let _infallible = Self::code(&mut coder, self.layout, Some(self));
        let coded = coder.finish();
        crate::bits::put_varint(out, coded.len() as u64);
        out.extend_from_slice(&coded);
    }

    /// Takes what [`Self::put`] wrote off the front of `data`.
    pub(crate) fn take(data: &mut &[u8], dtype: Option<DType>) -> Result<Self, CodecError> {
        let layout = dtype
            .filter(|d| matches!(d.word_bytes(), 2 | 4))
            .and_then(DType::layout)
            .ok_or_else(|| corrupt("a dtype whose words cannot be moved"))?;
        let length = crate::bits::take_size(data, data.len())?;
        let coded = crate::bits::take_bytes(data, length)?;
        Self::code(&mut Decoder::new(coded), layout, None)
    }

    /// Both directions: the difference of each step to the one before.
    fn code<C: Coder>(
        coder: &mut C,
        layout: FloatLayout,
        shift: Option<&Self>,
    ) -> Result<Self, CodecError> {
        let (mut moved, mut down, mut size) =
            (Bit::mostly_zero(), Bit::default(), Number::default());
        let mut last = 0i32;
        let steps = (0..Self::entries(layout))
            .map(|i| {
                let change = shift.and_then(|s| s.steps.get(i)).map_or(0, |s| s - last);
                if coder.bit(&mut moved, change != 0)? {
                    let negative = coder.bit(&mut down, change < 0)?;
                    let size = size.code(coder, change.unsigned_abs().wrapping_sub(1))?;
                    let size = i32::try_from(size).unwrap_or(LARGEST).min(4 * LARGEST) + 1;
                    last += if negative { -size } else { size };
                }
                if (-LARGEST..=LARGEST).contains(&last) {
                    Ok(last)
                } else {
                    Err(corrupt("a step is out of range"))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { layout, steps })
    }
}

/// Steps by the top bits of mantissas, as many as [`BITS`] can tell apart.
pub(crate) type Steps = [i32; 1 << BITS];

/// [`Shift::apply`] by the `kept` top bits of mantissas.
fn apply_plainly<const W: usize>(
    FloatLayout { exponent, mantissa }: FloatLayout,
    kept: u32,
    steps: &Steps,
    words: &mut [u8],
) {
    let top = (1u32 << exponent) - 1;
    for word in words.as_chunks_mut::<W>().0 {
        let mut wide = [0; 4];
        wide[..W].copy_from_slice(word);
        let from = u32::from_le_bytes(wide);
        let field = from >> mantissa & top;
        let entry = from >> (mantissa - kept) & ((1 << kept) - 1);
        let step = steps[entry as usize % steps.len()];
        // As `entry` has it, without a branch.
        let step = if field == 0 || field == top { 0 } else { step };
        let to = from.wrapping_add_signed(step).to_le_bytes();
        word.copy_from_slice(&to[..W]);
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests stop at the first surprise; numbers are small"
    )]
    use super::*;

    #[test]
    fn decayed_weights_are_found_and_predicted() {
        let mut state = 9u32;
        let base: Vec<f32> = (0..40_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32
            })
            .collect();
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let decayed: Vec<f32> = base
            .iter()
            .map(|b| (0..50).fold(*b, |x, _| x * (1.0 - 2e-7)))
            .collect();
        let (b, t) = (bytes(&base), bytes(&decayed));
        let shift = Shift::fit(Some(DType::F32), &[(&t[..], (&b[..]).into())]).unwrap();
        let mut out = Vec::new();
        shift.put(&mut out);
        let mut data = &out[..];
        assert_eq!(Shift::take(&mut data, Some(DType::F32)).unwrap(), shift);
        assert!(data.is_empty());
        let mut moved = b.clone();
        shift.apply(&mut moved, 4);
        let right = moved
            .as_chunks::<4>()
            .0
            .iter()
            .zip(t.as_chunks::<4>().0)
            .filter(|(a, b)| a == b)
            .count();
        assert!(right > 30_000, "{right}");
        assert!(Shift::fit(Some(DType::F32), &[(&b[..], (&b[..]).into())]).is_none());
    }

    #[test]
    fn every_word_is_moved_as_its_entry_says() {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            let layout = dtype.layout().unwrap();
            let steps = (0..Shift::entries(layout) as i32)
                .map(|i| i * 37 % 101 - 50)
                .collect();
            let shift = Shift { layout, steps };
            // Of two bytes all there are, of four some of every exponent.
            let words = (0..=u16::MAX).flat_map(|w| match dtype.word_bytes() {
                2 => w.to_le_bytes().to_vec(),
                _ => (u32::from(w) << 16 | u32::from(w.reverse_bits()))
                    .to_le_bytes()
                    .to_vec(),
            });
            let words: Vec<u8> = words.chain([1; 12]).collect();
            for hidden in [false, true] {
                #[cfg(target_arch = "x86_64")]
                crate::avx512::HIDDEN.set(hidden);
                let _ = hidden;
                let mut moved = words.clone();
                shift.apply(&mut moved, dtype.word_bytes());
                for (from, to) in words
                    .chunks(dtype.word_bytes())
                    .zip(moved.chunks(dtype.word_bytes()))
                {
                    let word =
                        |bytes: &[u8]| bytes.iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
                    let step = shift.entry(word(from)).map_or(0, |e| shift.steps[e]);
                    let whole = (1u64 << (8 * dtype.word_bytes())) - 1;
                    let expected = word(from).wrapping_add_signed(step.into()) & whole;
                    assert_eq!(word(to), expected, "{dtype:?}, hidden: {hidden}");
                }
            }
        }
    }
}
