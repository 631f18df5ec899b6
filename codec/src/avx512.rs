//! The passes of a strip with AVX-512. Each gives what its twin in `avx2` and its portable one in `passes` and `rans` give,
//! bit for bit.
//!
//! Functions here are safe to call only on a CPU with the extensions that [`available`] tells; slices are checked, so that no
//! input makes them read or write outside.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_cvtsi128_si64, _mm_extract_epi32,
    _mm_extract_epi64, _mm_insert_epi32, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm_min_epu8,
    _mm_prefetch, _mm_set1_epi8, _mm_setr_epi8, _mm_storeu_si128, _mm_subs_epu8, _mm256_abs_epi8,
    _mm256_castsi128_si256, _mm256_castsi256_si128, _mm256_cmpge_epu8_mask,
    _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_mask_expand_epi8,
    _mm256_maskz_expand_epi8, _mm256_set1_epi8, _mm256_storeu_si256, _mm512_abs_epi8,
    _mm512_abs_epi16, _mm512_abs_epi32, _mm512_add_epi16, _mm512_add_epi32, _mm512_add_epi64,
    _mm512_add_ps, _mm512_adds_epu8, _mm512_alignr_epi32, _mm512_and_si512, _mm512_andnot_si512,
    _mm512_broadcast_i32x4, _mm512_castsi128_si512, _mm512_castsi256_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si128, _mm512_castsi512_si256, _mm512_cmpge_epi32_mask,
    _mm512_cmpge_epu8_mask, _mm512_cmpge_epu16_mask, _mm512_cmpge_epu32_mask,
    _mm512_cmplt_epi32_mask, _mm512_cmplt_epu32_mask, _mm512_cmpneq_epi16_mask,
    _mm512_cvtepi8_epi16, _mm512_cvtepi8_epi32, _mm512_cvtepi16_epi8, _mm512_cvtepi16_epi32,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtepu16_epi32, _mm512_cvtepu32_ps, _mm512_cvttps_epu32, _mm512_extracti32x4_epi32,
    _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_inserti32x4,
    _mm512_loadu_si512, _mm512_lzcnt_epi32, _mm512_mask_add_epi32, _mm512_mask_expand_epi16,
    _mm512_mask_expand_epi32, _mm512_mask_i32gather_epi32, _mm512_mask_mov_epi32,
    _mm512_mask_or_epi32, _mm512_mask_srli_epi32, _mm512_mask_sub_epi32,
    _mm512_maskz_compress_epi8, _mm512_maskz_compress_epi16, _mm512_maskz_compress_epi32,
    _mm512_maskz_expand_epi32, _mm512_maskz_loadu_epi8, _mm512_maskz_loadu_epi32,
    _mm512_maskz_min_epi32, _mm512_max_epi32, _mm512_max_epu8, _mm512_max_epu16, _mm512_min_epu8,
    _mm512_min_epu16, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_or_si512, _mm512_permutex2var_epi8,
    _mm512_permutexvar_epi8, _mm512_permutexvar_epi32, _mm512_rcp14_ps, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps, _mm512_setr_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shrdv_epi32, _mm512_shuffle_epi8,
    _mm512_sll_epi32, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_sllv_epi32, _mm512_sllv_epi64,
    _mm512_srai_epi16, _mm512_srai_epi32, _mm512_srl_epi16, _mm512_srl_epi32, _mm512_srli_epi32,
    _mm512_srli_epi64, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi16,
    _mm512_sub_epi32, _mm512_subs_epu8, _mm512_test_epi16_mask, _mm512_test_epi32_mask,
    _mm512_testn_epi32_mask, _mm512_unpackhi_epi64, _mm512_xor_si512, _pdep_u32, _pext_u32,
};
use std::sync::LazyLock;

use crate::{
    avx2::MARGIN,
    bits::{BitReader, BitWriter},
    context::{Exponent, Window},
    passes::{self, GROUP, Spread},
    rans::{AHEAD, MOST},
    tables::{TOKENS, TableSet},
};

/// Whether this CPU has what the functions here need; asked once.
#[inline]
pub(crate) fn available() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512cd")
            && std::arch::is_x86_feature_detected!("avx512vbmi")
            && std::arch::is_x86_feature_detected!("avx512vbmi2")
            && std::arch::is_x86_feature_detected!("popcnt")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
    });
    #[cfg(test)]
    if HIDDEN.get() {
        return false;
    }
    *HAS
}

#[cfg(test)]
thread_local! {
    /// Tests see what a CPU without these extensions does.
    pub(crate) static HIDDEN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Bytes ahead of those at hand that are asked for: the base of a large model comes from memory.
const SOON: usize = 8192;

/// Decodes groups of `L` tokens while fewer than `limit` bytes of `words` are read; returns bytes read and tokens done.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn groups<const L: usize>(
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
        let mut x: [__m512i; 4] =
            std::array::from_fn(|i| _mm512_loadu_si512(states.as_ptr().add(16 * i).cast()));
        let one = _mm_set1_epi8(1);
        let most = _mm_set1_epi8(u8::try_from(last).unwrap_or(255).cast_signed());
        let low = _mm512_set1_epi32((1 << precision) - 1);
        let shift = _mm_cvtsi32_si128(precision.cast_signed());
        let offset = _mm512_set1_epi32(0xfff);
        let lower = _mm512_set1_epi32(1 << 16);
        let source = slots.as_ptr();
        while done < count && at < limit {
            macro_rules! lanes {
                ($i:literal) => {
                    let t = _mm_loadu_si128(tables.as_ptr().add(done + 16 * $i).cast());
                    let t = _mm_min_epu8(_mm_subs_epu8(t, one), most);
                    let table = _mm512_sll_epi32(_mm512_cvtepu8_epi32(t), shift);
                    let index = _mm512_or_si512(table, _mm512_and_si512(x[$i], low));
                    let slot = look_up(source, index);
                    _mm_storeu_si128(
                        tokens.as_mut_ptr().add(done + 16 * $i).cast(),
                        _mm512_cvtepi32_epi8(slot),
                    );
                    let y = _mm512_add_epi32(
                        _mm512_mullo_epi32(
                            _mm512_srli_epi32::<20>(slot),
                            _mm512_srl_epi32(x[$i], shift),
                        ),
                        _mm512_and_si512(_mm512_srli_epi32::<8>(slot), offset),
                    );
                    let wants = _mm512_cmplt_epu32_mask(y, lower);
                    let next =
                        _mm512_cvtepu16_epi32(_mm256_loadu_si256(words.as_ptr().add(at).cast()));
                    let dealt = _mm512_maskz_expand_epi32(wants, next);
                    x[$i] = _mm512_mask_or_epi32(y, wants, _mm512_slli_epi32::<16>(y), dealt);
                    at += 2 * wants.count_ones() as usize;
                };
            }
            lanes!(0);
            lanes!(1);
            if L == MOST {
                lanes!(2);
                lanes!(3);
            }
            done += L;
        }
        for (i, x) in x.iter().enumerate() {
            _mm512_storeu_si512(states.as_mut_ptr().add(16 * i).cast(), *x);
        }
    }
    (at, done)
}

/// The slots at sixteen indices. Loads by hand take less time than the gather instruction.
///
/// # Safety
/// The CPU has what [`available`] asks for; the indices are inside `slots`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
#[inline]
unsafe fn look_up(slots: *const u32, index: __m512i) -> __m512i {
    // SAFETY: as asked of the caller.
    unsafe {
        let pick = |pair: i64| {
            let pair = pair.cast_unsigned();
            let (a, b) = ((pair & 0xffff_ffff) as usize, (pair >> 32) as usize);
            (
                slots.add(a).read().cast_signed(),
                slots.add(b).read().cast_signed(),
            )
        };
        let four = |index| {
            let (a, b) = pick(_mm_cvtsi128_si64(index));
            let (c, d) = pick(_mm_extract_epi64::<1>(index));
            let v = _mm_insert_epi32::<1>(_mm_cvtsi32_si128(a), b);
            _mm_insert_epi32::<3>(_mm_insert_epi32::<2>(v, c), d)
        };
        let v = _mm512_castsi128_si512(four(_mm512_castsi512_si128(index)));
        let v = _mm512_inserti32x4::<1>(v, four(_mm512_extracti32x4_epi32::<1>(index)));
        let v = _mm512_inserti32x4::<2>(v, four(_mm512_extracti32x4_epi32::<2>(index)));
        _mm512_inserti32x4::<3>(v, four(_mm512_extracti32x4_epi32::<3>(index)))
    }
}

/// Codes whole groups of `L` tokens from the last to the first, as `rans::encode` does; returns how many tokens are left to do:
/// all, where the slices are not as they should be. Words are written up to `at` and before it, and as many before those that
/// count as a vector holds.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn encode<const L: usize>(
    states: &mut [u32; MOST],
    tables: &[u8],
    tokens: &[u8],
    set: &TableSet,
    words: &mut [u16],
    at: &mut usize,
    missing: &mut Vec<u32>,
) -> usize {
    let precision = set.precision();
    let codes = set.codes();
    let last = set.tables().wrapping_sub(1);
    let count = tables.len();
    if !(10..=12).contains(&precision)
        || set.tables() == 0
        || codes.len() < set.tables() * TOKENS
        || !count.is_multiple_of(L)
        || tokens.len() != count
        || *at < count + AHEAD / 2
        || words.len() <= *at
    {
        return count;
    }
    // Without calls in the loop the states stay in registers.
    missing.reserve(count);
    let mut lost = missing.len();
    let mut end = *at;
    // SAFETY: tables are cut to those of the set, whose codes are all there; at most one word a token is counted, so that sixteen
    // words up to `at` are inside `words` until all tokens are done; there is
    // room for the number of every token in `missing`.
    unsafe {
        let mut x: [__m512i; 4] =
            std::array::from_fn(|i| _mm512_loadu_si512(states.as_ptr().add(16 * i).cast()));
        let one = _mm_set1_epi8(1);
        let most = _mm_set1_epi8(u8::try_from(last).unwrap_or(255).cast_signed());
        let low = _mm512_set1_epi32(0xffff);
        let whole = _mm512_set1_epi32(1 << precision);
        let up = _mm_cvtsi32_si128((32 - precision).cast_signed());
        let shift = _mm_cvtsi32_si128(precision.cast_signed());
        let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let ones = _mm512_set1_ps(1.0);
        let (source, to, none_at) = (codes.as_ptr(), words.as_mut_ptr(), missing.as_mut_ptr());
        let mut from = count;
        while from > 0 {
            from -= L;
            macro_rules! lanes {
                ($i:literal) => {
                let first = from + 16 * $i;
                let t = _mm_loadu_si128(tables.as_ptr().add(first).cast());
                let t = _mm_min_epu8(_mm_subs_epu8(t, one), most);
                let base = _mm512_slli_epi32::<8>(_mm512_cvtepu8_epi32(t));
                let token = _mm_loadu_si128(tokens.as_ptr().add(first).cast());
                let index = _mm512_or_si512(base, _mm512_cvtepu8_epi32(token));
                let mut code = look_up(source, index);
                let none = _mm512_testn_epi32_mask(code, low);
                if none != 0 {
                    // Coded as 0, and patched.
                    code =
                        _mm512_mask_i32gather_epi32::<4>(code, none, base, source.cast());
                    let mut rest = none;
                    while rest != 0 {
                        let lane = 15 - rest.leading_zeros() as usize;
                        rest ^= 1 << lane;
                        none_at.add(lost).write(u32::try_from(first + lane).unwrap_or(u32::MAX));
                        lost += 1;
                    }
                }
                let frequency = _mm512_and_si512(code, low);
                let full = _mm512_cmpge_epu32_mask(x[$i], _mm512_sll_epi32(frequency, up));
                // The words that leave, the last one at `at`.
                let n = full.count_ones();
                let leaving = _mm512_maskz_compress_epi32(full, x[$i]);
                let turn = _mm512_add_epi32(places, _mm512_set1_epi32(n.cast_signed()));
                let leaving = _mm512_permutexvar_epi32(turn, leaving);
                _mm256_storeu_si256(
                    to.add(end - 15).cast(),
                    _mm512_cvtepi32_epi16(leaving),
                );
                end -= n as usize;
                let y = _mm512_mask_srli_epi32::<16>(x[$i], full, x[$i]);
                // Below 2^22 and so off by one at most. The reciprocal does not wait for the state.
                let f = _mm512_cvtepu32_ps(frequency);
                let near = _mm512_rcp14_ps(f);
                let inverse = _mm512_fmadd_ps(near, _mm512_fnmadd_ps(near, f, ones), near);
                let q = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(y), inverse));
                let r = _mm512_sub_epi32(y, _mm512_mullo_epi32(q, frequency));
                let others = _mm512_sub_epi32(whole, frequency);
                let start = _mm512_add_epi32(r, _mm512_srli_epi32::<16>(code));
                let z = _mm512_add_epi32(_mm512_sll_epi32(q, shift), start);
                // A quotient that is one too large leaves a rest below zero, one too small a rest that is no rest.
                let over = _mm512_cmplt_epi32_mask(r, _mm512_setzero_si512());
                let under = _mm512_cmpge_epi32_mask(r, frequency);
                let z = _mm512_mask_sub_epi32(z, over, z, others);
                x[$i] = _mm512_mask_add_epi32(z, under, z, others);
                };
            }
            if L == MOST {
                lanes!(3);
                lanes!(2);
            }
            lanes!(1);
            lanes!(0);
        }
        for (i, x) in x.iter().enumerate() {
            _mm512_storeu_si512(states.as_mut_ptr().add(16 * i).cast(), *x);
        }
        missing.set_len(lost);
    }
    *at = end;
    0
}

/// The tokens of whole groups of words of two or four bytes, and which of them changed and have raw bits: as `passes::tokens`,
/// but with the tokens of those too. The magnitudes of coded words with raw bits are appended to `sizes`.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn tokens<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    float: bool,
    masks: &[u32],
    tokens: &mut [u8],
    found: (&mut Vec<u32>, &mut Vec<u32>, &mut Vec<u32>),
) {
    if W == 2 {
        // SAFETY: as asked of the caller.
        return unsafe { short_tokens(target, prediction, float, masks, tokens, found) };
    }
    let (changed, wide, sizes) = found;
    let groups =
        ((target.len().min(prediction.len()) / W).min(tokens.len()) / GROUP).min(masks.len());
    let (log, sub) = crate::token::shape(W);
    let (log, sub) = (log.cast_signed(), sub.cast_signed());
    let zero = _mm512_setzero_si512();
    let flipped = _mm512_set1_epi32(if float { i32::MAX } else { 0 });
    let order = |x| _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi32::<31>(x), flipped));
    let direct = _mm512_set1_epi32(1 << log);
    // 31 - leading zeros is the place of the leading one.
    let octave = _mm512_set1_epi32(31 - log);
    let shift = _mm512_set1_epi32(31 - sub);
    let rest = _mm512_set1_epi32((1 << sub) - 1);
    let sub_shift = _mm_cvtsi32_si128(sub);
    let mut count = sizes.len();
    for (group, mask) in masks[..groups].iter().enumerate() {
        if sizes.capacity() < count + 2 * GROUP {
            // SAFETY: all below `count` is written.
            unsafe { sizes.set_len(count) };
            sizes.reserve((groups - group) * 8 + 2 * GROUP);
        }
        let (mut moved, mut large) = (0u32, 0u32);
        for half in 0..2usize {
            let at = group * GROUP + 16 * half;
            // SAFETY: the group's words and bytes are inside the slices; there is room for sixteen sizes.
            unsafe {
                let (t, p) = (target.as_ptr().add(at * W), prediction.as_ptr().add(at * W));
                let d = _mm512_sub_epi32(
                    order(_mm512_loadu_si512(t.cast())),
                    order(_mm512_loadu_si512(p.cast())),
                );
                let size = _mm512_abs_epi32(d);
                let different = _mm512_test_epi32_mask(d, d);
                let long = _mm512_cmpge_epu32_mask(size, direct);
                // No branch: that there is none of these is as good as random.
                let zeros = _mm512_lzcnt_epi32(size);
                let bucket = _mm512_sll_epi32(_mm512_sub_epi32(octave, zeros), sub_shift);
                let next = _mm512_and_si512(
                    _mm512_srlv_epi32(size, _mm512_sub_epi32(shift, zeros)),
                    rest,
                );
                let far = _mm512_add_epi32(direct, _mm512_add_epi32(bucket, next));
                let negative = _mm512_cmplt_epi32_mask(d, zero);
                let far = _mm512_mask_sub_epi32(far, negative, zero, far);
                let token = _mm512_mask_mov_epi32(d, long, far);
                let kept = long & u16::try_from(mask >> (16 * half) & 0xffff).unwrap_or(0);
                _mm512_storeu_si512(
                    sizes.as_mut_ptr().add(count).cast(),
                    _mm512_maskz_compress_epi32(kept, size),
                );
                count += kept.count_ones() as usize;
                _mm_storeu_si128(
                    tokens.as_mut_ptr().add(at).cast(),
                    _mm512_cvtepi32_epi8(token),
                );
                moved |= u32::from(different) << (16 * half);
                large |= u32::from(long) << (16 * half);
            }
        }
        changed.push(moved);
        wide.push(large);
    }
    // SAFETY: all below `count` is written.
    unsafe { sizes.set_len(count) };
}

/// [`tokens`] of words of two bytes.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2"
)]
unsafe fn short_tokens(
    target: &[u8],
    prediction: &[u8],
    float: bool,
    masks: &[u32],
    tokens: &mut [u8],
    (changed, wide, sizes): (&mut Vec<u32>, &mut Vec<u32>, &mut Vec<u32>),
) {
    let groups =
        ((target.len().min(prediction.len()) / 2).min(tokens.len()) / GROUP).min(masks.len());
    let (log, sub) = crate::token::shape(2);
    let (log, sub) = (log.cast_signed(), sub.cast_signed());
    let zero = _mm512_setzero_si512();
    let flipped = _mm512_set1_epi16(if float { i16::MAX } else { 0 });
    let order = |x| _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16::<15>(x), flipped));
    let (short, direct) = (_mm512_set1_epi16(1 << log), _mm512_set1_epi32(1 << log));
    // 31 - leading zeros is the place of the leading one.
    let octave = _mm512_set1_epi32(31 - log);
    let shift = _mm512_set1_epi32(31 - sub);
    let rest = _mm512_set1_epi32((1 << sub) - 1);
    let sub_shift = _mm_cvtsi32_si128(sub);
    changed.reserve(groups);
    wide.reserve(groups);
    let mut count = sizes.len();
    for (group, mask) in masks[..groups].iter().enumerate() {
        if sizes.capacity() < count + 2 * GROUP {
            // SAFETY: all below `count` is written.
            unsafe { sizes.set_len(count) };
            sizes.reserve((groups - group) * 8 + 2 * GROUP);
        }
        let at = group * GROUP;
        // SAFETY: the group's words and bytes are inside the slices; there is room for twice as many sizes as a group has.
        unsafe {
            let from = target.as_ptr().add(2 * at);
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(SOON).cast());
            let t = _mm512_loadu_si512(from.cast());
            let p = _mm512_loadu_si512(prediction.as_ptr().add(2 * at).cast());
            let d = _mm512_sub_epi16(order(t), order(p));
            let large = _mm512_cmpge_epu16_mask(_mm512_abs_epi16(d), short);
            let mut left = large;
            let mut token = _mm512_cvtepi16_epi8(d);
            // Sixteen of those with raw bits at a time; a group that has more is rare.
            let mut some = _mm512_maskz_compress_epi16(large, d);
            loop {
                let far = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(some));
                let size = _mm512_abs_epi32(far);
                let zeros = _mm512_lzcnt_epi32(size);
                let bucket = _mm512_sll_epi32(_mm512_sub_epi32(octave, zeros), sub_shift);
                let next = _mm512_and_si512(
                    _mm512_srlv_epi32(size, _mm512_sub_epi32(shift, zeros)),
                    rest,
                );
                let value = _mm512_add_epi32(direct, _mm512_add_epi32(bucket, next));
                let negative = _mm512_cmplt_epi32_mask(far, zero);
                let value = _mm512_mask_sub_epi32(value, negative, zero, value);
                let bytes = _mm256_castsi128_si256(_mm512_cvtepi32_epi8(value));
                // The first sixteen, by their places in the group.
                let first = _pdep_u32(0xffff, left);
                token = _mm256_mask_expand_epi8(token, first, bytes);
                let kept = u16::try_from(_pext_u32(first & mask, first)).unwrap_or(0);
                _mm512_storeu_si512(
                    sizes.as_mut_ptr().add(count).cast(),
                    _mm512_maskz_compress_epi32(kept, size),
                );
                count += kept.count_ones() as usize;
                left ^= first;
                if left == 0 {
                    break;
                }
                some = _mm512_castsi256_si512(_mm512_extracti64x4_epi64::<1>(some));
            }
            _mm256_storeu_si256(tokens.as_mut_ptr().add(at).cast(), token);
            changed.push(_mm512_test_epi16_mask(d, d));
            wide.push(large);
        }
    }
    // SAFETY: all below `count` is written.
    unsafe { sizes.set_len(count) };
}

/// Puts the raw bits of words of `W` bytes with differences of these magnitudes: those below the leading ones and the bits that
/// their tokens tell.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn put_raw<const W: usize>(sizes: &[u32], raw: &mut BitWriter<'_>) {
    let (_, sub) = crate::token::shape(W);
    let zero = _mm512_setzero_si512();
    let most = _mm512_set1_epi32(31 - sub.cast_signed());
    let word = _mm512_set1_epi64(0xffff_ffff);
    for part in sizes.chunks(16) {
        let all = u16::MAX >> (16 - part.len());
        // SAFETY: no more is read than there is.
        let size = unsafe { _mm512_maskz_loadu_epi32(all, part.as_ptr().cast()) };
        let count = _mm512_sub_epi32(most, _mm512_lzcnt_epi32(size));
        let count = _mm512_max_epi32(count, zero);
        let above = _mm512_sllv_epi32(_mm512_set1_epi32(-1), count);
        let low = _mm512_andnot_si512(above, size);
        // Two words side by side; of two bytes each, four.
        let first = _mm512_and_si512(count, word);
        let bits = _mm512_or_si512(
            _mm512_and_si512(low, word),
            _mm512_sllv_epi64(_mm512_srli_epi64::<32>(low), first),
        );
        let count = _mm512_add_epi64(first, _mm512_srli_epi64::<32>(count));
        let (mut held, mut counts) = ([0u64; 8], [0u64; 8]);
        let step = if W == 2 { 2 } else { 1 };
        let (bits, count) = if W == 2 {
            let after = _mm512_unpackhi_epi64(bits, zero);
            (
                _mm512_or_si512(bits, _mm512_sllv_epi64(after, count)),
                _mm512_add_epi64(count, _mm512_unpackhi_epi64(count, zero)),
            )
        } else {
            (bits, count)
        };
        // SAFETY: sixty-four bytes each.
        unsafe {
            _mm512_storeu_si512(held.as_mut_ptr().cast(), bits);
            _mm512_storeu_si512(counts.as_mut_ptr().cast(), count);
        }
        for (bits, count) in held.iter().zip(&counts).step_by(step) {
            raw.put(*bits, u32::try_from(*count).unwrap_or(0));
        }
    }
}

/// The tables of words of two bytes whose exponent's low byte is all of it; returns how many are done, in groups.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn fill(
    exponent: Exponent,
    window: &Window,
    prediction: &[u8],
    tables: &mut [u8],
) -> usize {
    let (shift, mask) = exponent.parts();
    let Ok(mask) = u8::try_from(mask) else {
        return 0;
    };
    let groups = tables.len().min(prediction.len() / 2) / 64;
    let shift = _mm_cvtsi32_si128(shift.cast_signed());
    let mask = _mm512_set1_epi8(mask.cast_signed());
    // Bytes saturate, so that a window further off is like one just out of reach.
    let byte = |x: i32| _mm512_set1_epi8(u8::try_from(x.clamp(0, 255)).unwrap_or(0).cast_signed());
    let (below, above) = (byte(window.low), byte(window.low.saturating_neg()));
    let (one, most) = (byte(1), byte(15));
    // Of every word of two vectors the lower byte.
    let lower = {
        let mut places = [0u8; 64];
        let mut next = 0;
        for place in &mut places {
            *place = next;
            next = next.wrapping_add(2);
        }
        // SAFETY: sixty-four bytes.
        unsafe { _mm512_loadu_si512(places.as_ptr().cast()) }
    };
    // SAFETY: sixteen bytes.
    let entries =
        _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(window.entries.as_ptr().cast()) });
    for group in 0..groups {
        // SAFETY: the group's words and bytes are inside both slices.
        unsafe {
            let from = prediction.as_ptr().add(group * 128);
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(SOON).cast());
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(SOON + 64).cast());
            let part =
                |i: usize| _mm512_srl_epi16(_mm512_loadu_si512(from.add(64 * i).cast()), shift);
            let e = _mm512_permutex2var_epi8(part(0), lower, part(1));
            let e = _mm512_max_epu8(_mm512_and_si512(e, mask), one);
            let place = _mm512_adds_epu8(_mm512_subs_epu8(e, below), above);
            let place = _mm512_min_epu8(place, most);
            _mm512_storeu_si512(
                tables.as_mut_ptr().add(group * 64).cast(),
                _mm512_shuffle_epi8(entries, place),
            );
        }
    }
    groups * 64
}

/// Bits that are set.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(enable = "avx512f,avx512bw,popcnt")]
pub(crate) unsafe fn ones(masks: &[u32]) -> usize {
    masks.iter().map(|m| m.count_ones() as usize).sum()
}

/// Appends to `values`, in words of `W` bytes, the differences of those of `tokens` that have raw bits; these are taken from `raw`.
/// `wide` is a buffer.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn values<const W: usize>(
    tokens: &[u8],
    raw: &mut BitReader<'_>,
    spread: &Spread,
    wide: &mut Vec<u8>,
    values: &mut Vec<u8>,
) {
    wide.clear();
    wide.reserve(tokens.len() + 64);
    let direct = _mm512_set1_epi8(spread.direct.cast_signed());
    let mut count = 0;
    for part in tokens.chunks(64) {
        // SAFETY: no more is read than there is; at most sixty-four bytes a part are counted, and there is room for as many more.
        unsafe {
            let all = u64::MAX >> (64 - part.len());
            let t = _mm512_maskz_loadu_epi8(all, part.as_ptr().cast());
            let long = _mm512_cmpge_epu8_mask(_mm512_abs_epi8(t), direct);
            _mm512_storeu_si512(
                wide.as_mut_ptr().add(count).cast(),
                _mm512_maskz_compress_epi8(long, t),
            );
            count += long.count_ones() as usize;
        }
    }
    // SAFETY: all below `count` is written.
    unsafe { wide.set_len(count) };
    let first = values.len();
    values.reserve(count * W + 64);
    // The last bits are read from a copy with zeros behind them.
    let (data, at) = raw.rest();
    // SAFETY: there is room for all values and 64 bytes more.
    let (mut done, mut bits) = unsafe { widen::<W>(wide, data, at, values) };
    raw.skip(bits);
    let (data, at) = raw.rest();
    if done < count && data.len() < 64 {
        let mut tail = [0u8; 192];
        tail[..data.len()].copy_from_slice(data);
        let more;
        // SAFETY: as above.
        (more, bits) = unsafe { widen::<W>(&wide[done..], &tail, at, values) };
        done += more;
        raw.skip(bits);
    }
    // Those that a damaged block has beyond its bits.
    for token in &wide[done..] {
        let value = spread.value(*token, raw).to_le_bytes();
        values.extend_from_slice(&value[..W]);
    }
    debug_assert_eq!(values.len(), first + count * W);
}

/// Appends the differences of `wide`, tokens with raw bits, while `data` has 64 bytes from the bits that are next, the first of which is
/// the bit `at`. Returns tokens done and bits read.
///
/// # Safety
/// The CPU has what [`available`] asks for; `values` has room for all and 64 bytes more.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
unsafe fn widen<const W: usize>(
    wide: &[u8],
    data: &[u8],
    at: usize,
    values: &mut Vec<u8>,
) -> (usize, usize) {
    let (log, sub) = crate::token::shape(W);
    let (log, sub) = (log.cast_signed(), sub.cast_signed());
    let zero = _mm512_setzero_si512();
    let direct = _mm512_set1_epi32(1 << log);
    let least = _mm512_set1_epi32(log - sub);
    let most = _mm512_set1_epi32(if W == 2 { 15 } else { 31 });
    let (lead, rest) = (
        _mm512_set1_epi32(1 << sub),
        _mm512_set1_epi32((1 << sub) - 1),
    );
    let sub = _mm_cvtsi32_si128(sub);
    let seven = _mm512_set1_epi32(7);
    let lowest = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12,
    ));
    let (next, after) = (
        _mm512_set1_epi32(0x0302_0100),
        _mm512_set1_epi32(0x0404_0404),
    );
    let (mut done, mut bit) = (0, at);
    let first = values.len();
    while done < wide.len() && bit / 8 + 64 <= data.len() {
        let n = (wide.len() - done).min(16);
        // SAFETY: sixteen tokens at most are read, and 64 bytes of data.
        let (t, bytes) = unsafe {
            let some = u16::MAX >> (16 - n);
            let t = _mm_maskz_loadu_epi8(some, wide.as_ptr().add(done).cast());
            (t, _mm512_loadu_si512(data.as_ptr().add(bit / 8).cast()))
        };
        let t = _mm512_cvtepi8_epi32(t);
        let size = _mm512_abs_epi32(t);
        // Lanes without a token read none.
        let real = _mm512_cmpge_epi32_mask(size, direct);
        let i = _mm512_sub_epi32(size, direct);
        let count = _mm512_add_epi32(_mm512_srl_epi32(i, sub), least);
        let count = _mm512_maskz_min_epi32(real, count, most);
        let lead = _mm512_sllv_epi32(_mm512_or_si512(_mm512_and_si512(i, rest), lead), count);
        // How many bits there are before each lane's.
        let mut sum = count;
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<15>(sum, zero));
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<14>(sum, zero));
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<12>(sum, zero));
        sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<8>(sum, zero));
        let from = i32::try_from(bit % 8).unwrap_or(0);
        let place = _mm512_add_epi32(_mm512_sub_epi32(sum, count), _mm512_set1_epi32(from));
        // At most 7 + 15 * 31: the fifth byte from there is still inside.
        let byte = _mm512_shuffle_epi8(_mm512_srli_epi32::<3>(place), lowest);
        let byte = _mm512_add_epi32(byte, next);
        let low = _mm512_permutexvar_epi8(byte, bytes);
        let inside = _mm512_and_si512(place, seven);
        let found = if W == 2 {
            _mm512_srlv_epi32(low, inside)
        } else {
            let high = _mm512_permutexvar_epi8(_mm512_add_epi32(byte, after), bytes);
            _mm512_shrdv_epi32(low, high, inside)
        };
        let above = _mm512_sllv_epi32(_mm512_set1_epi32(-1), count);
        let value = _mm512_or_si512(lead, _mm512_andnot_si512(above, found));
        let negative = _mm512_cmplt_epi32_mask(t, zero);
        let value = _mm512_mask_sub_epi32(value, negative, zero, value);
        // SAFETY: as asked of the caller.
        unsafe {
            let to = values.as_mut_ptr().add(first + done * W);
            if W == 2 {
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(value));
            } else {
                _mm512_storeu_si512(to.cast(), value);
            }
        }
        let total = _mm_extract_epi32::<3>(_mm512_extracti32x4_epi32::<3>(sum));
        bit += usize::try_from(total).unwrap_or(0);
        done += n;
    }
    // SAFETY: all are written.
    unsafe { values.set_len(first + done * W) };
    (done, bit - at)
}

/// Holds a vector in a register. What expands a vector from memory takes many times as long as what expands a register, and the compiler
/// would make the one of a load and the other.
#[target_feature(enable = "avx512f")]
#[inline]
fn held(mut x: __m512i) -> __m512i {
    // SAFETY: nothing is done.
    unsafe {
        std::arch::asm!(
            "/* {0} */",
            inout(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
}

/// Makes whole groups of words of two or four bytes from predictions, tokens and the differences of tokens with raw bits, of which
/// there are 32 more than there are such tokens: the rest of the words is left as it was where there are not.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn rebuild<const W: usize>(
    prediction: &[u8],
    masks: &[u32],
    tokens: &[u8],
    values: &[u8],
    float: bool,
    direct: u8,
    out: &mut [u8],
) {
    let groups = (prediction.len().min(out.len()) / (W * GROUP)).min(masks.len());
    let (mut next, mut long_next) = (0, 0);
    let direct = _mm256_set1_epi8(direct.cast_signed());
    for (group, mask) in masks[..groups].iter().enumerate() {
        if tokens.len() < next + GROUP || values.len() < long_next * W + GROUP * W {
            return;
        }
        // SAFETY: the group's words are inside both slices; thirty-two tokens and values are left to read.
        unsafe {
            let from = prediction.as_ptr().add(group * GROUP * W);
            let to = out.as_mut_ptr().add(group * GROUP * W);
            let far = values.as_ptr().add(long_next * W);
            let t = _mm256_loadu_si256(tokens.as_ptr().add(next).cast());
            let t = held(_mm512_castsi256_si512(t));
            let t = _mm256_maskz_expand_epi8(*mask, _mm512_castsi512_si256(t));
            next += mask.count_ones() as usize;
            let long = _mm256_cmpge_epu8_mask(_mm256_abs_epi8(t), direct);
            long_next += long.count_ones() as usize;
            if W == 2 {
                let d = _mm512_cvtepi8_epi16(t);
                let d = _mm512_mask_expand_epi16(d, long, held(_mm512_loadu_si512(far.cast())));
                let p = _mm512_loadu_si512(from.cast());
                let word = if float {
                    let top = _mm512_set1_epi16(i16::MIN);
                    let o = _mm512_xor_si512(p, _mm512_or_si512(_mm512_srai_epi16::<15>(p), top));
                    let o = _mm512_add_epi16(o, d);
                    let below = _mm512_xor_si512(_mm512_srai_epi16::<15>(o), _mm512_set1_epi16(-1));
                    _mm512_xor_si512(o, _mm512_or_si512(below, top))
                } else {
                    _mm512_add_epi16(p, d)
                };
                _mm512_storeu_si512(to.cast(), word);
            } else {
                let halves = [_mm256_castsi256_si128(t), _mm256_extracti128_si256::<1>(t)];
                let long = [long & 0xffff, long >> 16].map(|x| u16::try_from(x).unwrap_or(0));
                let far = [far, far.add(4 * long[0].count_ones() as usize)];
                for (i, half) in halves.into_iter().enumerate() {
                    let d = _mm512_cvtepi8_epi32(half);
                    let more = held(_mm512_loadu_si512(far[i].cast()));
                    let d = _mm512_mask_expand_epi32(d, long[i], more);
                    let p = _mm512_loadu_si512(from.add(64 * i).cast());
                    let word = if float {
                        let top = _mm512_set1_epi32(i32::MIN);
                        let o =
                            _mm512_xor_si512(p, _mm512_or_si512(_mm512_srai_epi32::<31>(p), top));
                        let o = _mm512_add_epi32(o, d);
                        let below =
                            _mm512_xor_si512(_mm512_srai_epi32::<31>(o), _mm512_set1_epi32(-1));
                        _mm512_xor_si512(o, _mm512_or_si512(below, top))
                    } else {
                        _mm512_add_epi32(p, d)
                    };
                    _mm512_storeu_si512(to.add(64 * i).cast(), word);
                }
            }
        }
    }
}

/// [`passes::measure_plainly`] by this CPU's vectors.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn measure<const W: usize>(
    target: &[u8],
    prediction: &[u8],
    exponent: Exponent,
    mantissa: u32,
    float: bool,
) -> (usize, f32) {
    if W != 2 {
        return passes::measure_plainly::<W>(target, prediction, exponent, mantissa, float);
    }
    let (shift, mask) = exponent.parts();
    let shift = _mm_cvtsi32_si128(shift.cast_signed());
    let short = |x: u32| _mm512_set1_epi16(u16::try_from(x).unwrap_or(u16::MAX).cast_signed());
    let mask = short(u32::try_from(mask).unwrap_or(0));
    let most = short(passes::most(mantissa, float));
    let (least, largest) = (short(1), short(passes::LARGEST));
    let sign = _mm512_set1_epi16(if float { i16::MAX } else { 0 });
    let below = |x| _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16::<15>(x), sign));
    let groups = target.len().min(prediction.len()) / (2 * GROUP);
    let mut sums = _mm512_setzero_ps();
    let mut changed = 0;
    for group in 0..groups {
        // SAFETY: the group's words are inside both slices.
        let (t, p) = unsafe {
            let at = 2 * GROUP * group;
            let (t, p) = (target.as_ptr().add(at), prediction.as_ptr().add(at));
            _mm_prefetch::<_MM_HINT_T0>(t.wrapping_add(SOON).cast());
            _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(SOON).cast());
            (_mm512_loadu_si512(t.cast()), _mm512_loadu_si512(p.cast()))
        };
        changed += _mm512_cmpneq_epi16_mask(t, p).count_ones() as usize;
        let size = _mm512_abs_epi16(_mm512_sub_epi16(below(t), below(p)));
        let size = _mm512_min_epu16(size, most);
        let e = _mm512_and_si512(_mm512_srl_epi16(p, shift), mask);
        let e = _mm512_slli_epi16::<7>(_mm512_min_epu16(_mm512_max_epu16(e, least), largest));
        let halves = [
            (_mm512_castsi512_si256(size), _mm512_castsi512_si256(e)),
            (
                _mm512_extracti64x4_epi64::<1>(size),
                _mm512_extracti64x4_epi64::<1>(e),
            ),
        ];
        for (size, e) in halves {
            let size = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(size));
            let e = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(e));
            sums = _mm512_add_ps(sums, _mm512_mul_ps(size, _mm512_castsi512_ps(e)));
        }
    }
    let mut all = [0f32; passes::SUMS];
    // SAFETY: sixteen sums.
    unsafe { _mm512_storeu_ps(all.as_mut_ptr(), sums) };
    let rest = groups * 2 * GROUP;
    let (target, prediction) = (&target[rest..], &prediction[rest..]);
    let (more, sum) = passes::measure_from::<W>(target, prediction, exponent, mantissa, float, all);
    (changed + more, sum)
}
