//! The passes of a strip with AVX2. Each gives what its portable twin in `passes` and `rans` gives, bit for bit.
//!
//! Functions here are safe to call only on a CPU with AVX2, which [`available`] tells; slices are checked, so that no input
//! makes them read or write outside.

use std::arch::x86_64::{
    __m256i, _mm_cvtsi32_si128, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_insert_epi32,
    _mm_loadl_epi64, _mm_loadu_si128, _mm_shuffle_epi8, _mm_srli_si128, _mm_storel_epi64,
    _mm_unpacklo_epi64, _mm256_abs_epi8, _mm256_abs_epi16, _mm256_abs_epi32, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256, _mm256_blendv_epi8,
    _mm256_broadcastsi128_si256, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmpeq_epi8,
    _mm256_cmpeq_epi16, _mm256_cmpeq_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32,
    _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_max_epi16, _mm256_max_epi32, _mm256_max_epu8, _mm256_max_epu16, _mm256_max_epu32,
    _mm256_min_epi16, _mm256_min_epi32, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_movemask_ps,
    _mm256_mullo_epi32, _mm256_or_si256, _mm256_packs_epi16, _mm256_packs_epi32,
    _mm256_packus_epi16, _mm256_permute4x64_epi64, _mm256_permutevar8x32_epi32, _mm256_set_m128i,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_sll_epi32, _mm256_slli_epi32,
    _mm256_srai_epi16, _mm256_srai_epi32, _mm256_srl_epi16, _mm256_srl_epi32, _mm256_srli_epi32,
    _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_epi32, _mm256_subs_epu8, _mm256_xor_si256,
};
use std::{ops::Range, sync::LazyLock};

use crate::{
    bits::BitReader,
    context::{Exponent, Window},
    lowrank::Class,
    options::Scratch,
    passes::{self, GROUP, Spread},
    rans::{LOWER, MOST, Stream},
    strip::{self, Plan, moved},
    tables::TableSet,
};

/// Whether this CPU has what the functions here need; asked once.
#[inline]
pub(crate) fn available() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("popcnt")
            && std::arch::is_x86_feature_detected!("bmi1")
    });
    *HAS
}

/// By eight bits: where each set bit is, then zeros.
static PACK: [[u8; 8]; 256] = orders(false);
/// By eight bits: for each set bit how many are set below it, for others a number that shuffles make a zero.
static UNPACK: [[u8; 8]; 256] = orders(true);

#[expect(clippy::cast_possible_truncation, reason = "below eight")]
const fn orders(unpack: bool) -> [[u8; 8]; 256] {
    let mut out = [[if unpack { 0x80 } else { 0 }; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut rank) = (0, 0);
        while bit < 8 {
            if mask >> bit & 1 == 1 {
                if unpack {
                    out[mask][bit] = rank as u8;
                } else {
                    out[mask][rank] = bit as u8;
                }
                rank += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    out
}

/// For each set of lanes that want a word: which of the next words each takes.
static DEAL: [[u32; 8]; 256] = deals();

const fn deals() -> [[u32; 8]; 256] {
    let mut out = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut rank) = (0, 0);
        while bit < 8 {
            out[mask][bit] = rank;
            if mask >> bit & 1 == 1 {
                rank += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    out
}

/// Decodes whole groups of `L` tokens; returns how many tokens are done.
///
/// # Safety
/// The CPU has AVX2, POPCNT and BMI1.
#[target_feature(enable = "avx2,popcnt,bmi1")]
pub(crate) unsafe fn decode<const L: usize>(
    stream: &mut Stream<'_>,
    tables: &[u8],
    set: &TableSet,
    tokens: &mut [u8],
) -> usize {
    let count = tables.len().min(tokens.len()) / L * L;
    let mut done = 0;
    let groups = if crate::avx512::available() {
        crate::avx512::groups::<L>
    } else {
        groups::<L>
    };
    // The last words are read from a copy with room behind it, where a damaged stream finds zeros.
    let inner = stream.words.len().saturating_sub(MARGIN);
    // SAFETY: the CPU has what it takes.
    let (consumed, n) = unsafe {
        groups(
            &mut stream.states,
            stream.words,
            inner,
            &tables[..count],
            set,
            &mut tokens[..count],
        )
    };
    done += n;
    stream.skip(consumed);
    if done < count && stream.words.len() <= 2 * MARGIN {
        let mut tail = [0u8; 4 * MARGIN];
        tail[..stream.words.len()].copy_from_slice(stream.words);
        let limit = stream.words.len() + 1;
        // SAFETY: as above.
        let (consumed, n) = unsafe {
            groups(
                &mut stream.states,
                &tail,
                limit,
                &tables[done..count],
                set,
                &mut tokens[done..count],
            )
        };
        done += n;
        stream.skip(consumed);
    }
    done
}

/// Bytes that a group may look at: 64 words and the end of the last load.
pub(crate) const MARGIN: usize = 2 * MOST + 32;

/// Decodes groups of `L` tokens while fewer than `limit` bytes of `words` are read; returns bytes read and tokens done.
///
/// # Safety
/// The CPU has AVX2 and POPCNT.
#[target_feature(enable = "avx2,popcnt,bmi1")]
unsafe fn groups<const L: usize>(
    states: &mut [u32; MOST],
    words: &[u8],
    limit: usize,
    tables: &[u8],
    set: &TableSet,
    tokens: &mut [u8],
) -> (usize, usize) {
    let precision = set.precision();
    let slots = set.slots();
    let last = set.tables().wrapping_sub(1);
    let limit = limit.min(words.len().saturating_sub(MARGIN - 1));
    if set.tables() == 0 || slots.len() < set.tables() << precision {
        return (0, 0);
    }
    let count = tables.len().min(tokens.len()) / L * L;
    let mut at = 0;
    let mut done = 0;
    // SAFETY: tables are cut to those of the set, whose slots are all there; `at` stays below `limit` before a group, which
    // leaves MARGIN bytes to read; `done + L <= count`, the length of both `tables` and `tokens`.
    unsafe {
        let mut x: [__m256i; 8] =
            std::array::from_fn(|i| _mm256_loadu_si256(states.as_ptr().add(8 * i).cast()));
        let one = _mm256_set1_epi8(1);
        let most = _mm256_set1_epi8(u8::try_from(last).unwrap_or(255).cast_signed());
        let low = _mm256_set1_epi32((1 << precision) - 1);
        let shift = _mm_cvtsi32_si128(precision.cast_signed());
        let byte = _mm256_set1_epi32(0xff);
        let offset = _mm256_set1_epi32(0xfff);
        let zero = _mm256_setzero_si256();
        let source = slots.as_ptr();
        while done < count && at < limit {
            for part in 0..L / 32 {
                let t = _mm256_loadu_si256(tables.as_ptr().add(done + 32 * part).cast());
                let t = _mm256_min_epu8(_mm256_subs_epu8(t, one), most);
                let halves = [_mm256_castsi256_si128(t), _mm256_extracti128_si256::<1>(t)];
                let mut found = [zero; 4];
                for (i, found) in found.iter_mut().enumerate() {
                    let half = halves[i / 2];
                    let half = if i % 2 == 1 {
                        _mm_srli_si128::<8>(half)
                    } else {
                        half
                    };
                    let table = _mm256_sll_epi32(_mm256_cvtepu8_epi32(half), shift);
                    let index = _mm256_or_si256(table, _mm256_and_si256(x[4 * part + i], low));
                    let slot = look_up(source, index);
                    *found = _mm256_and_si256(slot, byte);
                    let y = _mm256_add_epi32(
                        _mm256_mullo_epi32(
                            _mm256_srli_epi32::<20>(slot),
                            _mm256_srl_epi32(x[4 * part + i], shift),
                        ),
                        _mm256_and_si256(_mm256_srli_epi32::<8>(slot), offset),
                    );
                    let wants = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(y), zero);
                    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(wants)).cast_unsigned()
                        as usize
                        & 255;
                    let next =
                        _mm256_cvtepu16_epi32(_mm_loadu_si128(words.as_ptr().add(at).cast()));
                    let dealt = _mm256_permutevar8x32_epi32(
                        next,
                        _mm256_loadu_si256(DEAL[mask].as_ptr().cast()),
                    );
                    let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(y), dealt);
                    x[4 * part + i] = _mm256_blendv_epi8(y, filled, wants);
                    at += 2 * mask.count_ones() as usize;
                }
                let bytes = pack_dwords(found);
                _mm256_storeu_si256(tokens.as_mut_ptr().add(done + 32 * part).cast(), bytes);
            }
            done += L;
        }
        for (i, x) in x.iter().enumerate() {
            _mm256_storeu_si256(states.as_mut_ptr().add(8 * i).cast(), *x);
        }
    }
    debug_assert!(states.iter().all(|s| *s >= LOWER || done > 0));
    (at, done)
}

/// The slots at eight indices. Eight loads by hand take fewer micro-operations than the gather instruction of most CPUs.
///
/// # Safety
/// The indices are inside `slots`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn look_up(slots: *const u32, index: __m256i) -> __m256i {
    // SAFETY: as asked of the caller.
    unsafe {
        let pick = |pair: i64| {
            let pair = pair.cast_unsigned();
            let (a, b) = ((pair & 0xffff_ffff) as usize, (pair >> 32) as usize);
            (*slots.add(a), *slots.add(b))
        };
        let low = _mm256_castsi256_si128(index);
        let high = _mm256_extracti128_si256::<1>(index);
        let (a, b) = pick(_mm_cvtsi128_si64(low));
        let (c, d) = pick(_mm_extract_epi64::<1>(low));
        let (e, f) = pick(_mm_cvtsi128_si64(high));
        let (g, h) = pick(_mm_extract_epi64::<1>(high));
        let x = |a: u32, b: u32, c: u32, d: u32| {
            let v = _mm_cvtsi32_si128(a.cast_signed());
            let v = _mm_insert_epi32::<1>(v, b.cast_signed());
            let v = _mm_insert_epi32::<2>(v, c.cast_signed());
            _mm_insert_epi32::<3>(v, d.cast_signed())
        };
        _mm256_set_m128i(x(e, f, g, h), x(a, b, c, d))
    }
}

/// Thirty-two numbers below 256 as bytes, in order.
#[target_feature(enable = "avx2")]
fn pack_dwords(x: [__m256i; 4]) -> __m256i {
    let low = _mm256_packs_epi32(x[0], x[1]);
    let high = _mm256_packs_epi32(x[2], x[3]);
    _mm256_permutevar8x32_epi32(
        _mm256_packus_epi16(low, high),
        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7),
    )
}

/// The window's entries in both halves.
#[target_feature(enable = "avx2")]
fn entries(window: &Window) -> __m256i {
    // SAFETY: sixteen bytes.
    let entries = unsafe { _mm_loadu_si128(window.entries.as_ptr().cast()) };
    _mm256_broadcastsi128_si256(entries)
}

/// The tables of words of two or four bytes; returns how many are done, in groups.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn fill<const W: usize>(
    exponent: Exponent,
    window: &Window,
    prediction: &[u8],
    tables: &mut [u8],
) -> usize {
    let groups = tables.len().min(prediction.len() / W) / GROUP;
    let (shift, mask) = exponent.parts();
    let shift = _mm_cvtsi32_si128(shift.cast_signed());
    // Exponents are below 2048, so a window further off is like one just out of reach.
    let low = i16::try_from(window.low.clamp(-4096, 4096)).unwrap_or(0);
    let entries = entries(window);
    for group in 0..groups {
        // SAFETY: the group's words and bytes are inside both slices.
        unsafe {
            let from = prediction.as_ptr().add(group * GROUP * W);
            let index = if W == 2 {
                let mask = _mm256_set1_epi16(i16::try_from(mask).unwrap_or(0));
                let part = |i: usize| {
                    let p = _mm256_loadu_si256(from.add(32 * i).cast());
                    let e = _mm256_and_si256(_mm256_srl_epi16(p, shift), mask);
                    let e = _mm256_sub_epi16(
                        _mm256_max_epi16(e, _mm256_set1_epi16(1)),
                        _mm256_set1_epi16(low),
                    );
                    _mm256_min_epi16(
                        _mm256_max_epi16(e, _mm256_setzero_si256()),
                        _mm256_set1_epi16(15),
                    )
                };
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(part(0), part(1)))
            } else {
                let mask = _mm256_set1_epi32(i32::try_from(mask).unwrap_or(0));
                let low = _mm256_set1_epi32(i32::from(low));
                let part = |i: usize| {
                    let p = _mm256_loadu_si256(from.add(32 * i).cast());
                    let e = _mm256_and_si256(_mm256_srl_epi32(p, shift), mask);
                    let e = _mm256_sub_epi32(_mm256_max_epi32(e, _mm256_set1_epi32(1)), low);
                    _mm256_min_epi32(
                        _mm256_max_epi32(e, _mm256_setzero_si256()),
                        _mm256_set1_epi32(15),
                    )
                };
                pack_dwords([part(0), part(1), part(2), part(3)])
            };
            _mm256_storeu_si256(
                tables.as_mut_ptr().add(group * GROUP).cast(),
                _mm256_shuffle_epi8(entries, index),
            );
        }
    }
    groups * GROUP
}

/// Appends the tables that are not cold to `coded`, which has room for all, and for each group a mask of them.
///
/// # Safety
/// The CPU has AVX2, POPCNT and BMI1; `coded` has room for `tables.len()` more.
#[target_feature(enable = "avx2,popcnt,bmi1")]
pub(crate) unsafe fn pack(tables: &[u8], coded: &mut Vec<u8>, masks: &mut Vec<u32>) {
    let mut at = coded.len();
    if coded.capacity() - at < tables.len() + 8 {
        coded.reserve(tables.len() + GROUP);
    }
    for group in tables.as_chunks::<GROUP>().0 {
        // SAFETY: `at` grows by at most 32 a group from the length, and there is room for all groups and 8 bytes more.
        unsafe {
            let t = _mm256_loadu_si256(group.as_ptr().cast());
            let cold = _mm256_cmpeq_epi8(t, _mm256_setzero_si256());
            let mask = !_mm256_movemask_epi8(cold).cast_unsigned();
            masks.push(mask);
            let to = coded.as_mut_ptr();
            match mask {
                0 => {}
                u32::MAX => {
                    _mm256_storeu_si256(to.add(at).cast(), t);
                    at += GROUP;
                }
                _ => {
                    for (i, part) in mask.to_le_bytes().into_iter().enumerate() {
                        let from = _mm_loadl_epi64(group.as_ptr().add(8 * i).cast());
                        let order = _mm_loadl_epi64(PACK[usize::from(part)].as_ptr().cast());
                        _mm_storel_epi64(to.add(at).cast(), _mm_shuffle_epi8(from, order));
                        at += part.count_ones() as usize;
                    }
                }
            }
        }
    }
    // SAFETY: all below `at` is written.
    unsafe { coded.set_len(at) };
}

/// Appends the bytes of `group` where `mask` has bits.
///
/// # Safety
/// Forty bytes may be written at `to`.
#[target_feature(enable = "avx2,popcnt,bmi1")]
#[inline]
unsafe fn keep(group: &[u8; GROUP], mask: u32, to: *mut u8) {
    let mut at = 0;
    for (i, part) in mask.to_le_bytes().into_iter().enumerate() {
        // SAFETY: at most eight bytes a step are kept and eight written.
        unsafe {
            let from = _mm_loadl_epi64(group.as_ptr().add(8 * i).cast());
            let order = _mm_loadl_epi64(PACK[usize::from(part)].as_ptr().cast());
            _mm_storel_epi64(to.add(at).cast(), _mm_shuffle_epi8(from, order));
        }
        at += part.count_ones() as usize;
    }
}

/// Appends the tokens of coded words.
///
/// # Safety
/// The CPU has AVX2, POPCNT and BMI1.
#[target_feature(enable = "avx2,popcnt,bmi1")]
pub(crate) unsafe fn select(tokens: &[u8], masks: &[u32], coded: &mut Vec<u8>) {
    coded.reserve(tokens.len() + GROUP + 8);
    let mut at = coded.len();
    for (group, mask) in tokens.as_chunks::<GROUP>().0.iter().zip(masks) {
        // SAFETY: `at` grows by at most 32 a group; there is room for all groups and forty bytes more.
        unsafe {
            let to = coded.as_mut_ptr().add(at);
            match *mask {
                0 => {}
                u32::MAX => to.cast::<[u8; GROUP]>().write_unaligned(*group),
                mask => keep(group, mask, to),
            }
        }
        at += mask.count_ones() as usize;
    }
    // SAFETY: all below `at` is written.
    unsafe { coded.set_len(at) };
}

/// The tokens of whole groups of words of two or four bytes, and which of them changed and have raw bits.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2,popcnt,bmi1")]
pub(crate) unsafe fn tokens<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    float: bool,
    tokens: &mut [u8],
    changed: &mut Vec<u32>,
    wide: &mut Vec<u32>,
) {
    let groups = (target.len().min(prediction.len()) / W).min(tokens.len()) / GROUP;
    let zero = _mm256_setzero_si256();
    // Differences of this size have raw bits.
    let direct = if W == 2 {
        1 << crate::token::shape(2).0
    } else {
        1 << crate::token::shape(4).0
    };
    for group in 0..groups {
        // SAFETY: the group's words and bytes are inside the slices.
        unsafe {
            let t = target.as_ptr().add(group * GROUP * W);
            let p = prediction.as_ptr().add(group * GROUP * W);
            let (bytes, large) = if W == 2 {
                let part = |i: usize| {
                    let (t, p) = (
                        _mm256_loadu_si256(t.add(32 * i).cast()),
                        _mm256_loadu_si256(p.add(32 * i).cast()),
                    );
                    let d = if float {
                        // The top bit, set on both sides, falls out of the difference.
                        let below = |x| {
                            _mm256_xor_si256(
                                x,
                                _mm256_or_si256(
                                    _mm256_srai_epi16::<15>(x),
                                    _mm256_set1_epi16(i16::MIN),
                                ),
                            )
                        };
                        _mm256_sub_epi16(below(t), below(p))
                    } else {
                        _mm256_sub_epi16(t, p)
                    };
                    let size = _mm256_abs_epi16(d);
                    let large =
                        _mm256_cmpeq_epi16(_mm256_max_epu16(size, _mm256_set1_epi16(direct)), size);
                    (d, large)
                };
                let ((a, b), (c, e)) = (part(0), part(1));
                let order = |x| _mm256_permute4x64_epi64::<0b11_01_10_00>(x);
                (
                    order(_mm256_packs_epi16(a, c)),
                    order(_mm256_packs_epi16(b, e)),
                )
            } else {
                let part = |i: usize| {
                    let (t, p) = (
                        _mm256_loadu_si256(t.add(32 * i).cast()),
                        _mm256_loadu_si256(p.add(32 * i).cast()),
                    );
                    let d = if float {
                        let below = |x| {
                            _mm256_xor_si256(
                                x,
                                _mm256_or_si256(
                                    _mm256_srai_epi32::<31>(x),
                                    _mm256_set1_epi32(i32::MIN),
                                ),
                            )
                        };
                        _mm256_sub_epi32(below(t), below(p))
                    } else {
                        _mm256_sub_epi32(t, p)
                    };
                    let size = _mm256_abs_epi32(d);
                    let large = _mm256_cmpeq_epi32(
                        _mm256_max_epu32(size, _mm256_set1_epi32(i32::from(direct))),
                        size,
                    );
                    (d, large)
                };
                let parts = [part(0), part(1), part(2), part(3)];
                let order = |x: [__m256i; 4]| {
                    let low = _mm256_packs_epi32(x[0], x[1]);
                    let high = _mm256_packs_epi32(x[2], x[3]);
                    _mm256_permutevar8x32_epi32(
                        _mm256_packs_epi16(low, high),
                        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7),
                    )
                };
                (order(parts.map(|x| x.0)), order(parts.map(|x| x.1)))
            };
            let bytes = _mm256_andnot_si256(large, bytes);
            _mm256_storeu_si256(tokens.as_mut_ptr().add(group * GROUP).cast(), bytes);
            let large = _mm256_movemask_epi8(large).cast_unsigned();
            wide.push(large);
            changed.push(
                !_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, zero)).cast_unsigned() | large,
            );
        }
    }
}

/// Thirty-two tokens: the next ones where `mask` has bits, zeros elsewhere.
///
/// # Safety
/// Thirty-two bytes may be read at `tokens`.
#[target_feature(enable = "avx2,popcnt,bmi1")]
#[inline]
unsafe fn spread(tokens: *const u8, mask: u32) -> __m256i {
    if mask == u32::MAX {
        // SAFETY: as asked of the caller.
        return unsafe { _mm256_loadu_si256(tokens.cast()) };
    }
    let parts = mask.to_le_bytes();
    let mut at = 0;
    let mut next = |i: usize| {
        // SAFETY: `at` is at most 24.
        let part = unsafe {
            let from = _mm_loadl_epi64(tokens.add(at).cast());
            let order = _mm_loadl_epi64(UNPACK[usize::from(parts[i])].as_ptr().cast());
            _mm_shuffle_epi8(from, order)
        };
        at += parts[i].count_ones() as usize;
        part
    };
    let low = _mm_unpacklo_epi64(next(0), next(1));
    let high = _mm_unpacklo_epi64(next(2), next(3));
    _mm256_set_m128i(high, low)
}

/// Whether the next tokens are all 0.
///
/// # Safety
/// Thirty-two bytes may be read at `tokens`.
#[target_feature(enable = "avx2,popcnt,bmi1")]
#[inline]
unsafe fn zeros(tokens: *const u8, count: usize) -> bool {
    // SAFETY: as asked of the caller.
    let t = unsafe { _mm256_loadu_si256(tokens.cast()) };
    let zero = _mm256_movemask_epi8(_mm256_cmpeq_epi8(t, _mm256_setzero_si256())).cast_unsigned();
    (!zero).trailing_zeros() as usize >= count
}

/// Makes whole groups of words of two or four bytes from predictions and tokens; returns groups and tokens done.
///
/// # Safety
/// The CPU has AVX2, POPCNT and BMI1.
#[target_feature(enable = "avx2,popcnt,bmi1")]
pub(crate) unsafe fn rebuild<const W: usize>(
    prediction: &[u8],
    masks: &[u32],
    tokens: &[u8],
    raw: &mut BitReader<'_>,
    float: bool,
    spreads: &Spread,
    out: &mut [u8],
) -> (usize, usize) {
    let groups = (prediction.len().min(out.len()) / (W * GROUP)).min(masks.len());
    let mut next = 0;
    let direct = _mm256_set1_epi8(spreads.direct.cast_signed());
    for (group, mask) in masks[..groups].iter().enumerate() {
        if tokens.len() < next + GROUP {
            return (group, next);
        }
        // SAFETY: the group's words are inside both slices; thirty-two tokens are left to read.
        unsafe {
            let from = prediction.as_ptr().add(group * GROUP * W);
            let to = out.as_mut_ptr().add(group * GROUP * W);
            let coded = mask.count_ones() as usize;
            if coded == 0 || zeros(tokens.as_ptr().add(next), coded) {
                next += coded;
                for i in 0..W {
                    _mm256_storeu_si256(
                        to.add(32 * i).cast(),
                        _mm256_loadu_si256(from.add(32 * i).cast()),
                    );
                }
                continue;
            }
            let t = spread(tokens.as_ptr().add(next), *mask);
            next += coded;
            let size = _mm256_abs_epi8(t);
            let wide = _mm256_cmpeq_epi8(_mm256_max_epu8(size, direct), size);
            let mut wide = _mm256_movemask_epi8(wide).cast_unsigned();
            let halves = [_mm256_castsi256_si128(t), _mm256_extracti128_si256::<1>(t)];
            if W == 2 {
                for (i, half) in halves.into_iter().enumerate() {
                    let d = _mm256_cvtepi8_epi16(half);
                    let p = _mm256_loadu_si256(from.add(32 * i).cast());
                    let word = if float {
                        let top = _mm256_set1_epi16(i16::MIN);
                        let o =
                            _mm256_xor_si256(p, _mm256_or_si256(_mm256_srai_epi16::<15>(p), top));
                        let o = _mm256_add_epi16(o, d);
                        let below =
                            _mm256_xor_si256(_mm256_srai_epi16::<15>(o), _mm256_set1_epi16(-1));
                        _mm256_xor_si256(o, _mm256_or_si256(below, top))
                    } else {
                        _mm256_add_epi16(p, d)
                    };
                    _mm256_storeu_si256(to.add(32 * i).cast(), word);
                }
            } else {
                let quarters = [
                    halves[0],
                    _mm_srli_si128::<8>(halves[0]),
                    halves[1],
                    _mm_srli_si128::<8>(halves[1]),
                ];
                for (i, quarter) in quarters.into_iter().enumerate() {
                    let d = _mm256_cvtepi8_epi32(quarter);
                    let p = _mm256_loadu_si256(from.add(32 * i).cast());
                    let word = if float {
                        let top = _mm256_set1_epi32(i32::MIN);
                        let o =
                            _mm256_xor_si256(p, _mm256_or_si256(_mm256_srai_epi32::<31>(p), top));
                        let o = _mm256_add_epi32(o, d);
                        let below =
                            _mm256_xor_si256(_mm256_srai_epi32::<31>(o), _mm256_set1_epi32(-1));
                        _mm256_xor_si256(o, _mm256_or_si256(below, top))
                    } else {
                        _mm256_add_epi32(p, d)
                    };
                    _mm256_storeu_si256(to.add(32 * i).cast(), word);
                }
            }
            // Words with raw bits are few or their bits dominate: one at a time.
            if wide != 0 {
                let mut bytes = [0u8; GROUP];
                _mm256_storeu_si256(bytes.as_mut_ptr().cast(), t);
                while wide != 0 {
                    let i = wide.trailing_zeros() as usize & 31;
                    wide &= wide - 1;
                    let d = spreads.value(bytes[i], raw);
                    if W == 2 {
                        let p = from.cast::<u16>().add(i).read_unaligned();
                        let word = moved::<2>(u64::from(p), d, float);
                        to.cast::<u16>().add(i).write_unaligned(low16(word));
                    } else {
                        let p = from.cast::<u32>().add(i).read_unaligned();
                        let word = moved::<4>(u64::from(p), d, float);
                        to.cast::<u32>().add(i).write_unaligned(low32(word));
                    }
                }
            }
        }
    }
    (groups, next)
}

#[expect(clippy::cast_possible_truncation, reason = "a word of two bytes")]
#[inline(always)]
fn low16(word: u64) -> u16 {
    word as u16
}

#[expect(clippy::cast_possible_truncation, reason = "a word of four bytes")]
#[inline(always)]
fn low32(word: u64) -> u32 {
    word as u32
}

/// [`strip::encode_plainly`] with this CPU's instructions for bits.
///
/// # Safety
/// The CPU has POPCNT and BMI1.
#[target_feature(enable = "popcnt,bmi1")]
pub(crate) unsafe fn encode<const W: usize>(
    plan: &Plan<'_>,
    words: Range<usize>,
    pair: (&[u8], &[u8]),
    classes: &[Class],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> usize {
    strip::encode_plainly::<W>(plan, words, pair, classes, scratch, out)
}

/// [`passes::measure_plainly`] by this CPU's vectors.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(enable = "avx2,popcnt,bmi1")]
pub(crate) unsafe fn measure<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    exponent: Exponent,
    mantissa: u32,
    float: bool,
) -> (usize, f32) {
    passes::measure_plainly::<W>(target, prediction, exponent, mantissa, float)
}
