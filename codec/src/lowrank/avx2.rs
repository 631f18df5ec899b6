//! The prediction by AVX2 and FMA: the same operations as in [`super::predict`], sixteen elements at a time.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_LT_OQ, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256, _mm256_blendv_epi8,
    _mm256_broadcast_ss, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cmp_ps, _mm256_cmpeq_epi32, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_ph,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_epi32, _mm256_max_ps,
    _mm256_min_epi32, _mm256_mul_ps, _mm256_or_si256, _mm256_packus_epi16, _mm256_packus_epi32,
    _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_sub_ps,
};

use super::predict::{BELOW, Class, Factors, Float, LANES, LEAST};

/// Whether this CPU has what the module needs.
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
}

/// Conversions of eight words of a dtype.
pub(crate) trait Vector: Float {
    /// The values of words held in 32 bits each.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn values(words: __m256i) -> __m256;
    /// Words, to nearest, ties to even.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn rounds(values: __m256) -> __m256i;
    /// As [`Float::rest`].
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn rests(_b: __m256, _d: __m256, y: __m256, p: __m256) -> __m256 {
        _mm256_sub_ps(y, p)
    }
}

impl Vector for super::predict::BFloat16 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn values(words: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn rounds(values: __m256) -> __m256i {
        let bits = _mm256_castps_si256(values);
        let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff));
        _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up))
    }
}

impl Vector for super::predict::Float16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn values(words: __m256i) -> __m256 {
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(words, words));
        _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn rounds(values: __m256) -> __m256i {
        _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values))
    }
}

impl Vector for super::predict::Float32 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn values(words: __m256i) -> __m256 {
        _mm256_castsi256_ps(words)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn rounds(values: __m256) -> __m256i {
        _mm256_castps_si256(values)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn rests(b: __m256, d: __m256, y: __m256, _p: __m256) -> __m256 {
        let bb = _mm256_sub_ps(y, b);
        _mm256_add_ps(_mm256_sub_ps(b, _mm256_sub_ps(y, bb)), _mm256_sub_ps(d, bb))
    }
}

/// `R` rows from `row` on, some columns of each.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn rows<F: Vector, const R: usize, const TWICE: bool>(
    factors: &Factors,
    row: usize,
    cols: std::ops::Range<usize>,
    words: &mut [u8],
    classes: &mut [Class],
) {
    let width = cols.len();
    let lefts: [&[f32]; R] = std::array::from_fn(|r| factors.left_row(row + r));
    for start in (0..width).step_by(LANES) {
        let n = LANES.min(width - start);
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for k in 0..factors.rank {
            let v = factors.right_part(k, cols.start + start);
            // SAFETY: the part has sixteen elements.
            let v = unsafe {
                [
                    _mm256_loadu_ps(v.as_ptr()),
                    _mm256_loadu_ps(v.as_ptr().add(8)),
                ]
            };
            for (sum, left) in sums.iter_mut().zip(&lefts) {
                let a = _mm256_broadcast_ss(&left[k]);
                sum[0] = _mm256_fmadd_ps(a, v[0], sum[0]);
                sum[1] = _mm256_fmadd_ps(a, v[1], sum[1]);
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            let at = r * width + start;
            let words = &mut words[at * F::BYTES..(at + n) * F::BYTES];
            let classes = &mut classes[at..at + n];
            // SAFETY: the CPU has what is asked for.
            unsafe {
                let scale = _mm256_set1_ps(factors.scale());
                let updates = [_mm256_mul_ps(sum[0], scale), _mm256_mul_ps(sum[1], scale)];
                if let (Some(words), Some(classes)) =
                    (words.first_chunk_mut::<64>(), classes.first_chunk_mut())
                {
                    finish::<F, TWICE>(words, updates, classes);
                    continue;
                }
                let (mut part, mut sides) = ([0u8; 64], [0; LANES]);
                part[..words.len()].copy_from_slice(words);
                finish::<F, TWICE>(&mut part, updates, &mut sides);
                words.copy_from_slice(&part[..words.len()]);
                classes.copy_from_slice(&sides[..n]);
            }
        }
    }
}

/// Sixteen predictions: the first bytes of `words` hold the base's words, then the predicted ones.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish<F: Vector, const TWICE: bool>(
    words: &mut [u8; 64],
    updates: [__m256; 2],
    classes: &mut [Class; LANES],
) {
    // SAFETY: both halves of the words are inside the array.
    unsafe {
        let at = words.as_mut_ptr();
        let base = if F::BYTES == 2 {
            [
                _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(16).cast())),
            ]
        } else {
            [
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(32).cast()),
            ]
        };
        let (w0, c0) = predict::<F, TWICE>(base[0], updates[0]);
        let (w1, c1) = predict::<F, TWICE>(base[1], updates[1]);
        if F::BYTES == 2 {
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(w0, w1));
            _mm256_storeu_si256(at.cast(), packed);
        } else {
            _mm256_storeu_si256(at.cast(), w0);
            _mm256_storeu_si256(at.add(32).cast(), w1);
        }
        let c = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(c0, c1));
        let c = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(c, c));
        _mm_storeu_si128(classes.as_mut_ptr().cast(), _mm256_castsi256_si128(c));
    }
}

/// Words and classes of eight predictions.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn predict<F: Vector, const TWICE: bool>(
    base: __m256i,
    update: __m256,
) -> (__m256i, __m256i) {
    // SAFETY: the CPU has what is asked for.
    unsafe {
        let b = F::values(base);
        let d = if TWICE {
            F::values(F::rounds(update))
        } else {
            update
        };
        let y = _mm256_add_ps(b, d);
        let word = F::rounds(y);
        let p = F::values(word);
        let rest = F::rests(b, d, y, p);
        let set = |x: u32| _mm256_set1_epi32(x.cast_signed());
        let exponent = |x: __m256| {
            _mm256_and_si256(_mm256_srli_epi32::<23>(_mm256_castps_si256(x)), set(0xff))
        };
        let (ey, ep) = (exponent(y), exponent(p));
        let unit = _mm256_slli_epi32::<23>(_mm256_sub_epi32(
            set(F::UNIT),
            _mm256_max_epi32(ep, set(F::LOWEST)),
        ));
        let magnitude = _mm256_and_ps(rest, _mm256_castsi256_ps(set(0x7fff_ffff)));
        let distance = _mm256_sub_ps(
            _mm256_set1_ps(32768.0),
            _mm256_mul_ps(magnitude, _mm256_castsi256_ps(unit)),
        );
        let distance = _mm256_max_ps(distance, _mm256_setzero_ps());
        let step = _mm256_srli_epi32::<22>(_mm256_castps_si256(distance));
        let step = _mm256_min_epi32(_mm256_max_epi32(step, set(LEAST)), set(LEAST + 15));
        let below = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(rest, _mm256_setzero_ps()));
        let class = _mm256_or_si256(
            _mm256_sub_epi32(step, set(LEAST)),
            _mm256_and_si256(below, set(u32::from(BELOW))),
        );
        let top = set(0xff);
        let infinite = _mm256_or_si256(_mm256_cmpeq_epi32(ey, top), _mm256_cmpeq_epi32(ep, top));
        (
            _mm256_blendv_epi8(word, base, infinite),
            _mm256_blendv_epi8(class, set(0), infinite),
        )
    }
}
