//! Decompositions on the device: the bars that the CPU's are held to, and the CPU's own results.

use nalgebra::DMatrix;
use proptest::prelude::*;
use sparse_codec::{DType, TensorView};
use sparse_gpu::{Choice, GpuError, SvdStreamed};
use sparse_svd::{Dense, Measured, Rank, Source, Svd, SvdError};

use super::{DTYPES, Numbers, dtypes, view};

/// Two matrices and their difference.
pub(crate) struct Pair {
    dtypes: [DType; 2],
    shape: [u64; 2],
    tuned: Vec<u8>,
    base: Vec<u8>,
    tuned_values: Vec<f32>,
    base_values: Vec<f32>,
    difference: Vec<f32>,
}

impl Pair {
    /// `base + update`, rounded to a dtype, and its base.
    pub(crate) fn new([t, b]: [DType; 2], cols: usize, update: &[f32], base: &[f32]) -> Self {
        let base: Vec<u8> = base.iter().flat_map(|x| word(b, *x)).collect();
        let base_values = values(b, &base);
        let sums = base_values.iter().zip(update).map(|(b, u)| b + u);
        let tuned: Vec<u8> = sums.flat_map(|x| word(t, x)).collect();
        let tuned_values = values(t, &tuned);
        let both = tuned_values.iter().zip(&base_values);
        Self {
            dtypes: [t, b],
            shape: [(update.len() / cols) as u64, cols as u64],
            difference: both.map(|(t, b)| t - b).collect(),
            tuned,
            base,
            tuned_values,
            base_values,
        }
    }

    /// An update of nothing.
    fn plain(cols: usize, data: &[f32]) -> Self {
        Self::new([DType::F32; 2], cols, data, &vec![0.0; data.len()])
    }

    pub(crate) fn tuned(&self) -> TensorView<'_> {
        view(self.dtypes[0], &self.shape, &self.tuned)
    }

    pub(crate) fn base(&self) -> TensorView<'_> {
        view(self.dtypes[1], &self.shape, &self.base)
    }

    fn dense(&self) -> Dense<'_> {
        Dense::new(&self.difference, self.cols())
    }

    fn on_device(&self, rank: Rank) -> Svd {
        let all = SvdStreamed::open(Choice::Cuda).unwrap();
        let found = all.decompose(self.tuned(), self.base(), rank, &|| Ok(()));
        assert_eq!(all.done(), 1);
        found.unwrap().unwrap()
    }
}

/// As the command's own source: the difference, and the noise of both dtypes.
impl Source for Pair {
    fn rows(&self) -> usize {
        self.shape[0] as usize
    }

    fn cols(&self) -> usize {
        self.shape[1] as usize
    }

    fn row(&self, row: usize, out: &mut [f32]) -> Result<(), SvdError> {
        self.dense().row(row, out)
    }

    fn noise(&self, row: usize, out: &mut [f32]) -> Result<bool, SvdError> {
        let at = row * self.cols();
        let both = self.tuned_values[at..].iter().zip(&self.base_values[at..]);
        for (out, (t, b)) in out.iter_mut().zip(both) {
            let variance = |dtype, x| (f64::from(unit(dtype, x)).powi(2) / 12.0) as f32;
            *out = if t == b {
                0.0
            } else {
                variance(self.dtypes[0], *t) + variance(self.dtypes[1], *b)
            };
        }
        Ok(true)
    }
}

/// The unit in the last place.
fn unit(dtype: DType, x: f32) -> f32 {
    let (bits, least) = match dtype {
        DType::BF16 => (7, -126),
        DType::F16 => (10, -14),
        _ => (23, -126),
    };
    let exponent = ((x.to_bits() >> 23 & 0xff) as i32 - 127).max(least);
    2f64.powi(exponent - bits) as f32
}

fn word(dtype: DType, x: f32) -> Vec<u8> {
    match dtype {
        DType::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    }
}

fn values(dtype: DType, words: &[u8]) -> Vec<f32> {
    let mut out = Vec::new();
    sparse_codec::to_f32(dtype, words, &mut out).unwrap();
    out
}

/// A matrix whose random singular directions weigh less and less.
pub(crate) fn decaying(rows: usize, cols: usize, inner: usize, decay: f32, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed | 1);
    let mut some = |n: usize| -> Vec<f32> { (0..n).map(|_| 2.0 * numbers.unit()).collect() };
    let (left, right) = (some(rows * inner), some(inner * cols));
    let mut out = vec![0f32; rows * cols];
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        let mut weight = 1.0;
        for k in 0..inner {
            for (x, r) in row.iter_mut().zip(&right[k * cols..]) {
                *x += weight * left[i * inner + k] * r;
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

fn near(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() <= share * a.abs().max(b.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As the CPU's test of the same name, of any two dtypes.
    #[test]
    #[ignore = "needs a device"]
    fn small_matrices_are_exact(
        (t, b) in (dtypes(), dtypes()),
        (rows, cols, inner) in (1usize..70, 1usize..70, 0usize..80),
        decay in prop_oneof![Just(0.7f32), Just(0.95), Just(1.0)],
        rank in 0usize..20,
        seed in 1u64..,
    ) {
        let update = decaying(rows, cols, inner, decay, seed);
        let mut numbers = Numbers(seed);
        let base: Vec<f32> = (0..rows * cols).map(|_| numbers.unit()).collect();
        let pair = Pair::new([t, b], cols, &update, &base);
        let svd = pair.on_device(Rank::Fixed(rank));
        let sigmas = exact(&pair.difference, cols);
        let largest = sigmas.first().copied().unwrap_or(0.0);
        for (found, right) in svd.sigmas().iter().zip(&sigmas) {
            prop_assert!((found - right).abs() <= 1e-3 * largest, "{} {}", found, right);
        }
        let measured = Measured::new(&pair, &svd.factors()).unwrap();
        let optimum = tail(&sigmas, rank);
        prop_assert!(measured.error <= optimum * 1.0002 + 1e-6 * measured.energy, "{} {optimum}", measured.error);
        let said = svd.energy() - svd.sigmas().iter().map(|s| s * s).sum::<f64>();
        prop_assert!((said - measured.error).abs() <= 1e-4 * measured.energy + 1e-12);

        let cpu = Svd::new(&pair, Rank::Fixed(rank)).unwrap();
        prop_assert_eq!(svd.shape(), cpu.shape());
        prop_assert_eq!(svd.rank(), cpu.rank());
        prop_assert!(near(svd.energy(), cpu.energy(), 1e-12));
        let (fast, slow) = (svd.noise(), cpu.noise());
        prop_assert!(near(fast.energy, slow.energy, 1e-6) && near(fast.edge, slow.edge, 1e-6), "{fast:?} {slow:?}");
    }
}

#[test]
#[ignore = "needs a device"]
fn large_matrices_are_near_the_optimum() {
    let (rows, cols) = (400, 300);
    let pair = Pair::plain(cols, &decaying(rows, cols, 300, 0.985, 3));
    let sigmas = exact(&pair.difference, cols);
    let widest = pair.on_device(Rank::Fixed(32));
    for rank in [1, 4, 16, 32] {
        let svd = pair.on_device(Rank::Fixed(rank));
        let optimum = tail(&sigmas, rank).sqrt();
        for svd in [&svd, &widest.truncated(rank)] {
            assert_eq!(svd.rank(), rank);
            let error = Measured::new(&pair, &svd.factors()).unwrap().error.sqrt();
            assert!(error / optimum - 1.0 < 1e-4, "{rank}: {error} {optimum}");
        }
    }
}

/// Rules find the CPU's ranks: shares of the energy, and what stands out of the noise of every pair of dtypes.
#[test]
#[ignore = "needs a device"]
fn rules_find_the_ranks_of_the_cpu() {
    let pair = Pair::plain(330, &decaying(250, 330, 250, 0.97, 5));
    for share in [0.3, 0.9, 0.99] {
        for max in [2, 250] {
            let rule = Rank::Energy { share, max };
            let (fast, slow) = (pair.on_device(rule), Svd::new(&pair, rule).unwrap());
            assert!(fast.rank().abs_diff(slow.rank()) <= 1, "{share} {max}");
        }
    }
    let mut numbers = Numbers(19);
    for t in DTYPES {
        for b in DTYPES {
            for rank in [0, 1, 5] {
                let update = decaying(200, 120, rank, 0.9, 7);
                let base: Vec<f32> = (0..200 * 120).map(|_| numbers.unit()).collect();
                let pair = Pair::new([t, b], 120, &update, &base);
                let rule = Rank::Auto { max: 32 };
                let slow = Svd::new(&pair, rule).unwrap();
                let fast = pair.on_device(rule);
                assert_eq!(fast.rank(), slow.rank(), "{t:?} {b:?} {rank}");
                for (a, b) in fast.sigmas().iter().zip(slow.sigmas()) {
                    assert!(near(*a, *b, 1e-4), "{a} {b}");
                }
            }
        }
    }
}

/// Whatever the unit: differences of 1e-30 and of 1e18 as well.
#[test]
#[ignore = "needs a device"]
fn units_do_not_matter() {
    let data = decaying(120, 90, 30, 0.8, 11);
    let plain = Pair::plain(90, &data);
    let rank = Rank::Fixed(8);
    let whole = plain.on_device(rank);
    let wanted = Measured::new(&plain, &whole.factors()).unwrap();
    for unit in [1e-30f32, 1e18] {
        let scaled: Vec<f32> = data.iter().map(|x| x * unit).collect();
        let pair = Pair::plain(90, &scaled);
        let svd = pair.on_device(rank);
        for (a, b) in svd.sigmas().iter().zip(whole.sigmas()) {
            assert!((a / f64::from(unit) / b - 1.0).abs() < 1e-4);
        }
        let found = Measured::new(&pair, &svd.factors()).unwrap();
        assert!((found.relative() - wanted.relative()).abs() < 1e-5);
    }
}

/// Pieces of several rows, of one, and of parts of one, make the same matrix; panels of Gram matrices are as many as it takes.
#[test]
#[ignore = "needs a device"]
fn how_a_matrix_is_cut_does_not_matter() {
    let update = decaying(30, 47, 20, 0.9, 23);
    let mut numbers = Numbers(29);
    let base: Vec<f32> = (0..30 * 47).map(|_| numbers.unit()).collect();
    let pair = Pair::new([DType::BF16, DType::F16], 47, &update, &base);
    let whole = pair.on_device(Rank::Fixed(6));
    for chunk in [1, 7, 46, 47, 100, 500] {
        let all = SvdStreamed::with_ring(Choice::Cuda, chunk).unwrap();
        let cut = all.decompose(pair.tuned(), pair.base(), Rank::Fixed(6), &|| Ok(()));
        let cut = cut.unwrap().unwrap();
        assert_eq!(cut.factors(), whole.factors(), "{chunk}");
        assert!(near(cut.noise().energy, whole.noise().energy, 1e-12));
        assert!(near(cut.noise().edge, whole.noise().edge, 1e-12));
    }
    let tall = Pair::plain(6, &decaying(9000, 6, 6, 0.7, 31));
    let svd = tall.on_device(Rank::Fixed(3));
    let error = Measured::new(&tall, &svd.factors()).unwrap().error;
    let optimum = tail(&exact(&tall.difference, 6), 3);
    assert!(error <= optimum * 1.0002, "{error} {optimum}");
}

/// Several threads have more matrices than there are places for, and each gets what it gets alone.
#[test]
#[ignore = "needs a device"]
fn threads_take_turns() {
    let pairs: Vec<Pair> = (0..5)
        .map(|n| Pair::plain(40 + n, &decaying(50, 40 + n, 12, 0.8, n as u64)))
        .collect();
    let all = SvdStreamed::open(Choice::Cuda).unwrap();
    let rank = Rank::Fixed(4);
    std::thread::scope(|scope| {
        for pair in &pairs {
            let all = &all;
            scope.spawn(move || {
                let found = all.decompose(pair.tuned(), pair.base(), rank, &|| Ok(()));
                assert_eq!(
                    found.unwrap().unwrap().factors(),
                    pair.on_device(rank).factors()
                );
            });
        }
    });
    assert_eq!(all.done(), 5);
}

#[test]
#[ignore = "needs a device"]
fn what_cannot_be_decomposed_is_told() {
    let rank = Rank::Fixed(2);
    let all = SvdStreamed::open(Choice::Cuda).unwrap();
    let mut data = decaying(9, 7, 5, 0.9, 1);
    let sound = Pair::plain(7, &data);
    data[11] = f32::NAN;
    let bad = Pair::plain(7, &data);
    let found = all.decompose(bad.tuned(), bad.base(), rank, &|| Ok(()));
    assert!(
        matches!(found, Err(GpuError::Svd(SvdError::NotFinite))),
        "{found:?}"
    );
    let stop = || Err(SvdError::Stopped);
    let found = all.decompose(sound.tuned(), sound.base(), rank, &stop);
    assert!(
        matches!(found, Err(GpuError::Svd(SvdError::Stopped))),
        "{found:?}"
    );
    // Stopped in the midst of it, and decomposed by the next who asks.
    let asked = std::sync::atomic::AtomicU32::new(0);
    let later = || match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err(SvdError::Stopped),
    };
    let found = all.decompose(sound.tuned(), sound.base(), rank, &later);
    assert!(
        matches!(found, Err(GpuError::Svd(SvdError::Stopped))),
        "{found:?}"
    );
    let found = all.decompose(sound.tuned(), sound.base(), rank, &|| Ok(()));
    assert_eq!(
        found.unwrap().unwrap().factors(),
        sound.on_device(rank).factors()
    );
    // What has no kernel, no rows or another shape is left to the CPU.
    let words = [0u8; 32];
    for (tuned, base) in [
        (
            view(DType::F64, &[2, 2], &words),
            view(DType::F64, &[2, 2], &words),
        ),
        (
            view(DType::F32, &[0, 2], &[]),
            view(DType::F32, &[0, 2], &[]),
        ),
        (
            view(DType::F32, &[2, 4], &words),
            view(DType::F32, &[4, 2], &words),
        ),
        (
            view(DType::F32, &[8], &words),
            view(DType::F32, &[8], &words),
        ),
    ] {
        assert!(
            all.decompose(tuned, base, rank, &|| Ok(()))
                .unwrap()
                .is_none()
        );
    }
    // Nothing at all differs.
    let same = Pair::plain(5, &[0.0; 30]);
    assert_eq!(same.on_device(Rank::Auto { max: 4 }).rank(), 0);
}
