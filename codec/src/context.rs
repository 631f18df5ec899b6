//! The context of a residual: the row's mean update in units of the last place of the predicted weight, four steps to the octave.

use crate::{
    dtype::{DType, FloatLayout},
    word::load,
};

/// Steps of a row scale per octave.
pub(crate) const STEPS: i32 = 4;
/// Contexts of a table set: fourteen octaves. A row's exponents then meet at most sixteen different maps (see [`Window`]).
pub(crate) const CONTEXTS: usize = 56;
/// Exponents that a row tells apart.
pub(crate) const EXPONENTS: usize = 16;

/// Where the exponent sits in a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exponent {
    shift: u32,
    mask: u64,
}

impl Exponent {
    /// Of a dtype; integers have the exponent 1 everywhere.
    pub(crate) fn of(dtype: Option<DType>) -> Self {
        match dtype.and_then(DType::layout) {
            Some(FloatLayout { exponent, mantissa }) => Self {
                shift: mantissa,
                mask: (1 << exponent) - 1,
            },
            None => Self { shift: 0, mask: 0 },
        }
    }

    /// The fields of words of `W` bytes.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields have at most eleven bits"
    )]
    #[inline(always)]
    pub(crate) fn fields<const W: usize>(self, words: &[u8], fields: &mut Vec<u16>) {
        fields.clear();
        let words = words.as_chunks::<W>().0.iter();
        match W {
            2 => fields.extend(words.map(|w| {
                (u16::from_le_bytes([w[0], w[1]]) >> self.shift & self.mask as u16).max(1)
            })),
            4 => fields.extend(words.map(|w| {
                (u32::from_le_bytes([w[0], w[1], w[2], w[3]]) >> self.shift & self.mask as u32)
                    .max(1) as u16
            })),
            _ => fields.extend(words.map(|w| self.field(load::<W>(w, 0)) as u16)),
        }
    }

    /// Shift and mask of the field.
    pub(crate) fn parts(self) -> (u32, u64) {
        (self.shift, self.mask)
    }

    #[cfg(test)]
    pub(crate) fn from_parts(shift: u32, mask: u64) -> Self {
        Self { shift, mask }
    }

    /// The exponent field; denormals have the ulp of exponent 1.
    #[inline(always)]
    pub(crate) fn field(self, word: u64) -> i32 {
        // The mask has at most eleven bits.
        i32::try_from(word >> self.shift & self.mask)
            .unwrap_or(0)
            .max(1)
    }
}

/// The context of a weight whose row has `scale` (steps per octave of the mean update, in the ulp of exponent 0), with
/// `first` the lowest context of the set.
#[inline(always)]
pub(crate) fn context(scale: i32, exponent: i32, first: i32) -> usize {
    let c = scale
        .saturating_sub(STEPS * exponent)
        .saturating_sub(first)
        .clamp(0, 55);
    usize::try_from(c).unwrap_or(0)
}

/// The exponents of one row, as contexts see them: sixteen entries from `low` on; smaller exponents are like the first entry,
/// larger ones like the last. Sixteen are enough: four contexts to an exponent make fourteen, and one at either end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) low: i32,
    pub(crate) entries: [u8; EXPONENTS],
}

impl Window {
    pub(crate) fn new(scale: i32, first: i32, map: &[u8; CONTEXTS]) -> Self {
        let low = Self::low(scale, first);
        let mut entries = [0u8; EXPONENTS];
        let mut exponent = low;
        for entry in &mut entries {
            *entry = map[context(scale, exponent, first)];
            exponent = exponent.saturating_add(1);
        }
        Self { low, entries }
    }

    /// The lowest exponent that is told apart.
    pub(crate) fn low(scale: i32, first: i32) -> i32 {
        scale
            .saturating_sub(first)
            .saturating_sub(55)
            .div_euclid(STEPS)
    }

    /// The entry of an exponent.
    #[inline(always)]
    pub(crate) fn get(&self, exponent: i32) -> u8 {
        let i = exponent.saturating_sub(self.low).clamp(0, 15);
        self.entries[usize::try_from(i).unwrap_or(0) & 15]
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::cast_possible_truncation, reason = "small numbers")]
    use super::*;

    #[test]
    fn the_window_agrees_with_the_contexts() {
        let map: [u8; CONTEXTS] = std::array::from_fn(|i| i as u8);
        for scale in -500..1500 {
            for first in [-60, -7, 0, 13] {
                let window = Window::new(scale, first, &map);
                for exponent in 1..300 {
                    assert_eq!(
                        usize::from(window.get(exponent)),
                        context(scale, exponent, first)
                    );
                }
            }
        }
    }
}
