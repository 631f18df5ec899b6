//! Whether a low-rank prediction pays, of which rank, and how finely its factors are kept: all by what they cost.

use std::{collections::VecDeque, ops::Range};

use rayon::prelude::*;

use super::{
    LowRank, Quantised,
    gram::narrow,
    matrix,
    predict::{BFloat16, Factors, Float, Float16, Float32, Rounding},
    solve::{self, Intervals, Pair},
};
use crate::{
    CodecError, DType, Effort, TensorView, analysis::Analysis, predictor::Adjust, trainer,
};

/// Shorter sides than this are not worth factors.
const LEAST_SIDE: usize = 24;
/// Rows and columns of the block that the probe looks at, the dimensions that it takes away, and how much of the noise may
/// then be left: less than all, for the dimensions are those in which there is most.
const PROBE: (usize, usize) = (256, 256);
const PROBED: usize = 96;
const PROBE_LEFT: f64 = 0.8;
/// The same of a first glance, which knows adapters of small rank.
const GLANCE: (usize, usize) = (64, 64);
const GLANCED: usize = 32;
const GLANCE_LEFT: f64 = 0.9;
/// Matrices of a model that are looked at first, and of those that are no adapter's at a glance, those that are probed.
const GLANCES: usize = 8;
const PROBES: usize = 2;
/// Singular values that are found of the whole: more where few do not do.
const FOUND: [usize; 2] = [40, 88];
/// Steps of subspace iteration, and of the approach to the intervals by effort.
const PASSES: usize = 4;
const STEPS: usize = 60;
const STEPS_MAX: usize = 200;
const STEPS_ROUGH: usize = 20;
const STEPS_UNMERGE: usize = 400;
/// Share of weights outside their intervals at which an update counts as exactly low-rank, and at which it is good enough.
const EXACT: f64 = 0.04;
const GOAL: f64 = 0.0005;
/// Share after a few steps that no number of steps makes small.
const HOPELESS: f64 = 0.15;
/// Steps that fit the left factor to the quantised right one.
const REFITS: usize = 12;
/// Words by which costs are judged.
const JUDGED: usize = 1 << 17;

/// The update between two tensors.
struct Gap<'a, 'b> {
    analysis: &'b Analysis<'a>,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl<'a, 'b> Gap<'a, 'b> {
    fn new(analysis: &'b Analysis<'a>) -> Option<Self> {
        let target = &analysis.target;
        let (dtype, rows, cols) = matrix(target.dtype, target.shape, analysis.geometry.common)?;
        (analysis.base.is_some() && rows >= LEAST_SIDE && cols >= LEAST_SIDE).then_some(Self {
            analysis,
            dtype,
            rows,
            cols,
        })
    }

    fn elements(&self) -> f64 {
        self.rows as f64 * self.cols as f64
    }
}

impl Intervals for Gap<'_, '_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(
        &self,
        rows: Range<usize>,
        middle: &mut [f32],
        half: &mut [f32],
    ) -> Result<(), CodecError> {
        self.read_words(rows.start * self.cols..rows.end * self.cols, middle, half)
    }
}

impl Gap<'_, '_> {
    fn read_words(
        &self,
        words: Range<usize>,
        middle: &mut [f32],
        half: &mut [f32],
    ) -> Result<(), CodecError> {
        let base = self.analysis.base_words(words.clone())?;
        let width = self.analysis.geometry.width;
        let target = self
            .analysis
            .target
            .data
            .get(words.start * width..words.end * width)
            .unwrap_or_default();
        match self.dtype {
            DType::BF16 => intervals::<2, BFloat16>(target, &base, 256.0, middle, half),
            DType::F16 => intervals::<2, Float16>(target, &base, 2048.0, middle, half),
            _ => intervals::<4, Float32>(target, &base, 16_777_216.0, middle, half),
        }
        Ok(())
    }
}

/// `parts`: halves of the unit in the last place in the leading bit's value.
fn intervals<const W: usize, F: Float>(
    target: &[u8],
    base: &[u8],
    parts: f32,
    middle: &mut [f32],
    half: &mut [f32],
) {
    // Fixed lengths, read at once: the compiler can use vectors.
    let word = |w: &[u8; W]| match *w.as_slice() {
        [a, b] => u32::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    let pairs = target
        .as_chunks::<W>()
        .0
        .iter()
        .zip(base.as_chunks::<W>().0);
    for (((t, b), middle), half) in pairs.zip(middle).zip(half) {
        let (t, b) = (F::value(word(t)), F::value(word(b)));
        let d = t - b;
        let exponent = (t.to_bits() >> 23 & 0xff).max(F::SMALLEST);
        let h = f32::from_bits(exponent << 23) * (1.0 / parts);
        let known = d.is_finite();
        *middle = if known { d } else { 0.0 };
        *half = if known { h } else { f32::INFINITY };
    }
}

/// Some rows and columns of a gap.
struct Block {
    cols: usize,
    middle: Vec<f32>,
    half: Vec<f32>,
}

/// Neighbouring columns that a block takes together.
const TOGETHER: usize = 16;

impl Block {
    /// Of so many rows and columns, spread evenly, or of fewer where there are no more.
    fn of(gap: &Gap<'_, '_>, (rows, cols): (usize, usize)) -> Result<Self, CodecError> {
        let (rows, cols) = (gap.rows.min(rows), gap.cols.min(cols));
        let mut this = Self {
            cols,
            middle: vec![0.0; rows * cols],
            half: vec![0.0; rows * cols],
        };
        for i in 0..rows {
            let row = i * gap.rows / rows * gap.cols;
            for j in (0..cols).step_by(TOGETHER) {
                let n = TOGETHER.min(cols - j);
                let from = row + (j * gap.cols / cols).min(gap.cols - n);
                let at = i * cols + j;
                gap.read_words(
                    from..from + n,
                    &mut this.middle[at..at + n],
                    &mut this.half[at..at + n],
                )?;
            }
        }
        Ok(this)
    }

    /// Squares of the middles, and of what intervals' uniform noise would be.
    fn energies(&self) -> (f64, f64) {
        let pairs = self.middle.iter().zip(&self.half);
        pairs
            .filter(|(_, half)| half.is_finite())
            .fold((0.0, 0.0), |(energy, noise), (m, h)| {
                (
                    energy + f64::from(*m) * f64::from(*m),
                    noise + f64::from(*h) * f64::from(*h) / 3.0,
                )
            })
    }
}

impl Intervals for Block {
    fn rows(&self) -> usize {
        self.middle.len() / self.cols.max(1)
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read(
        &self,
        rows: Range<usize>,
        middle: &mut [f32],
        half: &mut [f32],
    ) -> Result<(), CodecError> {
        let range = rows.start * self.cols..rows.end * self.cols;
        middle.copy_from_slice(&self.middle[range.clone()]);
        half.copy_from_slice(&self.half[range]);
        Ok(())
    }
}

/// What a block of a matrix says about the update.
struct Glance {
    /// Squares of the middles.
    energy: f64,
    /// Rounding mostly swallowed the update: it says nothing.
    swallowed: bool,
    /// Little but noise is left beside few dimensions.
    near: bool,
}

impl Glance {
    fn of(
        gap: &Gap<'_, '_>,
        size: (usize, usize),
        dimensions: usize,
        most: f64,
    ) -> Result<Self, CodecError> {
        let block = Block::of(gap, size)?;
        let (energy, noise) = block.energies();
        if energy <= 2.0 * noise {
            return Ok(Self {
                energy,
                swallowed: true,
                near: false,
            });
        }
        let dimensions = dimensions.min(block.rows() / 2).min(block.cols() / 2);
        let left = solve::remainder(&block, dimensions)?;
        // Dimensions that are taken away take their share of the noise with them.
        let share = |side: usize| 1.0 - dimensions as f64 / side as f64;
        let noise = noise * share(block.rows()) * share(block.cols());
        Ok(Self {
            energy,
            swallowed: false,
            near: left < most * noise + UNSEEN_ENERGY * energy,
        })
    }
}

/// Whether it is worth asking of each matrix of a model if its update is low-rank but for rounding. Adapters are merged into
/// many matrices of a model, so a few tell.
pub(crate) fn promising(analyses: &[Analysis<'_>]) -> Result<bool, CodecError> {
    let gaps: Vec<Gap<'_, '_>> = analyses
        .iter()
        .filter(|a| matches!(a.predictor.adjust, Adjust::None))
        .filter_map(Gap::new)
        .collect();
    let count = gaps.len();
    // In an order that jumps about, so that all layers and kinds of matrices have their turn.
    let step = (count * 5 / 8..).find(|step| gcd(*step, count) == 1);
    let order: Vec<_> = (0..count)
        .map(|place| &gaps[place * step.unwrap_or(1) % count])
        .collect();
    let (mut near, mut far) = (0, Vec::new());
    let (mut at, mut next) = (0, GLANCES / 2);
    while at < count {
        // As many together as it takes in any case, then one after another.
        let some = &order[at..count.min(at + next)];
        let glances = some
            .par_iter()
            .map(|gap| Glance::of(gap, GLANCE, GLANCED, GLANCE_LEFT))
            .collect::<Result<Vec<_>, CodecError>>()?;
        for (gap, glance) in some.iter().zip(glances) {
            if glance.near {
                near += 1;
            } else if !glance.swallowed {
                far.push(*gap);
            }
        }
        (at, next) = (at + some.len(), 1);
        // No more than it takes to know which are more.
        if near + far.len() >= GLANCES || 2 * near >= GLANCES || 2 * far.len() > GLANCES {
            break;
        }
    }
    if near >= far.len() {
        return Ok(near > 0);
    }
    // Of large rank, perhaps.
    for gap in far.iter().take(PROBES) {
        if !Glance::of(gap, PROBE, PROBED, PROBE_LEFT)?.near {
            return Ok(false);
        }
    }
    Ok(true)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The largest singular value that rounding noise alone has (the edge of Marchenko and Pastur's law).
fn edge(noise: f64, rows: usize, cols: usize) -> f64 {
    let elements = (rows * cols).max(1) as f64;
    (noise / elements).sqrt() * ((rows as f64).sqrt() + (cols as f64).sqrt())
}

/// Parts of a spectrum and of its energy that sums in `f32` cannot tell from nothing.
const UNSEEN: f64 = 3e-6;
const UNSEEN_ENERGY: f64 = 1e-5;

/// The rank above the noise, where little but noise is left beside it.
fn exact_rank(spectrum: &solve::Spectrum, rows: usize, cols: usize) -> Option<usize> {
    let first = spectrum.sigmas.first().copied().unwrap_or(0.0);
    let edge = edge(spectrum.noise, rows, cols).max(UNSEEN * first);
    let rank = spectrum.sigmas.iter().filter(|s| **s > 1.1 * edge).count();
    let explained: f64 = spectrum.sigmas.iter().take(rank).map(|s| s * s).sum();
    let left = spectrum.energy - explained;
    (rank > 0
        && rank + 4 < spectrum.sigmas.len()
        && left < 1.5 * spectrum.noise + UNSEEN_ENERGY * spectrum.energy)
        .then_some(rank)
}

/// The ranks worth trying for an update that is exactly low-rank but for rounding: those above the noise, and where the
/// spectrum falls most.
fn ranks(spectrum: &solve::Spectrum, edge_rank: usize) -> Vec<usize> {
    let fall = |i: usize| spectrum.sigmas[i] / spectrum.sigmas[i + 1].max(f64::MIN_POSITIVE);
    let gap = (0..spectrum.sigmas.len().saturating_sub(5))
        .max_by(|a, b| fall(*a).total_cmp(&fall(*b)))
        .map_or(edge_rank, |i| i + 1);
    let mut ranks = vec![gap, edge_rank];
    ranks.dedup();
    ranks
}

/// A candidate and what it costs in bits, the whole tensor included.
struct Candidate {
    low_rank: LowRank,
    cost: f64,
}

/// Bits of the tensor's residual with a prediction (or with the base alone), estimated by a sample of its rows.
fn residual(
    analysis: &Analysis<'_>,
    low_rank: Option<&LowRank>,
    effort: Effort,
) -> Result<f64, CodecError> {
    let analysis = Analysis::new(analysis.target, analysis.base, low_rank)?;
    let sample = analysis.sample(JUDGED, effort, &|_| ())?;
    let counted = f64::from(sample.weight);
    let rows = sample.rows.len() as f64 * counted / analysis.geometry.rows().max(1) as f64;
    Ok(trainer::estimate(&sample, analysis.geometry.width) / rows.max(f64::MIN_POSITIVE))
}

struct Fitting<'a, 'b> {
    gap: Gap<'a, 'b>,
    noise: f64,
    effort: Effort,
}

impl Fitting<'_, '_> {
    /// The factors rounded so that they err by about `error` units of the last place.
    fn quantise(
        &self,
        pair: &Pair,
        sigmas: &[f64],
        error: f64,
        refit: usize,
    ) -> Result<Option<Quantised>, CodecError> {
        let (rows, cols, rank) = (self.gap.rows, self.gap.cols, pair.rank);
        let r = rank as f64;
        let unit = (12.0 * self.noise / self.gap.elements()).sqrt();
        let step = error * unit * 12f64.sqrt() / (r / rows as f64 + r / cols as f64).sqrt();
        if !(step.is_finite() && step > 0.0) {
            return Ok(None);
        }
        let sigmas: Vec<f64> = sigmas.iter().take(rank).map(|s| s.max(step)).collect();
        let steps: Vec<f32> = sigmas.iter().map(|s| narrow(step * step / s)).collect();
        if !steps.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Ok(None);
        }
        let limit = f64::from(1u32 << 22) - 1.0;
        let mut right = Vec::with_capacity(rank * cols);
        for row in pair.right.chunks_exact(cols) {
            right.extend(
                row.iter()
                    .map(|v| (f64::from(*v) / step).clamp(-limit, limit).round()),
            );
        }
        let right_dense: Vec<f32> = right.iter().map(|v| narrow(*v)).collect();
        // left x right = left' x right', the left one in multiples of the steps.
        let mut left: Vec<f32> = pair
            .left
            .chunks_exact(rank)
            .flat_map(|row| row.iter().map(|u| narrow(f64::from(*u) * step)))
            .collect();
        if refit > 0 {
            let start = Pair {
                rank,
                left,
                right: right_dense,
            };
            left = solve::refit(&self.gap, start, refit)?.left;
        }
        let mut columns = vec![0i32; rank * rows];
        for (i, row) in left.chunks_exact(rank).enumerate() {
            for (k, u) in row.iter().enumerate() {
                columns[k * rows + i] =
                    integer((f64::from(*u) / f64::from(steps[k])).clamp(-limit, limit));
            }
        }
        Ok(Some(Quantised {
            rows,
            cols,
            steps,
            left: columns,
            right: right.into_iter().map(integer).collect(),
        }))
    }

    fn judge(&self, quantised: Option<Quantised>) -> Result<Option<Candidate>, CodecError> {
        let Some(quantised) = quantised else {
            return Ok(None);
        };
        let low_rank = quantised.to_low_rank();
        let cost = low_rank.size() as f64 * 8.0
            + residual(self.gap.analysis, Some(&low_rank), self.effort)?;
        Ok(Some(Candidate { low_rank, cost }))
    }

    /// The precision of the factors that costs least, sought from `error` by steps of half an octave.
    fn best(&self, pair: &Pair, error: f64, refit: usize) -> Result<Option<Candidate>, CodecError> {
        let (pair, sigmas) = solve::singular(pair);
        let trial = |error: f64| self.judge(self.quantise(&pair, &sigmas, error, 0)?);
        let Some(mut best) = trial(error)? else {
            return Ok(None);
        };
        let mut at = error;
        for factor in [std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::SQRT_2] {
            let start = at;
            for _ in 0..8 {
                match trial(at * factor)? {
                    Some(other) if other.cost < best.cost => (best, at) = (other, at * factor),
                    _ => break,
                }
            }
            if at != start {
                break;
            }
        }
        if refit > 0 {
            // A fitted factor makes up for a coarser one.
            for error in [at, at * std::f64::consts::SQRT_2, at * 2.0] {
                match self.judge(self.quantise(&pair, &sigmas, error, refit)?)? {
                    Some(other) if other.cost < best.cost => best = other,
                    _ if error > at => break,
                    _ => (),
                }
            }
        }
        Ok(Some(best))
    }
}

/// The candidate that costs least, where it costs less than none.
pub(crate) fn cheapest(
    analysis: &Analysis<'_>,
    candidates: &[LowRank],
    effort: Effort,
) -> Result<Option<LowRank>, CodecError> {
    if candidates.is_empty() {
        return Ok(None);
    }
    let mut best = None;
    let mut least = residual(analysis, None, effort)?;
    for candidate in candidates {
        let left = match residual(analysis, Some(candidate), effort) {
            // Of too large a rank for this tensor: no header can hold it.
            Err(CodecError::Corrupt { .. }) => continue,
            other => other?,
        };
        let cost = candidate.size() as f64 * 8.0 + left;
        if cost < least {
            (best, least) = (Some(candidate), cost);
        }
    }
    Ok(best.cloned())
}

/// The low-rank prediction of a tensor, where one pays.
pub(crate) fn fit(analysis: &Analysis<'_>, effort: Effort) -> Result<Option<LowRank>, CodecError> {
    let Some(gap) = Gap::new(analysis)
        .filter(|_| effort != Effort::Fast && matches!(analysis.predictor.adjust, Adjust::None))
    else {
        return Ok(None);
    };
    let (rows, cols) = (gap.rows, gap.cols);
    let Glance { energy, near, .. } = Glance::of(&gap, PROBE, PROBED, PROBE_LEFT)?;
    if energy == 0.0 || (!near && effort != Effort::Max) {
        return Ok(None);
    }
    let (mut spectrum, mut exact) = (solve::spectrum(&gap, FOUND[0], PASSES)?, None);
    if near {
        exact = exact_rank(&spectrum, rows, cols);
        if exact.is_none() && rows.min(cols) > 2 * FOUND[1] {
            let more = solve::spectrum(&gap, FOUND[1], PASSES)?;
            exact = exact_rank(&more, rows, cols);
            if exact.is_some() {
                spectrum = more;
            }
        }
    }
    let fitting = Fitting {
        gap,
        noise: spectrum.noise,
        effort,
    };
    let mut best: Option<Candidate> = None;
    let better = |best: &mut Option<Candidate>, other: Option<Candidate>| -> bool {
        let won = match (&best, &other) {
            (Some(b), Some(o)) => o.cost < b.cost,
            (None, Some(_)) => true,
            _ => false,
        };
        if won {
            *best = other;
        }
        won
    };
    if let Some(rank) = exact {
        let steps = if effort == Effort::Max {
            STEPS_MAX
        } else {
            STEPS
        };
        for rank in ranks(&spectrum, rank) {
            let (pair, outside) =
                solve::approach(&fitting.gap, spectrum.pair.truncated(rank), steps, GOAL)?;
            better(&mut best, fitting.best(&pair, 0.03, REFITS)?);
            if outside <= EXACT {
                break;
            }
        }
    }
    if best.is_none() && effort == Effort::Max {
        let mut rank = 16;
        let try_rank = |rank: usize| -> Result<Option<Candidate>, CodecError> {
            if rank + 4 > spectrum.sigmas.len() {
                return Ok(None);
            }
            let (pair, _) = solve::approach(
                &fitting.gap,
                spectrum.pair.truncated(rank),
                STEPS_ROUGH,
                GOAL,
            )?;
            fitting.best(&pair, 0.25, 0)
        };
        better(&mut best, try_rank(rank)?);
        while better(&mut best, try_rank(rank + 8)?) {
            rank += 8;
        }
        if rank == 16 {
            for rank in [8, 4] {
                if !better(&mut best, try_rank(rank)?) {
                    break;
                }
            }
        }
    }
    let without = residual(analysis, None, effort)?;
    Ok(best.filter(|b| b.cost < 0.99 * without).map(|b| b.low_rank))
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to 22 bits")]
fn integer(x: f64) -> i32 {
    x.round() as i32
}

/// An adapter found in a merged model: `base + left x right`, rounded once, is (nearly) the merged tensor.
#[derive(Clone, Debug)]
pub struct Unmerged {
    /// The adapter's rank.
    pub rank: usize,
    /// LoRA's B, scale included: `rows x rank`, row after row.
    pub left: Vec<f32>,
    /// LoRA's A, `rank x columns`, row after row.
    pub right: Vec<f32>,
    /// Weights that merging gives exactly, and weights in all.
    pub exact: (u64, u64),
}

/// The adapter that was merged into `base` to give `target`; `None` where the update is not of low rank but for rounding.
/// Rows are the first dimension, columns all the others.
///
/// # Errors
/// Data that does not have the length dtype and shape ask for.
pub fn unmerge(
    target: TensorView<'_>,
    base: TensorView<'_>,
) -> Result<Option<Unmerged>, CodecError> {
    let analysis = Analysis::new(target, Some(base), None)?;
    let whole = analysis.geometry.common == analysis.geometry.words;
    let Some(gap) = Gap::new(&analysis).filter(|_| whole) else {
        return Ok(None);
    };
    let (rows, cols) = (gap.rows, gap.cols);
    let mut spectrum = solve::spectrum(&gap, FOUND[0], 2 * PASSES)?;
    let mut rank = exact_rank(&spectrum, rows, cols);
    if rank.is_none() && rows.min(cols) > 2 * FOUND[1] {
        spectrum = solve::spectrum(&gap, FOUND[1], 2 * PASSES)?;
        rank = exact_rank(&spectrum, rows, cols);
    }
    let Some(rank) = rank else { return Ok(None) };
    let mut best: Option<(Pair, f64)> = None;
    let mut tried = Vec::new();
    let mut ranks = VecDeque::from(ranks(&spectrum, rank));
    while let Some(rank) = ranks.pop_front() {
        if tried.contains(&rank) || rank == 0 || rank > spectrum.sigmas.len() {
            continue;
        }
        tried.push(rank);
        let start = spectrum.pair.truncated(rank);
        let (start, outside) = solve::approach(&gap, start, STEPS_ROUGH, 0.0)?;
        if outside > HOPELESS {
            continue;
        }
        let found = solve::approach(&gap, start, STEPS_UNMERGE, 0.0)?;
        if best.as_ref().is_none_or(|b| found.1 < b.1) {
            best = Some(found);
            // Noise may hide a dimension, or look like one.
            ranks.extend([rank + 1, rank - 1]);
        }
        if best.as_ref().is_some_and(|b| b.1 < 4.0 * GOAL) {
            break;
        }
    }
    let Some((pair, _)) = best.filter(|(_, outside)| *outside <= EXACT) else {
        return Ok(None);
    };
    let (mut pair, sigmas) = solve::singular(&pair);
    // Both factors get the root of the singular value.
    let roots: Vec<f32> = sigmas.iter().map(|s| narrow(s.sqrt())).collect();
    for row in pair.left.chunks_exact_mut(pair.rank) {
        row.iter_mut().zip(&roots).for_each(|(u, root)| *u *= root);
    }
    for (row, root) in pair.right.chunks_exact_mut(cols).zip(&roots) {
        if *root > 0.0 {
            row.iter_mut().for_each(|v| *v /= root);
        }
    }
    let factors = Factors::new(pair.left.clone(), &pair.right, pair.rank, cols, 1.0);
    let part = (1 << 18) / cols + 1;
    let exact = (0..rows.div_ceil(part))
        .into_par_iter()
        .map(|p| {
            let words = p * part * cols..rows.min((p + 1) * part) * cols;
            let mut merged = analysis.base_words(words.clone())?.into_owned();
            factors.apply(
                gap.dtype,
                Rounding::Once,
                words.start,
                &mut merged,
                &mut Vec::new(),
            );
            let width = analysis.geometry.width;
            let target = &target.data[words.start * width..words.end * width];
            let pairs = merged.chunks_exact(width).zip(target.chunks_exact(width));
            Ok(pairs.map(|(a, b)| u64::from(a == b)).sum::<u64>())
        })
        .sum::<Result<u64, CodecError>>()?;
    Ok(Some(Unmerged {
        rank: pair.rank,
        left: pair.left,
        right: pair.right,
        exact: (exact, (rows * cols) as u64),
    }))
}
