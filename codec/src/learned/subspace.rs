//! What a row's changes say of its other changes. Updates of a matrix have much of a low rank in common: a row's are about a
//! mixture of a few rows that all share. Both are learned from the changes coded so far, so that nothing of them is stored:
//! recursive least squares for the mixture along a row, and for each column at the row's end (PETRELS; Chi, Eldar and
//! Calderbank, 2013), and now and then a refit to all of it.
//!
//! Doubles, every operation rounded on its own and in the order written: the same on every CPU.

/// Most rows that a mixture is of.
pub(super) const MAX_RANK: usize = 8;
/// What changes have besides the mixture, as the variance of noise.
const NOISE: f64 = 2.5;
/// How fast the mean mixture follows the rows.
const FOLLOW: f64 = 0.05;
/// Alternations of a refit.
const SWEEPS: usize = 2;
/// Changes before the first refit; from then on a quarter more each time.
const FIRST_FIT: usize = 256;

type Vector = [f64; MAX_RANK];
type Matrix = [Vector; MAX_RANK];

/// A change: row, column, and what it is in the unit of mixtures.
#[derive(Clone, Copy)]
struct Change {
    row: u32,
    column: u32,
    value: f64,
}

/// How a change would move the mixture.
pub(super) struct Gain {
    gain: Vector,
    /// The variance of what is expected.
    pub(super) spread: f64,
}

pub(super) struct Subspace {
    rank: usize,
    columns: Vec<Vector>,
    /// How uncertain each column is.
    doubts: Vec<Matrix>,
    mixture: Vector,
    doubt: Matrix,
    mean: Vector,
    changes: Vec<Change>,
    row: u32,
    /// Of the row's first change.
    first: usize,
    next_fit: usize,
}

impl Subspace {
    /// For rows of `columns` words.
    pub(super) fn new(rank: usize, columns: usize) -> Self {
        let rank = rank.min(MAX_RANK);
        let mut state = 1u64;
        let start = |_| {
            let mut column = [0.0; MAX_RANK];
            for entry in &mut column[..rank] {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *entry = (state >> 40) as f64 / 16_777_216.0 - 0.5;
            }
            column
        };
        let columns: Vec<_> = (0..columns).map(start).collect();
        Self {
            rank,
            doubts: vec![diagonal(rank, 1.0); columns.len()],
            columns,
            mixture: [0.0; MAX_RANK],
            doubt: diagonal(rank, 1.0),
            mean: [0.0; MAX_RANK],
            changes: Vec::new(),
            row: 0,
            first: 0,
            next_fit: FIRST_FIT,
        }
    }

    /// What is expected of a word in a column of this row.
    #[inline(always)]
    pub(super) fn expected(&self, column: usize) -> f64 {
        dot(self.rank, &self.mixture, &self.columns[column])
    }

    /// What a change in a column would do.
    pub(super) fn gain(&self, column: usize) -> Gain {
        gain(self.rank, &self.doubt, &self.columns[column])
    }

    /// Learns from a change of the row, which was expected to be `expected`.
    pub(super) fn learn(&mut self, column: usize, value: f64, expected: f64, gain: &Gain) {
        gain.apply(
            self.rank,
            value - expected,
            &mut self.mixture,
            &mut self.doubt,
        );
        self.changes.push(Change {
            row: self.row,
            column: u32::try_from(column).unwrap_or(0),
            value,
        });
    }

    /// Learns from the row as a whole, and begins another.
    pub(super) fn end_row(&mut self) {
        let rank = self.rank;
        for change in &self.changes[self.first..] {
            let column = usize::try_from(change.column).unwrap_or(0);
            let (entries, doubt) = (&mut self.columns[column], &mut self.doubts[column]);
            let error = change.value - dot(rank, &self.mixture, entries);
            gain(rank, doubt, &self.mixture).apply(rank, error, entries, doubt);
        }
        for (mean, now) in self.mean[..rank].iter_mut().zip(self.mixture) {
            *mean += FOLLOW * (now - *mean);
        }
        self.first = self.changes.len();
        self.row += 1;
        if self.changes.len() >= self.next_fit {
            self.next_fit = self.changes.len() + self.changes.len() / 4 + FIRST_FIT;
            self.fit();
        }
        self.mixture = self.mean;
        self.doubt = diagonal(rank, 1.0);
    }

    /// Fits mixtures and columns to all changes, in turns.
    fn fit(&mut self) {
        let rank = self.rank;
        let rows = usize::try_from(self.row).unwrap_or(0);
        let mut mixtures = vec![[0.0; MAX_RANK]; rows];
        for _ in 0..SWEEPS {
            for changes in self.changes.chunk_by(|a, b| a.row == b.row) {
                let mut sums = (diagonal(rank, NOISE), [0.0; MAX_RANK]);
                for change in changes {
                    let column = usize::try_from(change.column).unwrap_or(0);
                    add(rank, &mut sums, &self.columns[column], change.value);
                }
                let row = changes.first().map_or(0, |c| c.row);
                if let Some(mixture) = mixtures.get_mut(usize::try_from(row).unwrap_or(0)) {
                    *mixture = solution(rank, &mut sums).0;
                }
            }
            let mut sums = vec![(diagonal(rank, NOISE), [0.0; MAX_RANK]); self.columns.len()];
            for change in &self.changes {
                let (row, column) = (change.row, change.column);
                let row = usize::try_from(row).unwrap_or(0);
                let column = usize::try_from(column).unwrap_or(0);
                add(rank, &mut sums[column], &mixtures[row], change.value);
            }
            for ((sums, column), doubt) in
                sums.iter_mut().zip(&mut self.columns).zip(&mut self.doubts)
            {
                (*column, *doubt) = solution(rank, sums);
                for entry in doubt.iter_mut().flatten() {
                    *entry *= NOISE;
                }
            }
        }
        self.mean = [0.0; MAX_RANK];
        for mixture in &mixtures {
            for (mean, entry) in self.mean.iter_mut().zip(mixture) {
                *mean += entry;
            }
        }
        for mean in &mut self.mean {
            *mean /= rows as f64;
        }
    }
}

impl Gain {
    #[inline(always)]
    fn apply(&self, rank: usize, error: f64, state: &mut Vector, doubt: &mut Matrix) {
        let step = error / self.spread;
        for k in 0..rank {
            state[k] += self.gain[k] * step;
            let share = self.gain[k] / self.spread;
            for (entry, gain) in doubt[k][..rank].iter_mut().zip(&self.gain) {
                *entry -= share * gain;
            }
        }
    }
}

fn diagonal(rank: usize, value: f64) -> Matrix {
    let mut matrix = [[0.0; MAX_RANK]; MAX_RANK];
    for (k, row) in matrix.iter_mut().enumerate().take(rank) {
        row[k] = value;
    }
    matrix
}

#[inline(always)]
fn dot(rank: usize, a: &Vector, b: &Vector) -> f64 {
    let mut sum = 0.0;
    for k in 0..rank {
        sum += a[k] * b[k];
    }
    sum
}

#[inline(always)]
fn gain(rank: usize, doubt: &Matrix, by: &Vector) -> Gain {
    let mut gain = [0.0; MAX_RANK];
    for k in 0..rank {
        gain[k] = dot(rank, &doubt[k], by);
    }
    Gain {
        spread: NOISE + dot(rank, &gain, by),
        gain,
    }
}

/// Adds an equation to the sums of a least-squares fit.
#[inline(always)]
fn add(rank: usize, (matrix, right): &mut (Matrix, Vector), by: &Vector, value: f64) {
    for k in 0..rank {
        for l in 0..rank {
            matrix[k][l] += by[k] * by[l];
        }
        right[k] += by[k] * value;
    }
}

/// The solution of the sums, and the inverse of their matrix, by elimination without pivots: it is positive definite.
fn solution(rank: usize, (matrix, right): &mut (Matrix, Vector)) -> (Vector, Matrix) {
    let mut inverse = diagonal(rank, 1.0);
    for k in 0..rank {
        let pivot = 1.0 / matrix[k][k];
        for l in 0..rank {
            matrix[k][l] *= pivot;
            inverse[k][l] *= pivot;
        }
        let (row, inverse_row) = (matrix[k], inverse[k]);
        for n in (0..rank).filter(|n| *n != k) {
            let factor = matrix[n][k];
            for l in 0..rank {
                matrix[n][l] -= factor * row[l];
                inverse[n][l] -= factor * inverse_row[l];
            }
        }
    }
    let mut solution = [0.0; MAX_RANK];
    for k in 0..rank {
        solution[k] = dot(rank, &inverse[k], right);
    }
    (solution, inverse)
}
