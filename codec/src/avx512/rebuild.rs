//! Words from tokens.

use std::arch::x86_64::{
    _mm256_abs_epi8, _mm256_castsi256_si128, _mm256_cmpge_epu8_mask, _mm256_extracti128_si256,
    _mm256_loadu_si256, _mm256_maskz_expand_epi8, _mm256_set1_epi8, _mm512_add_epi16,
    _mm512_add_epi32, _mm512_castsi256_si512, _mm512_castsi512_si256, _mm512_cvtepi8_epi16,
    _mm512_cvtepi8_epi32, _mm512_loadu_si512, _mm512_mask_expand_epi16, _mm512_mask_expand_epi32,
    _mm512_or_si512, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_srai_epi16, _mm512_srai_epi32,
    _mm512_storeu_si512, _mm512_xor_si512,
};

use crate::passes::GROUP;

use super::held;

/// Bits that are set.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(enable = "avx512f,avx512bw,popcnt")]
pub(crate) unsafe fn ones(masks: &[u32]) -> usize {
    masks.iter().map(|m| m.count_ones() as usize).sum()
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
