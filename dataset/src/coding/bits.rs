//! Adaptive binary probabilities, and integers made of them.

use super::range::Coder;

/// Probabilities have 22 bits inside, 16 outside.
const ONE: u32 = 1 << 22;
/// How much of the distance to the last bit is gone after `n` bits: about 1 / (n + 1.5), in 1/65536.
const RATES: [u32; 256] = {
    let mut rates = [0_u32; 256];
    let mut n = 0;
    while n < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "n is below 256")]
        let twice = 2 * n as u32 + 3;
        rates[n] = 2 * 65536 / twice;
        n += 1;
    }
    rates
};

/// The probability of a one, learned from the bits seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bit {
    p: u32,
    seen: u8,
}

impl Default for Bit {
    fn default() -> Self {
        Self {
            p: ONE / 2,
            seen: 0,
        }
    }
}

impl Bit {
    /// A bit that is one with probability `p1` / 65536, to begin with.
    pub(crate) fn starting_at(p1: u32) -> Self {
        Self {
            p: p1.min(65535) << 6,
            seen: 2,
        }
    }

    /// The probability of a one in 1/65536, never 0 or 65536.
    #[inline]
    pub(crate) fn p1(self) -> u32 {
        (self.p >> 6).clamp(1, 65535)
    }

    /// How many bits it was learned from, 255 at most.
    #[inline]
    pub(crate) fn seen(self) -> u8 {
        self.seen
    }

    #[inline]
    pub(crate) fn update(&mut self, bit: bool) {
        let rate = u64::from(RATES[usize::from(self.seen)]);
        let step = |distance: u32| u32::try_from((u64::from(distance) * rate) >> 16).unwrap_or(0);
        if bit {
            self.p += step(ONE - 1 - self.p);
        } else {
            self.p -= step(self.p);
        }
        self.seen = self.seen.saturating_add(1);
    }

    #[inline]
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, bit: bool) -> bool {
        let bit = coder.bit(bit, self.p1());
        self.update(bit);
        bit
    }
}

/// An unsigned integer of any size: its bit length, then its bits below the highest, the first of them learned too.
#[derive(Clone, Debug)]
pub(crate) struct Int {
    lengths: Vec<Bit>,
    mantissas: Vec<Bit>,
}

/// Numbers of at most this many bits are learned whole.
const WHOLE: usize = 8;
/// Of longer ones, these many bits after the highest are learned together.
const LEARNED: usize = 3;

impl Default for Int {
    fn default() -> Self {
        Self {
            lengths: vec![Bit::default(); 128],
            mantissas: vec![
                Bit::default();
                (WHOLE + 1) * (1 << WHOLE) + 65 * ((1 << LEARNED) + 64)
            ],
        }
    }
}

impl Int {
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, value: u64) -> u64 {
        let length = usize::try_from(64 - value.leading_zeros()).unwrap_or(0);
        let mut node = 1_usize;
        for at in (0..7).rev() {
            let bit = self.lengths[node].code(coder, (length >> at) & 1 == 1);
            node = 2 * node + usize::from(bit);
        }
        // A damaged stream may say more than 64.
        let length = (node - 128).min(64);
        if length == 0 {
            return 0;
        }
        let mut found = 1_u64;
        for at in (0..length - 1).rev() {
            let behind = length - 2 - at;
            let slot = if length <= WHOLE {
                (length << WHOLE) + usize::try_from(found).unwrap_or(0)
            } else {
                let of_length = (WHOLE + 1) * (1 << WHOLE) + length * ((1 << LEARNED) + 64);
                if behind < LEARNED {
                    of_length + usize::try_from(found).unwrap_or(0)
                } else {
                    of_length + (1 << LEARNED) + at
                }
            };
            let bit = self.mantissas[slot].code(coder, (value >> at) & 1 == 1);
            found = (found << 1) | u64::from(bit);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::range::{Decoder, Encoder};
    use super::*;

    #[test]
    fn integers_of_all_sizes_come_back() {
        let values: Vec<u64> = (0..64)
            .flat_map(|at| [1_u64 << at, (1 << at) - 1, (1_u64 << at) | 5])
            .chain([0, u64::MAX, 3, 3, 3])
            .collect();
        let mut encoder = Encoder::new();
        let mut model = Int::default();
        for &value in &values {
            model.code(&mut encoder, value);
            encoder.uniform(value % 1000, 1000);
        }
        let stream = encoder.finish();
        let mut decoder = Decoder::new(&stream);
        let mut model = Int::default();
        for &value in &values {
            assert_eq!(model.code(&mut decoder, 0), value);
            assert_eq!(decoder.uniform(0, 1000), value % 1000);
        }
        assert!(decoder.finish().is_ok());
    }

    #[test]
    fn what_never_changes_costs_next_to_nothing() {
        let mut encoder = Encoder::new();
        let mut bit = Bit::default();
        for _ in 0..100_000 {
            bit.code(&mut encoder, false);
        }
        assert!(encoder.finish().len() < 32);
    }
}
