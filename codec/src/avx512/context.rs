//! Which table a word is coded by.

use std::arch::x86_64::{
    _MM_HINT_T0, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_prefetch, _mm512_adds_epu8,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_loadu_si512, _mm512_max_epu8, _mm512_min_epu8,
    _mm512_permutex2var_epi8, _mm512_set1_epi8, _mm512_shuffle_epi8, _mm512_srl_epi16,
    _mm512_storeu_si512, _mm512_subs_epu8,
};

use crate::context::{Exponent, Window};

use super::SOON;

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
