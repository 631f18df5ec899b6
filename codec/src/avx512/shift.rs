//! Words moved by a step that depends on their mantissa.

use std::arch::x86_64::{
    __m512i, _mm_cvtsi32_si128, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi32,
    _mm512_and_si512, _mm512_cmpneq_epi32_mask, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32,
    _mm512_loadu_si512, _mm512_mask_i32gather_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_srl_epi32, _mm512_storeu_si512,
};

use crate::{dtype::FloatLayout, shift::Steps};

/// Moves words of two or four bytes; returns how many are done, in groups.
///
/// # Safety
/// The CPU has what [`available`] asks for; the top bits of a mantissa of `layout` are an index of `steps`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn shift<const W: usize>(
    layout: FloatLayout,
    kept: u32,
    steps: &Steps,
    words: &mut [u8],
) -> usize {
    let FloatLayout { exponent, mantissa } = layout;
    let bits = |n: u32| _mm_cvtsi32_si128(n.cast_signed());
    let all = |n: u32| _mm512_set1_epi32(((1 << n) - 1u32).cast_signed());
    let (top, part) = (all(exponent), all(kept));
    let (zero, above, below) = (
        _mm512_setzero_si512(),
        bits(mantissa),
        bits(mantissa - kept),
    );
    let moved = |from: __m512i| {
        let field = _mm512_and_si512(_mm512_srl_epi32(from, above), top);
        // Zeros, denormals, infinities and NaNs stay as they are.
        let some = _mm512_cmpneq_epi32_mask(field, zero) & _mm512_cmpneq_epi32_mask(field, top);
        let entry = _mm512_and_si512(_mm512_srl_epi32(from, below), part);
        // SAFETY: as asked of the caller.
        let step =
            unsafe { _mm512_mask_i32gather_epi32::<4>(zero, some, entry, steps.as_ptr().cast()) };
        _mm512_add_epi32(from, step)
    };
    let groups = words.as_chunks_mut::<W>().0.as_chunks_mut::<16>().0;
    let done = groups.len() * 16;
    for group in groups {
        let at = group.as_flattened_mut().as_mut_ptr();
        // SAFETY: sixteen words.
        unsafe {
            if W == 2 {
                let from = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                _mm256_storeu_si256(at.cast(), _mm512_cvtepi32_epi16(moved(from)));
            } else {
                _mm512_storeu_si512(at.cast(), moved(_mm512_loadu_si512(at.cast())));
            }
        }
    }
    done
}
