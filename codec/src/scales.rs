//! Row scales: four times log2 of a row's mean absolute update, stored as differences from row to row.

use crate::{
    bits::{put_varint, take_varint},
    error::{CodecError, corrupt},
    pack,
};

/// The scale of a row in which nothing changed.
pub(crate) const UNCHANGED: i16 = i16::MIN;

/// Appends the scales. One scale for all rows (`uniform`) is stored once, with the rows that changed not told apart.
pub(crate) fn put(scales: &[i16], out: &mut Vec<u8>) {
    let mut bytes = Vec::with_capacity(scales.len());
    let mut last = 0i16;
    for scale in scales {
        // 0: unchanged, 255: a large step follows as a varint, else a zigzag step + 1.
        if *scale == UNCHANGED {
            bytes.push(0);
            continue;
        }
        let step = i32::from(*scale) - i32::from(last);
        let zigzag = ((step << 1) ^ (step >> 31)).cast_unsigned();
        match u8::try_from(zigzag + 1) {
            Ok(small) if small < 255 => bytes.push(small),
            _ => {
                bytes.push(255);
                put_varint(&mut bytes, u64::from(zigzag));
            }
        }
        last = *scale;
    }
    out.extend_from_slice(&pack::pack(&bytes));
}

/// Takes `rows` scales off the front of `data`.
pub(crate) fn take(data: &mut &[u8], rows: usize) -> Result<Vec<i16>, CodecError> {
    let bytes = pack::unpack(data, rows.saturating_mul(4))?;
    let mut bytes = bytes.as_slice();
    let mut last = 0i32;
    let mut scales = Vec::with_capacity(rows.min(bytes.len()));
    for _ in 0..rows {
        let first = crate::bits::take_byte(&mut bytes)?;
        let zigzag = match first {
            0 => {
                scales.push(UNCHANGED);
                continue;
            }
            255 => u32::try_from(take_varint(&mut bytes)?)
                .map_err(|_| corrupt("a row scale is out of range"))?,
            small => u32::from(small) - 1,
        };
        let step = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        last = last.wrapping_add(step);
        scales.push(
            i16::try_from(last)
                .ok()
                .filter(|s| *s != UNCHANGED)
                .ok_or_else(|| corrupt("a row scale is out of range"))?,
        );
    }
    if bytes.is_empty() {
        Ok(scales)
    } else {
        Err(corrupt("too many row scales"))
    }
}

/// The scale of a mean absolute update; at least that of something that did change.
pub(crate) fn quantise(mean: f64) -> i16 {
    if mean > 0.0 && mean.is_finite() {
        rounded(4.0 * mean.log2())
    } else {
        0
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "4 log2 of a finite float is within +-4400"
)]
fn rounded(x: f64) -> i16 {
    x.round().clamp(-8000.0, 8000.0) as i16
}
