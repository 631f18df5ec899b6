//! Symbols for differences of any width: small ones directly with their sign, large ones as a bucket plus raw bits.

use crate::{
    bits::{BitReader, BitWriter},
    word::bits,
};

/// The symbol of differences that have no other: followed by all bits of the word.
pub(crate) const ESCAPE: u16 = 255;
/// Symbols of the alphabet.
pub(crate) const SYMBOLS: usize = 256;

/// Magnitudes below `1 << direct` have symbols of their own; a larger one is its bit length, the `sub` bits after the
/// leading one, and raw bits (the rest, then the sign).
const fn shape(width: usize) -> (u32, u32) {
    match width {
        1 => (7, 0),
        2 => (6, 3),
        4 => (4, 3),
        _ => (3, 1),
    }
}

/// The symbol of difference `d` in words of `W` bytes.
#[inline(always)]
pub(crate) fn symbol<const W: usize>(d: i64) -> u16 {
    let (direct, sub) = const { shape(W) };
    let a = d.unsigned_abs();
    let number = if a < 1 << direct {
        2 * a - u64::from(d > 0)
    } else if W == 1 {
        u64::from(ESCAPE)
    } else {
        let e = 63 - a.leading_zeros();
        if e >= bits::<W>() {
            u64::from(ESCAPE)
        } else {
            (2 << direct) - 1
                + (u64::from(e - direct) << sub)
                + ((a >> (e - sub)) & ((1 << sub) - 1))
        }
    };
    u16::try_from(number).unwrap_or(ESCAPE)
}

/// Raw bits that follow a symbol.
#[inline(always)]
pub(crate) fn raw_bits<const W: usize>(symbol: u16) -> u32 {
    let (direct, sub) = const { shape(W) };
    if symbol == ESCAPE {
        return bits::<W>();
    }
    let first = (2u32 << direct) - 1;
    match u32::from(symbol).checked_sub(first) {
        None => 0,
        Some(bucket) => direct + (bucket >> sub) - sub + 1,
    }
}

/// Appends the raw bits of `d`.
#[inline(always)]
pub(crate) fn put_raw<const W: usize>(symbol: u16, d: i64, out: &mut BitWriter<'_>) {
    let count = raw_bits::<W>(symbol);
    if symbol == ESCAPE {
        out.put(d.cast_unsigned(), count);
    } else if count > 0 {
        let low = d.unsigned_abs() & ((1 << (count - 1)) - 1);
        out.put(low | u64::from(d < 0) << (count - 1), count);
    }
}

/// The difference of a symbol and the raw bits that follow it.
#[inline(always)]
pub(crate) fn value<const W: usize>(symbol: u16, raw: &mut BitReader<'_>) -> i64 {
    let (direct, sub) = const { shape(W) };
    let first = (2u64 << direct) - 1;
    let number = u64::from(symbol);
    if symbol == ESCAPE {
        let shift = 64 - bits::<W>();
        (raw.take(bits::<W>()) << shift).cast_signed() >> shift
    } else if number < first {
        let a = number.div_ceil(2).cast_signed();
        if number & 1 == 1 { a } else { -a }
    } else {
        let count = raw_bits::<W>(symbol);
        let bucket = number - first;
        let e = u64::from(direct) + (bucket >> sub);
        let rest = raw.take(count);
        let low = rest & ((1 << (count - 1)) - 1);
        // A hostile table may name buckets that no encoder uses; their values wrap and the checksum of the file catches them.
        let a = 1u64.wrapping_shl(u32::try_from(e).unwrap_or(0))
            | ((bucket & ((1 << sub) - 1)) << (count - 1))
            | low;
        let a = a.cast_signed();
        if rest >> (count - 1) == 1 {
            a.wrapping_neg()
        } else {
            a
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<const W: usize>(d: i64) {
        let mut out = Vec::new();
        let mut writer = BitWriter::new(&mut out);
        let s = symbol::<W>(d);
        put_raw::<W>(s, d, &mut writer);
        writer.finish();
        let mut reader = BitReader::new(&out);
        assert_eq!(value::<W>(s, &mut reader), d, "{d} as {s}");
        assert!(reader.is_spent());
    }

    #[test]
    fn every_difference_comes_back() {
        for d in i64::from(i8::MIN)..=i64::from(i8::MAX) {
            round_trip::<1>(d);
        }
        for d in i64::from(i16::MIN)..=i64::from(i16::MAX) {
            round_trip::<2>(d);
        }
        for shift in 0..63 {
            for d in [(1i64 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                if shift < 31 {
                    round_trip::<4>(d);
                    round_trip::<4>(-d);
                }
                round_trip::<8>(d);
                round_trip::<8>(-d);
            }
        }
        round_trip::<4>(i64::from(i32::MIN));
        round_trip::<8>(i64::MIN);
        round_trip::<8>(i64::MAX);
    }
}
