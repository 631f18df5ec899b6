//! Tokens: the alphabet of differences. A token is a signed byte; small differences are their own token, larger ones share a
//! token with their neighbours and are told apart by raw bits.
//!
//! With `direct` and `sub` of the word's width: a difference `d` with `|d| <= direct` has the token `d`. A larger magnitude
//! `a` lies in the bucket `i = (octave << sub) + next`, where `octave = floor(log2 a) - log2(direct + 1)` and `next` is
//! the `sub` bits after `a`'s leading one; its token is `direct + 1 + i`, negated for a negative difference, and the remaining
//! bits of `a` are raw.

use crate::word::bits;

/// log2(direct + 1) and sub-buckets' bits, by the width of the word. Every difference of the width has a token.
pub(crate) const fn shape(width: usize) -> (u32, u32) {
    match width {
        1 => (7, 0),
        2 => (5, 3),
        4 => (4, 2),
        _ => (6, 0),
    }
}

/// The token of difference `d` in words of `W` bytes, as an index 0..256 (the two's complement byte).
#[inline(always)]
pub(crate) fn token<const W: usize>(d: i64) -> u8 {
    let (log, sub) = const { shape(W) };
    let a = d.unsigned_abs();
    let t = if a >> log == 0 || W == 1 {
        a
    } else {
        let e = 63 - a.leading_zeros();
        (1 << log) + (u64::from(e - log) << sub) + ((a >> (e - sub)) & ((1 << sub) - 1))
    };
    let t = t.to_le_bytes()[0];
    if d < 0 { t.wrapping_neg() } else { t }
}

/// Raw bits that follow a token.
#[inline(always)]
pub(crate) fn raw_bits<const W: usize>(token: u8) -> u32 {
    let (log, sub) = const { shape(W) };
    if W == 1 {
        return 0;
    }
    let t = u32::from(token.cast_signed().unsigned_abs());
    match t.checked_sub(1 << log) {
        None => 0,
        // -128 is no token; it is read as the largest bucket.
        Some(i) => ((i >> sub) + log - sub).min(bits::<W>() - 1),
    }
}

/// The raw bits of `d`, whose token has `count` of them.
#[inline(always)]
pub(crate) fn raw(d: i64, count: u32) -> u64 {
    d.unsigned_abs() & ((1u64 << count) - 1)
}

/// The difference of a token and its raw bits.
#[inline(always)]
pub(crate) fn value<const W: usize>(token: u8, raw: u64) -> i64 {
    let (log, sub) = const { shape(W) };
    let signed = token.cast_signed();
    let t = u64::from(signed.unsigned_abs());
    if W == 1 || t < 1 << log {
        return i64::from(signed);
    }
    let i = t - (1 << log);
    let lead = ((1 << sub) | (i & ((1 << sub) - 1))) << raw_bits::<W>(token);
    let a = (lead | raw).cast_signed();
    if signed < 0 { a.wrapping_neg() } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<const W: usize>(d: i64) {
        let t = token::<W>(d);
        let n = raw_bits::<W>(t);
        assert_eq!(value::<W>(t, raw(d, n)), d, "{d} as {t}");
    }

    #[test]
    fn every_difference_comes_back() {
        (i64::from(i8::MIN)..=i64::from(i8::MAX)).for_each(round_trip::<1>);
        (i64::from(i16::MIN)..=i64::from(i16::MAX)).for_each(round_trip::<2>);
        for shift in 0..63 {
            for d in [
                (1i64 << shift) - 1,
                1 << shift,
                (1 << shift) + 1,
                3 << shift >> 1,
            ] {
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
