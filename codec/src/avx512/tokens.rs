//! Tokens of words, of those that are encoded.

use std::arch::x86_64::{
    _MM_HINT_T0, _mm_cvtsi32_si128, _mm_prefetch, _mm_storeu_si128, _mm256_castsi128_si256,
    _mm256_mask_expand_epi8, _mm256_storeu_si256, _mm512_abs_epi16, _mm512_abs_epi32,
    _mm512_add_epi32, _mm512_and_si512, _mm512_castsi256_si512, _mm512_castsi512_si256,
    _mm512_cmpge_epu16_mask, _mm512_cmpge_epu32_mask, _mm512_cmplt_epi32_mask,
    _mm512_cvtepi16_epi8, _mm512_cvtepi16_epi32, _mm512_cvtepi32_epi8, _mm512_extracti64x4_epi64,
    _mm512_loadu_si512, _mm512_lzcnt_epi32, _mm512_mask_mov_epi32, _mm512_mask_sub_epi32,
    _mm512_maskz_compress_epi16, _mm512_maskz_compress_epi32, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_sll_epi32, _mm512_srai_epi16, _mm512_srai_epi32,
    _mm512_srlv_epi32, _mm512_storeu_si512, _mm512_sub_epi16, _mm512_sub_epi32,
    _mm512_test_epi16_mask, _mm512_test_epi32_mask, _mm512_xor_si512, _pdep_u32, _pext_u32,
};

use crate::passes::GROUP;

use super::SOON;

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
