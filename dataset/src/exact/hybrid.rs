//! Parquet's hybrid of runs and packed bits, written as Impala's encoder does, which those of Arrow (C++) and of parquet-rs come
//! from: runs of at least eight, other values packed by eights.

/// Values of a group that are packed together.
const GROUP: usize = 8;
/// Groups of a packed run.
const GROUPS: usize = 63;

/// Bits that hold every value up to `most`.
pub(super) fn width_of(most: u64) -> usize {
    (u64::BITS - most.leading_zeros()) as usize
}

/// Values of `width` bits, at most 32, one after another.
pub(super) fn write(values: impl Iterator<Item = u32>, width: usize, out: &mut Vec<u8>) {
    let mut encoder = Encoder {
        width,
        out,
        buffered: [0; GROUP],
        count: 0,
        current: 0,
        repeats: 0,
        indicator: None,
        groups: 0,
    };
    for value in values {
        encoder.put(value);
    }
    encoder.finish();
}

struct Encoder<'a> {
    width: usize,
    out: &'a mut Vec<u8>,
    buffered: [u32; GROUP],
    count: usize,
    current: u32,
    repeats: usize,
    /// Where the header of the packed run is that is being written, and its groups.
    indicator: Option<usize>,
    groups: usize,
}

impl Encoder<'_> {
    fn put(&mut self, value: u32) {
        if self.current == value && self.repeats > 0 {
            self.repeats += 1;
            if self.repeats > GROUP {
                return;
            }
        } else {
            if self.repeats >= GROUP {
                self.end_run();
            }
            self.repeats = 1;
            self.current = value;
        }
        self.buffered[self.count] = value;
        self.count += 1;
        if self.count == GROUP {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.repeats >= GROUP {
            self.count = 0;
            self.end_packed();
            return;
        }
        self.pack();
        if self.groups >= GROUPS {
            self.end_packed();
        }
        self.repeats = 0;
    }

    /// Packs the eight values there are.
    fn pack(&mut self) {
        if self.indicator.is_none() {
            self.indicator = Some(self.out.len());
            self.out.push(0);
        }
        let (mut bits, mut held) = (0_u64, 0_usize);
        for &value in &self.buffered[..self.count] {
            bits |= u64::from(value) << held;
            held += self.width;
            while held >= 8 {
                self.out.push(bits.to_le_bytes()[0]);
                bits >>= 8;
                held -= 8;
            }
        }
        self.count = 0;
        self.groups += 1;
    }

    fn end_packed(&mut self) {
        if let Some(at) = self.indicator.take() {
            self.out[at] = u8::try_from((self.groups << 1) | 1).unwrap_or(u8::MAX);
        }
        self.groups = 0;
    }

    fn end_run(&mut self) {
        leb(self.repeats as u64 * 2, self.out);
        let bytes = self.current.to_le_bytes();
        self.out.extend_from_slice(&bytes[..self.width.div_ceil(8)]);
        self.count = 0;
        self.repeats = 0;
    }

    fn finish(mut self) {
        let is_run = self.indicator.is_none() && (self.repeats == self.count || self.count == 0);
        if self.repeats > 0 && is_run {
            self.end_run();
        } else if self.count > 0 {
            self.buffered[self.count..].fill(0);
            self.count = GROUP;
            self.pack();
        }
        self.end_packed();
    }
}

/// An integer, seven bits a byte, the lowest first.
pub(super) fn leb(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value.to_le_bytes()[0] | 128);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Reads what [`leb`] writes; `None` where it ends early or is too large.
pub(super) fn read_leb(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let part = u64::from(byte & 127);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// `count` values of `width` bits, at most 16; `None` where there are not as many.
pub(super) fn read(bytes: &[u8], width: usize, count: usize) -> Option<Vec<u16>> {
    let mut values = Vec::new();
    let mut at = 0;
    while values.len() < count {
        let header = usize::try_from(read_leb(bytes, &mut at)?).ok()?;
        let left = count - values.len();
        if header & 1 == 0 {
            let end = at.checked_add(width.div_ceil(8))?;
            let mut value = 0_u16;
            for (place, &byte) in bytes.get(at..end)?.iter().enumerate() {
                value |= u16::from(byte) << (8 * place);
            }
            at = end;
            values.resize(values.len() + left.min(header >> 1), value);
        } else {
            let end = at.checked_add((header >> 1).checked_mul(width)?)?;
            let packed = bytes.get(at..end.min(bytes.len()))?;
            at = end;
            let (mut bits, mut held) = (0_u32, 0_usize);
            let mut packed = packed.iter();
            for _ in 0..left.min((header >> 1).checked_mul(GROUP)?) {
                while held < width {
                    bits |= u32::from(*packed.next()?) << held;
                    held += 8;
                }
                let value = bits & ((1 << width) - 1);
                values.push(u16::try_from(value).ok()?);
                bits >>= width;
                held -= width;
            }
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut random = 7_u32;
        for width in 1..=9_usize {
            for length in [0, 1, 7, 8, 9, 63, 64, 600, 3000] {
                let mut values = Vec::new();
                while values.len() < length {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let run = if random & 64 == 0 {
                        random as usize >> 27
                    } else {
                        1
                    };
                    let value = (random >> 8) & ((1 << width) - 1);
                    values.resize((values.len() + run).min(length), value);
                }
                let mut out = Vec::new();
                write(values.iter().copied(), width, &mut out);
                let found = read(&out, width, length);
                let found = found.map(|f| f.into_iter().map(u32::from).collect());
                assert_eq!(found, Some(values), "{width} bits");
            }
        }
    }
}
