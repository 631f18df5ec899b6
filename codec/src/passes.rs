//! The passes of a strip over its words: which table each word has, which words are coded, and the words from predictions and
//! tokens. Portable; `avx2` holds twins for words of two and four bytes.

use std::sync::LazyLock;

use crate::{
    bits::{BitReader, BitWriter},
    context::{EXPONENTS, Exponent, Window},
    lowrank::{BELOW, CLASSES, Class},
    strip::moved,
    tables::COLD,
    token,
    word::{difference, load, order, store},
};

/// Words whose mask is one number.
pub(crate) const GROUP: usize = 32;

/// Values of tokens in words of one width.
pub(crate) struct Spread {
    /// Smallest magnitude of a token with raw bits.
    pub(crate) direct: u8,
    /// By token: the value without its raw bits, positive, and how many they are.
    parts: [(u64, u32); 256],
}

impl Spread {
    /// The values in words of this width.
    pub(crate) fn of<const W: usize>() -> &'static Self {
        static ALL: [LazyLock<Spread>; 4] = [
            LazyLock::new(Spread::new::<1>),
            LazyLock::new(Spread::new::<2>),
            LazyLock::new(Spread::new::<4>),
            LazyLock::new(Spread::new::<8>),
        ];
        &ALL[const { W.trailing_zeros() as usize & 3 }]
    }

    fn new<const W: usize>() -> Self {
        let (log, _) = token::shape(W);
        let byte = |t: usize| u8::try_from(t).unwrap_or(0);
        Self {
            direct: 1 << log,
            parts: std::array::from_fn(|t| {
                let token = byte(t);
                (
                    token::value::<W>(token, 0).unsigned_abs(),
                    token::raw_bits::<W>(token),
                )
            }),
        }
    }

    /// The magnitude of a token, the least one where it has raw bits.
    #[inline(always)]
    pub(crate) fn lead(&self, token: u8) -> u64 {
        self.parts[usize::from(token)].0
    }

    /// The difference of a token, with its raw bits taken from `raw`.
    #[inline(always)]
    pub(crate) fn value(&self, token: u8, raw: &mut BitReader<'_>) -> i64 {
        let (lead, bits) = self.parts[usize::from(token)];
        let a = (lead | raw.take(bits)).cast_signed();
        let negative = i64::from(token.cast_signed() >> 7);
        (a ^ negative).wrapping_sub(negative)
    }
}

/// What exponents are taken less by in sums of updates.
pub(crate) const BIAS: i16 = 127;
/// Exponents beyond this count as this, so that sums stay finite.
pub(crate) const LARGEST: u32 = 200;
/// Sums that are kept side by side.
pub(crate) const SUMS: usize = 16;

/// Changed words, and the sum of their differences' magnitudes times 2^(exponent - [`BIAS`]), for words of two and four bytes. An
/// update larger than the weight itself says little in units of its last place, so magnitudes are at most 2^`mantissa`.
pub(crate) fn measure<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    exponent: Exponent,
    mantissa: u32,
    float: bool,
) -> (usize, f32) {
    #[cfg(target_arch = "x86_64")]
    {
        if crate::avx512::available() {
            // SAFETY: the CPU has AVX-512.
            return unsafe {
                crate::avx512::measure::<W>(target, prediction, exponent, mantissa, float)
            };
        }
        if crate::avx2::available() {
            // SAFETY: the CPU has AVX2.
            return unsafe {
                crate::avx2::measure::<W>(target, prediction, exponent, mantissa, float)
            };
        }
    }
    measure_plainly::<W>(target, prediction, exponent, mantissa, float)
}

/// [`measure`], the same in every order of instructions: sixteen sums, which the compiler keeps in vectors.
#[inline(always)]
pub(crate) fn measure_plainly<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    exponent: Exponent,
    mantissa: u32,
    float: bool,
) -> (usize, f32) {
    let sums = [0.0; SUMS];
    measure_from::<W>(target, prediction, exponent, mantissa, float, sums)
}

/// Magnitudes count as this at most.
pub(crate) fn most(mantissa: u32, float: bool) -> u32 {
    if float {
        1 << mantissa.min(24)
    } else {
        1 << 24
    }
}

/// [`measure_plainly`], to sums that there are.
#[inline(always)]
pub(crate) fn measure_from<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    exponent: Exponent,
    mantissa: u32,
    float: bool,
    mut sums: [f32; SUMS],
) -> (usize, f32) {
    let (shift, mask) = exponent.parts();
    let mask = u32::try_from(mask).unwrap_or(0);
    let most = most(mantissa, float);
    let mut counts = [0u32; SUMS];
    let ends = 8 * u32::try_from(4usize.saturating_sub(W)).unwrap_or(0);
    // Of the word's own bits only: a step from -0 to 0 is one.
    let sign = if float { u32::MAX << ends } else { 0 };
    let mut add = |t: &[[u8; W]; SUMS], p: &[[u8; W]; SUMS]| {
        let sums = sums.iter_mut().zip(&mut counts);
        for ((t, p), (sum, count)) in t.iter().zip(p).zip(sums) {
            let (t, p) = (word32(t), word32(p));
            *count += u32::from(t != p);
            let e = (p >> shift & mask).clamp(1, LARGEST);
            // In the upper bits, where the wrapping difference is signed.
            let (t, p) = (t << ends, p << ends);
            let below = |x: u32| x ^ ((x.cast_signed() >> 31).cast_unsigned() >> 1 & sign);
            let d = (below(t).wrapping_sub(below(p))).cast_signed() >> ends;
            let size = d.unsigned_abs().min(most);
            *sum += small(size) * f32::from_bits(e << 23);
        }
    };
    let (target, prediction) = (target.as_chunks::<W>().0, prediction.as_chunks::<W>().0);
    let n = target.len().min(prediction.len());
    let (t, more) = target[..n].as_chunks::<SUMS>();
    let (p, other) = prediction[..n].as_chunks::<SUMS>();
    for (t, p) in t.iter().zip(p) {
        add(t, p);
    }
    if !more.is_empty() {
        // Words that are the same on both sides add nothing.
        let (mut t, mut p) = ([[0; W]; SUMS], [[0; W]; SUMS]);
        t[..more.len()].copy_from_slice(more);
        p[..other.len()].copy_from_slice(other);
        add(&t, &p);
    }
    let sum = sums.iter().fold(0.0, |all, sum| all + sum);
    (counts.iter().sum::<u32>() as usize, sum)
}

#[inline(always)]
fn word32<const W: usize>(word: &[u8; W]) -> u32 {
    match *word.as_slice() {
        [a, b] => u32::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// At most 2^24, which is exact.
#[expect(clippy::cast_precision_loss, reason = "at most 2^24")]
#[inline(always)]
fn small(x: u32) -> f32 {
    x.cast_signed() as f32
}

/// The tables of words, by their exponents.
pub(crate) fn fill<const W: usize>(
    exponent: Exponent,
    window: &Window,
    prediction: &[u8],
    tables: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    let done = if (W == 2 || W == 4) && crate::avx2::available() {
        let done = if W == 2 && crate::avx512::available() {
            // SAFETY: the CPU has AVX-512.
            unsafe { crate::avx512::fill(exponent, window, prediction, tables) }
        } else {
            0
        };
        let (prediction, tables) = (&prediction[done * W..], &mut tables[done..]);
        // SAFETY: the CPU has AVX2.
        done + unsafe { crate::avx2::fill::<W>(exponent, window, prediction, tables) }
    } else {
        0
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    fill_from::<W>(exponent, window, prediction, tables, done);
}

/// The tables of words by their exponents and classes, a window for each class.
pub(crate) fn fill_layered<const W: usize>(
    exponent: Exponent,
    layers: &[Window],
    prediction: &[u8],
    classes: &[Class],
    tables: &mut [u8],
) {
    // The windows of a row differ in their entries only: the place in one is the place in all.
    let places = Window {
        low: layers.first().map_or(0, |window| window.low),
        entries: std::array::from_fn(|i| u8::try_from(i).unwrap_or(0)),
    };
    fill::<W>(exponent, &places, prediction, tables);
    let mut entries = [COLD; CLASSES * EXPONENTS];
    for (entries, window) in entries.chunks_exact_mut(EXPONENTS).zip(layers) {
        entries.copy_from_slice(&window.entries);
    }
    for (table, class) in tables.iter_mut().zip(classes) {
        let place = (class & !BELOW) << 4 | *table & 15;
        let found = entries[usize::from(place)];
        *table = found | class & BELOW & 0u8.wrapping_sub(u8::from(found != COLD));
    }
}

fn fill_from<const W: usize>(
    exponent: Exponent,
    window: &Window,
    prediction: &[u8],
    tables: &mut [u8],
    from: usize,
) {
    for (i, table) in tables.iter_mut().enumerate().skip(from) {
        *table = window.get(exponent.field(load::<W>(prediction, i)));
    }
}

/// Appends the tables that are not cold to `coded`, and for each group of words a mask of them.
pub(crate) fn pack(tables: &[u8], coded: &mut Vec<u8>, masks: &mut Vec<u32>) {
    #[cfg(target_arch = "x86_64")]
    let tables = if crate::avx512::available() {
        // SAFETY: the CPU has AVX-512.
        let done = unsafe { crate::avx512::pack(tables, coded, masks) };
        &tables[done..]
    } else {
        tables
    };
    let whole = tables.len() / GROUP * GROUP;
    let (groups, rest) = tables.split_at(whole);
    #[cfg(target_arch = "x86_64")]
    if crate::avx2::available() {
        // SAFETY: the CPU has AVX2, POPCNT and BMI1.
        unsafe { crate::avx2::pack(groups, coded, masks) };
        return pack_portably(rest, coded, masks);
    }
    pack_portably(groups, coded, masks);
    pack_portably(rest, coded, masks);
}

fn pack_portably(tables: &[u8], coded: &mut Vec<u8>, masks: &mut Vec<u32>) {
    for group in tables.chunks(GROUP) {
        let mut mask = 0;
        for (i, table) in group.iter().enumerate() {
            if *table != COLD {
                mask |= 1u32 << i;
                coded.push(*table);
            }
        }
        masks.push(mask);
    }
}

/// The tokens of words, but for those with raw bits: by group, `changed` says which are not 0 and `wide` which have raw bits,
/// whose token is left open.
pub(crate) fn tokens<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    float: bool,
    tokens: &mut Vec<u8>,
    changed: &mut Vec<u32>,
    wide: &mut Vec<u32>,
) {
    let words = target.len().min(prediction.len()) / W;
    tokens.resize(words, 0);
    changed.clear();
    wide.clear();
    #[cfg(target_arch = "x86_64")]
    if (W == 2 || W == 4) && crate::avx2::available() {
        // SAFETY: the CPU has AVX2, POPCNT and BMI1.
        unsafe { crate::avx2::tokens::<W>(target, prediction, float, tokens, changed, wide) };
    }
    tokens_from::<W>(target, prediction, float, tokens, changed, wide);
}

/// As [`tokens`], where this CPU can, but with the tokens of words with raw bits too, and the magnitudes of those of them that
/// are coded. Returns false where it cannot.
#[expect(clippy::too_many_arguments, reason = "the outputs of the pass")]
pub(crate) fn tokens_and_sizes<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    float: bool,
    masks: &[u32],
    tokens: &mut Vec<u8>,
    changed: &mut Vec<u32>,
    wide: &mut Vec<u32>,
    sizes: &mut Vec<u32>,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if (W == 2 || W == 4) && crate::avx512::available() {
        let words = target.len().min(prediction.len()) / W;
        tokens.resize(words, 0);
        changed.clear();
        wide.clear();
        sizes.clear();
        let found = (&mut *changed, &mut *wide, &mut *sizes);
        // SAFETY: the CPU has AVX-512.
        unsafe { crate::avx512::tokens::<W>(target, prediction, float, masks, tokens, found) };
        let first = changed.len() * GROUP;
        tokens_from::<W>(target, prediction, float, tokens, changed, wide);
        for (i, token) in tokens.iter_mut().enumerate().skip(first) {
            let (t, p) = (load::<W>(target, i), load::<W>(prediction, i));
            let d = difference::<W>(order::<W>(t, float), order::<W>(p, float));
            *token = token::token::<W>(d);
            let (group, bit) = (i / GROUP, i % GROUP);
            if wide[group] & masks.get(group).copied().unwrap_or(0) & 1 << bit != 0 {
                sizes.push(u32::try_from(d.unsigned_abs()).unwrap_or(0));
            }
        }
        return true;
    }
    false
}

/// Puts the raw bits of coded words with these magnitudes, those that are not 0.
pub(crate) fn put_raw<const W: usize>(sizes: &[u32], raw: &mut BitWriter<'_>) {
    #[cfg(target_arch = "x86_64")]
    if (W == 2 || W == 4) && crate::avx512::available() {
        // SAFETY: the CPU has AVX-512.
        return unsafe { crate::avx512::put_raw::<W>(sizes, raw) };
    }
    put_raw_portably::<W>(sizes, raw);
}

fn put_raw_portably<const W: usize>(sizes: &[u32], raw: &mut BitWriter<'_>) {
    let (_, sub) = const { token::shape(W) };
    for size in sizes {
        let n = size.checked_ilog2().map_or(0, |e| e - sub);
        raw.put(u64::from(*size), n);
    }
}

/// As [`tokens`], from the first group that `changed` does not have.
fn tokens_from<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    float: bool,
    tokens: &mut [u8],
    changed: &mut Vec<u32>,
    wide: &mut Vec<u32>,
) {
    let (log, _) = token::shape(W);
    let done = changed.len();
    for (group, tokens) in tokens.chunks_mut(GROUP).enumerate().skip(done) {
        let (mut moved, mut large) = (0u32, 0u32);
        for (i, token) in tokens.iter_mut().enumerate() {
            let (t, p) = (
                load::<W>(target, group * GROUP + i),
                load::<W>(prediction, group * GROUP + i),
            );
            let d = difference::<W>(order::<W>(t, float), order::<W>(p, float));
            moved |= u32::from(d != 0) << i;
            if W > 1 && d.unsigned_abs() >> log != 0 {
                large |= 1 << i;
                *token = 0;
            } else {
                *token = d.to_le_bytes()[0];
            }
        }
        changed.push(moved);
        wide.push(large);
    }
}

/// Appends the tokens of the words that are coded.
pub(crate) fn select(tokens: &[u8], masks: &[u32], coded: &mut Vec<u8>) {
    let whole = tokens.len() / GROUP;
    let (groups, rest) = tokens.split_at(whole * GROUP);
    let (masks, last) = masks.split_at(whole.min(masks.len()));
    #[cfg(target_arch = "x86_64")]
    if crate::avx2::available() {
        // SAFETY: the CPU has AVX-512, or AVX2, POPCNT and BMI1.
        unsafe {
            if crate::avx512::available() {
                crate::avx512::select(groups, masks, coded);
            } else {
                crate::avx2::select(groups, masks, coded);
            }
        }
        return select_portably(rest, last, coded);
    }
    select_portably(groups, masks, coded);
    select_portably(rest, last, coded);
}

fn select_portably(tokens: &[u8], masks: &[u32], coded: &mut Vec<u8>) {
    for (group, mask) in tokens.chunks(GROUP).zip(masks) {
        coded.extend(
            group
                .iter()
                .enumerate()
                .filter(|(i, _)| mask >> i & 1 == 1)
                .map(|(_, t)| *t),
        );
    }
}

/// Makes words from predictions, tokens of the coded words (with at least [`GROUP`] bytes behind them) and raw bits.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments of the pass, and buffers"
)]
pub(crate) fn rebuild<const W: usize>(
    prediction: &[u8],
    masks: &[u32],
    tokens: &[u8],
    raw: &mut BitReader<'_>,
    float: bool,
    spread: &Spread,
    out: &mut [u8],
    buffers: (&mut Vec<u8>, &mut Vec<u8>),
) {
    #[cfg(target_arch = "x86_64")]
    if (W == 2 || W == 4) && crate::avx512::available() {
        let groups = (prediction.len() / (W * GROUP)).min(masks.len());
        // SAFETY: the CPU has AVX-512.
        let next = unsafe { crate::avx512::ones(&masks[..groups]) };
        let (wide, values) = buffers;
        values.clear();
        let (coded, rest) = tokens.split_at(next.min(tokens.len()));
        // SAFETY: the CPU has AVX-512.
        unsafe {
            crate::avx512::values::<W>(coded, raw, spread, wide, values);
            values.resize(values.len() + GROUP * W, 0);
            let direct = spread.direct;
            crate::avx512::rebuild::<W>(prediction, masks, tokens, values, float, direct, out);
        }
        return rebuild_from::<W>(prediction, masks, rest, raw, float, spread, out, groups);
    }
    let _ = buffers;
    #[cfg(target_arch = "x86_64")]
    let (groups, next) = if (W == 2 || W == 4) && crate::avx2::available() {
        // SAFETY: the CPU has AVX2, POPCNT and BMI1.
        unsafe { crate::avx2::rebuild::<W>(prediction, masks, tokens, raw, float, spread, out) }
    } else {
        (0, 0)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (groups, next) = (0, 0);
    rebuild_from::<W>(
        prediction,
        masks,
        &tokens[next..],
        raw,
        float,
        spread,
        out,
        groups,
    );
}

#[expect(
    clippy::too_many_arguments,
    reason = "the arguments of the pass, and where to begin"
)]
fn rebuild_from<const W: usize>(
    prediction: &[u8],
    masks: &[u32],
    tokens: &[u8],
    raw: &mut BitReader<'_>,
    float: bool,
    spread: &Spread,
    out: &mut [u8],
    groups: usize,
) {
    let mut tokens = tokens.iter();
    for i in groups * GROUP..prediction.len() / W {
        let p = load::<W>(prediction, i);
        let coded = masks
            .get(i / GROUP)
            .is_some_and(|m| m >> (i % GROUP) & 1 == 1);
        let token = if coded {
            tokens.next().copied().unwrap_or(0)
        } else {
            0
        };
        store::<W>(out, i, moved::<W>(p, spread.value(token, raw), float));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::EXPONENTS;

    #[expect(clippy::too_many_arguments, reason = "one of each kind")]
    fn check<const W: usize>(
        shift: u32,
        mask: u64,
        low: i32,
        entries: [u8; EXPONENTS],
        bytes: &[u8],
        tokens: &[u8],
        noise: &[u8],
        float: bool,
    ) {
        let (exponent, window) = (Exponent::from_parts(shift, mask), Window { low, entries });
        let words = bytes.len() / W;
        let bytes = &bytes[..words * W];
        let (mut tables, mut plain) = (vec![0; words], vec![0; words]);
        fill::<W>(exponent, &window, bytes, &mut tables);
        fill_from::<W>(exponent, &window, bytes, &mut plain, 0);
        assert_eq!(tables, plain);
        let (mut coded, mut masks) = (vec![7], vec![7]);
        let (mut coded2, mut masks2) = (vec![7], vec![7]);
        pack(&tables, &mut coded, &mut masks);
        pack_portably(&tables, &mut coded2, &mut masks2);
        assert_eq!((&coded, &masks), (&coded2, &masks2));
        let masks = &masks[1..];
        let mut tokens: Vec<u8> = tokens
            .iter()
            .copied()
            .cycle()
            .take(coded.len() - 1)
            .collect();
        tokens.resize(tokens.len() + GROUP, 0);
        let (mut out, mut out2) = (vec![0; bytes.len()], vec![0; bytes.len()]);
        let (mut raw, mut raw2) = (BitReader::new(noise), BitReader::new(noise));
        let spread = Spread::new::<W>();
        let buffers = (&mut Vec::new(), &mut Vec::new());
        rebuild::<W>(
            bytes, masks, &tokens, &mut raw, float, &spread, &mut out, buffers,
        );
        rebuild_from::<W>(
            bytes, masks, &tokens, &mut raw2, float, &spread, &mut out2, 0,
        );
        assert_eq!(out, out2);
        assert_eq!(raw.is_spent(), raw2.is_spent());
        if W == 2 || W == 4 {
            let (changed, sum) = measure::<W>(&out, bytes, exponent, 7, float);
            let (changed2, sum2) = measure_plainly::<W>(&out, bytes, exponent, 7, float);
            assert_eq!((changed, sum.to_bits()), (changed2, sum2.to_bits()));
        }
        let (mut t, mut c, mut w) = (Vec::new(), Vec::new(), Vec::new());
        let (mut t2, mut c2, mut w2) = (vec![0; words], Vec::new(), Vec::new());
        super::tokens::<W>(&out, bytes, float, &mut t, &mut c, &mut w);
        tokens_from::<W>(&out, bytes, float, &mut t2, &mut c2, &mut w2);
        assert_eq!((&t, &c, &w), (&t2, &c2, &w2));
        let (mut t3, mut c3, mut w3, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        if tokens_and_sizes::<W>(
            &out, bytes, float, masks, &mut t3, &mut c3, &mut w3, &mut sizes,
        ) {
            assert_eq!((&c3, &w3), (&c, &w));
            let mut expected = Vec::new();
            for (i, token) in t3.iter().enumerate() {
                let (t, p) = (load::<W>(&out, i), load::<W>(bytes, i));
                let d = difference::<W>(order::<W>(t, float), order::<W>(p, float));
                assert_eq!(*token, token::token::<W>(d));
                if w[i / GROUP] & masks[i / GROUP] & 1 << (i % GROUP) != 0 {
                    expected.push(d.unsigned_abs());
                }
            }
            let (mut bits, mut bits2) = (Vec::new(), Vec::new());
            let (mut raw, mut raw2) = (BitWriter::new(&mut bits), BitWriter::new(&mut bits2));
            put_raw::<W>(&sizes, &mut raw);
            put_raw_portably::<W>(&sizes, &mut raw2);
            raw.finish();
            raw2.finish();
            assert_eq!(bits, bits2);
            let sizes: Vec<u64> = sizes.iter().map(|s| u64::from(*s)).collect();
            assert_eq!(sizes, expected);
        }
        let (mut some, mut some2) = (vec![1], vec![1]);
        select(&t, masks, &mut some);
        select_portably(&t, masks, &mut some2);
        assert_eq!(some, some2);
        let (mut tables, mut kept) = (vec![1], vec![7]);
        let (mut tables2, mut kept2) = (vec![1], vec![7]);
        pack(&t, &mut tables, &mut kept);
        pack_portably(&t, &mut tables2, &mut kept2);
        assert_eq!((tables, kept), (tables2, kept2));
    }

    #[test]
    fn a_step_across_zero_is_measured() {
        let (plus, minus) = ([0u8; 2], [0u8, 0x80]);
        for (target, prediction) in [(plus, minus), (minus, plus)] {
            let exponent = Exponent::from_parts(7, 255);
            let (changed, sum) = measure::<2>(&target, &prediction, exponent, 7, true);
            // One, in the ulp of exponent 1.
            assert_eq!((changed, sum.to_bits()), (1, 1 << 23));
        }
    }

    proptest! {
        #[test]
        fn vectors_agree_with_the_portable_passes(
            bytes in proptest::collection::vec(any::<u8>(), 0..1500),
            tokens in proptest::collection::vec(any::<u8>(), 1..200),
            noise in proptest::collection::vec(any::<u8>(), 0..1500),
            entries in any::<[u8; EXPONENTS]>(), cold in any::<u16>(), low in -20..300i32, far in any::<bool>(), float in any::<bool>(),
        ) {
            let entries = std::array::from_fn(|i| if cold >> i & 1 == 1 { 0 } else { entries[i] % 64 });
            let low = if far { low * 30_000 } else { low };
            for hidden in [false, true] {
                #[cfg(target_arch = "x86_64")]
                crate::avx512::HIDDEN.set(hidden);
                let _ = hidden;
                check::<1>(3, 15, low, entries, &bytes, &tokens, &noise, float);
                check::<2>(7, 255, low, entries, &bytes, &tokens, &noise, float);
                check::<2>(10, 31, low, entries, &bytes, &tokens, &noise, float);
                check::<4>(23, 255, low, entries, &bytes, &tokens, &noise, float);
                check::<4>(0, 0, low, entries, &bytes, &tokens, &noise, float);
                check::<8>(52, 2047, low, entries, &bytes, &tokens, &noise, float);
            }
        }
    }
}
