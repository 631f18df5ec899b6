//! A block Krylov space of `D^T D`, grown by one pass over `D` at a time (Musco & Musco, "Randomized Block Krylov Methods",
//! 2015; with the orthogonalisation of block Lanczos).
//!
//! A pass reads every row once: tile by tile, `Y = D Q` and `Z = D^T Y` are taken while the tile is in the cache. `Q` collects
//! orthonormal blocks; the left space spanned by all `Y` is half a step ahead of `Q`, and `D` projected on it is a combination
//! of all `Z`, so the best factors of both spaces cost no further pass.

use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::algebra::{LEAST, Tall, eigen, inverse_root, narrow, norm, whitening};
use crate::tile::{Packed, ROWS, Tile};
use crate::{Source, SvdError};

/// Parts of the rows that are worked on side by side. A fixed number, so that sums do not depend on the number of threads.
const PARTS: usize = 8;
/// Largest ratio of singular values in a space that is divided by.
const LARGEST_RANGE: f64 = 200.0;
/// Root mean squares between which products of two passes stay far from the limits of `f32`.
const COMFORTABLE: std::ops::Range<f64> = 1e-9..1e6;

/// What the first pass sees besides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// The sum of all squares.
    pub(crate) energy: f64,
    /// The variance of rounding in each row and in each column, summed.
    pub(crate) row_noise: Vec<f64>,
    pub(crate) col_noise: Vec<f64>,
}

/// The space found so far.
pub(crate) struct Krylov<'s, S: ?Sized> {
    source: &'s S,
    /// What the rows are multiplied with (a power of two).
    scale: f32,
    seen: Seen,
    /// Orthonormal blocks, `D` times each, `D^T D` times each.
    right: Vec<Tall>,
    left: Vec<Tall>,
    back: Vec<Tall>,
}

/// The leading part of a decomposition: `left right^T`.
pub(crate) struct Ritz {
    /// Singular values, the largest first.
    pub(crate) sigmas: Vec<f64>,
    /// Orthonormal columns.
    pub(crate) left: Tall,
    /// Orthogonal columns, as long as the singular values.
    pub(crate) right: Tall,
    /// All values that the space gives, those beyond the rank too.
    pub(crate) all: Vec<f64>,
}

struct Part {
    left: Vec<f32>,
    back: Vec<f32>,
}

impl<'s, S: Source + ?Sized> Krylov<'s, S> {
    /// Looks at the matrix once.
    pub(crate) fn new(source: &'s S) -> Result<Self, SvdError> {
        let seen = look(source)?;
        if !seen.energy.is_finite() {
            return Err(SvdError::NotFinite);
        }
        let count = (source.rows() * source.cols()).max(1) as f64;
        let size = (seen.energy / count).sqrt();
        let scale = if size == 0.0 || COMFORTABLE.contains(&size) {
            1.0
        } else {
            narrow(size.log2().round().clamp(-120.0, 120.0).exp2().recip())
        };
        Ok(Self {
            source,
            scale,
            seen,
            right: Vec::new(),
            left: Vec::new(),
            back: Vec::new(),
        })
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Dimensions of the space.
    pub(crate) fn width(&self) -> usize {
        self.right.iter().map(|block| block.width).sum()
    }

    /// Most dimensions that can be of use: the rows' space, and what of the first block is not in it.
    fn limit(&self) -> usize {
        let first = self.right.first().map_or(self.source.cols(), |b| b.width);
        self.source.cols().min(self.source.rows() + first)
    }

    /// Adds up to `width` dimensions by one pass; none where the space holds all of the matrix already.
    pub(crate) fn extend(&mut self, width: usize) -> Result<bool, SvdError> {
        let room = width.min(self.limit() - self.width().min(self.limit()));
        if room == 0 || self.seen.energy == 0.0 {
            return Ok(false);
        }
        let next = match self.back.last() {
            Some(last) if last.width >= room => last.truncated(room),
            Some(last) => {
                // A wider block than the last: filled up at random.
                let extra = random(self.source.cols(), room - last.width, self.back.len());
                beside(last, &extra)
            }
            None => random(self.source.cols(), room, 0),
        };
        let block = next.orthonormal(&self.right);
        if block.width == 0 {
            return Ok(false);
        }
        let (left, back) = pass(self.source, &block, self.scale)?;
        self.right.push(block);
        self.left.push(left);
        self.back.push(back);
        Ok(true)
    }

    /// Singular values that the space gives, without vectors: those of `D` on the right space, a lower bound each.
    pub(crate) fn sigmas(&self) -> Vec<f64> {
        let (_, square) = self.on_the_right(&grams(&self.left));
        let (values, _) = eigen(square);
        let unscale = f64::from(self.scale).recip();
        values.iter().map(|v| v.sqrt() * unscale).collect()
    }

    /// What makes the right blocks one orthonormal basis, which they are but for what single rounds of projection leave, and the
    /// Gram matrix of `D` times that basis, from that of `D` times the blocks.
    fn on_the_right(&self, gram: &DMatrix<f64>) -> (DMatrix<f64>, DMatrix<f64>) {
        let basis = whitening(grams(&self.right));
        let square = basis.transpose() * gram * &basis;
        (basis, square)
    }

    /// The best factors of at most `rank` that the space holds.
    pub(crate) fn ritz(&self, rank: usize) -> Ritz {
        let gram = grams(&self.left);
        // What is divided by short columns brings the long ones' rounding errors along.
        let root = inverse_root(&gram, LEAST)
            .filter(|root| norm(root) * norm(&gram).sqrt() < LARGEST_RANGE);
        let found = match root {
            Some(root) => {
                // P = Y R^-1 is orthonormal, and P^T D = R^-T Z^T.
                let square = root.transpose() * grams(&self.back) * &root;
                let (values, vectors) = eigen(square);
                let rank = rank.min(values.len());
                let chosen = &root * vectors.columns(0, rank);
                (
                    values,
                    combine(&self.left, &chosen),
                    combine(&self.back, &chosen),
                )
            }
            None => {
                // Directions that are nearly nothing: from the right space alone, which divides by nothing.
                let (basis, square) = self.on_the_right(&gram);
                let (values, vectors) = eigen(square);
                let largest = values.first().copied().unwrap_or(0.0);
                let whole = values.iter().take_while(|v| **v > 1e-13 * largest).count();
                let chosen = basis * vectors.columns(0, rank.min(whole));
                let mut by_length = chosen.clone();
                let mut lengths = chosen.clone();
                for (i, value) in values.iter().take(chosen.ncols()).enumerate() {
                    by_length.column_mut(i).unscale_mut(value.sqrt());
                    lengths.column_mut(i).scale_mut(value.sqrt());
                }
                (
                    values,
                    combine(&self.left, &by_length),
                    combine(&self.right, &lengths),
                )
            }
        };
        let (values, left, mut right) = found;
        let unscale = self.scale.recip();
        for x in &mut right.data {
            *x *= unscale;
        }
        let all: Vec<f64> = values
            .iter()
            .map(|v| v.sqrt() * f64::from(unscale))
            .collect();
        Ritz {
            sigmas: all[..left.width].to_vec(),
            left,
            right,
            all,
        }
    }
}

/// All blocks times a small matrix of as many rows as they have columns.
fn combine(blocks: &[Tall], small: &DMatrix<f64>) -> Tall {
    let rows = blocks.first().map_or(0, Tall::rows);
    let mut data = vec![0f32; rows * small.ncols()];
    let mut at = 0;
    for block in blocks {
        block.add_times(&small.rows(at, block.width).into_owned(), &mut data);
        at += block.width;
    }
    Tall {
        width: small.ncols(),
        data,
    }
}

/// The Gram matrix of all columns of all blocks.
fn grams(blocks: &[Tall]) -> DMatrix<f64> {
    let width = blocks.iter().map(|block| block.width).sum();
    let mut all = DMatrix::zeros(width, width);
    let mut row = 0;
    for (i, a) in blocks.iter().enumerate() {
        let mut col = row;
        for b in &blocks[i..] {
            let gram = a.gram(b);
            all.view_mut((row, col), gram.shape()).copy_from(&gram);
            all.view_mut((col, row), (b.width, a.width))
                .tr_copy_from(&gram);
            col += b.width;
        }
        row += a.width;
    }
    all
}

fn beside(a: &Tall, b: &Tall) -> Tall {
    let rows = a
        .data
        .chunks_exact(a.width.max(1))
        .zip(b.data.chunks_exact(b.width.max(1)));
    Tall {
        width: a.width + b.width,
        data: rows.flat_map(|(a, b)| a.iter().chain(b)).copied().collect(),
    }
}

/// Uniform numbers about zero, the same every time.
fn random(rows: usize, width: usize, number: usize) -> Tall {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number as u64 * 2 + 1);
    let data = (0..rows * width)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            narrow((state >> 40) as f64 / f64::from(1u32 << 23) - 1.0)
        })
        .collect();
    Tall { width, data }
}

/// Ranges of rows that are worked on side by side.
pub(crate) fn parts(rows: usize) -> Vec<std::ops::Range<usize>> {
    let part = rows.div_ceil(PARTS).next_multiple_of(ROWS).max(ROWS);
    (0..rows.div_ceil(part))
        .map(|p| p * part..rows.min((p + 1) * part))
        .collect()
}

fn look(source: &(impl Source + ?Sized)) -> Result<Seen, SvdError> {
    let (rows, cols) = (source.rows(), source.cols());
    let parts = parts(rows)
        .into_par_iter()
        .map(|range| {
            let mut seen = Seen {
                energy: 0.0,
                row_noise: Vec::with_capacity(range.len()),
                col_noise: vec![0.0; cols],
            };
            let mut row = vec![0f32; cols];
            for i in range {
                source.row(i, &mut row)?;
                seen.energy += squares(&row);
                if !source.noise(i, &mut row)? {
                    seen.row_noise.push(0.0);
                    continue;
                }
                seen.row_noise.push(row.iter().map(|x| f64::from(*x)).sum());
                for (sum, x) in seen.col_noise.iter_mut().zip(&row) {
                    *sum += f64::from(*x);
                }
            }
            Ok(seen)
        })
        .collect::<Result<Vec<_>, SvdError>>()?;
    let mut all = Seen {
        energy: 0.0,
        row_noise: Vec::with_capacity(rows),
        col_noise: vec![0.0; cols],
    };
    for part in parts {
        all.energy += part.energy;
        all.row_noise.extend(part.row_noise);
        for (sum, x) in all.col_noise.iter_mut().zip(part.col_noise) {
            *sum += x;
        }
    }
    Ok(all)
}

/// The sum of squares, in eight lanes.
pub(crate) fn squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks
        .remainder()
        .iter()
        .map(|x| f64::from(*x).powi(2))
        .sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*x) * f64::from(*x);
        }
    }
    rest + lanes.iter().sum::<f64>()
}

/// `D` times a block and `D^T` times that.
fn pass(
    source: &(impl Source + ?Sized),
    block: &Tall,
    scale: f32,
) -> Result<(Tall, Tall), SvdError> {
    let (rows, cols, width) = (source.rows(), source.cols(), block.width);
    let packed = Packed::new(&block.data, width, cols);
    let parts = parts(rows)
        .into_par_iter()
        .map(|range| {
            let mut tile = Tile::new(cols);
            let mut part = Part {
                left: vec![0f32; range.len() * packed.width],
                back: vec![0f32; cols * packed.width],
            };
            for (number, first) in range.clone().step_by(ROWS).enumerate() {
                let rows = first..range.end.min(first + ROWS);
                let left =
                    &mut part.left[number * ROWS * packed.width..][..rows.len() * packed.width];
                tile.read(source, rows, scale)?;
                tile.times(&packed, left);
                tile.transposed_times(left, packed.width, &mut part.back);
            }
            Ok(part)
        })
        .collect::<Result<Vec<_>, SvdError>>()?;
    let mut left = Vec::with_capacity(rows * packed.width);
    let mut back = vec![0f32; cols * packed.width];
    for part in parts {
        left.extend_from_slice(&part.left);
        for (sum, x) in back.iter_mut().zip(&part.back) {
            *sum += x;
        }
    }
    let unpadded = |data: Vec<f32>| {
        Tall {
            width: packed.width,
            data,
        }
        .truncated(width)
    };
    Ok((unpadded(left), unpadded(back)))
}
