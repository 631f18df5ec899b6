//! How far the stored factors are from the difference: what is really left, element by element.

use rayon::prelude::*;

use crate::cpu::{parts, squares};
use crate::stored::Signs;
use crate::tile::{LINE, Packed, ROWS, Tile};
use crate::{Factors, Source, SvdError};

/// What is left of a matrix beside the product of its factors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// The squared Frobenius norm of the matrix.
    pub energy: f64,
    /// The squared Frobenius norm of what is left.
    pub error: f64,
    /// The largest magnitude of what is left.
    pub max_abs: f64,
    /// The sum of the magnitudes of what is left.
    pub sum_abs: f64,
    /// Elements.
    pub elements: u64,
}

impl Measured {
    /// The share of the energy that the product holds, `1 - error / energy`; 1 of a matrix of zeros. Below zero where quantised
    /// factors do harm.
    #[must_use]
    pub fn captured(&self) -> f64 {
        if self.energy > 0.0 {
            1.0 - self.error / self.energy
        } else {
            1.0
        }
    }

    /// The Frobenius norm of what is left over that of the matrix; 0 of a matrix of zeros.
    #[must_use]
    pub fn relative(&self) -> f64 {
        if self.energy > 0.0 {
            (self.error / self.energy).sqrt()
        } else {
            0.0
        }
    }

    /// The mean magnitude of what is left.
    #[must_use]
    pub fn mean_abs(&self) -> f64 {
        self.sum_abs / (self.elements.max(1) as f64)
    }

    /// Both together, as one matrix.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            energy: self.energy + other.energy,
            error: self.error + other.error,
            max_abs: self.max_abs.max(other.max_abs),
            sum_abs: self.sum_abs + other.sum_abs,
            elements: self.elements + other.elements,
        }
    }

    /// Compares a matrix with the product of factors, row by row.
    ///
    /// # Errors
    /// Factors of another shape, and a source that stops.
    pub fn new(source: &(impl Source + ?Sized), factors: &Factors) -> Result<Self, SvdError> {
        compare(source, factors, false).map(|(measured, _)| measured)
    }

    /// As [`Self::new`], beside the signs of what is left, which are taken on the way.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_signs(
        source: &(impl Source + ?Sized),
        factors: &Factors,
    ) -> Result<(Self, Signs), SvdError> {
        compare(source, factors, true)
    }
}

fn compare(
    source: &(impl Source + ?Sized),
    factors: &Factors,
    signed: bool,
) -> Result<(Measured, Signs), SvdError> {
    let (rows, cols) = (source.rows(), source.cols());
    if [factors.rows, factors.cols] != [rows, cols] {
        return Err(SvdError::Source {
            what: format!(
                "factors of a {} x {} matrix, and it is {rows} x {cols}",
                factors.rows, factors.cols
            ),
        });
    }
    let product = Product::new(factors)?;
    let parts = parts(rows)
        .into_par_iter()
        .map(|range| {
            let (mut measured, mut signs) = (Measured::default(), Signs::default());
            let mut tile = Tile::new(cols);
            let mut work = product.work();
            for first in range.clone().step_by(ROWS) {
                let rows = first..range.end.min(first + ROWS);
                tile.read(source, rows.clone(), 1.0)?;
                let updates = product.rows(rows, &mut work)?;
                for (row, update) in tile.rows_mut().zip(updates) {
                    measured.energy += squares(row);
                    for (x, u) in row.iter_mut().zip(update) {
                        *x -= u;
                    }
                    if signed {
                        signs.push(row);
                    }
                    measured.error += squares(row);
                    let (most, sum) = magnitudes(row);
                    measured.max_abs = measured.max_abs.max(f64::from(most));
                    measured.sum_abs += sum;
                    measured.elements += row.len() as u64;
                }
            }
            Ok((measured, signs))
        })
        .collect::<Result<Vec<_>, SvdError>>()?;
    let mut all = (Measured::default(), Signs::default());
    for (measured, signs) in parts {
        all.0 = all.0.and(&measured);
        all.1.scales.extend(signs.scales);
        all.1.bits.extend(signs.bits);
    }
    if all.0.error.is_finite() {
        Ok(all)
    } else {
        Err(SvdError::NotFinite)
    }
}

/// The largest magnitude and the sum of all.
fn magnitudes(row: &[f32]) -> (f32, f64) {
    let (mut most, mut sums) = ([0f32; LINE], 0f64);
    for line in row.chunks(LINE) {
        let mut sum = 0f32;
        for (most, x) in most.iter_mut().zip(line) {
            let x = x.abs();
            *most = most.max(x);
            sum += x;
        }
        sums += f64::from(sum);
    }
    (most.into_iter().fold(0.0, f32::max), sums)
}

/// Rows of the product of two factors, as they are needed: fused multiply-adds in the order of the rank, the rule by which PEFT
/// merges, the same bits on every machine.
pub struct Product<'f> {
    factors: &'f Factors,
    right: Packed,
}

/// Room for some rows of a product.
pub struct Work {
    left: Tile,
    out: Vec<f32>,
}

impl<'f> Product<'f> {
    /// Makes the factors ready.
    ///
    /// # Errors
    /// Factors that do not have as many entries as their shape asks for.
    pub fn new(factors: &'f Factors) -> Result<Self, SvdError> {
        let size = |a: usize, b: usize| a.checked_mul(b);
        if size(factors.rows, factors.rank) != Some(factors.left.len())
            || size(factors.rank, factors.cols) != Some(factors.right.len())
        {
            return Err(SvdError::Source {
                what: "factors of other sizes than their shape".to_owned(),
            });
        }
        Ok(Self {
            factors,
            right: Packed::new(&factors.right, factors.cols, factors.rank),
        })
    }

    /// Most rows that are made at a time.
    pub const ROWS: usize = ROWS;

    /// Room for rows.
    #[must_use]
    pub fn work(&self) -> Work {
        Work {
            left: Tile::new(self.factors.rank),
            out: vec![0.0; ROWS * self.right.width],
        }
    }

    /// Some rows, at most [`Self::ROWS`].
    ///
    /// # Errors
    /// Rows that are not there.
    pub fn rows<'w>(
        &self,
        rows: std::ops::Range<usize>,
        work: &'w mut Work,
    ) -> Result<impl Iterator<Item = &'w [f32]> + use<'w>, SvdError> {
        let count = rows.len().min(ROWS);
        let (width, cols) = (self.right.width, self.factors.cols);
        let left = crate::Dense::new(&self.factors.left, self.factors.rank);
        if self.factors.rank == 0 {
            work.out.fill(0.0);
        } else {
            work.left.read(&left, rows, 1.0)?;
            work.left.times(&self.right, &mut work.out);
        }
        Ok(work
            .out
            .chunks_exact(width.max(1))
            .take(count)
            .map(move |row| &row[..cols]))
    }
}
