//! Statistics of tensors and of updates, mergeable, summed in `f64`.

use crate::{DType, TensorView, cast::word_value, word::load};

/// Elements of a chunk that is summed before it is added to the total.
const CHUNK: usize = 1 << 16;
/// Sums of a chunk that go on side by side, element `i` in sum `i % LANES`: a GPU's warp adds in the same order.
const LANES: usize = 32;

/// Reads the word at an index.
type Load = fn(&[u8], usize) -> u64;

fn words(view: &TensorView<'_>) -> Option<(DType, usize, Load)> {
    let dtype = view
        .dtype
        .filter(|d| !matches!(d, DType::F4 | DType::F6E2M3 | DType::F6E3M2 | DType::C64))?;
    let load: Load = match dtype.word_bytes() {
        1 => load::<1>,
        2 => load::<2>,
        4 => load::<4>,
        _ => load::<8>,
    };
    Some((dtype, view.data.len() / dtype.word_bytes(), load))
}

/// How a fine-tuned tensor differs from its base. Elements that are not finite in either count as changed or not by their
/// bits, and are left out of the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeltaStats {
    /// Elements.
    pub count: u64,
    /// Elements with other bits.
    pub changed: u64,
    /// Sum of target - base.
    pub sum: f64,
    /// Sum of (target - base)^2.
    pub sum_sq: f64,
    /// Largest |target - base|.
    pub max_abs: f64,
    /// Sum of target * base.
    pub dot: f64,
    /// Sum of base^2.
    pub base_sq: f64,
    /// Sum of target^2.
    pub target_sq: f64,
}

impl DeltaStats {
    /// Statistics of `target` against `base`: any two types with values, of equal element counts. `None` otherwise.
    pub fn of(target: TensorView<'_>, base: TensorView<'_>) -> Option<Self> {
        let (t_type, count, t_load) = words(&target)?;
        let (b_type, b_count, b_load) = words(&base)?;
        if count != b_count {
            return None;
        }
        let mut all = Self::default();
        for start in (0..count).step_by(CHUNK) {
            let mut parts = [Self::default(); LANES];
            for i in start..count.min(start + CHUNK) {
                let part = &mut parts[(i - start) % LANES];
                let (t, b) = (t_load(target.data, i), b_load(base.data, i));
                let (x, y) = (word_value(t_type, t), word_value(b_type, b));
                part.count += 1;
                part.changed += u64::from(if t_type == b_type {
                    t != b
                } else {
                    x.to_bits() != y.to_bits()
                });
                if x.is_finite() && y.is_finite() {
                    let d = x - y;
                    part.sum += d;
                    part.sum_sq += d * d;
                    part.max_abs = part.max_abs.max(d.abs());
                    part.dot += x * y;
                    part.base_sq += y * y;
                    part.target_sq += x * x;
                }
            }
            all.merge(&halved(parts));
        }
        Some(all)
    }

    /// Adds the statistics of other elements.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.changed += other.changed;
        self.sum += other.sum;
        self.sum_sq += other.sum_sq;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.dot += other.dot;
        self.base_sq += other.base_sq;
        self.target_sq += other.target_sq;
    }

    /// The Frobenius norm of the update.
    pub fn l2(&self) -> f64 {
        self.sum_sq.sqrt()
    }

    /// The mean of the update; 0 without elements.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// The population standard deviation of the update.
    pub fn std(&self) -> f64 {
        (self.sum_sq / self.count.max(1) as f64 - self.mean().powi(2))
            .max(0.0)
            .sqrt()
    }

    /// The share of elements that are unchanged; 1 without elements.
    pub fn sparsity(&self) -> f64 {
        if self.count == 0 {
            1.0
        } else {
            (self.count - self.changed) as f64 / self.count as f64
        }
    }

    /// The cosine of the angle between target and base; 1 where both are zero, 0 where one is.
    pub fn cosine(&self) -> f64 {
        match (self.base_sq == 0.0, self.target_sq == 0.0) {
            (true, true) => 1.0,
            (false, false) => {
                (self.dot / (self.base_sq.sqrt() * self.target_sq.sqrt())).clamp(-1.0, 1.0)
            }
            _ => 0.0,
        }
    }
}

/// The parts added by halves: the upper to the lower, until one is left.
fn halved(mut parts: [DeltaStats; LANES]) -> DeltaStats {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = parts.split_at_mut(half);
        for (to, from) in low.iter_mut().zip(high) {
            to.merge(from);
        }
        half /= 2;
    }
    parts[0]
}

/// Statistics of one tensor. NaN and infinities are counted and left out of the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorStats {
    /// Elements.
    pub count: u64,
    /// NaN elements.
    pub nan: u64,
    /// Infinite elements.
    pub inf: u64,
    /// Elements equal to zero.
    pub zeros: u64,
    /// Smallest finite value; infinity where there is none.
    pub min: f64,
    /// Largest finite value; minus infinity where there is none.
    pub max: f64,
    /// Sum of the finite values.
    pub sum: f64,
    /// Sum of their squares.
    pub sum_sq: f64,
    /// Sum of their magnitudes.
    pub sum_abs: f64,
}

impl TensorStats {
    /// Statistics of a tensor; `None` for types without a value per element.
    pub fn of(view: TensorView<'_>) -> Option<Self> {
        let (dtype, count, load) = words(&view)?;
        let mut all = Self {
            count: count as u64,
            nan: 0,
            inf: 0,
            zeros: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            sum_sq: 0.0,
            sum_abs: 0.0,
        };
        for start in (0..count).step_by(CHUNK) {
            let (mut sum, mut sum_sq, mut sum_abs) = (0.0, 0.0, 0.0);
            for i in start..count.min(start + CHUNK) {
                let x = word_value(dtype, load(view.data, i));
                if x.is_nan() {
                    all.nan += 1;
                } else if x.is_infinite() {
                    all.inf += 1;
                } else {
                    all.zeros += u64::from(x == 0.0);
                    all.min = all.min.min(x);
                    all.max = all.max.max(x);
                    sum += x;
                    sum_sq += x * x;
                    sum_abs += x.abs();
                }
            }
            all.sum += sum;
            all.sum_sq += sum_sq;
            all.sum_abs += sum_abs;
        }
        Some(all)
    }

    fn finite(&self) -> f64 {
        (self.count - self.nan - self.inf).max(1) as f64
    }

    /// Mean of the finite values; 0 without any.
    pub fn mean(&self) -> f64 {
        self.sum / self.finite()
    }

    /// Population standard deviation of the finite values.
    pub fn std(&self) -> f64 {
        (self.sum_sq / self.finite() - self.mean().powi(2))
            .max(0.0)
            .sqrt()
    }

    /// Euclidean norm of the finite values.
    pub fn l2(&self) -> f64 {
        self.sum_sq.sqrt()
    }
}
