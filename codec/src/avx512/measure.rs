//! The sizes of updates.

use std::arch::x86_64::{
    _MM_HINT_T0, _mm_cvtsi32_si128, _mm_prefetch, _mm512_abs_epi16, _mm512_add_ps,
    _mm512_and_si512, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cmpneq_epi16_mask,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_extracti64x4_epi64, _mm512_loadu_si512,
    _mm512_max_epu16, _mm512_min_epu16, _mm512_mul_ps, _mm512_set1_epi16, _mm512_setzero_ps,
    _mm512_slli_epi16, _mm512_slli_epi32, _mm512_srai_epi16, _mm512_srl_epi16, _mm512_storeu_ps,
    _mm512_sub_epi16, _mm512_xor_si512,
};

use crate::{
    context::Exponent,
    passes::{self, GROUP},
};

use super::SOON;

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
