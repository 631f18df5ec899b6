//! The products of a tile on any CPU, in the order of [`crate::avx2`].

use crate::tile::LINE;

/// As `avx2::times`, to the same bits.
pub(crate) fn times(
    tile: &[f32],
    stride: usize,
    rows: usize,
    panel: &[f32],
    out: &mut [f32],
    width: usize,
) {
    for (x, y) in tile.chunks(stride).zip(out.chunks_mut(width)).take(rows) {
        let mut sums = [0f32; LINE];
        for (a, line) in x.iter().zip(panel.chunks_exact(LINE)) {
            for (sum, b) in sums.iter_mut().zip(line) {
                *sum = a.mul_add(*b, *sum);
            }
        }
        for (y, sum) in y.iter_mut().zip(sums) {
            *y += sum;
        }
    }
}

/// As `avx2::transposed_times`, to the same bits.
pub(crate) fn transposed_times(
    tile: &[f32],
    stride: usize,
    rows: usize,
    cols: usize,
    left: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    for (x, y) in tile.chunks(stride).zip(left.chunks_exact(width)).take(rows) {
        for (a, z) in x.iter().take(cols).zip(sums.chunks_exact_mut(width)) {
            for (z, b) in z.iter_mut().zip(y) {
                *z = a.mul_add(*b, *z);
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::avx2;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32768.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn both_kernels_give_the_same_bits() {
        if !avx2::available() {
            eprintln!("skipped: this CPU has no AVX2");
            return;
        }
        for (rows, cols, width) in [(1, 1, 16), (7, 37, 16), (48, 100, 32), (13, 6, 48)] {
            let stride = cols + 3;
            let tile = numbers(rows * stride, 1);
            let panel = numbers(cols * LINE, 2);
            let (mut a, mut b) = (numbers(rows * width, 3), numbers(rows * width, 3));
            times(&tile, stride, rows, &panel, &mut a, width);
            // SAFETY: the CPU has AVX2, and nothing here lacks FMA then.
            unsafe { avx2::times(&tile, stride, rows, &panel, &mut b, width) };
            assert_eq!(a, b);
            let left = numbers(rows * width, 4);
            let (mut a, mut b) = (numbers(cols * width, 5), numbers(cols * width, 5));
            transposed_times(&tile, stride, rows, cols, &left, width, &mut a);
            // SAFETY: as above.
            unsafe { avx2::transposed_times(&tile, stride, rows, cols, &left, width, &mut b) };
            assert_eq!(a, b);
        }
    }
}
