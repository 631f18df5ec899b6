//! A matrix of a fine-tune less that of its base, row by row out of the mapped files.

use sparse_svd::{Source, SvdError};

use super::floats::Float;
use crate::progress::Stop;

/// Elements whose base is converted at a time.
const PIECE: usize = 512;

/// `finetune - base` of one matrix.
pub(crate) struct Difference<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) base: (Float, &'a [u8]),
    pub(crate) tuned: (Float, &'a [u8]),
    pub(crate) stop: &'a Stop,
}

impl Difference<'_> {
    /// The bytes of one row.
    fn bytes<'b>(
        &self,
        (float, data): (Float, &'b [u8]),
        row: usize,
    ) -> Result<&'b [u8], SvdError> {
        let width = self.cols * float.size();
        data.get(row * width..(row + 1) * width)
            .ok_or_else(|| SvdError::Source {
                what: format!("row {row} is not in the file: it was cut short"),
            })
    }
}

impl Source for Difference<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn row(&self, row: usize, out: &mut [f32]) -> Result<(), SvdError> {
        if self.stop.is_set() {
            return Err(SvdError::Stopped);
        }
        let base = self.bytes(self.base, row)?;
        self.tuned.0.read(self.bytes(self.tuned, row)?, out);
        let mut piece = [0f32; PIECE];
        for (out, base) in out
            .chunks_mut(PIECE)
            .zip(base.chunks(PIECE * self.base.0.size()))
        {
            let piece = &mut piece[..out.len()];
            self.base.0.read(base, piece);
            for (x, b) in out.iter_mut().zip(piece) {
                *x -= *b;
            }
        }
        Ok(())
    }

    fn noise(&self, row: usize, out: &mut [f32]) -> Result<bool, SvdError> {
        self.tuned.0.read(self.bytes(self.tuned, row)?, out);
        let base = self.bytes(self.base, row)?;
        let mut piece = [0f32; PIECE];
        for (out, base) in out
            .chunks_mut(PIECE)
            .zip(base.chunks(PIECE * self.base.0.size()))
        {
            let piece = &mut piece[..out.len()];
            self.base.0.read(base, piece);
            for (x, b) in out.iter_mut().zip(piece) {
                // What is equal in both files differs by no rounding.
                *x = if *x == *b {
                    0.0
                } else {
                    self.tuned.0.variance(*x) + self.base.0.variance(*b)
                };
            }
        }
        Ok(true)
    }
}
