//! The products of a tile by AVX2 and FMA: six rows by sixteen columns in registers, operands read where they lie.

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_load_ss, _mm_prefetch, _mm256_add_ps, _mm256_broadcastss_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use crate::tile::LINE;

/// Rows of a block in registers: twelve accumulators, two operands and a broadcast are fifteen of sixteen registers.
const BLOCK: usize = 6;

/// Columns that are fetched ahead.
const AHEAD: usize = 32;

/// Whether this CPU has what the module needs.
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Runs a kernel for as many rows as are left, up to six.
macro_rules! by_rows {
    ($left:expr, $kernel:ident $arguments:tt) => {
        match $left {
            1 => $kernel::<1> $arguments,
            2 => $kernel::<2> $arguments,
            3 => $kernel::<3> $arguments,
            4 => $kernel::<4> $arguments,
            5 => $kernel::<5> $arguments,
            _ => $kernel::<6> $arguments,
        }
    };
}

/// `sum += x line`. Pointers advance by wrapping additions all over this module, for those are not checked where a build checks
/// others, and this is where all time goes.
///
/// # Safety
/// The CPU has AVX2 and FMA; `x` can be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add(x: *const f32, line: (__m256, __m256), sum: &mut [__m256; 2]) {
    // SAFETY: the caller vouches for the pointer.
    let a = _mm256_broadcastss_ps(unsafe { _mm_load_ss(x) });
    sum[0] = _mm256_fmadd_ps(a, line.0, sum[0]);
    sum[1] = _mm256_fmadd_ps(a, line.1, sum[1]);
}

/// `out += tile x panel` for `rows` rows of the tile, as many of their columns as the panel has rows of sixteen.
///
/// # Safety
/// The CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn times(
    tile: &[f32],
    stride: usize,
    rows: usize,
    panel: &[f32],
    out: &mut [f32],
    width: usize,
) {
    let n = panel.len() / LINE;
    assert!(
        rows == 0
            || n <= stride
                && tile.len() >= (rows - 1) * stride + n
                && width >= LINE
                && out.len() >= (rows - 1) * width + LINE,
        "the panel fits the tile"
    );
    for first in (0..rows).step_by(BLOCK) {
        // SAFETY: the assertion holds all rows within the slices.
        unsafe {
            let (x, y) = (
                tile.as_ptr().add(first * stride),
                out.as_mut_ptr().add(first * width),
            );
            by_rows!(
                rows - first,
                times_block(x, stride, panel.as_ptr(), n, y, width)
            );
        }
    }
}

/// # Safety
/// The CPU has AVX2 and FMA; `R` rows of `x` have `n` elements, `panel` has `n` times sixteen, `R` rows of `out` have sixteen.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn times_block<const R: usize>(
    x: *const f32,
    stride: usize,
    panel: *const f32,
    n: usize,
    out: *mut f32,
    width: usize,
) {
    // SAFETY: the caller vouches for the slices.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let (mut at, mut x) = (panel, x);
        for _ in 0..n {
            let line = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.wrapping_add(8)));
            for (r, sum) in sums.iter_mut().enumerate() {
                add(x.wrapping_add(r.wrapping_mul(stride)), line, sum);
            }
            (at, x) = (at.wrapping_add(LINE), x.wrapping_add(1));
        }
        for (r, sum) in sums.iter().enumerate() {
            let at = out.add(r * width);
            _mm256_storeu_ps(at, _mm256_add_ps(sum[0], _mm256_loadu_ps(at)));
            let at = at.add(8);
            _mm256_storeu_ps(at, _mm256_add_ps(sum[1], _mm256_loadu_ps(at)));
        }
    }
}

/// `sums += tile^T x left`.
///
/// # Safety
/// The CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn transposed_times(
    tile: &[f32],
    stride: usize,
    rows: usize,
    cols: usize,
    left: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    assert!(
        rows == 0
            || width.is_multiple_of(LINE)
                && cols <= stride
                && tile.len() >= (rows - 1) * stride + cols
                && left.len() >= rows * width
                && sums.len() >= cols * width,
        "the factors fit the tile"
    );
    for first in (0..cols).step_by(BLOCK) {
        for start in (0..width).step_by(LINE) {
            // SAFETY: the assertion holds all rows within the slices.
            unsafe {
                let x = tile.as_ptr().add(first);
                let y = left.as_ptr().add(start);
                let z = sums.as_mut_ptr().add(first * width + start);
                by_rows!(cols - first, transposed_block(x, stride, rows, y, z, width));
            }
        }
    }
}

/// # Safety
/// The CPU has AVX2 and FMA; `rows` rows of `x` have `R` elements and those of `y` sixteen, `R` rows of `z` have sixteen.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn transposed_block<const R: usize>(
    x: *const f32,
    stride: usize,
    rows: usize,
    y: *const f32,
    z: *mut f32,
    width: usize,
) {
    // SAFETY: the caller vouches for the slices.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for (r, sum) in sums.iter_mut().enumerate() {
            let at = z.add(r * width);
            *sum = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
        }
        let (mut at, mut x) = (y, x);
        for _ in 0..rows {
            // Many rows side by side are more than the CPU follows by itself.
            _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(AHEAD).cast());
            let line = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.wrapping_add(8)));
            for (r, sum) in sums.iter_mut().enumerate() {
                add(x.wrapping_add(r), line, sum);
            }
            (at, x) = (at.wrapping_add(width), x.wrapping_add(stride));
        }
        for (r, sum) in sums.iter().enumerate() {
            let at = z.add(r * width);
            _mm256_storeu_ps(at, sum[0]);
            _mm256_storeu_ps(at.add(8), sum[1]);
        }
    }
}
