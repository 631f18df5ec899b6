//! Snappy as its two common writers compress: the format leaves them free, so each is followed step by step (google/snappy,
//! `CompressFragment`, BSD-3-Clause). Since 1.1.9 the C++ library has tables of 2^15 places; before that, and in Rust's `snap`,
//! they have 2^14 and another hash.

/// Which writer's choices are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The C++ library since 1.1.9.
    Large,
    /// The C++ library before, and `snap`.
    Small,
}

const BLOCK: usize = 1 << 16;
/// The last bytes of a block are never looked at for matches.
const MARGIN: usize = 15;

impl Kind {
    fn most(self) -> usize {
        match self {
            Self::Large => 1 << 15,
            Self::Small => 1 << 14,
        }
    }

    fn place(self, word: u32, places: usize) -> usize {
        let hash = word.wrapping_mul(0x1e35_a7bd);
        let place = match self {
            Self::Large => hash >> 17,
            Self::Small => hash >> (32 - places.trailing_zeros()),
        };
        place as usize & (places - 1)
    }
}

/// Compresses, as that writer does.
pub(super) fn compress(input: &[u8], kind: Kind) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len() / 2 + 32);
    let mut rest = input.len();
    while rest >= 128 {
        out.push(low(rest) | 128);
        rest >>= 7;
    }
    out.push(low(rest));
    let mut table = Vec::new();
    for block in input.chunks(BLOCK) {
        compress_block(block, kind, &mut table, &mut out);
    }
    out
}

fn low(value: usize) -> u8 {
    value.to_le_bytes()[0]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |word| u32::from_le_bytes(*word))
}

/// Places in a block have 16 bits.
fn narrow(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

fn compress_block(block: &[u8], kind: Kind, table: &mut Vec<u16>, out: &mut Vec<u8>) {
    let places = block.len().next_power_of_two().clamp(256, kind.most());
    table.clear();
    table.resize(places, 0);
    let mut at = 0;
    if let Some(limit) = block.len().checked_sub(MARGIN) {
        'block: loop {
            let start = at;
            at += 1;
            let mut skip = 32;
            let mut candidate;
            loop {
                let place = kind.place(word(block, at), places);
                let step = skip >> 5;
                skip += step;
                if at + step > limit {
                    at = start;
                    break 'block;
                }
                candidate = usize::from(table[place]);
                table[place] = narrow(at);
                if word(block, at) == word(block, candidate) {
                    break;
                }
                at += step;
            }
            literal(&block[start..at], out);
            loop {
                let (from, to) = (&block[candidate + 4..], &block[at + 4..]);
                let matched = 4 + from.iter().zip(to).take_while(|(a, b)| a == b).count();
                copy(at - candidate, matched, out);
                at += matched;
                if at >= limit {
                    break 'block;
                }
                table[kind.place(word(block, at - 1), places)] = narrow(at - 1);
                let place = kind.place(word(block, at), places);
                candidate = usize::from(table[place]);
                table[place] = narrow(at);
                if word(block, at) != word(block, candidate) {
                    break;
                }
            }
        }
    }
    literal(&block[at..], out);
}

fn literal(bytes: &[u8], out: &mut Vec<u8>) {
    let Some(length) = bytes.len().checked_sub(1) else {
        return;
    };
    if length < 60 {
        out.push(low(length << 2));
    } else {
        let width = if length < 256 { 1 } else { 2 };
        out.push(low((59 + width) << 2));
        out.extend_from_slice(&length.to_le_bytes()[..width]);
    }
    out.extend_from_slice(bytes);
}

fn copy(offset: usize, mut length: usize, out: &mut Vec<u8>) {
    while length >= 68 {
        copy_at_most_64(offset, 64, out);
        length -= 64;
    }
    if length > 64 {
        copy_at_most_64(offset, 60, out);
        length -= 60;
    }
    copy_at_most_64(offset, length, out);
}

fn copy_at_most_64(offset: usize, length: usize, out: &mut Vec<u8>) {
    if length < 12 && offset < 2048 {
        out.push(low(1 + ((length - 4) << 2) + ((offset >> 3) & 0xe0)));
        out.push(low(offset));
    } else {
        out.push(low(2 + ((length - 1) << 2)));
        out.extend_from_slice(&narrow(offset).to_le_bytes());
    }
}

/// Unpacks what has `size` bytes; `None` where it has not.
pub(super) fn decompress(input: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut at = 0;
    let length = super::hybrid::read_leb(input, &mut at)?;
    if usize::try_from(length).ok()? != size {
        return None;
    }
    let mut out = Vec::new();
    let number = |at: usize, bytes: usize| {
        let bytes = input.get(at..at + bytes)?;
        let value = bytes.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
        Some(value)
    };
    while let Some(&tag) = input.get(at) {
        at += 1;
        let high = usize::from(tag >> 2);
        let (offset, length) = match tag & 3 {
            0 => {
                let mut length = high + 1;
                if high >= 60 {
                    length = number(at, high - 59)?.checked_add(1)?;
                    at += high - 59;
                }
                let end = at.checked_add(length)?;
                out.extend_from_slice(input.get(at..end)?);
                at = end;
                continue;
            }
            1 => {
                let offset = (high >> 3) << 8 | number(at, 1)?;
                at += 1;
                (offset, (high & 7) + 4)
            }
            wide => {
                let bytes = if wide == 2 { 2 } else { 4 };
                let offset = number(at, bytes)?;
                at += bytes;
                (offset, high + 1)
            }
        };
        let start = out.len().checked_sub(offset).filter(|_| offset > 0)?;
        if out.len() + length > size {
            return None;
        }
        for from in start..start + length {
            out.push(out[from]);
        }
    }
    (out.len() == size).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_back() {
        let mut random = 9_u32;
        let mut next = |below: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random as usize / 65536 % below
        };
        let words: Vec<String> = (0..300).map(|_| format!("w{} ", next(90_000))).collect();
        for length in [0, 1, 14, 15, 16, 40, 1000, 65_536, 200_000] {
            let mut text = Vec::new();
            while text.len() < length {
                text.extend_from_slice(words[next(words.len())].as_bytes());
            }
            text.truncate(length);
            for kind in [Kind::Large, Kind::Small] {
                let packed = compress(&text, kind);
                assert_eq!(decompress(&packed, length).as_ref(), Some(&text));
                assert!(decompress(&packed, length + 1).is_none());
            }
        }
    }
}
