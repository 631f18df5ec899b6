//! A matrix that is read row by row, as often as needed, and never held whole.

use crate::SvdError;

/// A matrix, usually the difference of two that lie in files.
pub trait Source: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// Writes one row (`cols` values) into `out`.
    ///
    /// # Errors
    /// A source that was told to stop or cannot read.
    fn row(&self, row: usize, out: &mut [f32]) -> Result<(), SvdError>;

    /// Writes the variances of the elements' rounding errors of one row; false, and nothing written, where there are none or
    /// nobody knows. That is the default.
    ///
    /// # Errors
    /// As [`Self::row`].
    fn noise(&self, _row: usize, _out: &mut [f32]) -> Result<bool, SvdError> {
        Ok(false)
    }
}

/// A matrix in memory, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    data: &'a [f32],
    cols: usize,
}

impl<'a> Dense<'a> {
    /// A matrix of rows of `cols` values; what is left of `data` after the last whole row is not looked at.
    #[must_use]
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        Self { data, cols }
    }
}

impl Source for Dense<'_> {
    fn rows(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn row(&self, row: usize, out: &mut [f32]) -> Result<(), SvdError> {
        let found = self
            .data
            .get(row * self.cols..(row + 1) * self.cols)
            .filter(|found| found.len() == out.len());
        out.copy_from_slice(found.ok_or_else(|| SvdError::Source {
            what: format!("row {row} is not in the matrix"),
        })?);
        Ok(())
    }
}

/// The difference of two matrices in memory, `finetune - base`.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    base: Dense<'a>,
    finetune: Dense<'a>,
}

impl<'a> Difference<'a> {
    /// The difference of two matrices of rows of `cols` values.
    ///
    /// # Errors
    /// Matrices of different sizes.
    pub fn new(base: &'a [f32], finetune: &'a [f32], cols: usize) -> Result<Self, SvdError> {
        if base.len() != finetune.len() || cols == 0 || !base.len().is_multiple_of(cols) {
            return Err(SvdError::Source {
                what: format!(
                    "{} and {} values are no two matrices of {cols} columns",
                    base.len(),
                    finetune.len()
                ),
            });
        }
        Ok(Self {
            base: Dense::new(base, cols),
            finetune: Dense::new(finetune, cols),
        })
    }
}

impl Source for Difference<'_> {
    fn rows(&self) -> usize {
        self.finetune.rows()
    }

    fn cols(&self) -> usize {
        self.finetune.cols()
    }

    fn row(&self, row: usize, out: &mut [f32]) -> Result<(), SvdError> {
        self.finetune.row(row, out)?;
        let at = row * self.cols();
        for (x, b) in out.iter_mut().zip(&self.base.data[at..]) {
            *x -= b;
        }
        Ok(())
    }
}
