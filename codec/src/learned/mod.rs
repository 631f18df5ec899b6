//! Blocks in which few words changed, coded word by word with chances that learn from the words before: whether a word
//! changed, by how much, and which way. Smaller than strips, and slow. Nothing of it is in the tensor's header.

mod mix;
mod subspace;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::{
    CodecError, DType,
    bits::{put_varint, take_bytes, take_size},
    context::Exponent,
    error::corrupt,
    patches,
    rc::{Coder, Decoder, Encoder},
    strip::moved,
    word::{bits, difference, load, order, store},
};
use mix::Mixer;
use subspace::Subspace;

/// Words to each changed one, at least.
const FEW: usize = 4;
/// The longest row.
const LONGEST: usize = 1 << 14;
/// Changes that are not worth a class of exponents.
const LONE: usize = 2;

/// Exponents that are told apart, from the largest down.
const LEVELS: usize = 48;
/// How densely a row, a column, or both together change: classes.
const DENSITIES: usize = 24;
/// What is expected of an update: classes.
const SIZES: usize = 16;
/// Decisions of a magnitude: one for each bit length, seven for the bits after the leading one.
const LENGTHS: usize = 64;
const STEPS: usize = LENGTHS + 8;
/// Kinds of mantissas: zero, else by the top two bits.
const MANTISSAS: usize = 5;
/// Certainty of a sign: classes.
const CERTAIN: usize = 17;

/// What coding needs to know of the tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    exponent: Exponent,
    /// Bits of mantissas; 0 where words are no floats.
    mantissa: u32,
    float: bool,
    /// Words of a row.
    row: usize,
}

impl Plan {
    pub(crate) fn new(dtype: Option<DType>, row: usize) -> Self {
        Self {
            exponent: Exponent::of(dtype),
            mantissa: dtype.and_then(DType::layout).map_or(0, |l| l.mantissa),
            float: dtype.is_some_and(DType::is_float),
            row,
        }
    }

    /// The kind of a prediction's mantissa.
    fn kind(self, word: u64) -> usize {
        if self.mantissa < 2 || word & ((1 << self.mantissa) - 1) == 0 {
            return 0;
        }
        1 + usize::try_from(word >> (self.mantissa - 2) & 3).unwrap_or(0)
    }
}

/// Appends the block of the words `words`; `target` and `prediction` hold just these. False, where too many changed: then nothing is
/// appended.
pub(crate) fn encode<const W: usize>(
    plan: Plan,
    words: Range<usize>,
    target: &[u8],
    prediction: &[u8],
    out: &mut Vec<u8>,
) -> bool {
    if !(1..=LONGEST).contains(&plan.row) {
        return false;
    }
    let mut moves = vec![0; words.len()];
    let mut by_exponent = vec![0; 1 << 11];
    let mut changed = 0;
    for (i, d) in moves.iter_mut().enumerate() {
        let (t, p) = (load::<W>(target, i), load::<W>(prediction, i));
        if t != p {
            *d = difference::<W>(order::<W>(t, plan.float), order::<W>(p, plan.float));
            changed += 1;
            by_exponent[usize::try_from(plan.exponent.field(p)).unwrap_or(0) & 2047] += 1;
        }
    }
    if changed * FEW > words.len() {
        return false;
    }
    // Exponents are left out from the top, as long as hardly a word that has them changed.
    let mut above = 0;
    let kept = by_exponent.iter().rposition(|n| {
        above += n;
        above > LONE
    });
    let end = kept.map_or(1, |e| e + 1);
    let limit = i32::try_from(end).unwrap_or(i32::MAX);
    let patched: Vec<patches::Patch> = (0u32..)
        .zip(&moves)
        .enumerate()
        .filter(|(i, (_, d))| **d != 0 && plan.exponent.field(load::<W>(prediction, *i)) >= limit)
        .map(|(_, (at, d))| (at, *d))
        .collect();
    put_varint(out, end as u64);
    let mut side = Vec::new();
    patches::put(&patched, words.len(), &mut side);
    put_varint(out, side.len() as u64);
    out.extend_from_slice(&side);
    let mut coder = Encoder::new();
    let mut model = Model::new(plan, words.len());
    let _infallible = model.code::<W, _>(&mut coder, words.start, limit, prediction, &mut moves);
    out.extend_from_slice(&coder.finish());
    true
}

/// Decodes a block of the words `words` into `out`; `prediction` holds just these.
pub(crate) fn decode<const W: usize>(
    plan: Plan,
    words: Range<usize>,
    mut data: &[u8],
    prediction: &[u8],
    out: &mut [u8],
) -> Result<(), CodecError> {
    if !(1..=LONGEST).contains(&plan.row) {
        return Err(corrupt("rows are too long to learn from"));
    }
    let limit = i32::try_from(take_size(&mut data, 1 << 11)?).unwrap_or(0);
    let left = data.len();
    let length = take_size(&mut data, left)?;
    let patched = take_bytes(&mut data, length)?;
    let mut moves = vec![0; words.len()];
    let mut coder = Decoder::new(data);
    let mut model = Model::new(plan, words.len());
    model.code::<W, _>(&mut coder, words.start, limit, prediction, &mut moves)?;
    if !coder.is_spent() {
        return Err(corrupt("bytes follow the last word"));
    }
    for (i, d) in moves.iter().enumerate() {
        let p = load::<W>(prediction, i);
        store::<W>(out, i, moved::<W>(p, *d, plan.float));
    }
    patches::take(patched, words.len(), |i, d| {
        let p = load::<W>(prediction, i);
        store::<W>(out, i, moved::<W>(p, d, plan.float));
    })
}

/// Changes among some words, and how many were to be expected; in 65536ths.
#[derive(Clone, Copy, Default)]
struct Density {
    changed: u64,
    expected: u64,
}

impl Density {
    /// Words that weigh as much as what is known beforehand.
    const PRIOR: u64 = 4 << 16;

    fn add(&mut self, changed: bool, expected: u32) {
        self.changed += u64::from(changed) << 16;
        self.expected += u64::from(expected);
    }

    /// How much denser than expected, in sixteenths of an octave.
    fn excess(self) -> i32 {
        sixteenths(self.changed + Self::PRIOR) - sixteenths(self.expected + Self::PRIOR)
    }
}

/// log2 in sixteenths, straight between powers of two. `x` is at least 16.
fn sixteenths(x: u64) -> i32 {
    let top = x.ilog2().max(4);
    let part = i32::try_from(x >> (top - 4) & 15).unwrap_or(0);
    i32::try_from(top).unwrap_or(0) * 16 + part
}

/// A class among [`DENSITIES`], each `width` sixteenths of an octave.
fn density(excess: i32, width: i32) -> usize {
    let half = 12;
    usize::try_from(excess.div_euclid(width).clamp(-half, half - 1) + half).unwrap_or(0)
}

/// A class of what is not negative: `x` rounded down, at most `last`. What is no number is 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates"
)]
fn class(x: f64, last: usize) -> usize {
    (x as usize).min(last)
}

/// All that learns.
struct Model {
    plan: Plan,
    change: Mixer<6>,
    size: Mixer<3>,
    sign: Mixer<4>,
    subspace: Subspace,
    columns: Vec<Density>,
    /// Sum and number of the updates seen, in units of the last place of the largest exponent coded.
    sum: f64,
    count: f64,
}

impl Model {
    fn new(plan: Plan, words: usize) -> Self {
        let columns = plan.row.min(words);
        Self {
            plan,
            change: Mixer::new([
                LEVELS,
                LEVELS * MANTISSAS,
                LEVELS * DENSITIES,
                LEVELS * DENSITIES,
                LEVELS * SIZES,
                LEVELS * DENSITIES * SIZES,
            ]),
            size: Mixer::new([
                LEVELS * STEPS + LENGTHS * 8,
                LEVELS * DENSITIES * STEPS,
                LEVELS * SIZES * STEPS,
            ]),
            sign: Mixer::new([CERTAIN, CERTAIN * 6, CERTAIN, CERTAIN * 4]),
            subspace: Subspace::new(columns),
            columns: vec![Density::default(); columns],
            sum: 0.0,
            count: 0.0,
        }
    }

    /// Codes what the words that begin with `first` differ by from their predictions, but those of exponents of `limit` and more.
    fn code<const W: usize, C: Coder>(
        &mut self,
        coder: &mut C,
        first: usize,
        limit: i32,
        prediction: &[u8],
        moves: &mut [i64],
    ) -> Result<(), CodecError> {
        let plan = self.plan;
        let most = moves.len() / FEW;
        let mut changes = 0;
        // A block may begin within a row; of one row it has columns of its own.
        let skipped = first % plan.row;
        let mut left = plan.row - skipped;
        let mut column = if plan.row > moves.len() { 0 } else { skipped };
        let mut row = Density::default();
        let mut before = 0;
        for (i, d) in moves.iter_mut().enumerate() {
            if left == 0 {
                self.subspace.end_row();
                before = (row.excess() + before) >> 1;
                row = Density::default();
                (column, left) = (0, plan.row);
            }
            left -= 1;
            let at = column;
            column += 1;
            let word = load::<W>(prediction, i);
            let level = limit - 1 - plan.exponent.field(word);
            let Ok(level) = usize::try_from(level) else {
                continue;
            };
            let level = level.min(LEVELS - 1);
            let expected = self.subspace.expected(at);
            let size = class(expected.abs() * 10.0, SIZES - 1);
            let (across, down) = (row.excess() + (before >> 1), self.columns[at].excess());
            let both = level * DENSITIES + density(across + down, 4);
            let chance = self.change.expected(level);
            let contexts = [
                level,
                level * MANTISSAS + plan.kind(word),
                level * DENSITIES + density(across, 3),
                level * DENSITIES + density(down, 3),
                level * SIZES + size,
                both * SIZES + size,
            ];
            let changed = self.change.code(coder, contexts, *d != 0)?;
            row.add(changed, chance);
            self.columns[at].add(changed, chance);
            if !changed {
                continue;
            }
            changes += 1;
            if changes > most {
                return Err(corrupt("too many words changed"));
            }
            let magnitude = self.magnitude::<W, C>(
                coder,
                level,
                [both, level * SIZES + size],
                d.unsigned_abs(),
            )?;
            let negative = self.sign(coder, at, expected, (magnitude, level), *d < 0)?;
            let size = magnitude.cast_signed();
            *d = if negative { size.wrapping_neg() } else { size };
        }
        Ok(())
    }

    /// A magnitude other than zero: its bit length in unary, then the bits below the leading one, of which three have chances.
    fn magnitude<const W: usize, C: Coder>(
        &mut self,
        coder: &mut C,
        level: usize,
        [both, size]: [usize; 2],
        magnitude: u64,
    ) -> Result<u64, CodecError> {
        let most = bits::<W>() - 1;
        let length = 63 - magnitude.max(1).leading_zeros();
        let mut n = 0;
        while n < most {
            let step = usize::try_from(n).unwrap_or(0) & (LENGTHS - 1);
            let contexts = [
                level * STEPS + step,
                both * STEPS + step,
                size * STEPS + step,
            ];
            if !self.size.code(coder, contexts, length > n)? {
                break;
            }
            n += 1;
        }
        let mut value = 1u64;
        for bit in (0..n).rev() {
            let wanted = magnitude >> bit & 1 == 1;
            let read = if n - bit <= 3 {
                let step = usize::try_from(value).unwrap_or(0) & 7;
                let lengths = LEVELS * STEPS + usize::try_from(n).unwrap_or(0) * 8;
                let contexts = [
                    lengths + step,
                    both * STEPS + LENGTHS + step,
                    size * STEPS + LENGTHS + step,
                ];
                self.size.code(coder, contexts, wanted)?
            } else {
                coder.chance(1 << 15, wanted)?
            };
            value = value << 1 | u64::from(read);
        }
        Ok(value)
    }

    /// Whether a change is negative; all that expects updates learns from it.
    fn sign<C: Coder>(
        &mut self,
        coder: &mut C,
        column: usize,
        expected: f64,
        (magnitude, level): (u64, usize),
        negative: bool,
    ) -> Result<bool, CodecError> {
        let update = magnitude as f64 / (1u64 << level) as f64;
        let mean = if self.count > 0.0 {
            self.sum / self.count
        } else {
            update
        };
        self.sum += update.min(4.0 * mean);
        self.count += 1.0;
        let size = update / mean;
        let octave = [0.25, 0.5, 1.0, 2.0, 4.0]
            .iter()
            .filter(|bound| size >= **bound)
            .count();
        let size = size.min(3.0);
        let gain = self.subspace.gain(column);
        let certain = class(expected.abs() / gain.spread.sqrt() * 6.0 + 0.5, CERTAIN - 1);
        let loud = class(expected.abs() * size * 8.0 + 0.5, CERTAIN - 1);
        let spread = [3.0, 4.0, 6.0]
            .iter()
            .filter(|bound| gain.spread >= **bound)
            .count();
        let contexts = [certain, certain * 6 + octave, loud, loud * 4 + spread];
        let down = expected < 0.0;
        let negative = self.sign.code(coder, contexts, negative != down)? != down;
        let value = size.sqrt();
        let value = if negative { -value } else { value };
        self.subspace.learn(column, value, expected, &gain);
        Ok(negative)
    }
}
