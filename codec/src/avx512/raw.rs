//! Bits that tokens do not tell.

use std::arch::x86_64::{
    _mm_cvtsi32_si128, _mm_extract_epi32, _mm_maskz_loadu_epi8, _mm_setr_epi8, _mm256_storeu_si256,
    _mm512_abs_epi8, _mm512_abs_epi32, _mm512_add_epi32, _mm512_add_epi64, _mm512_alignr_epi32,
    _mm512_and_si512, _mm512_andnot_si512, _mm512_broadcast_i32x4, _mm512_cmpge_epi32_mask,
    _mm512_cmpge_epu8_mask, _mm512_cmplt_epi32_mask, _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi16,
    _mm512_extracti32x4_epi32, _mm512_loadu_si512, _mm512_lzcnt_epi32, _mm512_mask_sub_epi32,
    _mm512_maskz_compress_epi8, _mm512_maskz_loadu_epi8, _mm512_maskz_loadu_epi32,
    _mm512_maskz_min_epi32, _mm512_max_epi32, _mm512_or_si512, _mm512_permutexvar_epi8,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shrdv_epi32, _mm512_shuffle_epi8, _mm512_sllv_epi32, _mm512_sllv_epi64,
    _mm512_srl_epi32, _mm512_srli_epi32, _mm512_srli_epi64, _mm512_srlv_epi32, _mm512_storeu_si512,
    _mm512_sub_epi32, _mm512_unpackhi_epi64,
};

use crate::{
    bits::{BitReader, BitWriter},
    passes::Spread,
};

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
    // A magnitude has fewer than 32 raw bits.
    let (out, rest, rest_bits) = raw.parts(4 * sizes.len() + 64);
    let (mut bits_before, mut bits_held) = (*rest, *rest_bits);
    let mut at = out.len();
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
            // Fewer than a byte are held, so there is room for 57 bits; two long words side by side are one after the other.
            let (mut bits, mut count) = (*bits, u32::try_from(*count).unwrap_or(0));
            while count > 56 {
                // SAFETY: as below.
                unsafe { put(out, &mut at, (&mut bits_before, &mut bits_held), bits, 32) };
                (bits, count) = (bits >> 32, count - 32);
            }
            // SAFETY: fewer than 32 bits for every word come to less than what there is room for, of which 64 bytes are left.
            unsafe {
                put(
                    out,
                    &mut at,
                    (&mut bits_before, &mut bits_held),
                    bits,
                    count,
                )
            };
        }
    }
    (*rest, *rest_bits) = (bits_before, bits_held);
    // SAFETY: all before is written.
    unsafe { out.set_len(at) };
}

/// Writes at most 56 bits at the byte `at`, of which `held` has some already, without asking whether they fill it: nobody can foretell
/// that.
///
/// # Safety
/// There is room for eight bytes.
#[inline(always)]
unsafe fn put(
    out: &mut Vec<u8>,
    at: &mut usize,
    (held, held_bits): (&mut u64, &mut u32),
    bits: u64,
    count: u32,
) {
    let bits = bits & ((1 << count) - 1);
    *held |= bits << *held_bits;
    let to = out.as_mut_ptr().wrapping_add(*at).cast::<[u8; 8]>();
    // SAFETY: as asked of the caller.
    unsafe { to.write_unaligned(held.to_le_bytes()) };
    let all = *held_bits + count;
    *at += (all / 8) as usize;
    // At most 63 bits, of which whole bytes are done.
    *held >>= all & !7;
    *held_bits = all & 7;
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
