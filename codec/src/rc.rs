//! An adaptive binary range coder for side information: row scales and frequency tables. Small data, so every bit has a
//! model that learns fast; weights themselves are coded by `rans`.
//!
//! The arithmetic is LZMA's (32-bit range, carry propagation by a cached byte); models hold a 16-bit probability of a
//! zero and a count that makes the first steps large.

use std::sync::LazyLock;

use crate::error::{CodecError, corrupt};

/// The probability that the next bit is 0, in 65536ths, and how many bits it has seen (up to [`SLOWEST`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bit {
    zero: u16,
    seen: u8,
    /// Where `seen` stops, and learning slows no more.
    most: u8,
}

const SLOWEST: u8 = 4;
/// Of models that see thousands of bits of one distribution.
const STEADY: u8 = 6;
const TOP: u32 = 1 << 24;

impl Default for Bit {
    fn default() -> Self {
        Self {
            zero: 1 << 15,
            seen: 0,
            most: SLOWEST,
        }
    }
}

impl Bit {
    /// A model that expects zeros.
    pub(crate) const fn mostly_zero() -> Self {
        Self {
            zero: 0xc000,
            seen: 1,
            most: SLOWEST,
        }
    }

    /// A model that settles on an average.
    pub(crate) const fn steady() -> Self {
        Self {
            zero: 1 << 15,
            seen: 0,
            most: STEADY,
        }
    }

    #[inline]
    fn learn(&mut self, bit: bool) {
        let rate = 1 + u32::from(self.seen);
        let zero = u32::from(self.zero);
        let next = if bit {
            zero - (zero >> rate)
        } else {
            zero + ((0x1_0000 - zero) >> rate)
        };
        self.zero = u16::try_from(next.clamp(64, 0x1_0000 - 64)).unwrap_or(1 << 15);
        if self.seen < self.most {
            self.seen += 1;
        }
    }

    /// Bits that coding `bit` would take now.
    pub(crate) fn cost(self, bit: bool) -> f32 {
        let zero = usize::from(self.zero >> 6) & 1023;
        COSTS[if bit { 1023 - zero } else { zero }]
    }
}

/// Bits of what has a chance of so many 1024ths (and a half).
static COSTS: LazyLock<[f32; 1024]> = LazyLock::new(|| {
    let mut chance = -0.5f32;
    std::array::from_fn(|_| {
        chance += 1.0;
        -(chance / 1024.0).log2()
    })
});

/// What both directions share: code one bit with a model, or one without.
pub(crate) trait Coder {
    /// Codes a bit: the encoder writes `bit`, the decoder ignores it; both return the coded bit.
    fn bit(&mut self, model: &mut Bit, bit: bool) -> Result<bool, CodecError> {
        let bit = self.chance(u32::from(model.zero), bit)?;
        model.learn(bit);
        Ok(bit)
    }

    /// Codes a bit that is 0 with a chance of so many 65536ths, neither 0 nor all.
    fn chance(&mut self, zero: u32, bit: bool) -> Result<bool, CodecError>;
}

/// Writes.
pub(crate) struct Encoder {
    low: u64,
    range: u32,
    cache: u8,
    pending: u64,
    out: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self {
            low: 0,
            range: u32::MAX,
            cache: 0,
            pending: 1,
            out: Vec::new(),
        }
    }

    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > 0xffff_ffff {
            let carry = self.low > 0xffff_ffff;
            let mut byte = self.cache;
            while self.pending > 0 {
                self.out.push(byte.wrapping_add(u8::from(carry)));
                byte = 0xff;
                self.pending -= 1;
            }
            self.cache = u8::try_from(self.low >> 24 & 0xff).unwrap_or(0);
        }
        self.pending += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    /// The bytes; trailing zeros are left out, for the decoder reads zeros past the end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        // The first byte is always zero.
        self.out.remove(0);
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl Coder for Encoder {
    #[inline]
    fn chance(&mut self, zero: u32, bit: bool) -> Result<bool, CodecError> {
        let bound = (self.range >> 16) * zero;
        if bit {
            self.low += u64::from(bound);
            self.range -= bound;
        } else {
            self.range = bound;
        }
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
        Ok(bit)
    }
}

/// Writes nothing: models learn as they do where the bits are written.
pub(crate) struct Learner;

impl Coder for Learner {
    #[inline]
    fn chance(&mut self, _: u32, bit: bool) -> Result<bool, CodecError> {
        Ok(bit)
    }
}

/// Reads.
pub(crate) struct Decoder<'a> {
    code: u32,
    range: u32,
    data: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        let mut this = Self {
            code: 0,
            range: u32::MAX,
            data,
            at: 0,
        };
        for _ in 0..4 {
            this.next();
        }
        this
    }

    fn next(&mut self) {
        self.code = self.code << 8 | u32::from(self.data.get(self.at).copied().unwrap_or(0));
        self.at += 1;
    }
}

impl Decoder<'_> {
    /// Whether all bytes were read.
    pub(crate) fn is_spent(&self) -> bool {
        self.at >= self.data.len()
    }
}

/// Zeros that may be read past the end: what [`Encoder::finish`] may have left out.
const SLACK: usize = 64;

impl Coder for Decoder<'_> {
    #[inline]
    fn chance(&mut self, zero: u32, _: bool) -> Result<bool, CodecError> {
        let bound = (self.range >> 16) * zero;
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        while self.range < TOP {
            self.range <<= 8;
            self.next();
            if self.at > self.data.len() + SLACK {
                return Err(corrupt("side information ends early"));
            }
        }
        Ok(bit)
    }
}

/// A model of non-negative integers below 2^20: the bit length in unary (at most 20 steps), then the bits below the leading one,
/// of which the first has a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Number {
    length: [Bit; 20],
    second: [Bit; 21],
    rest: Bit,
}

impl Number {
    /// Codes `value + 1` as its bit length and lower bits.
    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C, value: u32) -> Result<u32, CodecError> {
        let x = value.saturating_add(1);
        let bits = 31 - x.leading_zeros();
        let mut length = 0u32;
        while length < 20 {
            let model = self
                .length
                .get_mut(length as usize)
                .ok_or_else(|| corrupt("a number is too long"))?;
            if !coder.bit(model, length < bits)? {
                break;
            }
            length += 1;
        }
        let mut result = 1u32;
        for i in (0..length).rev() {
            let bit = x >> i & 1 == 1;
            let bit = if i + 1 == length {
                let model = self
                    .second
                    .get_mut(length as usize)
                    .ok_or_else(|| corrupt("a number is too long"))?;
                coder.bit(model, bit)?
            } else {
                self.rest = Bit::default();
                coder.bit(&mut self.rest, bit)?
            };
            result = result << 1 | u32::from(bit);
        }
        Ok(result - 1)
    }

    /// Bits that coding `value` would take now.
    pub(crate) fn cost(&self, value: u32) -> f32 {
        let x = value.saturating_add(1);
        let bits = 31 - x.leading_zeros();
        let mut cost = 0.0;
        for i in 0..=bits.min(19) {
            cost += self
                .length
                .get(i as usize)
                .map_or(1.0, |m| m.cost(i < bits));
        }
        if bits > 0 {
            cost += self
                .second
                .get(bits as usize)
                .map_or(1.0, |m| m.cost(x >> (bits - 1) & 1 == 1));
        }
        for _ in 1..bits {
            cost += 1.0;
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]
    use super::*;

    #[test]
    fn numbers_come_back() {
        let values: Vec<u32> = (0..3000u32)
            .map(|i| if i % 7 == 0 { i * 300 } else { i % 5 })
            .collect();
        let mut encoder = Encoder::new();
        let mut model = Number::default();
        let mut flags = Bit::mostly_zero();
        for v in &values {
            model.code(&mut encoder, *v).unwrap();
            encoder.bit(&mut flags, v % 11 == 3).unwrap();
        }
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        let (mut model, mut flags) = (Number::default(), Bit::mostly_zero());
        for v in &values {
            assert_eq!(model.code(&mut decoder, 0).unwrap(), *v);
            assert_eq!(decoder.bit(&mut flags, false).unwrap(), v % 11 == 3);
        }
    }
}
