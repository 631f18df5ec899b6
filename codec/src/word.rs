//! Words of 1, 2, 4 or 8 bytes and their place in the floats' numeric order.

/// Reads the little-endian word at index `i`; words past the end read as zero.
#[inline(always)]
pub(crate) fn load<const W: usize>(data: &[u8], i: usize) -> u64 {
    let mut word = [0u8; 8];
    if let Some(bytes) = data.get(i * W..i * W + W) {
        word[..W].copy_from_slice(bytes);
    }
    u64::from_le_bytes(word)
}

/// Writes the little-endian word at index `i`; out of range is ignored.
#[inline(always)]
pub(crate) fn store<const W: usize>(data: &mut [u8], i: usize, word: u64) {
    if let Some(bytes) = data.get_mut(i * W..i * W + W) {
        bytes.copy_from_slice(&word.to_le_bytes()[..W]);
    }
}

/// Bits of a word of `W` bytes.
pub(crate) const fn bits<const W: usize>() -> u32 {
    match W {
        1 => 8,
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

/// All bits of a word of `W` bytes.
pub(crate) const fn mask<const W: usize>() -> u64 {
    if W == 8 { u64::MAX } else { (1 << (8 * W)) - 1 }
}

/// Maps a float's bits to an integer in numeric order (negative: all bits inverted, else the sign bit set); integers are
/// left as they are.
#[inline(always)]
pub(crate) fn order<const W: usize>(word: u64, float: bool) -> u64 {
    let top = 1u64 << (8 * W - 1);
    if !float {
        word
    } else if word & top != 0 {
        !word & mask::<W>()
    } else {
        word | top
    }
}

/// The inverse of [`order`].
#[inline(always)]
pub(crate) fn unorder<const W: usize>(ordered: u64, float: bool) -> u64 {
    let top = 1u64 << (8 * W - 1);
    if !float {
        ordered
    } else if ordered & top != 0 {
        ordered & !top
    } else {
        !ordered & mask::<W>()
    }
}

/// The wrapping difference of two words, sign-extended.
#[inline(always)]
pub(crate) fn difference<const W: usize>(target: u64, prediction: u64) -> i64 {
    let shift = 64 - bits::<W>();
    (target.wrapping_sub(prediction) << shift).cast_signed() >> shift
}
