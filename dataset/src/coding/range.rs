//! A binary arithmetic coder (Witten, Neal, Cleary 1987, in its carry-free binary form) and the two directions of it behind
//! one trait: a model that is written once codes and decodes.

use crate::DatasetError;

/// One direction of coding. A model calls [`Coder::bit`] with what it wants to say; the encoder says it, the decoder
/// answers what was said.
pub(crate) trait Coder {
    /// Whether values come from the caller.
    const ENCODES: bool;
    /// Codes one bit; `p1` is the probability of a one in 1/65536, 1 to 65535.
    fn bit(&mut self, bit: bool, p1: u32) -> bool;
    /// Whether the stream ended before what it promised.
    fn is_exhausted(&self) -> bool;
    /// Bytes written so far, by those that write.
    fn written(&self) -> usize {
        0
    }

    /// Passes `count` bytes on that are not coded here, and appends them to `out`.
    fn literal(
        &mut self,
        given: &[u8],
        _count: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        out.extend_from_slice(given);
        Ok(())
    }

    /// Codes `value` below `count`, all equally likely.
    fn uniform(&mut self, value: u64, count: u64) -> u64 {
        let (mut low, mut high) = (0_u64, count.max(1));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let share = (u128::from(high - middle) << 16) / u128::from(high - low);
            let p1 = u32::try_from(share).unwrap_or(32768).clamp(1, 65535);
            if self.bit(value >= middle, p1) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }
}

fn split(low: u64, high: u64, p1: u32) -> u64 {
    let range = high - low;
    let p1 = u64::from(p1);
    low + (range >> 16) * p1 + (((range & 0xffff) * p1) >> 16)
}

/// Writes bits.
#[derive(Debug)]
pub(crate) struct Encoder {
    low: u64,
    high: u64,
    out: Vec<u8>,
    literals: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self {
            low: 0,
            high: u64::MAX,
            out: Vec::new(),
            literals: Vec::new(),
        }
    }

    /// The stream, and the bytes that are not in it.
    pub(crate) fn finish_both(mut self) -> (Vec<u8>, Vec<u8>) {
        let literals = std::mem::take(&mut self.literals);
        (self.finish(), literals)
    }

    /// The stream: as few more bytes as tell its end from other streams, where zeros follow.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let settled = self.out.len();
        for bytes in 1..=8_u32 {
            let below = if bytes == 8 {
                0
            } else {
                u64::MAX >> (8 * bytes)
            };
            if let Some(value) = self.low.checked_add(below).map(|v| v & !below)
                && value <= self.high
            {
                let bytes = usize::try_from(bytes).unwrap_or(8);
                self.out.extend_from_slice(&value.to_be_bytes()[..bytes]);
                break;
            }
        }
        // Those zeros follow anyway. The ones before them count: the decoder knows by their number where the end is.
        while self.out.len() > settled && self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl Coder for Encoder {
    const ENCODES: bool = true;

    #[inline]
    fn bit(&mut self, bit: bool, p1: u32) -> bool {
        let middle = split(self.low, self.high, p1);
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.out.push((self.high >> 56).to_le_bytes()[0]);
            self.low <<= 8;
            self.high = (self.high << 8) | 255;
        }
        bit
    }

    fn is_exhausted(&self) -> bool {
        false
    }

    fn written(&self) -> usize {
        self.out.len()
    }

    fn literal(
        &mut self,
        given: &[u8],
        _count: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        self.literals.extend_from_slice(given);
        out.extend_from_slice(given);
        Ok(())
    }
}

/// Reads bits.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    low: u64,
    high: u64,
    value: u64,
    rest: &'a [u8],
    literals: &'a [u8],
    /// Zeros read after the end.
    missing: u64,
}

/// More zeros than this after the end: the stream was cut, or never was one.
const MOST_MISSING: u64 = 8;

impl<'a> Decoder<'a> {
    pub(crate) fn new(stream: &'a [u8]) -> Self {
        Self::with_literals(stream, &[])
    }

    /// With the bytes that are not in the stream.
    pub(crate) fn with_literals(stream: &'a [u8], literals: &'a [u8]) -> Self {
        let mut decoder = Self {
            low: 0,
            high: u64::MAX,
            value: 0,
            rest: stream,
            literals,
            missing: 0,
        };
        for _ in 0..8 {
            decoder.shift();
        }
        decoder
    }

    fn shift(&mut self) {
        let byte = match self.rest.split_first() {
            Some((&byte, rest)) => {
                self.rest = rest;
                byte
            }
            None => {
                self.missing += 1;
                0
            }
        };
        self.value = (self.value << 8) | u64::from(byte);
    }

    /// An error if the stream was not read to its end.
    pub(crate) fn finish(&self) -> Result<(), DatasetError> {
        if self.rest.is_empty() && self.literals.is_empty() && self.missing <= MOST_MISSING {
            Ok(())
        } else {
            Err(DatasetError::damaged("a coded stream has another length"))
        }
    }
}

impl Coder for Decoder<'_> {
    const ENCODES: bool = false;

    #[inline]
    fn bit(&mut self, _: bool, p1: u32) -> bool {
        let middle = split(self.low, self.high, p1);
        let bit = self.value <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.low <<= 8;
            self.high = (self.high << 8) | 255;
            self.shift();
        }
        bit
    }

    fn is_exhausted(&self) -> bool {
        self.missing > MOST_MISSING
    }

    fn literal(&mut self, _: &[u8], count: usize, out: &mut Vec<u8>) -> Result<(), DatasetError> {
        let (taken, rest) = self
            .literals
            .split_at_checked(count)
            .ok_or_else(|| DatasetError::damaged("what is put into values ends early"))?;
        self.literals = rest;
        out.extend_from_slice(taken);
        Ok(())
    }
}

/// Codes nothing: a model learns from what both sides know.
#[derive(Debug)]
pub(crate) struct Learn;

impl Coder for Learn {
    const ENCODES: bool = true;

    #[inline]
    fn bit(&mut self, bit: bool, _: u32) -> bool {
        bit
    }

    fn is_exhausted(&self) -> bool {
        false
    }
}
