//! Bytes of coded words, without those between.

use std::arch::x86_64::{
    _mm256_loadu_si256, _mm256_storeu_si256, _mm512_castsi256_si512, _mm512_castsi512_si256,
    _mm512_loadu_si512, _mm512_maskz_compress_epi8, _mm512_storeu_si512, _mm512_test_epi8_mask,
};

use crate::passes::GROUP;

use super::held;

/// Appends the tables that are not cold to `coded`, and for each group a mask of them; returns how many tables are done, in groups.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn pack(tables: &[u8], coded: &mut Vec<u8>, masks: &mut Vec<u32>) -> usize {
    let pairs = tables.as_chunks::<{ 2 * GROUP }>().0;
    coded.reserve(tables.len() + 2 * GROUP);
    masks.reserve(2 * pairs.len());
    let (mut at, mut group) = (coded.len(), masks.len());
    for pair in pairs {
        // SAFETY: `at` grows by at most 64 a pair of groups from the length, and there is room for all and 64 bytes more; of masks
        // for two a pair.
        unsafe {
            let tables = _mm512_loadu_si512(pair.as_ptr().cast());
            let warm = _mm512_test_epi8_mask(tables, tables);
            let to = masks.as_mut_ptr().add(group).cast::<[u32; 2]>();
            to.write_unaligned([(warm & 0xffff_ffff) as u32, (warm >> 32) as u32]);
            let packed = held(_mm512_maskz_compress_epi8(warm, tables));
            _mm512_storeu_si512(coded.as_mut_ptr().add(at).cast(), packed);
            at += warm.count_ones() as usize;
            group += 2;
        }
    }
    // SAFETY: all below the two is written.
    unsafe {
        coded.set_len(at);
        masks.set_len(group);
    }
    pairs.len() * 2 * GROUP
}

/// Appends the tokens of coded words.
///
/// # Safety
/// The CPU has what [`available`] asks for.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2,popcnt,bmi1"
)]
pub(crate) unsafe fn select(tokens: &[u8], masks: &[u32], coded: &mut Vec<u8>) {
    coded.reserve(tokens.len() + GROUP);
    let mut at = coded.len();
    for (group, mask) in tokens.as_chunks::<GROUP>().0.iter().zip(masks) {
        // SAFETY: `at` grows by at most 32 a group from the length, and there is room for all and 32 bytes more.
        unsafe {
            let tokens = _mm512_castsi256_si512(_mm256_loadu_si256(group.as_ptr().cast()));
            let some = held(_mm512_maskz_compress_epi8(u64::from(*mask), tokens));
            let to = coded.as_mut_ptr().add(at).cast();
            _mm256_storeu_si256(to, _mm512_castsi512_si256(some));
        }
        at += mask.count_ones() as usize;
    }
    // SAFETY: all below `at` is written.
    unsafe { coded.set_len(at) };
}
