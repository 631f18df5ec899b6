//! Low-rank matrices inside the rounding intervals of an update.
//!
//! A merged weight `f = round(b + u)` says that `u` lies between the points where `b + u` would round to f's neighbours. A
//! matrix of rank r in all these intervals is (nearly) the adapter that was merged. It is found by alternating projection with
//! over-relaxation and Nesterov's momentum (Y. Nesterov, 1983): towards the intervals, then to rank r by one step of subspace
//! iteration started from the last subspace (N. Halko, P.-G. Martinsson, J. Tropp, arXiv 0909.4061). One pass over the matrix
//! makes a step; the update is never held, only tiles of rows of it.

use matrixmultiply::sgemm;
use rayon::prelude::*;

use super::gram::{self, Gram};
use crate::CodecError;

/// Rows of a tile.
const TILE: usize = 32;
/// Parts that sums are made of, whatever the number of threads, so that they come out the same.
const PARTS: usize = 16;
/// How far beyond the nearest point of an interval a step goes.
const RELAXATION: f32 = 1.5;

/// An update to be found: its rows as they are needed.
pub(crate) trait Intervals: Sync {
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    /// The middles of the intervals of some rows and half their widths (infinite where nothing is known).
    fn read(
        &self,
        rows: std::ops::Range<usize>,
        middle: &mut [f32],
        half: &mut [f32],
    ) -> Result<(), CodecError>;
}

/// `left x right`, `left` with orthonormal columns.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) rank: usize,
    /// `rows x rank`, row after row.
    pub(crate) left: Vec<f32>,
    /// `rank x cols`.
    pub(crate) right: Vec<f32>,
}

/// What one pass over the matrix finds.
struct Pass {
    /// `X Q`, `rows x rank`.
    left: Vec<f32>,
    /// `(X Q)^T X`, `rank x cols`.
    right: Vec<f32>,
    outside: u64,
    /// Squares of what the middles are, and of what intervals' uniform noise would be.
    energy: f64,
    noise: f64,
}

/// Where a pass starts from: the sum of low-rank terms, each with a factor.
struct Start<'a> {
    terms: Vec<(f32, &'a Pair)>,
}

fn pass(
    source: &impl Intervals,
    start: &Start<'_>,
    basis: &[f32],
    rank: usize,
    fixed: bool,
) -> Result<Pass, CodecError> {
    let (rows, cols) = (source.rows(), source.cols());
    let part = rows.div_ceil(PARTS).next_multiple_of(TILE).max(TILE);
    let parts: Vec<Pass> = (0..rows.div_ceil(part))
        .into_par_iter()
        .map(|p| {
            let range = p * part..rows.min((p + 1) * part);
            let mut out = Pass {
                left: vec![0.0; range.len() * rank],
                right: if fixed {
                    Vec::new()
                } else {
                    vec![0.0; rank * cols]
                },
                outside: 0,
                energy: 0.0,
                noise: 0.0,
            };
            let mut x = vec![0f32; TILE * cols];
            let (mut middle, mut half) = (x.clone(), x.clone());
            for first in range.clone().step_by(TILE) {
                let n = TILE.min(range.end - first);
                let (middle, half, x) = (
                    &mut middle[..n * cols],
                    &mut half[..n * cols],
                    &mut x[..n * cols],
                );
                source.read(first..first + n, middle, half)?;
                if start.terms.is_empty() {
                    let (mut energy, mut noise) = (0f64, 0f64);
                    for ((x, m), h) in x.iter_mut().zip(&*middle).zip(&*half) {
                        let known = h.is_finite();
                        *x = if known { *m } else { 0.0 };
                        energy += f64::from(*x) * f64::from(*x);
                        noise += if known {
                            f64::from(*h) * f64::from(*h) / 3.0
                        } else {
                            0.0
                        };
                    }
                    out.energy += energy;
                    out.noise += noise;
                } else {
                    for (number, (factor, pair)) in start.terms.iter().enumerate() {
                        multiply(
                            (*factor, &pair.left[first * pair.rank..], pair.rank, false),
                            (&pair.right, cols),
                            (if number == 0 { 0.0 } else { 1.0 }, x),
                            [n, pair.rank, cols],
                        );
                    }
                    let mut outside = 0u32;
                    for ((x, m), h) in x.iter_mut().zip(&*middle).zip(&*half) {
                        let beyond = *x - m;
                        let inside = beyond.max(-h).min(*h);
                        outside = outside.wrapping_add(u32::from(inside != beyond));
                        let step = if fixed {
                            RELAXATION * (inside - beyond)
                        } else {
                            *x + RELAXATION * (inside - beyond)
                        };
                        *x = step;
                    }
                    out.outside += u64::from(outside);
                }
                let at = (first - range.start) * rank;
                let left = &mut out.left[at..at + n * rank];
                // X times the basis, which is held as rank rows of cols.
                multiply_transposed(x, basis, left, [n, cols, rank]);
                if !fixed {
                    multiply(
                        (1.0, left, rank, true),
                        (x, cols),
                        (1.0, &mut out.right),
                        [rank, n, cols],
                    );
                }
            }
            Ok(out)
        })
        .collect::<Result<_, CodecError>>()?;
    let mut all = Pass {
        left: Vec::with_capacity(rows * rank),
        right: if fixed {
            Vec::new()
        } else {
            vec![0.0; rank * cols]
        },
        outside: 0,
        energy: 0.0,
        noise: 0.0,
    };
    for part in parts {
        all.left.extend_from_slice(&part.left);
        for (sum, x) in all.right.iter_mut().zip(&part.right) {
            *sum += x;
        }
        all.outside += part.outside;
        all.energy += part.energy;
        all.noise += part.noise;
    }
    Ok(all)
}

/// `c = beta c + alpha a b` for row-major matrices; `a` may be read transposed. `[m, k, n]` are the sizes.
fn multiply(
    (alpha, a, a_width, transposed): (f32, &[f32], usize, bool),
    (b, b_width): (&[f32], usize),
    (beta, c): (f32, &mut [f32]),
    [m, k, n]: [usize; 3],
) {
    let (rows, columns) = if transposed {
        (1, a_width)
    } else {
        (a_width, 1)
    };
    assert!(
        a.len() >= (if transposed { k } else { m }) * a_width
            && b.len() >= k * b_width
            && c.len() >= m * n
            && b_width >= n,
        "matrices fit"
    );
    // SAFETY: the assertion holds all that is read and written within the slices.
    unsafe {
        sgemm(
            m,
            k,
            n,
            alpha,
            a.as_ptr(),
            stride(rows),
            stride(columns),
            b.as_ptr(),
            stride(b_width),
            1,
            beta,
            c.as_mut_ptr(),
            stride(n),
            1,
        );
    }
}

/// `c = a b^T` for row-major `a` (`m x k`) and `b` (`n x k`).
fn multiply_transposed(a: &[f32], b: &[f32], c: &mut [f32], [m, k, n]: [usize; 3]) {
    assert!(
        a.len() >= m * k && b.len() >= n * k && c.len() >= m * n,
        "matrices fit"
    );
    // SAFETY: the assertion holds all that is read and written within the slices.
    unsafe {
        sgemm(
            m,
            k,
            n,
            1.0,
            a.as_ptr(),
            stride(k),
            1,
            b.as_ptr(),
            1,
            stride(k),
            0.0,
            c.as_mut_ptr(),
            stride(n),
            1,
        );
    }
}

fn stride(n: usize) -> isize {
    isize::try_from(n).unwrap_or(0)
}

/// The low-rank matrix that a pass arrives at, and an orthonormal basis of its rows.
fn project(pass: Pass, rank: usize) -> (Pair, Vec<f32>) {
    let root = gram::inverse_root(&gram::of_columns(&pass.left, rank), rank);
    let left = gram::columns_times(&pass.left, &root, rank);
    let right = gram::times_rows(&root, &pass.right, rank);
    let basis = orthonormal_rows(&right, rank);
    (Pair { rank, left, right }, basis)
}

fn orthonormal_rows(wide: &[f32], rank: usize) -> Vec<f32> {
    let root = gram::inverse_root(&gram::of_rows(wide, rank), rank);
    gram::times_rows(&root, wide, rank)
}

/// What is left of the squares of the middles beside `rank` dimensions, found by two steps of subspace iteration: where there
/// are no more, (less than) the noise.
pub(crate) fn remainder(source: &impl Intervals, rank: usize) -> Result<f64, CodecError> {
    let all = Start { terms: Vec::new() };
    let basis = random_rows(rank, source.cols());
    let (_, basis) = project(pass(source, &all, &basis, rank, false)?, rank);
    let found = pass(source, &all, &basis, rank, false)?;
    let root = gram::inverse_root(&gram::of_columns(&found.left, rank), rank);
    let held: f64 = gram::times_rows(&root, &found.right, rank)
        .iter()
        .map(|x| f64::from(*x) * f64::from(*x))
        .sum();
    Ok(found.energy - held)
}

fn random_rows(rank: usize, cols: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..rank * cols)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            gram::narrow((state >> 40) as f64 / f64::from(1u32 << 23) - 1.0)
        })
        .collect()
}

/// The leading singular triplets of the middles.
#[derive(Clone, Debug)]
pub(crate) struct Spectrum {
    /// `left` orthonormal, `right` orthogonal rows of the singular values' lengths.
    pub(crate) pair: Pair,
    pub(crate) sigmas: Vec<f64>,
    /// Squares of the update.
    pub(crate) energy: f64,
    /// Squares that rounding alone would leave.
    pub(crate) noise: f64,
}

/// The leading `rank` singular values of the middles of the intervals, by `passes` steps of subspace iteration.
pub(crate) fn spectrum(
    source: &impl Intervals,
    rank: usize,
    passes: usize,
) -> Result<Spectrum, CodecError> {
    let rank = rank.min(source.rows()).min(source.cols());
    let mut basis = orthonormal_rows(&random_rows(rank, source.cols()), rank);
    let (mut energy, mut floor) = (0.0, 0.0);
    let mut pair = None;
    for _ in 0..passes.max(1) {
        let found = pass(source, &Start { terms: Vec::new() }, &basis, rank, false)?;
        (energy, floor) = (found.energy, found.noise);
        let (next, rows) = project(found, rank);
        basis = rows;
        pair = Some(next);
    }
    let pair = pair.unwrap_or(Pair {
        rank: 0,
        left: Vec::new(),
        right: Vec::new(),
    });
    let (pair, sigmas) = singular(&pair);
    Ok(Spectrum {
        pair,
        sigmas,
        energy,
        noise: floor,
    })
}

/// The same matrix with orthogonal rows to the right, the longest first, and their lengths.
pub(crate) fn singular(pair: &Pair) -> (Pair, Vec<f64>) {
    // The left factor is orthonormal but for rounding; made so once more.
    let rank = pair.rank;
    let gram_left: Gram = gram::of_columns(&pair.left, rank);
    let root = gram::inverse_root(&gram_left, rank);
    let left = gram::columns_times(&pair.left, &root, rank);
    // left = pair.left root^T, so pair.left = left root^-T, and the right factor takes root^-T = (root gram)... as a product.
    let carry = product(&root, &gram_left, rank);
    let right = gram::times_rows(&carry, &pair.right, rank);
    let (values, vectors) = gram::eigen(&gram::of_rows(&right, rank), rank);
    let rotated = Pair {
        rank,
        left: gram::columns_times(&left, &vectors, rank),
        right: gram::times_rows(&vectors, &right, rank),
    };
    (rotated, values.into_iter().map(f64::sqrt).collect())
}

fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    (0..n * n)
        .map(|at| (0..n).map(|k| a[at / n * n + k] * b[k * n + at % n]).sum())
        .collect()
}

impl Pair {
    /// The first `rank` components.
    pub(crate) fn truncated(&self, rank: usize) -> Self {
        let rank = rank.min(self.rank);
        let cols = self.right.len() / self.rank.max(1);
        Self {
            rank,
            left: self
                .left
                .chunks_exact(self.rank.max(1))
                .flat_map(|row| &row[..rank])
                .copied()
                .collect(),
            right: self.right[..rank * cols].to_vec(),
        }
    }
}

/// A matrix of the rank of `start` near the intervals, and the share of its elements that are outside. Stops after `steps`
/// or where at most `goal` are outside.
pub(crate) fn approach(
    source: &impl Intervals,
    start: Pair,
    steps: usize,
    goal: f64,
) -> Result<(Pair, f64), CodecError> {
    let rank = start.rank;
    let elements = (source.rows() * source.cols()).max(1) as f64;
    let mut basis = orthonormal_rows(&start.right, rank);
    let mut last = start.clone();
    let mut now = start;
    let (mut best, mut least) = (None, f64::INFINITY);
    for step in 0..=steps {
        let momentum = gram::narrow(step as f64 / (step as f64 + 3.0));
        let from = Start {
            terms: vec![(1.0 + momentum, &now), (-momentum, &last)],
        };
        let found = pass(source, &from, &basis, rank, false)?;
        // What is counted is the extrapolated point, near enough to the one that is kept.
        let outside = found.outside as f64 / elements;
        if outside < least {
            (best, least) = (Some(now.clone()), outside);
        }
        if outside <= goal || step == steps {
            break;
        }
        let (next, rows) = project(found, rank);
        basis = rows;
        last = std::mem::replace(&mut now, next);
    }
    Ok((best.unwrap_or(now), least))
}

/// The left factor (`rows x rank`) that brings `left x right` nearest to the intervals for a right factor that stays.
pub(crate) fn refit(
    source: &impl Intervals,
    start: Pair,
    steps: usize,
) -> Result<Pair, CodecError> {
    let rank = start.rank;
    let root = gram::inverse_root(&gram::of_rows(&start.right, rank), rank);
    // right^T (right right^T)^-1, held as rows: the inverse is root^T root.
    let half = gram::times_rows(&root, &start.right, rank);
    let transposed: Vec<f64> = (0..rank * rank)
        .map(|at| root[at % rank * rank + at / rank])
        .collect();
    let basis = gram::times_rows(&transposed, &half, rank);
    let mut last = start.clone();
    let mut now = start;
    for step in 0..steps {
        let momentum = gram::narrow(step as f64 / (step as f64 + 3.0));
        let left: Vec<f32> = now
            .left
            .iter()
            .zip(&last.left)
            .map(|(a, b)| a + momentum * (a - b))
            .collect();
        let ahead = Pair {
            rank,
            left,
            right: std::mem::take(&mut now.right),
        };
        let found = pass(
            source,
            &Start {
                terms: vec![(1.0, &ahead)],
            },
            &basis,
            rank,
            true,
        )?;
        last.left = now.left;
        now = Pair {
            rank,
            left: ahead
                .left
                .iter()
                .zip(&found.left)
                .map(|(a, b)| a + b)
                .collect(),
            right: ahead.right,
        };
    }
    Ok(now)
}
