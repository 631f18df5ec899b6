//! Values of a fixed number of bytes where there are many of them: known ones by number, those near to what is expected by the
//! difference, others byte by byte, each by what it comes after.

use super::bits::{Bit, Int};
use super::known::Known;
use super::range::Coder;
use crate::DatasetError;

/// The widest values, in bytes.
pub(super) const WIDEST: usize = 16;
/// Values that one is expected near to: the base's, the last two carried on, the last.
const EXPECTED: usize = 3;

/// A model of the values of one column.
pub(crate) struct Near {
    width: usize,
    known: Known,
    last: u128,
    before: u128,
    /// How many bits the difference to each expected value had lately, times eight.
    misses: [u32; EXPECTED],
    /// Whether a value is near, by whether the last two were.
    is_near: [Bit; 4],
    were_near: usize,
    differences: [Int; EXPECTED],
    /// For each place, the bits of its byte.
    by_place: Vec<[Bit; 256]>,
    /// The bits of half a byte, by what comes before.
    after: Vec<[Bit; 16]>,
    /// What comes where two of those believe so and so much.
    together: Vec<Bit>,
}

impl Near {
    /// A model of values of `width` bytes, at most [`WIDEST`], with 2^`log_lines` probabilities for what comes after what.
    pub(crate) fn new(width: usize, log_lines: u32) -> Self {
        Self {
            width,
            known: Known::new(),
            last: 0,
            before: 0,
            misses: [0; EXPECTED],
            is_near: [Bit::default(); 4],
            were_near: 0,
            differences: Default::default(),
            by_place: vec![[Bit::default(); 256]; width],
            together: beliefs(),
            after: vec![[Bit::default(); 16]; 1 << log_lines.saturating_sub(4)],
        }
    }

    /// Codes a value, most significant byte first, and appends it to `out`; `base` is one that is expected to be near it.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        base: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        let start = out.len();
        let expected = [
            base.map(number),
            Some(self.last.wrapping_mul(2).wrapping_sub(self.before)),
            Some(self.last),
        ];
        if let Some(known) = self.known.code(coder, value, base.is_some())? {
            out.extend_from_slice(known);
        } else {
            self.code_unknown(coder, value, &expected, out);
            self.known.learn::<C>(&out[start..]);
        }
        let coded = number(&out[start..]);
        for (miss, expected) in self.misses.iter_mut().zip(expected) {
            if let Some(expected) = expected {
                let folded = folded(self.width, coded.wrapping_sub(expected));
                *miss = *miss - *miss / 8 + (u128::BITS - folded.leading_zeros());
            }
        }
        (self.before, self.last) = (self.last, coded);
        Ok(())
    }

    fn code_unknown<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        expected: &[Option<u128>; EXPECTED],
        out: &mut Vec<u8>,
    ) {
        let (mut best, mut from) = (EXPECTED - 1, self.last);
        for (at, expected) in expected.iter().enumerate().rev() {
            if let Some(expected) = expected
                && self.misses[at] <= self.misses[best]
            {
                (best, from) = (at, *expected);
            }
        }
        let folded = folded(self.width, number(value).wrapping_sub(from));
        // Of more bits than half the value has, it is not told what they are.
        let most = (1_u128 << (4 * self.width).min(60)) - 1;
        let given = C::ENCODES && folded <= most;
        let near = self.is_near[self.were_near].code(coder, given);
        self.were_near = (2 * self.were_near + usize::from(near)) & 3;
        if near {
            let folded = u64::try_from(folded).unwrap_or(0);
            let folded = u128::from(self.differences[best].code(coder, folded));
            let difference = (folded >> 1) ^ (folded & 1).wrapping_neg();
            let bytes = from.wrapping_add(difference).to_be_bytes();
            out.extend_from_slice(&bytes[WIDEST - self.width..]);
            return;
        }
        let mut prefix = 0_u64;
        for place in 0..self.width {
            let given = value.get(place).copied().unwrap_or(0);
            let recent = number(&out[out.len() - place.min(2)..]);
            let recent = u64::try_from(recent).unwrap_or(0) | 1 << 32;
            let byte = self.code_byte(coder, place, [prefix, recent], given);
            prefix = (prefix ^ u64::from(byte) ^ 0x100).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            prefix ^= prefix >> 29;
            out.push(byte);
        }
    }

    /// Codes a byte by the most telling of what is known: after the same beginning, after the same two bytes, in the same place.
    fn code_byte<C: Coder>(
        &mut self,
        coder: &mut C,
        place: usize,
        contexts: [u64; 2],
        byte: u8,
    ) -> u8 {
        let mut node = 1_usize;
        let mut slots = [0; 2];
        for position in 0..8 {
            if position % 4 == 0 {
                slots = contexts.map(|context| {
                    let hash =
                        (context ^ ((node as u64) << 48)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                    usize::try_from(hash >> 40).unwrap_or(0) & (self.after.len() - 1)
                });
            }
            let half = if position < 4 {
                node
            } else {
                (1 << (position - 4)) | (node & ((1 << (position - 4)) - 1))
            };
            let [prefix, recent] = slots.map(|slot| self.after[slot][half]);
            let in_place = &mut self.by_place[place][node];
            let given = byte >> (7 - position) & 1 == 1;
            let bit = if prefix.seen() == 0 && recent.seen() == 0 {
                coder.bit(given, in_place.p1())
            } else {
                self.together[64 * belief(prefix) + belief(recent)].code(coder, given)
            };
            in_place.update(bit);
            for slot in slots {
                self.after[slot][half].update(bit);
            }
            node = 2 * node + usize::from(bit);
        }
        (node & 255).to_le_bytes()[0]
    }
}

/// How much is believed of a bit, in 64 steps: how often its like was seen, and how probable it is.
fn belief(bit: Bit) -> usize {
    let seen = match bit.seen() {
        0 => 0,
        1 => 1,
        2 | 3 => 2,
        _ => 3,
    };
    16 * seen + usize::try_from(bit.p1() >> 12).unwrap_or(0)
}

/// What two beliefs are together, to begin with: the first, unless nothing was seen of it.
fn beliefs() -> Vec<Bit> {
    let start = |step: u32| Bit::starting_at((step % 16 * 2 + 1) << 11);
    (0..64)
        .flat_map(|first| (0..64).map(move |second| if first < 16 { second } else { first }))
        .map(start)
        .collect()
}

/// A difference of values of `width` bytes as a number that is small where it is, on either side.
fn folded(width: usize, difference: u128) -> u128 {
    let above = 8 * (WIDEST - width.max(1));
    let signed = (difference << above).cast_signed() >> above;
    ((signed << 1) ^ (signed >> 127)).cast_unsigned()
}

/// The number in at most [`WIDEST`] bytes, the first the most significant.
fn number(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .fold(0, |number, &byte| (number << 8) | u128::from(byte))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::super::range::{Decoder, Encoder};
    use super::*;

    fn bytes(width: usize, values: &[u128], bases: &[u128]) -> usize {
        let cut = |value: u128| value.to_be_bytes()[WIDEST - width..].to_vec();
        let base = |at: usize| bases.get(at).map(|&base| cut(base));
        let mut encoder = Encoder::new();
        let mut model = Near::new(width, 16);
        for (at, &value) in values.iter().enumerate() {
            let mut out = Vec::new();
            let base = base(at);
            model
                .code(&mut encoder, &cut(value), base.as_deref(), &mut out)
                .unwrap();
            assert_eq!(out, cut(value));
        }
        let stream = encoder.finish();
        let mut decoder = Decoder::new(&stream);
        let mut model = Near::new(width, 16);
        for (at, &value) in values.iter().enumerate() {
            let mut out = Vec::new();
            let base = base(at);
            model
                .code(&mut decoder, &[], base.as_deref(), &mut out)
                .unwrap();
            assert_eq!(out, cut(value));
        }
        decoder.finish().unwrap();
        stream.len()
    }

    #[test]
    fn values_of_every_width_come_back() {
        let mut seed = 1_u128;
        let random: Vec<u128> = (0..500)
            .map(|_| {
                seed = seed.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645) + 1;
                seed.rotate_left(64)
            })
            .collect();
        for width in 1..=WIDEST {
            bytes(width, &random, &random[3..]);
            bytes(width, &[0, u128::MAX, 1, u128::MAX - 1, 0, 0], &[]);
        }
    }

    #[test]
    fn what_is_expected_costs_little() {
        let counter: Vec<u128> = (0..5000).map(|k| 1_000_000_007 + 3 * k).collect();
        assert!(bytes(8, &counter, &[]) < 200);
        let near: Vec<u128> = counter.iter().map(|k| k + k % 7).collect();
        assert!(bytes(8, &near, &counter) < 5000 * 3 / 8 + 300);
        let labels: Vec<u128> = (0..5000_u128)
            .map(|k| k * k * 7919 % 31 % 4 * 1000)
            .collect();
        assert!(bytes(4, &labels, &[]) < 5000 * 2 / 8 + 300);
    }
}
