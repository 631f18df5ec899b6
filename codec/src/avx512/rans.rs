//! The coder of tokens.

use std::arch::x86_64::{
    __m512i, _mm_cvtsi32_si128, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_insert_epi32,
    _mm_loadu_si128, _mm_min_epu8, _mm_set1_epi8, _mm_storeu_si128, _mm_subs_epu8,
    _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi32, _mm512_and_si512,
    _mm512_castsi128_si512, _mm512_castsi512_si128, _mm512_cmpge_epi32_mask,
    _mm512_cmpge_epu32_mask, _mm512_cmplt_epi32_mask, _mm512_cmplt_epu32_mask,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32,
    _mm512_cvtepu32_ps, _mm512_cvttps_epu32, _mm512_extracti32x4_epi32, _mm512_fmadd_ps,
    _mm512_fnmadd_ps, _mm512_inserti32x4, _mm512_loadu_si512, _mm512_mask_add_epi32,
    _mm512_mask_i32gather_epi32, _mm512_mask_or_epi32, _mm512_mask_srli_epi32,
    _mm512_mask_sub_epi32, _mm512_maskz_compress_epi32, _mm512_maskz_expand_epi32, _mm512_mul_ps,
    _mm512_mullo_epi32, _mm512_or_si512, _mm512_permutexvar_epi32, _mm512_rcp14_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_si512, _mm512_sll_epi32,
    _mm512_slli_epi32, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_epi32,
    _mm512_testn_epi32_mask,
};

use crate::{
    avx2::MARGIN,
    rans::{AHEAD, MOST},
    tables::{TOKENS, TableSet},
};

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
    words: &mut [[u8; 2]],
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
