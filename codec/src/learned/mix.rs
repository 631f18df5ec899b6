//! The chance of a bit from several contexts at once: what each has seen, mixed by weights that learn (Mahoney, "Adaptive
//! Weighing of Context Models for Lossless Data Compression", 2005). Integers only: the same on every CPU.

use std::sync::LazyLock;

use crate::{error::CodecError, rc::Coder};

/// 65536 / (1 + exp(-x / 256)) at x = -2816, -2688, ..., 2816.
const CURVE: [u32; 45] = [
    1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955,
    17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097,
    65269, 65374, 65438, 65476, 65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535,
];
/// The ends of the curve, in 1/256.
const FAR: i32 = 2816;
/// The largest input of a mixer.
const LOUDEST: i32 = 2047;
/// The input that is always there.
const BIAS: i32 = 77;
/// One, as weights have it, and the largest weight.
const ONE: i32 = 1 << 16;
const HEAVIEST: i32 = 1 << 20;
/// Most inputs, the one that is always there included.
const INPUTS: usize = 8;

/// The chance of a one (1/65536) at `x`.
#[inline(always)]
fn squash(x: i32) -> i32 {
    let x = (x + FAR).clamp(0, 2 * FAR - 1);
    let (at, part) = (usize::try_from(x >> 7).unwrap_or(0), x & 127);
    let (low, high) = (CURVE[at].cast_signed(), CURVE[at + 1].cast_signed());
    low + (((high - low) * part) >> 7)
}

/// The inverse of [`squash`], by chances in 1/4096.
static STRETCH: LazyLock<[i16; 4096]> = LazyLock::new(|| {
    let mut x = -LOUDEST;
    let mut wanted = -8;
    std::array::from_fn(|_| {
        wanted += 16;
        while x < LOUDEST && squash(x) < wanted {
            x += 1;
        }
        i16::try_from(x).unwrap_or(0)
    })
});

/// What a context has seen: the chance of a one in the upper 22 bits, how many bits in the lower ten.
type Seen = u32;
const COUNT: u32 = 1023;
/// Where the count stops, and learning slows no more.
const MOST: u32 = 500;

/// 131072 / (2 n + 3).
static RATES: LazyLock<[u32; MOST as usize + 1]> = LazyLock::new(|| {
    let mut divisor = 1;
    std::array::from_fn(|_| {
        divisor += 2;
        131_072 / divisor
    })
});

/// What a context has seen after one more bit.
#[inline(always)]
fn after(seen: Seen, bit: bool, rates: &[u32; MOST as usize + 1]) -> Seen {
    let (chance, count) = (seen >> 10, seen & COUNT);
    let rate = u64::from(rates[usize::try_from(count.min(MOST)).unwrap_or(0)]);
    let step = |part: u32| u32::try_from((u64::from(part) * rate) >> 16).unwrap_or(0);
    let chance = if bit {
        chance + step((1 << 22) - 1 - chance)
    } else {
        chance - step(chance)
    };
    chance << 10 | (count + 1).min(MOST)
}

/// Bits of one kind, each in `N` contexts.
pub(super) struct Mixer<const N: usize> {
    seen: [Vec<Seen>; N],
    weights: [i32; INPUTS],
    stretch: &'static [i16; 4096],
    rates: &'static [u32; MOST as usize + 1],
}

impl<const N: usize> Mixer<N> {
    /// With so many values of each context.
    pub(super) fn new(contexts: [usize; N]) -> Self {
        const { assert!(N < INPUTS) };
        let mut weights = [0; INPUTS];
        let share = ONE / i32::try_from(N).unwrap_or(1);
        weights[..=N].fill(share);
        Self {
            seen: contexts.map(|values| vec![1 << 31; values]),
            weights,
            stretch: &STRETCH,
            rates: &RATES,
        }
    }

    /// The chance of a one (1/65536) by the first context alone.
    #[inline(always)]
    pub(super) fn expected(&self, context: usize) -> u32 {
        self.seen[0][context] >> 16
    }

    /// Codes a bit.
    #[inline(always)]
    pub(super) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        contexts: [usize; N],
        bit: bool,
    ) -> Result<bool, CodecError> {
        let mut inputs = [0; INPUTS];
        for ((input, seen), context) in inputs.iter_mut().zip(&self.seen).zip(contexts) {
            let seen = seen[context];
            // What has seen nothing says nothing.
            if seen & COUNT != 0 {
                *input = i32::from(self.stretch[usize::try_from(seen >> 20).unwrap_or(0)]);
            }
        }
        inputs[N] = BIAS;
        let sum: i32 = inputs
            .iter()
            .zip(&self.weights)
            .map(|(x, w)| (x * (w >> 2)) >> 8)
            .sum();
        let chance = squash(sum >> 6).clamp(1, ONE - 1);
        let bit = coder.chance((ONE - chance).cast_unsigned(), bit)?;
        let error = if bit { ONE - chance } else { -chance };
        for (x, w) in inputs.iter().zip(&mut self.weights) {
            *w = (*w + ((x * error + (1 << 15)) >> 16)).clamp(-HEAVIEST, HEAVIEST);
        }
        for (seen, context) in self.seen.iter_mut().zip(contexts) {
            let seen = &mut seen[context];
            *seen = after(*seen, bit, self.rates);
        }
        Ok(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_rises_and_comes_back() {
        for x in -FAR..FAR {
            assert!(squash(x) <= squash(x + 1));
        }
        for (p, x) in (0i32..).zip(STRETCH.iter()) {
            let x = i32::from(*x);
            if x.abs() < LOUDEST {
                assert!(squash(x) >= p * 16 + 8 && squash(x - 1) < p * 16 + 8);
            }
        }
    }
}
