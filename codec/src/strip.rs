//! Strips: runs of words that are coded on their own. A block is a sequence of them.
//!
//! A strip is coded in passes, each of which a CPU's vectors and a GPU's warp can do for many words at a time: the table of
//! every word from the row's scale and the prediction's exponent; the tokens of the words that are not cold; the words from
//! prediction, token and raw bits; the patches.

use std::ops::Range;

use crate::{
    bits::{BitReader, BitWriter, put_varint, take_byte, take_bytes, take_size},
    coding::StripCode,
    context::{Exponent, Window},
    error::{CodecError, corrupt},
    lowrank::{BELOW, Class},
    options::Scratch,
    passes::{self, GROUP, Spread},
    patches,
    rans::{self, LANES, MOST, Stream},
    scales::UNCHANGED,
    tables::{COLD, TableSet},
    token,
    word::{difference, load, mask, order, store, unorder},
};

/// What a strip's first byte says besides the number of lanes (bits 0 to 2: its log2).
const CODED: u8 = 8;
const RAW: u8 = 16;
const PATCHED: u8 = 32;

/// What coding needs to know of the tensor.
pub(crate) struct Plan<'a> {
    pub(crate) set: &'a TableSet,
    pub(crate) exponent: Exponent,
    /// Words are compared in the order of floats.
    pub(crate) float: bool,
    /// Words of a row.
    pub(crate) row: usize,
    /// Scale of each row.
    pub(crate) scales: &'a [i16],
}

/// The maps of exponents to tables in rows of any scale: four to the octave repeat, a step further. One for each layer of classes
/// of a low-rank prediction, or one.
struct Windows {
    first: i32,
    /// By the scale's place in its octave.
    layers: [Vec<Window>; 4],
}

impl Windows {
    fn new(set: &TableSet) -> Self {
        let layers = [0, 1, 2, 3].map(|step| {
            let window = |map| Window::new(set.first().saturating_add(step), set.first(), map);
            set.maps().iter().map(window).collect()
        });
        Self {
            first: set.first(),
            layers,
        }
    }

    /// Makes the windows those of a scale.
    fn of(&mut self, scale: i16) -> &[Window] {
        let steps = i32::from(scale).saturating_sub(self.first);
        let layers = &mut self.layers[usize::try_from(steps & 3).unwrap_or(0) & 3];
        let low = Window::low(i32::from(scale), self.first);
        for window in &mut *layers {
            window.low = low;
        }
        layers
    }
}

impl Plan<'_> {
    /// The rows (or parts of them) in a range of words, as ranges relative to its start, with their scales.
    fn rows(&self, words: Range<usize>) -> impl Iterator<Item = (Range<usize>, i16)> {
        let mut at = words.start;
        std::iter::from_fn(move || {
            if at >= words.end {
                return None;
            }
            let row = at / self.row.max(1);
            let end = words
                .end
                .min(row.saturating_add(1).saturating_mul(self.row.max(1)));
            let range = at - words.start..end - words.start;
            at = end;
            Some((range, self.scales.get(row).copied().unwrap_or(UNCHANGED)))
        })
    }

    /// Calls `each` with the tables of the words, [`CHUNK`] at a time; with `classes`, those of mirrored words have
    /// [`BELOW`] set.
    fn tables<const W: usize>(
        &self,
        words: Range<usize>,
        prediction: &[u8],
        classes: &[Class],
        mut each: impl FnMut(&[u8]),
    ) {
        let mut dense = [0; CHUNK];
        let mut filled = 0;
        let mut windows = Windows::new(self.set);
        for (range, scale) in self.rows(words) {
            let layers = windows.of(scale);
            let mut at = range.start;
            while at < range.end {
                let n = (range.end - at).min(CHUNK - filled);
                let chunk = &mut dense[filled..filled + n];
                let bytes = at * W..(at + n) * W;
                match layers {
                    _ if scale == UNCHANGED => chunk.fill(COLD),
                    [window] => {
                        passes::fill::<W>(self.exponent, window, &prediction[bytes], chunk);
                    }
                    layers => passes::fill_layered::<W>(
                        self.exponent,
                        layers,
                        &prediction[bytes],
                        classes.get(at..at + n).unwrap_or_default(),
                        chunk,
                    ),
                }
                at += n;
                filled += n;
                if filled == CHUNK {
                    each(&dense);
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            each(&dense[..filled]);
        }
    }
}

/// Words whose tables are found at a time: a multiple of [`GROUP`] that stays in the nearest cache.
const CHUNK: usize = 4096;

/// Bits from which all lanes are used.
const LONG: u64 = 120_000;

/// Lanes of a strip that takes about `bits`: each lane costs some three bytes.
fn lanes(bits: u64) -> usize {
    match bits {
        0..1_000 => 1,
        1_000..4_000 => 4,
        4_000..9_000 => 8,
        9_000..LONG => LANES,
        _ => MOST,
    }
}

/// The token of a word whose unrounded prediction lies [`BELOW`] its word is negated, so that the likelier miss is the same for all.
#[inline(always)]
pub(crate) fn mirrored(token: u8, class: Class) -> u8 {
    if class & BELOW == 0 {
        token
    } else {
        token.wrapping_neg()
    }
}

/// Mirrors tokens, in either direction.
fn mirror(tokens: &mut [u8], sides: &[u8]) {
    for (token, side) in tokens.iter_mut().zip(sides) {
        *token = mirrored(*token, *side);
    }
}

/// Takes the sides out of the tables of words with a low-rank prediction; others have none.
fn take_sides(plan: &Plan<'_>, tables: &mut [u8], sides: &mut Vec<u8>) {
    sides.clear();
    if plan.set.maps().len() > 1 {
        sides.extend_from_slice(tables);
        for table in tables {
            *table &= !BELOW;
        }
    }
}

/// Appends the words `words` of a tensor as a strip. `target` and `prediction` hold just these words, `classes` those of a
/// low-rank prediction, or nothing. Returns how many words differ from their prediction.
pub(crate) fn encode<const W: usize>(
    plan: &Plan<'_>,
    words: Range<usize>,
    pair: (&[u8], &[u8]),
    classes: &[Class],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if crate::avx2::available() {
        // SAFETY: the CPU has POPCNT and BMI1.
        return unsafe { crate::avx2::encode::<W>(plan, words, pair, classes, scratch, out) };
    }
    encode_plainly::<W>(plan, words, pair, classes, scratch, out)
}

/// [`encode`], with the instructions of the function it is part of.
#[inline(always)]
pub(crate) fn encode_plainly<const W: usize>(
    plan: &Plan<'_>,
    words: Range<usize>,
    (target, prediction): (&[u8], &[u8]),
    classes: &[Class],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> usize {
    let count = words.len();
    let Scratch {
        tables,
        tokens,
        masks,
        dense,
        changed,
        wide,
        words: coder_words,
        bytes,
        patches,
        missing,
        coder_bytes,
        side,
        sides,
        sizes,
        ..
    } = scratch;
    tables.clear();
    masks.clear();
    bytes.clear();
    patches.clear();
    plan.tables::<W>(words, prediction, classes, |tables_of| {
        passes::pack(tables_of, tables, masks);
    });
    take_sides(plan, tables, sides);
    let whole = sides.is_empty()
        && passes::tokens_and_sizes::<W>(
            target, prediction, plan.float, masks, dense, changed, wide, sizes,
        );
    if !whole {
        passes::tokens::<W>(target, prediction, plan.float, dense, changed, wide);
    }
    if tables.len() == count {
        std::mem::swap(tokens, dense);
    } else {
        tokens.clear();
        passes::select(dense, masks, tokens);
    }
    let difference_at = |i: usize| {
        let (t, p) = (load::<W>(target, i), load::<W>(prediction, i));
        difference::<W>(order::<W>(t, plan.float), order::<W>(p, plan.float))
    };
    let mut raw = BitWriter::new(bytes);
    let coded = masks.iter().zip(&*changed);
    let bits: u64 = coded
        .map(|(mask, changed)| u64::from((changed & mask).count_ones()) * 4)
        .sum();
    let mut from = 0;
    for (group, ((mask, changed), wide)) in masks.iter().zip(&*changed).zip(&*wide).enumerate() {
        let mut rest = changed & !mask;
        if !whole {
            rest |= wide & mask;
        }
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            let i = group * GROUP + bit as usize;
            let d = difference_at(i);
            if mask >> bit & 1 == 0 {
                patches.push((u32::try_from(i).unwrap_or(0), d));
                continue;
            }
            let at = from + (mask & ((1 << bit) - 1)).count_ones() as usize;
            let token = token::token::<W>(d);
            let coded = mirrored(token, sides.get(at).copied().unwrap_or(0));
            if plan.set.intervals(tables[at])[usize::from(coded)].frequency == 0 {
                patches.push((u32::try_from(i).unwrap_or(0), d));
                tokens[at] = 0;
            } else {
                let n = token::raw_bits::<W>(token);
                raw.put(token::raw(d, n), n);
                tokens[at] = token;
            }
        }
        from += mask.count_ones() as usize;
    }
    mirror(tokens, sides);
    let lanes = lanes(bits + tables.len() as u64 / 16);
    let first = out.len();
    out.push(u8::try_from(lanes.trailing_zeros()).unwrap_or(0));
    coder_bytes.clear();
    missing.clear();
    if tokens.iter().any(|t| *t != 0) {
        rans::encode(
            tables,
            tokens,
            plan.set,
            lanes,
            coder_words,
            missing,
            coder_bytes,
        );
        if !missing.is_empty() {
            places(missing, masks, wide, |i, ordinal| {
                patches.push((u32::try_from(i).unwrap_or(0), difference_at(i)));
                // Nothing of a patched word is raw.
                if let Some(size) = ordinal.and_then(|n| sizes.get_mut(n)) {
                    *size = 0;
                }
            });
            patches.sort_unstable();
        }
        // Where all that is not 0 is patched, all that is coded is 0.
        let others = tokens.iter().filter(|t| **t != 0);
        if others.take(missing.len() + 1).count() > missing.len() {
            out[first] |= CODED;
        } else {
            coder_bytes.clear();
        }
    }
    if whole {
        passes::put_raw::<W>(sizes, &mut raw);
    }
    raw.finish();
    if !bytes.is_empty() {
        out[first] |= RAW;
        put_varint(out, bytes.len() as u64);
    }
    side.clear();
    patches::put(patches, count, side);
    if !side.is_empty() {
        out[first] |= PATCHED;
        put_varint(out, side.len() as u64);
    }
    out.extend_from_slice(coder_bytes);
    out.extend_from_slice(bytes);
    out.extend_from_slice(side);
    changed.iter().map(|m| m.count_ones() as usize).sum()
}

/// Appends a strip of `count` words that was encoded elsewhere.
pub(crate) fn put(code: &StripCode<'_>, count: usize, out: &mut Vec<u8>) {
    let mut patched = Vec::new();
    patches::put(code.patches, count, &mut patched);
    let mut first = u8::try_from(code.lanes.trailing_zeros()).unwrap_or(0);
    for (flag, there) in [
        (CODED, code.coded.is_some()),
        (RAW, !code.raw.is_empty()),
        (PATCHED, !patched.is_empty()),
    ] {
        first |= if there { flag } else { 0 };
    }
    out.push(first);
    for part in [code.raw, &patched] {
        if !part.is_empty() {
            put_varint(out, part.len() as u64);
        }
    }
    let (states, words) = code.coded.unwrap_or_default();
    for part in [states, words, code.raw, &patched] {
        out.extend_from_slice(part);
    }
}

/// Calls `each` with the places in the strip of coded words, whose numbers descend, and the number of each among the coded
/// words with raw bits, if it has any.
#[inline(always)]
fn places(
    numbers: &[u32],
    masks: &[u32],
    wide: &[u32],
    mut each: impl FnMut(usize, Option<usize>),
) {
    let mut numbers = numbers.iter().rev().map(|n| *n as usize).peekable();
    let (mut from, mut long) = (0, 0);
    for (group, (mask, wide)) in masks.iter().zip(wide).enumerate() {
        let to = from + mask.count_ones() as usize;
        let wide = wide & mask;
        while let Some(number) = numbers.next_if(|n| *n < to) {
            let mut rest = *mask;
            for _ in from..number {
                rest &= rest.wrapping_sub(1);
            }
            let bit = rest.trailing_zeros();
            let ordinal = long + (wide & ((1 << bit) - 1)).count_ones() as usize;
            each(
                group * GROUP + bit as usize,
                (wide >> bit & 1 == 1).then_some(ordinal),
            );
        }
        from = to;
        long += wide.count_ones() as usize;
    }
}

/// The parts of a strip.
pub(crate) struct Parts<'a> {
    pub(crate) lanes: usize,
    /// The coder's states and words; `None`: every token is 0.
    pub(crate) coded: Option<&'a [u8]>,
    pub(crate) raw: &'a [u8],
    pub(crate) patches: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(crate) fn new(mut data: &'a [u8]) -> Result<Self, CodecError> {
        let first = take_byte(&mut data)?;
        if first & !(7 | CODED | RAW | PATCHED) != 0 || first & 7 > 6 {
            return Err(corrupt("a strip begins with unknown flags"));
        }
        let left = data.len();
        let raw = if first & RAW != 0 {
            take_size(&mut data, left)?
        } else {
            0
        };
        let patched = if first & PATCHED != 0 {
            take_size(&mut data, left)?
        } else {
            0
        };
        let coded = data
            .len()
            .checked_sub(raw)
            .and_then(|n| n.checked_sub(patched))
            .ok_or_else(|| corrupt("a strip ends early"))?;
        let coder = take_bytes(&mut data, coded)?;
        if first & CODED == 0 && !coder.is_empty() {
            return Err(corrupt("a strip has more bytes than it says"));
        }
        Ok(Self {
            lanes: 1 << (first & 7),
            coded: (first & CODED != 0).then_some(coder),
            raw: take_bytes(&mut data, raw)?,
            patches: take_bytes(&mut data, patched)?,
        })
    }
}

/// Decodes a strip of the words `words` into `out`; `prediction` holds just these words.
pub(crate) fn decode<const W: usize>(
    plan: &Plan<'_>,
    words: Range<usize>,
    data: &[u8],
    prediction: &[u8],
    classes: &[Class],
    out: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    let parts = Parts::new(data)?;
    let count = words.len();
    match parts.coded {
        None => out.copy_from_slice(prediction),
        Some(coded) => {
            let mut stream = Stream::new(coded, parts.lanes)?;
            let Scratch {
                tables,
                tokens,
                masks,
                sides,
                bytes,
                coder_bytes,
                ..
            } = scratch;
            tables.clear();
            masks.clear();
            plan.tables::<W>(words, prediction, classes, |tables_of| {
                passes::pack(tables_of, tables, masks);
            });
            take_sides(plan, tables, sides);
            // Bytes behind the tokens let groups be read whole.
            let coded = tables.len();
            if tokens.len() < coded + GROUP {
                tokens.resize(coded + GROUP, 0);
            }
            rans::decode(
                &mut stream,
                tables,
                plan.set,
                parts.lanes,
                &mut tokens[..coded],
            );
            stream.finish(parts.lanes)?;
            mirror(&mut tokens[..coded], sides);
            let mut raw = BitReader::new(parts.raw);
            let tokens = &tokens[..coded + GROUP];
            let spread = Spread::of::<W>();
            let buffers = (bytes, coder_bytes);
            passes::rebuild::<W>(
                prediction, masks, tokens, &mut raw, plan.float, spread, out, buffers,
            );
            if !raw.is_spent() {
                return Err(corrupt("the raw bits do not end where they should"));
            }
        }
    }
    patches::take(parts.patches, count, |i, d| {
        let p = load::<W>(prediction, i);
        store::<W>(out, i, moved::<W>(p, d, plan.float));
    })
}

/// The word at distance `d` from `p`.
#[inline(always)]
pub(crate) fn moved<const W: usize>(p: u64, d: i64, float: bool) -> u64 {
    unorder::<W>(
        order::<W>(p, float).wrapping_add(d.cast_unsigned()) & mask::<W>(),
        float,
    )
}
