//! A block Krylov space of `D^T D`, grown by one pass over `D` at a time (Musco & Musco, "Randomized Block Krylov Methods",
//! 2015; with the orthogonalisation of block Lanczos).
//!
//! A pass gives `Y = D Q` and `Z = D^T Y`. `Q` collects orthonormal blocks; the left space spanned by all `Y` is half a step
//! ahead of `Q`, and `D` projected on it is a combination of all `Z`, so the best factors of both spaces cost no further pass.

use nalgebra::DMatrix;

use crate::SvdError;
use crate::algebra::{LEAST, Tall, eigen, inverse_root, narrow, norm, whitening};
use crate::engine::{Engine, Seen};

/// Largest ratio of singular values in a space that is divided by.
const LARGEST_RANGE: f64 = 200.0;
/// Root mean squares between which products of two passes stay far from the limits of `f32`.
const COMFORTABLE: std::ops::Range<f64> = 1e-9..1e6;
/// A column is made orthogonal once more where less than this share of it is left.
const SHORT: f64 = 0.02;
/// Rounds in which a block becomes orthogonal.
const ROUNDS: usize = 4;

/// The space found so far.
pub(crate) struct Krylov<E: Engine> {
    engine: E,
    /// What the matrix was multiplied with (a power of two).
    scale: f32,
    seen: Seen,
    /// Orthonormal blocks, `D` times each, `D^T D` times each.
    right: Vec<E::Block>,
    left: Vec<E::Block>,
    back: Vec<E::Block>,
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

impl<E: Engine> Krylov<E> {
    /// Looks at the matrix once.
    pub(crate) fn new(mut engine: E) -> Result<Self, E::Error> {
        let seen = engine.look()?;
        if !seen.energy.is_finite() {
            return Err(SvdError::NotFinite.into());
        }
        let (rows, cols) = engine.shape();
        let size = (seen.energy / (rows * cols).max(1) as f64).sqrt();
        let scale = if size == 0.0 || COMFORTABLE.contains(&size) {
            1.0
        } else {
            narrow(size.log2().round().clamp(-120.0, 120.0).exp2().recip())
        };
        if scale != 1.0 {
            engine.scale(scale)?;
        }
        Ok(Self {
            engine,
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
        self.right.iter().map(E::width).sum()
    }

    /// Most dimensions that can be of use: the rows' space, and what of the first block is not in it.
    fn limit(&self) -> usize {
        let (rows, cols) = self.engine.shape();
        let first = self.right.first().map_or(cols, E::width);
        cols.min(rows + first)
    }

    /// Adds up to `width` dimensions by one pass; none where the space holds all of the matrix already.
    pub(crate) fn extend(&mut self, width: usize) -> Result<bool, E::Error> {
        let room = width.min(self.limit() - self.width().min(self.limit()));
        if room == 0 || self.seen.energy == 0.0 {
            return Ok(false);
        }
        let last = self.back.last();
        // A wider block than the last is filled up at random.
        let (_, cols) = self.engine.shape();
        let missing = room - last.map_or(0, E::width).min(room);
        let more = random(cols, missing, self.back.len());
        let next = self.engine.block(last, room, &more)?;
        let block = orthonormal(&self.engine, next, &self.right)?;
        if E::width(&block) == 0 {
            return Ok(false);
        }
        let (left, back) = self.engine.pass(&block)?;
        self.right.push(block);
        self.left.push(left);
        self.back.push(back);
        Ok(true)
    }

    /// Singular values that the space gives, without vectors: those of `D` on the right space, a lower bound each.
    pub(crate) fn sigmas(&self) -> Result<Vec<f64>, E::Error> {
        let (_, square) = self.on_the_right(&grams(&self.engine, &self.left)?)?;
        let (values, _) = eigen(square);
        let unscale = f64::from(self.scale).recip();
        Ok(values.iter().map(|v| v.sqrt() * unscale).collect())
    }

    /// What makes the right blocks one orthonormal basis, which they are but for what single rounds of projection leave, and the
    /// Gram matrix of `D` times that basis, from that of `D` times the blocks.
    fn on_the_right(&self, gram: &DMatrix<f64>) -> Result<(DMatrix<f64>, DMatrix<f64>), E::Error> {
        let basis = whitening(grams(&self.engine, &self.right)?);
        let square = basis.transpose() * gram * &basis;
        Ok((basis, square))
    }

    /// The best factors of at most `rank` that the space holds.
    pub(crate) fn ritz(&self, rank: usize) -> Result<Ritz, E::Error> {
        let engine = &self.engine;
        let gram = grams(engine, &self.left)?;
        // What is divided by short columns brings the long ones' rounding errors along.
        let root = inverse_root(&gram, LEAST)
            .filter(|root| norm(root) * norm(&gram).sqrt() < LARGEST_RANGE);
        let (values, left, mut right) = match root {
            Some(root) => {
                // P = Y R^-1 is orthonormal, and P^T D = R^-T Z^T.
                let square = root.transpose() * grams(engine, &self.back)? * &root;
                let (values, vectors) = eigen(square);
                let rank = rank.min(values.len());
                let chosen = &root * vectors.columns(0, rank);
                let left = self.read(&self.left, &chosen)?;
                let right = self.read(&self.back, &chosen)?;
                (values, left, right)
            }
            None => {
                // Directions that are nearly nothing: from the right space alone, which divides by nothing.
                let (basis, square) = self.on_the_right(&gram)?;
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
                let left = self.read(&self.left, &by_length)?;
                let right = self.read(&self.right, &lengths)?;
                (values, left, right)
            }
        };
        let unscale = self.scale.recip();
        for x in &mut right.data {
            *x *= unscale;
        }
        let all: Vec<f64> = values
            .iter()
            .map(|v| v.sqrt() * f64::from(unscale))
            .collect();
        Ok(Ritz {
            sigmas: all[..left.width].to_vec(),
            left,
            right,
            all,
        })
    }

    /// All blocks times a small matrix, in memory.
    fn read(&self, blocks: &[E::Block], small: &DMatrix<f64>) -> Result<Tall, E::Error> {
        let width = small.ncols();
        let data = if width == 0 || blocks.is_empty() {
            Vec::new()
        } else {
            let block = self.engine.combined(blocks, small.as_slice())?;
            self.engine.read(&block)?
        };
        Ok(Tall { width, data })
    }
}

fn grams<E: Engine>(engine: &E, blocks: &[E::Block]) -> Result<DMatrix<f64>, E::Error> {
    let width = blocks.iter().map(E::width).sum();
    if width == 0 {
        return Ok(DMatrix::zeros(0, 0));
    }
    let found = engine.grams(blocks)?;
    if found.len() != width * width {
        return Err(SvdError::Source {
            what: format!("{} numbers for {width} vectors", found.len()),
        }
        .into());
    }
    Ok(DMatrix::from_vec(width, width, found))
}

/// An orthonormal basis of a block's space less the `spaces` of orthonormal vectors, by Cholesky QR in rounds (two of them where
/// vectors are short or nearly the same; see Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", 2015), and
/// by eigenvectors where Cholesky's factor breaks down. Directions that are only rounding errors are left out, so it may be
/// narrower.
fn orthonormal<E: Engine>(
    engine: &E,
    mut block: E::Block,
    spaces: &[E::Block],
) -> Result<E::Block, E::Error> {
    // The first round may leave little of a column, most of that rounding errors of what was taken away; the next ones begin
    // with columns of length one, of which those that are such errors vanish.
    for round in 0..ROUNDS {
        if E::width(&block) == 0 {
            break;
        }
        let (least, enough) = if round == 0 {
            (LEAST, SHORT)
        } else {
            (0.03, 0.5)
        };
        let before = engine.longest(&block)?;
        for space in spaces {
            engine.project_out(&mut block, space)?;
        }
        let gram = grams(engine, std::slice::from_ref(&block))?;
        let (root, shortest) = match inverse_root(&gram, least) {
            Some(root) => {
                // Its diagonal's inverse is what each column adds to those before it.
                let added = root
                    .diagonal()
                    .iter()
                    .map(|x| x.recip())
                    .fold(f64::INFINITY, f64::min);
                (root, added / before)
            }
            None => {
                let (values, vectors) = eigen(gram);
                let least = values.first().copied().unwrap_or(0.0) * least * least * 1e-3;
                let kept = values
                    .iter()
                    .take_while(|v| **v > least && **v > 0.0)
                    .count();
                let mut root = vectors.columns(0, kept).into_owned();
                for (mut column, value) in root.column_iter_mut().zip(&values) {
                    column /= value.sqrt();
                }
                (root, 0.0)
            }
        };
        block = if root.ncols() == 0 {
            engine.block(None, 0, &[])?
        } else {
            engine.combined(std::slice::from_ref(&block), root.as_slice())?
        };
        if shortest > enough {
            break;
        }
    }
    Ok(block)
}

/// Uniform numbers about zero, the same every time.
fn random(rows: usize, width: usize, number: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number as u64 * 2 + 1);
    (0..rows * width)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            narrow((state >> 40) as f64 / f64::from(1u32 << 23) - 1.0)
        })
        .collect()
}
