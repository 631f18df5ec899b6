//! How many singular values are kept.

/// What decides the rank of one matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// So many, or as many as the matrix has.
    Fixed(usize),
    /// All that stand out of the noise which rounding to the files' dtypes makes, at most `max`.
    Auto {
        /// The most that are kept.
        max: usize,
    },
    /// As many as hold this share (0 to 1) of the difference's energy, its squared Frobenius norm, at most `max`.
    Energy {
        /// The share.
        share: f64,
        /// The most that are kept.
        max: usize,
    },
}

/// What rounding alone would leave in a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// The expected sum of squares.
    pub energy: f64,
    /// The largest singular value that it would have: the root of the largest row's variance plus the root of the largest
    /// column's, which is the edge of Marchenko and Pastur where all elements have the same variance (Bandeira & van Handel,
    /// "Sharp nonasymptotic bounds on the norm of random matrices with independent entries", 2016).
    pub edge: f64,
}

impl Noise {
    pub(crate) fn new(rows: &[f64], cols: &[f64]) -> Self {
        let largest = |sums: &[f64]| sums.iter().copied().fold(0.0, f64::max).sqrt();
        Self {
            energy: rows.iter().sum(),
            edge: largest(rows) + largest(cols),
        }
    }
}

impl Rank {
    /// The largest rank it can come to.
    pub(crate) fn most(self) -> usize {
        match self {
            Self::Fixed(rank) => rank,
            Self::Auto { max } | Self::Energy { max, .. } => max,
        }
    }

    /// The rank for these singular values of a difference; none where they do not reach far enough to say.
    pub(crate) fn of(self, sigmas: &[f64], energy: f64, noise: Noise) -> Option<usize> {
        let found = match self {
            Self::Fixed(rank) => Some(rank.min(sigmas.len())),
            Self::Auto { .. } => sigmas.iter().position(|s| *s <= noise.edge),
            Self::Energy { share, .. } => {
                let mut sum = 0.0;
                let reached = sigmas.iter().position(|s| {
                    sum += s * s;
                    sum >= share * energy
                });
                if share <= 0.0 {
                    Some(0)
                } else {
                    reached.map(|at| at + 1)
                }
            }
        };
        let most = self.most();
        match found {
            Some(rank) => Some(rank.min(most)),
            None if sigmas.len() >= most => Some(most),
            None => None,
        }
    }
}

/// Ranks of several matrices that hold the most energy in `budget` bytes: whichever next singular value buys the most energy
/// per byte comes next. Each matrix is its singular values, largest first, and the bytes that one rank of it takes.
#[must_use]
pub fn allocate(matrices: &[(&[f64], u64)], budget: u64) -> Vec<usize> {
    let mut steps: Vec<(f64, usize, u64)> = matrices
        .iter()
        .enumerate()
        .flat_map(|(number, (sigmas, bytes))| {
            sigmas
                .iter()
                .map(move |s| (s * s / (*bytes).max(1) as f64, number, *bytes))
        })
        .collect();
    // Stable, so that a matrix' own values stay in order.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut ranks = vec![0; matrices.len()];
    let mut full = vec![false; matrices.len()];
    let mut left = budget;
    for (gain, number, bytes) in steps {
        // A value is of use only after those before it.
        if gain <= 0.0 || full[number] || bytes > left {
            full[number] = true;
            continue;
        }
        left -= bytes;
        ranks[number] += 1;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let sigmas = [4.0, 2.0, 1.0, 0.5];
        let noise = Noise {
            energy: 0.1,
            edge: 0.8,
        };
        let of = |rank: Rank| rank.of(&sigmas, 21.3, noise);
        assert_eq!(of(Rank::Fixed(3)), Some(3));
        assert_eq!(of(Rank::Fixed(9)), Some(4));
        assert_eq!(of(Rank::Auto { max: 9 }), Some(3));
        assert_eq!(of(Rank::Auto { max: 2 }), Some(2));
        let energy = |share| Rank::Energy { share, max: 9 };
        assert_eq!(of(energy(0.9)), Some(2));
        assert_eq!(of(energy(0.95)), Some(3));
        assert_eq!(of(energy(0.9999)), None);
        assert_eq!(of(energy(0.0)), Some(0));
    }

    #[test]
    fn the_budget_goes_where_the_energy_is() {
        let (a, b) = ([4.0, 1.0, 0.0], [3.0, 2.0, 1.9]);
        assert_eq!(allocate(&[(&a, 10), (&b, 10)], 40), [1, 3]);
        assert_eq!(allocate(&[(&a, 10), (&b, 10)], 9), [0, 0]);
        assert_eq!(allocate(&[(&a, 10), (&b, 100)], 1000), [2, 3]);
    }
}
