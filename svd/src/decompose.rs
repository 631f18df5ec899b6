//! The decomposition itself: how the space grows, and what is kept.

use crate::algebra::Tall;
use crate::cpu::OnCpu;
use crate::engine::Engine;
use crate::krylov::Krylov;
use crate::rank::{Noise, Rank};
use crate::tile::LINE;
use crate::{Source, SvdError};

/// Dimensions of the first look where the rank is to be found.
const FIRST: usize = 64;
/// Dimensions of the space to one of rank, where singular values have come near enough to the true ones.
const AMPLE: usize = 3;
/// The widest block.
const WIDEST: usize = 128;

/// The leading singular triplets of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    rows: usize,
    cols: usize,
    sigmas: Vec<f64>,
    /// Orthonormal columns.
    left: Tall,
    /// Orthonormal columns times the singular values.
    right: Tall,
    energy: f64,
    fourth: f64,
    noise: Noise,
}

impl Svd {
    /// Decomposes a matrix: reads every row six to twelve times for a fixed rank, as often as it takes for others. Singular values
    /// below a thousandth of the largest, a millionth of its energy, are only roughly right: passes square them, in `f32`.
    ///
    /// # Errors
    /// Elements that are no numbers, and a source that stops.
    pub fn new(source: &(impl Source + ?Sized), rank: Rank) -> Result<Self, SvdError> {
        Self::on(OnCpu::new(source), rank)
    }

    /// As [`Self::new`], by an engine that holds the matrix.
    ///
    /// # Errors
    /// Elements that are no numbers, and the engine's errors.
    pub fn on<E: Engine>(engine: E, rank: Rank) -> Result<Self, E::Error> {
        let (rows, cols) = engine.shape();
        let mut krylov = Krylov::new(engine)?;
        let seen = krylov.seen();
        let (energy, noise) = (seen.energy, Noise::new(&seen.row_noise, &seen.col_noise));
        // More noise than there is difference: where few elements changed at all.
        let excess = (energy / noise.energy).sqrt().min(1.0);
        let noise = Noise {
            energy: noise.energy.min(energy),
            edge: if noise.energy > 0.0 {
                noise.edge * excess
            } else {
                0.0
            },
        };
        let least = rows.min(cols);
        let kept = match rank {
            Rank::Fixed(rank) => {
                let rank = rank.min(least);
                let (width, depth) = plan(rank);
                for _ in 0..depth {
                    if rank == 0 || !krylov.extend(width)? {
                        break;
                    }
                }
                rank
            }
            rule => search(&mut krylov, rule, energy, noise)?.min(least),
        };
        let found = krylov.ritz(kept)?;
        // What the values found hold of the fourth powers, and the least that the others can.
        let all = found.all;
        let rest = (energy - all.iter().map(|s| s * s).sum::<f64>()).max(0.0);
        let others = least.saturating_sub(all.len()).max(1) as f64;
        let fourth = all.iter().map(|s| s.powi(4)).sum::<f64>() + rest * rest / others;
        Ok(Self {
            rows,
            cols,
            sigmas: found.sigmas,
            left: found.left,
            right: found.right,
            energy,
            fourth,
            noise,
        })
    }

    /// The most dimensions of the space that a rule may come to look at, of a matrix of that shape.
    #[must_use]
    pub fn space(rank: Rank, rows: usize, cols: usize) -> usize {
        let least = rows.min(cols);
        let asked = match rank {
            Rank::Fixed(rank) => {
                let (width, depth) = plan(rank.min(least));
                width.saturating_mul(depth)
            }
            rule => {
                let ample = rule.most().min(least).max(1).saturating_mul(AMPLE);
                ample.max(FIRST).saturating_add(WIDEST)
            }
        };
        asked.min(cols)
    }

    /// The number of singular triplets.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.sigmas.len()
    }

    /// Rows and columns of the matrix.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The singular values, largest first.
    #[must_use]
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// The squared Frobenius norm of the whole matrix.
    #[must_use]
    pub fn energy(&self) -> f64 {
        self.energy
    }

    /// What rounding to the dtypes of the files would leave.
    #[must_use]
    pub fn noise(&self) -> Noise {
        self.noise
    }

    /// The number of equal singular values that would spread the energy as far, `(sum of squares)^2 / sum of fourth powers`.
    /// Values that were not computed count as equal ones, so it is at most this.
    #[must_use]
    pub fn effective_rank(&self) -> f64 {
        if self.fourth > 0.0 {
            self.energy * self.energy / self.fourth
        } else {
            0.0
        }
    }

    /// Everything, as bytes that [`Self::from_bytes`] takes back: to go on from after a break, not to be kept.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let sizes = [self.rows, self.cols, self.rank()].map(|n| (n as u64).to_le_bytes());
        let numbers = [self.energy, self.fourth, self.noise.energy, self.noise.edge];
        let numbers = numbers.iter().chain(&self.sigmas).map(|x| x.to_le_bytes());
        let entries = self.left.data.iter().chain(&self.right.data);
        sizes
            .into_iter()
            .chain(numbers)
            .flatten()
            .chain(entries.flat_map(|x| x.to_le_bytes()))
            .collect()
    }

    /// What [`Self::to_bytes`] gave; none of other bytes.
    #[must_use]
    pub fn from_bytes(data: &[u8]) -> Option<Self> {
        let (words, _) = data.as_chunks::<8>();
        let size = |at: usize| usize::try_from(u64::from_le_bytes(*words.get(at)?)).ok();
        let (rows, cols, rank) = (size(0)?, size(1)?, size(2)?);
        let entries = rows.checked_add(cols)?.checked_mul(rank)?;
        let head = rank.checked_add(7)?.checked_mul(8)?;
        if head.checked_add(entries.checked_mul(4)?)? != data.len() {
            return None;
        }
        let numbers: Vec<f64> = words
            .get(3..rank + 7)?
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .collect();
        let (floats, _) = data.get(head..)?.as_chunks::<4>();
        let floats: Vec<f32> = floats.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (left, right) = floats.split_at_checked(rows * rank)?;
        let tall = |data: &[f32]| Tall {
            width: rank,
            data: data.to_vec(),
        };
        Some(Self {
            rows,
            cols,
            sigmas: numbers.get(4..)?.to_vec(),
            left: tall(left),
            right: tall(right),
            energy: *numbers.first()?,
            fourth: *numbers.get(1)?,
            noise: Noise {
                energy: *numbers.get(2)?,
                edge: *numbers.get(3)?,
            },
        })
    }

    /// The first `rank` triplets: the best approximation of that rank, as far as this decomposition is exact.
    #[must_use]
    pub fn truncated(&self, rank: usize) -> Self {
        let rank = rank.min(self.rank());
        Self {
            sigmas: self.sigmas[..rank].to_vec(),
            left: self.left.truncated(rank),
            right: self.right.truncated(rank),
            ..*self
        }
    }

    /// The left singular vectors (`rows x rank`) and the right ones (`rank x cols`), row after row, all of length one.
    #[must_use]
    pub fn vectors(&self) -> (Vec<f32>, Vec<f32>) {
        let rank = self.rank().max(1);
        let mut right = vec![0f32; self.right.data.len()];
        for (j, row) in self.right.data.chunks_exact(rank).enumerate() {
            for (k, (x, sigma)) in row.iter().zip(&self.sigmas).enumerate() {
                right[k * self.cols + j] = if *sigma > 0.0 {
                    crate::algebra::narrow(f64::from(*x) / sigma)
                } else {
                    0.0
                };
            }
        }
        (self.left.data.clone(), right)
    }

    /// `left` (`rows x rank`) and `right` (`rank x cols`), row after row, whose product is the approximation; each holds the
    /// root of the singular values, so that neither outgrows a narrow dtype.
    #[must_use]
    pub fn factors(&self) -> Factors {
        let roots: Vec<f32> = self
            .sigmas
            .iter()
            .map(|s| crate::algebra::narrow(s.sqrt()))
            .collect();
        let rank = self.rank();
        let left = self
            .left
            .data
            .chunks_exact(rank.max(1))
            .flat_map(|row| row.iter().zip(&roots).map(|(x, root)| x * root))
            .collect();
        let mut right = vec![0f32; self.right.data.len()];
        for (j, row) in self.right.data.chunks_exact(rank.max(1)).enumerate() {
            for (k, (x, root)) in row.iter().zip(&roots).enumerate() {
                right[k * self.cols + j] = if *root > 0.0 { x / root } else { 0.0 };
            }
        }
        Factors {
            rows: self.rows,
            cols: self.cols,
            rank,
            left,
            right,
        }
    }
}

/// Two factors whose product approximates a matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    /// Rows of the matrix.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
    /// Columns of the left factor and rows of the right one.
    pub rank: usize,
    /// `rows x rank`, row after row: LoRA's B.
    pub left: Vec<f32>,
    /// `rank x cols`, row after row: LoRA's A.
    pub right: Vec<f32>,
}

/// Width of the blocks and their number for a rank. Narrow blocks make a better space of as many dimensions, wide ones make
/// better use of the CPU; with these (`examples/against_torch.rs`) the error's excess over the optimum is some
/// ten-thousandths even where singular values decay slowly.
fn plan(rank: usize) -> (usize, usize) {
    match rank {
        0..=16 => (LINE, 5),
        17..=32 => (LINE, 7),
        33..=64 => (2 * LINE, 7),
        _ => ((rank / 4).next_multiple_of(LINE), 11),
    }
}

/// Grows the space until a rule's rank is known and the space is ample for it.
fn search<E: Engine>(
    krylov: &mut Krylov<E>,
    rule: Rank,
    energy: f64,
    noise: Noise,
) -> Result<usize, E::Error> {
    let mut goal = FIRST;
    loop {
        let mut whole = false;
        while krylov.width() < goal {
            let width = (krylov.width() / 4)
                .next_multiple_of(LINE)
                .clamp(LINE, WIDEST);
            if !krylov.extend(width)? {
                whole = true;
                break;
            }
        }
        let sigmas = krylov.sigmas()?;
        let found = rule.of(&sigmas, energy, noise);
        if whole {
            return Ok(found.unwrap_or(sigmas.len()));
        }
        // Values at the far end of the space are still too small: what they say is not the last word.
        let needed = found
            .map_or(rule.most(), |rank| rank.max(1))
            .min(rule.most());
        if krylov.width() >= AMPLE * needed {
            return Ok(found.unwrap_or(needed));
        }
        goal = (krylov.width() * 2).min((AMPLE * needed).next_multiple_of(LINE));
    }
}
