//! Blocks in memory, and a matrix that is read row by row: the engine of the CPU.
//!
//! A pass reads every row once: tile by tile, `Y = D Q` and `Z = D^T Y` are taken while the tile is in the cache.

use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::algebra::Tall;
use crate::engine::{Engine, Seen};
use crate::tile::{Packed, ROWS, Tile};
use crate::{Source, SvdError};

/// Parts of the rows that are worked on side by side. A fixed number, so that sums do not depend on the number of threads.
const PARTS: usize = 8;

/// A source, and what its rows are multiplied with.
pub(crate) struct OnCpu<'s, S: ?Sized> {
    source: &'s S,
    scale: f32,
}

impl<'s, S: Source + ?Sized> OnCpu<'s, S> {
    pub(crate) fn new(source: &'s S) -> Self {
        Self { source, scale: 1.0 }
    }
}

impl<S: Source + ?Sized> Engine for OnCpu<'_, S> {
    type Block = Tall;
    type Error = SvdError;

    fn shape(&self) -> (usize, usize) {
        (self.source.rows(), self.source.cols())
    }

    fn look(&mut self) -> Result<Seen, SvdError> {
        look(self.source)
    }

    fn scale(&mut self, by: f32) -> Result<(), SvdError> {
        self.scale *= by;
        Ok(())
    }

    fn width(block: &Tall) -> usize {
        block.width
    }

    fn block(&self, first: Option<&Tall>, width: usize, more: &[f32]) -> Result<Tall, SvdError> {
        let Some(first) = first.map(|first| first.truncated(width)) else {
            return Ok(Tall {
                width,
                data: more.to_vec(),
            });
        };
        if first.width == width {
            return Ok(first);
        }
        let rows = first
            .data
            .chunks_exact(first.width.max(1))
            .zip(more.chunks_exact(width - first.width));
        Ok(Tall {
            width,
            data: rows.flat_map(|(a, b)| a.iter().chain(b)).copied().collect(),
        })
    }

    fn pass(&self, block: &Tall) -> Result<(Tall, Tall), SvdError> {
        pass(self.source, block, self.scale)
    }

    fn grams(&self, blocks: &[Tall]) -> Result<Vec<f64>, SvdError> {
        Ok(grams(blocks).as_slice().to_vec())
    }

    fn longest(&self, block: &Tall) -> Result<f64, SvdError> {
        Ok(block.longest())
    }

    fn combined(&self, blocks: &[Tall], small: &[f64]) -> Result<Tall, SvdError> {
        let all: usize = blocks.iter().map(|block| block.width).sum();
        let width = small.len() / all.max(1);
        Ok(combine(
            blocks,
            &DMatrix::from_column_slice(all, width, small),
        ))
    }

    fn project_out(&self, block: &mut Tall, space: &Tall) -> Result<(), SvdError> {
        block.project_out(space);
        Ok(())
    }

    fn read(&self, block: &Tall) -> Result<Vec<f32>, SvdError> {
        Ok(block.data.clone())
    }
}

struct Part {
    left: Vec<f32>,
    back: Vec<f32>,
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
