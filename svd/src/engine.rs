//! Where the long vectors of a decomposition live and are multiplied: what [`crate::Svd::on`] asks for. What is small is computed
//! in `f64` by this crate, wherever the vectors are.

use crate::SvdError;

/// What the first look at a matrix sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The sum of all squares.
    pub energy: f64,
    /// The variances of rounding in each row, summed; zeros where nobody knows.
    pub row_noise: Vec<f64>,
    /// Those in each column.
    pub col_noise: Vec<f64>,
}

/// A matrix, and blocks of vectors that are multiplied with it.
///
/// Small matrices come and go as `f64`, column after column. Products of blocks may be computed in `f32`, Gram matrices are
/// summed in `f64`: on less, vectors would not become orthogonal.
pub trait Engine {
    /// Vectors of `f32`, all as long as the matrix has rows or columns.
    type Block;
    /// What may go wrong.
    type Error: From<SvdError>;

    /// Rows and columns of the matrix.
    fn shape(&self) -> (usize, usize);

    /// Looks at the matrix; comes before all else.
    ///
    /// # Errors
    /// The engine's own, as of all functions.
    fn look(&mut self) -> Result<Seen, Self::Error>;

    /// Multiplies the matrix by a power of two; at most once, and before the first pass.
    ///
    /// # Errors
    /// The engine's own.
    fn scale(&mut self, by: f32) -> Result<(), Self::Error>;

    /// How many vectors a block has.
    fn width(block: &Self::Block) -> usize;

    /// The first vectors of a block as long as the matrix has columns, or of none, with others beside to make `width`: `more` has
    /// those, a number of each after the other.
    ///
    /// # Errors
    /// The engine's own.
    fn block(
        &self,
        first: Option<&Self::Block>,
        width: usize,
        more: &[f32],
    ) -> Result<Self::Block, Self::Error>;

    /// The matrix times a block, and its transpose times that.
    ///
    /// # Errors
    /// The engine's own.
    fn pass(&self, block: &Self::Block) -> Result<(Self::Block, Self::Block), Self::Error>;

    /// The Gram matrix of all vectors of some blocks.
    ///
    /// # Errors
    /// The engine's own.
    fn grams(&self, blocks: &[Self::Block]) -> Result<Vec<f64>, Self::Error>;

    /// The length of a block's longest vector.
    ///
    /// # Errors
    /// The engine's own.
    fn longest(&self, block: &Self::Block) -> Result<f64, Self::Error>;

    /// All vectors of some blocks times a small matrix of as many rows.
    ///
    /// # Errors
    /// The engine's own.
    fn combined(&self, blocks: &[Self::Block], small: &[f64]) -> Result<Self::Block, Self::Error>;

    /// Takes away what of a block lies in the space of orthonormal vectors.
    ///
    /// # Errors
    /// The engine's own.
    fn project_out(&self, block: &mut Self::Block, space: &Self::Block) -> Result<(), Self::Error>;

    /// A block's numbers: one of each vector after the other.
    ///
    /// # Errors
    /// The engine's own.
    fn read(&self, block: &Self::Block) -> Result<Vec<f32>, Self::Error>;
}
