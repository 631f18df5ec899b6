//! The decomposition against nalgebra's exact one, and the stored factors against themselves.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use nalgebra::DMatrix;
use proptest::prelude::*;
use sparse_svd::{
    Dense, Difference, Factors, Measured, Precision, Product, Rank, Signs, Source, Svd, SvdError,
};

/// Numbers about zero, the same for the same seed.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f32::from(i16::try_from((state >> 48).cast_signed() - (1 << 15)).unwrap()) / 32768.0
        })
        .collect()
}

/// A matrix whose random singular directions weigh less and less: column `j` of the inner dimension weighs `decay^j`.
fn decaying(rows: usize, cols: usize, inner: usize, decay: f32, seed: u64) -> Vec<f32> {
    let (left, right) = (numbers(rows * inner, seed), numbers(inner * cols, seed + 1));
    let mut out = vec![0f32; rows * cols];
    for i in 0..rows {
        let mut weight = 1.0;
        for k in 0..inner {
            for j in 0..cols {
                out[i * cols + j] += weight * left[i * inner + k] * right[k * cols + j];
            }
            weight *= decay;
        }
    }
    out
}

fn exact(data: &[f32], cols: usize) -> Vec<f64> {
    let wide: Vec<f64> = data.iter().map(|x| f64::from(*x)).collect();
    let matrix = DMatrix::from_row_slice(data.len() / cols, cols, &wide);
    let mut sigmas: Vec<f64> = matrix.singular_values().iter().copied().collect();
    sigmas.sort_by(|a, b| b.total_cmp(a));
    sigmas
}

fn tail(sigmas: &[f64], rank: usize) -> f64 {
    sigmas.iter().skip(rank).map(|s| s * s).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Small matrices of every shape and rank, zero and singular ones among them, come out exactly but for what squares of `f32`
    /// cannot tell from zero: a thousandth of the largest singular value.
    #[test]
    fn small_matrices_are_exact(rows in 1usize..70, cols in 1usize..70, inner in 0usize..80, decay in 0usize..3, rank in 0usize..20, seed in 1u64..1000) {
        let data = decaying(rows, cols, inner, [0.7, 0.95, 1.0][decay], seed);
        let svd = Svd::new(&Dense::new(&data, cols), Rank::Fixed(rank)).unwrap();
        let sigmas = exact(&data, cols);
        let largest = sigmas.first().copied().unwrap_or(0.0);
        for (found, right) in svd.sigmas().iter().zip(&sigmas) {
            prop_assert!((found - right).abs() <= 1e-3 * largest, "{found} {right}");
        }
        let measured = Measured::new(&Dense::new(&data, cols), &svd.factors()).unwrap();
        let optimum = tail(&sigmas, rank);
        prop_assert!(measured.error <= optimum * 1.0002 + 1e-6 * measured.energy, "{} {optimum}", measured.error);
        // What the values say is what is left.
        let said = svd.energy() - svd.sigmas().iter().map(|s| s * s).sum::<f64>();
        prop_assert!((said - measured.error).abs() <= 1e-4 * measured.energy + 1e-12);
    }

    /// Every precision gives back what it says, to its own error, and its first bytes are the factors of a smaller rank.
    #[test]
    fn factors_come_back(rows in 1usize..150, cols in 1usize..150, rank in 1usize..5, seed in 1u64..1000, precision in 0usize..5) {
        let (precision, name) = Precision::ALL[precision];
        prop_assert_eq!(Precision::parse(name), Some(precision));
        let factors = Factors { rows, cols, rank, left: numbers(rows * rank, seed), right: numbers(rank * cols, seed + 1) };
        let bytes = factors.encode(precision);
        prop_assert_eq!(bytes.len(), rank * precision.component(rows, cols).unwrap());
        let again = Factors::decode(precision, [rows, cols], rank, &bytes).unwrap();
        let step = match precision {
            Precision::F32 => 0.0,
            Precision::F16 => 1.0 / 2048.0,
            Precision::BF16 => 1.0 / 256.0,
            Precision::Int8 => 0.02,
            Precision::Int4 => 0.31,
        };
        for (a, b) in factors.left.iter().chain(&factors.right).zip(again.left.iter().chain(&again.right)) {
            prop_assert!((a - b).abs() <= step, "{a} {b}");
        }
        let first = Factors::decode(precision, [rows, cols], rank - 1, &bytes).unwrap();
        prop_assert_eq!(&first.right[..], &again.right[..(rank - 1) * cols]);
        prop_assert!(Factors::decode(precision, [rows, cols], rank + 1, &bytes).is_err());
        prop_assert!(Factors::decode(precision, [rows, cols], usize::MAX, &bytes).is_err());
    }

    /// A product is the chain of fused multiply-adds that its documentation says, and signs leave what they are measured at.
    #[test]
    fn products_and_signs(rows in 1usize..120, cols in 1usize..90, rank in 0usize..9, seed in 1u64..1000) {
        let factors = Factors { rows, cols, rank, left: numbers(rows * rank, seed), right: numbers(rank * cols, seed + 1) };
        let data = numbers(rows * cols, seed + 2);
        let product = Product::new(&factors).unwrap();
        let mut work = product.work();
        let mut left = data.clone();
        for first in (0..rows).step_by(Product::ROWS) {
            let found = product.rows(first..rows.min(first + Product::ROWS), &mut work).unwrap();
            for (i, row) in found.enumerate() {
                for (j, x) in row.iter().enumerate() {
                    let chain = (0..rank).fold(0f32, |sum, k| {
                        factors.left[(first + i) * rank + k].mul_add(factors.right[k * cols + j], sum)
                    });
                    prop_assert_eq!(*x, chain);
                    left[(first + i) * cols + j] -= chain;
                }
            }
        }
        let source = Dense::new(&data, cols);
        let measured = Measured::new(&source, &factors).unwrap();
        let error: f64 = left.iter().map(|x| f64::from(*x).powi(2)).sum();
        prop_assert!((measured.error - error).abs() <= 1e-9 * error);
        prop_assert_eq!(measured.max_abs, f64::from(left.iter().fold(0f32, |m, x| m.max(x.abs()))));
        let (after, signs) = Measured::with_signs(&source, &factors).unwrap();
        prop_assert!(after.error <= measured.error * 1.000_001);
        let again = Signs::decode([rows, cols], &signs.encode()).unwrap();
        prop_assert_eq!(&again, &signs);
        let mut rest = left;
        let mut added = vec![0f32; cols];
        for (i, row) in rest.chunks_exact_mut(cols).enumerate() {
            added.fill(0.0);
            again.add_to(i, &mut added);
            row.iter_mut().zip(&added).for_each(|(x, a)| *x -= a);
        }
        let error: f64 = rest.iter().map(|x| f64::from(*x).powi(2)).sum();
        prop_assert!((after.error - error).abs() <= 1e-6 * error + 1e-12);
    }
}

/// Where the space cannot hold everything: near the optimum all the same, and more so than the ten-thousandth that is promised.
#[test]
fn large_matrices_are_near_the_optimum() {
    let (rows, cols) = (400, 300);
    let data = decaying(rows, cols, 300, 0.985, 3);
    let sigmas = exact(&data, cols);
    let source = Dense::new(&data, cols);
    let widest = Svd::new(&source, Rank::Fixed(32)).unwrap();
    for rank in [1, 4, 16, 32] {
        let svd = Svd::new(&source, Rank::Fixed(rank)).unwrap();
        let optimum = tail(&sigmas, rank).sqrt();
        for svd in [&svd, &widest.truncated(rank)] {
            assert_eq!(svd.rank(), rank);
            let error = Measured::new(&source, &svd.factors()).unwrap().error.sqrt();
            assert!(
                error / optimum - 1.0 < 1e-4,
                "rank {rank}: {error} {optimum}"
            );
        }
    }
}

/// Energy rules and their limits.
#[test]
fn energy_decides_the_rank() {
    let (rows, cols) = (250, 330);
    let data = decaying(rows, cols, 250, 0.97, 5);
    let sigmas = exact(&data, cols);
    let energy: f64 = tail(&sigmas, 0);
    for share in [0.3, 0.9, 0.99] {
        let right = (0..)
            .find(|k| tail(&sigmas, *k) <= (1.0 - share) * energy)
            .unwrap();
        let rule = |max| Rank::Energy { share, max };
        let svd = Svd::new(&Dense::new(&data, cols), rule(250)).unwrap();
        assert!(svd.rank().abs_diff(right) <= 1, "{} {right}", svd.rank());
        assert_eq!(
            Svd::new(&Dense::new(&data, cols), rule(2)).unwrap().rank(),
            right.min(2)
        );
    }
}

/// A low-rank update below noise of known variance.
struct Noisy {
    data: Vec<f32>,
    cols: usize,
    variance: f32,
}

impl Source for Noisy {
    fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn row(&self, row: usize, out: &mut [f32]) -> Result<(), SvdError> {
        Dense::new(&self.data, self.cols).row(row, out)
    }

    fn noise(&self, _row: usize, out: &mut [f32]) -> Result<bool, SvdError> {
        out.fill(self.variance);
        Ok(true)
    }
}

#[test]
fn automatic_rank_stops_at_the_noise() {
    let (rows, cols) = (300, 200);
    for rank in [0usize, 1, 5, 12] {
        let mut data = decaying(rows, cols, rank, 0.9, 7);
        // Uniform in [-1, 1), so of variance 1/3, times a tenth.
        let noise = numbers(rows * cols, 8);
        data.iter_mut().zip(&noise).for_each(|(x, n)| *x += 0.1 * n);
        let source = Noisy {
            data,
            cols,
            variance: 0.01 / 3.0,
        };
        let svd = Svd::new(&source, Rank::Auto { max: 64 }).unwrap();
        assert_eq!(svd.rank(), rank);
        let expected = 0.01 / 3.0 * (rows * cols) as f64;
        assert!((svd.noise().energy / expected - 1.0).abs() < 0.02);
    }
}

#[test]
fn the_effective_rank_counts_equal_values() {
    let n = 64;
    let mut data = vec![0f32; n * n];
    for i in 0..10 {
        data[i * n + i] = 3.0;
    }
    let svd = Svd::new(&Dense::new(&data, n), Rank::Fixed(16)).unwrap();
    assert!(
        (svd.effective_rank() - 10.0).abs() < 1e-3,
        "{}",
        svd.effective_rank()
    );
    assert!(svd.sigmas()[..10].iter().all(|s| (s - 3.0).abs() < 1e-4));
}

/// Whatever the unit: differences of 1e-30 and of 1e18 as well.
#[test]
fn units_do_not_matter() {
    let (rows, cols) = (120, 90);
    let data = decaying(rows, cols, 30, 0.8, 11);
    let plain = Svd::new(&Dense::new(&data, cols), Rank::Fixed(8)).unwrap();
    for unit in [1e-30f32, 1e18] {
        let scaled: Vec<f32> = data.iter().map(|x| x * unit).collect();
        let svd = Svd::new(&Dense::new(&scaled, cols), Rank::Fixed(8)).unwrap();
        for (a, b) in svd.sigmas().iter().zip(plain.sigmas()) {
            assert!((a / f64::from(unit) / b - 1.0).abs() < 1e-4);
        }
        let measured = Measured::new(&Dense::new(&scaled, cols), &svd.factors()).unwrap();
        let whole = Measured::new(&Dense::new(&data, cols), &plain.factors()).unwrap();
        assert!((measured.relative() - whole.relative()).abs() < 1e-5);
    }
}

#[test]
fn threads_do_not_change_the_result() {
    let (rows, cols) = (1000, 70);
    let data = decaying(rows, cols, 70, 0.9, 13);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            Svd::new(&Dense::new(&data, cols), Rank::Fixed(8))
                .unwrap()
                .factors()
        })
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn what_is_no_number_is_refused() {
    let base = vec![0f32; 12];
    let mut finetune = base.clone();
    finetune[5] = f32::INFINITY;
    let source = Difference::new(&base, &finetune, 4).unwrap();
    assert_eq!(
        Svd::new(&source, Rank::Fixed(2)).unwrap_err(),
        SvdError::NotFinite
    );
    assert!(Difference::new(&base, &finetune[..8], 4).is_err());
    assert!(
        Factors {
            rows: 1,
            cols: 1,
            rank: 1,
            left: vec![1e9],
            right: vec![1.0]
        }
        .stored(Precision::F16)
        .is_err()
    );
    let same = Difference::new(&base, &base, 4).unwrap();
    assert_eq!(Svd::new(&same, Rank::Auto { max: 8 }).unwrap().rank(), 0);
}

#[test]
fn a_decomposition_survives_as_bytes() {
    let data = decaying(40, 30, 20, 0.8, 17);
    let svd = Svd::new(&Dense::new(&data, 30), Rank::Fixed(5)).unwrap();
    let bytes = svd.to_bytes();
    assert_eq!(Svd::from_bytes(&bytes), Some(svd));
    assert_eq!(Svd::from_bytes(&bytes[..bytes.len() - 4]), None);
    assert_eq!(Svd::from_bytes(&[0xff; 80]), None);
    assert_eq!(Svd::from_bytes(&[]), None);
}
