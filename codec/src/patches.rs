//! Patches: the differences that have no token in their table, and those of words that are not coded.
//!
//! Rice parameters, then for each patch in order its distance to the one before (Rice) and its difference less one, zigzagged
//! without zero (exponential Golomb).

use crate::{
    bits::{BitReader, BitWriter, put_varint, take_byte, take_size},
    error::{CodecError, corrupt},
};

/// A place in the strip and a difference other than zero.
pub(crate) type Patch = (u32, i64);

fn zigzag(d: i64) -> u64 {
    // Without zero: 1, -1, 2, -2 become 0, 1, 2, 3.
    let positive = if d > 0 { 0 } else { 1 };
    (d.unsigned_abs() - 1).wrapping_mul(2) | positive
}

fn unzigzag(z: u64) -> i64 {
    // A magnitude of 2^63 wraps, as differences of 64-bit words do.
    let a = (z >> 1).wrapping_add(1).cast_signed();
    if z & 1 == 1 { a.wrapping_neg() } else { a }
}

/// Appends patches, if any.
pub(crate) fn put(patches: &[Patch], words: usize, out: &mut Vec<u8>) {
    if patches.is_empty() {
        return;
    }
    let gap = (words / patches.len())
        .max(1)
        .ilog2()
        .saturating_sub(u32::from(words / patches.len() > 1));
    let typical = patches
        .iter()
        .map(|p| u64::from(64 - zigzag(p.1).leading_zeros()))
        .sum::<u64>()
        / patches.len() as u64;
    let size = u32::try_from(typical.saturating_sub(1)).unwrap_or(0);
    put_varint(out, patches.len() as u64);
    out.push(u8::try_from(gap).unwrap_or(0));
    out.push(u8::try_from(size).unwrap_or(0));
    let mut bits = BitWriter::new(out);
    let mut next = 0;
    for (at, d) in patches {
        let distance = at - next;
        next = at + 1;
        unary(&mut bits, distance >> gap);
        bits.put(u64::from(distance), gap);
        // Exponential Golomb of order `size`.
        let z = u128::from(zigzag(*d)) + (1u128 << size);
        let length = 127 - z.leading_zeros();
        unary(&mut bits, length - size);
        bits.put(
            (z & u128::from(u64::MAX)).try_into().unwrap_or(0),
            length.min(64),
        );
    }
    bits.finish();
}

/// `count` ones and a zero.
fn unary(bits: &mut BitWriter<'_>, mut count: u32) {
    while count >= 32 {
        bits.put(u64::from(u32::MAX), 32);
        count -= 32;
    }
    bits.put((1 << count) - 1, count + 1);
}

/// Calls `apply` with each patch in `data`; places ascend and are below `words`.
pub(crate) fn take(
    mut data: &[u8],
    words: usize,
    mut apply: impl FnMut(usize, i64),
) -> Result<(), CodecError> {
    if data.is_empty() {
        return Ok(());
    }
    let count = take_size(&mut data, words)?;
    let gap = u32::from(take_byte(&mut data)?);
    let size = u32::from(take_byte(&mut data)?);
    if gap > 32 || size > 63 {
        return Err(corrupt("a patch parameter is out of range"));
    }
    let mut bits = BitReader::new(data);
    let mut next = 0u64;
    for _ in 0..count {
        let mut quotient = 0u64;
        while bits.take(1) == 1 {
            quotient += 1;
            if quotient > words as u64 {
                return Err(corrupt("a patch lies past its strip"));
            }
        }
        let at = next + (quotient << gap) + bits.take(gap);
        if at >= words as u64 {
            return Err(corrupt("a patch lies past its strip"));
        }
        next = at + 1;
        let mut length = size;
        while bits.take(1) == 1 {
            length += 1;
            if length > 64 {
                return Err(corrupt("a patch is too large"));
            }
        }
        let low = bits.take(length);
        let z = if length == 64 {
            low.wrapping_sub(1 << size)
        } else {
            (low | 1 << length).wrapping_sub(1 << size)
        };
        apply(usize::try_from(at).unwrap_or(usize::MAX), unzigzag(z));
    }
    if bits.is_spent() {
        Ok(())
    } else {
        Err(corrupt("the patches do not end where they should"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]
    use super::*;

    #[test]
    fn patches_come_back() {
        for values in [
            vec![1, -1, 5],
            vec![i64::MIN, i64::MAX, 1],
            vec![i64::MIN],
            vec![1 << 40; 30],
            vec![-1; 100],
        ] {
            for spread in [1u32, 7, 900] {
                let patches: Vec<Patch> = values
                    .iter()
                    .enumerate()
                    .map(|(i, d)| (u32::try_from(i).unwrap() * spread + 3, *d))
                    .collect();
                let words = usize::try_from(patches.last().unwrap().0).unwrap() + 1;
                let mut out = Vec::new();
                put(&patches, words, &mut out);
                let mut back = Vec::new();
                take(&out, words, |at, d| {
                    back.push((u32::try_from(at).unwrap(), d))
                })
                .unwrap();
                assert_eq!(back, patches);
            }
        }
    }
}
