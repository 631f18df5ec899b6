//! The simple peer: ordered difference, byte planes, zstd -1 (`ord + planes + zstd -1` in the published comparison).
//!
//! Its transforms are timed with it, written plainly so that the compiler vectorises them.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_lossless,
    reason = "two's complement arithmetic on words of two widths by one macro"
)]

/// The peer's compressed form of `target` given `base`, two or four bytes an element; lengths must agree.
pub fn compress(target: &[u8], base: &[u8], width: usize) -> std::io::Result<Vec<u8>> {
    let planes = match width {
        2 => split16(target, base),
        4 => split32(target, base),
        _ => {
            return Err(std::io::Error::other(
                "the peer takes elements of two or four bytes",
            ));
        }
    };
    zstd::bulk::compress(&planes, 1)
}

/// The inverse of [`compress`].
pub fn decompress(
    compressed: &[u8],
    base: &[u8],
    width: usize,
    out: &mut Vec<u8>,
) -> std::io::Result<()> {
    let planes = zstd::bulk::decompress(compressed, base.len())?;
    out.clear();
    match width {
        2 => join16(&planes, base, out),
        _ => join32(&planes, base, out),
    }
    Ok(())
}

macro_rules! transforms {
    ($split:ident, $join:ident, $word:ty, $signed:ty, $width:literal) => {
        fn $split(target: &[u8], base: &[u8]) -> Vec<u8> {
            let n = target.len() / $width;
            let mut planes = vec![0u8; n * $width];
            let (f, _) = target.as_chunks::<$width>();
            let (b, _) = base.as_chunks::<$width>();
            for (i, (f, b)) in f.iter().zip(b).enumerate() {
                let d = order(<$word>::from_le_bytes(*f) as u64, $width)
                    .wrapping_sub(order(<$word>::from_le_bytes(*b) as u64, $width))
                    as $signed;
                let z = ((d << 1) ^ (d >> ($width * 8 - 1))) as $word;
                for (plane, byte) in z.to_le_bytes().into_iter().enumerate() {
                    planes[plane * n + i] = byte;
                }
            }
            planes
        }

        fn $join(planes: &[u8], base: &[u8], out: &mut Vec<u8>) {
            let n = base.len() / $width;
            out.resize(n * $width, 0);
            let (b, _) = base.as_chunks::<$width>();
            let (o, _) = out.as_chunks_mut::<$width>();
            for (i, (o, b)) in o.iter_mut().zip(b).enumerate() {
                let mut z = [0u8; $width];
                for (plane, byte) in z.iter_mut().enumerate() {
                    *byte = planes[plane * n + i];
                }
                let z = <$word>::from_le_bytes(z);
                let d = (z >> 1) ^ (z & 1).wrapping_neg();
                let f = (order(<$word>::from_le_bytes(*b) as u64, $width) as $word).wrapping_add(d);
                *o = unorder(f as u64, $width).to_le_bytes()[..$width]
                    .try_into()
                    .unwrap_or_default();
            }
        }
    };
}
transforms!(split16, join16, u16, i16, 2);
transforms!(split32, join32, u32, i32, 4);

fn order(x: u64, width: usize) -> u64 {
    let top = 1u64 << (8 * width - 1);
    let mask = (top << 1).wrapping_sub(1);
    if x & top != 0 { !x & mask } else { x | top }
}

fn unorder(x: u64, width: usize) -> u64 {
    let top = 1u64 << (8 * width - 1);
    let mask = (top << 1).wrapping_sub(1);
    if x & top != 0 { x & !top } else { !x & mask }
}

#[cfg(test)]
mod tests {
    #[test]
    fn round_trip() {
        let base: Vec<u8> = (0..4096u32)
            .flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes())
            .collect();
        let target: Vec<u8> = base
            .iter()
            .map(|b| b.wrapping_add(u8::from(b % 7 == 0)))
            .collect();
        for width in [2, 4] {
            let small = super::compress(&target, &base, width).unwrap_or_default();
            let mut out = Vec::new();
            assert!(super::decompress(&small, &base, width, &mut out).is_ok());
            assert_eq!(out, target);
        }
    }
}
