//! Bit streams (least significant bit first) and variable-length integers (LEB128).

use crate::error::{CodecError, corrupt};

/// Appends bits to a byte vector.
pub(crate) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    held: u64,
    /// Bits held: fewer than 64.
    count: u32,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            held: 0,
            count: 0,
        }
    }

    /// Appends the low `bits` (at most 64) of `value`.
    #[inline]
    pub(crate) fn put(&mut self, value: u64, bits: u32) {
        let value = if bits >= 64 {
            value
        } else {
            value & ((1 << bits) - 1)
        };
        self.held |= value << self.count;
        let count = self.count + bits;
        if count >= 64 {
            self.out.extend_from_slice(&self.held.to_le_bytes());
            // What did not fit; nothing where the count was 0.
            self.held = value.checked_shr(64 - self.count).unwrap_or(0);
            self.count = count - 64;
        } else {
            self.count = count;
        }
    }

    /// The bytes written, room for `more` of them behind, and the bits held, fewer than a byte: for who writes by vectors.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn parts(&mut self, more: usize) -> (&mut Vec<u8>, &mut u64, &mut u32) {
        let whole = self.count / 8;
        self.out
            .extend_from_slice(&self.held.to_le_bytes()[..whole as usize]);
        self.held >>= 8 * whole;
        self.count -= 8 * whole;
        self.out.reserve(more);
        (self.out, &mut self.held, &mut self.count)
    }

    /// Pads the last byte with zeros.
    pub(crate) fn finish(self) {
        let bytes = self.count.div_ceil(8) as usize;
        self.out
            .extend_from_slice(&self.held.to_le_bytes()[..bytes]);
    }
}

/// Reads bits; past the end it reads zeros and remembers it.
pub(crate) struct BitReader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// The next `bits` (at most 64).
    #[inline(always)]
    pub(crate) fn take(&mut self, bits: u32) -> u64 {
        let byte = self.at / 8;
        if bits <= 56
            && byte + 8 <= self.data.len()
            && let Some(near) = self.data[byte..].first_chunk::<8>()
        {
            let value = u64::from_le_bytes(*near) >> (self.at % 8);
            self.at += bits as usize;
            return value & ((1 << bits) - 1);
        }
        self.take_slowly(bits)
    }

    #[cold]
    #[inline(never)]
    fn take_slowly(&mut self, bits: u32) -> u64 {
        if bits == 0 {
            return 0;
        }
        let byte = self.at / 8;
        let mut window = [0u8; 16];
        if let Some(whole) = self.data.get(byte..byte + 16) {
            window.copy_from_slice(whole);
        } else if let Some(rest) = self.data.get(byte..) {
            window[..rest.len()].copy_from_slice(rest);
        }
        let value = u128::from_le_bytes(window) >> (self.at % 8);
        self.at += bits as usize;
        let value = (value & u128::from(u64::MAX)).try_into().unwrap_or(0u64);
        if bits >= 64 {
            value
        } else {
            value & ((1 << bits) - 1)
        }
    }

    /// The bytes from that of the next bit on, and the bit's place in the first.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rest(&self) -> (&[u8], usize) {
        (
            self.data.get(self.at / 8..).unwrap_or_default(),
            self.at % 8,
        )
    }

    /// Passes over bits.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn skip(&mut self, bits: usize) {
        self.at += bits;
    }

    /// Whether exactly the whole stream was read, up to the padding of its last byte.
    pub(crate) fn is_spent(&self) -> bool {
        self.at.div_ceil(8) == self.data.len()
    }
}

/// Appends a LEB128 integer.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f).try_into().unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(value.try_into().unwrap_or(0));
}

/// Takes a LEB128 integer off the front of `data`.
pub(crate) fn take_varint(data: &mut &[u8]) -> Result<u64, CodecError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(data)?;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            break;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(corrupt("an integer is too long"))
}

/// Takes a LEB128 integer that must be at most `limit`.
pub(crate) fn take_size(data: &mut &[u8], limit: usize) -> Result<usize, CodecError> {
    usize::try_from(take_varint(data)?)
        .ok()
        .filter(|n| *n <= limit)
        .ok_or_else(|| corrupt("a size is out of range"))
}

/// Takes one byte.
pub(crate) fn take_byte(data: &mut &[u8]) -> Result<u8, CodecError> {
    let (first, rest) = data.split_first().ok_or_else(|| corrupt("it ends early"))?;
    *data = rest;
    Ok(*first)
}

/// Takes `count` bytes.
pub(crate) fn take_bytes<'a>(data: &mut &'a [u8], count: usize) -> Result<&'a [u8], CodecError> {
    let (first, rest) = data
        .split_at_checked(count)
        .ok_or_else(|| corrupt("it ends early"))?;
    *data = rest;
    Ok(first)
}
