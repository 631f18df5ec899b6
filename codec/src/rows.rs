//! What the encoder finds out about each row: how its exponents and changes are distributed, and the scale that makes it smallest.

use crate::{
    context::Exponent,
    scales::{self, Model, UNCHANGED},
    token::token,
    train::{Histogram, Lengths},
    word::{difference, load, order},
};

/// Changes of a row that its scale is chosen by; more are thinned out evenly.
const CHANGES: usize = 384;
/// Steps around the first guess that are tried at most.
const REACH: i32 = 10;

/// Exponents and changes of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Exponents with the number of unchanged words of each.
    same: Vec<(u16, u32)>,
    /// Exponent and token of the changed words, perhaps thinned out.
    changes: Vec<(u16, u8)>,
    /// Changed words for each in `changes`.
    weight: u32,
    /// The scale by the mean update.
    pub(crate) mean: i16,
}

/// Buffers of [`Row::fill`].
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    count: Vec<u32>,
    changed: Vec<u32>,
    sum: Vec<u64>,
    all: Vec<(u16, u8)>,
}

impl Counter {
    pub(crate) fn new() -> Self {
        Self {
            count: vec![0; 2048],
            changed: vec![0; 2048],
            sum: vec![0; 2048],
            all: Vec::new(),
        }
    }
}

impl Row {
    /// Measures a row. Returns false where nothing changed.
    pub(crate) fn fill<const W: usize>(
        &mut self,
        target: &[u8],
        prediction: &[u8],
        exponent: Exponent,
        mantissa: u32,
        float: bool,
        counter: &mut Counter,
    ) -> bool {
        self.same.clear();
        self.changes.clear();
        self.weight = 1;
        self.mean = UNCHANGED;
        if target == prediction {
            return false;
        }
        let words = target.len() / W;
        // An update larger than the weight itself says little in units of its last place.
        let cap = if float { 1u64 << mantissa } else { 1 << 40 };
        let Counter {
            count,
            changed,
            sum,
            all,
        } = counter;
        all.clear();
        let (mut lowest, mut highest) = (2047usize, 0usize);
        for i in 0..words {
            let (t, p) = (load::<W>(target, i), load::<W>(prediction, i));
            let e = exponent.field(p);
            let at = usize::try_from(e).unwrap_or(0) & 2047;
            lowest = lowest.min(at);
            highest = highest.max(at);
            count[at] += 1;
            if t != p {
                let d = difference::<W>(order::<W>(t, float), order::<W>(p, float));
                changed[at] += 1;
                if !exponent.is_top(p) {
                    sum[at] += d.unsigned_abs().min(cap);
                }
                all.push((u16::try_from(e).unwrap_or(0), token::<W>(d)));
            }
        }
        let mut mean = 0f64;
        for e in lowest..=highest.min(2047) {
            if count[e] > changed[e] {
                self.same
                    .push((u16::try_from(e).unwrap_or(0), count[e] - changed[e]));
            }
            if sum[e] > 0 {
                mean += sum[e] as f64 * 2f64.powi(i32::try_from(e).unwrap_or(0));
            }
            count[e] = 0;
            changed[e] = 0;
            sum[e] = 0;
        }
        self.mean = scales::quantise(mean / words as f64);
        let step = all.len().div_ceil(CHANGES).max(1);
        self.weight = u32::try_from(step).unwrap_or(1);
        self.changes.extend(all.iter().step_by(step));
        true
    }

    /// Bits of the row's tokens with `scale`.
    fn cost(&self, scale: i32, lengths: &Lengths) -> f32 {
        let same: u64 = self
            .same
            .iter()
            .map(|(e, n)| u64::from(*n) * u64::from(lengths.of(scale, i32::from(*e))[0]))
            .sum();
        let changes: u64 = self
            .changes
            .iter()
            .map(|(e, t)| u64::from(lengths.of(scale, i32::from(*e))[usize::from(*t)]))
            .sum();
        (same + changes * u64::from(self.weight)) as f32 / 64.0
    }

    /// The scale that makes the row and its scale smallest, searched from the mean update and from the row before.
    pub(crate) fn choose(&self, lengths: &Lengths, model: &Model) -> i16 {
        if self.mean == UNCHANGED {
            return UNCHANGED;
        }
        let cost = |scale: i32| self.cost(scale, lengths) + model.cost(scale);
        let mut best = i32::from(self.mean);
        let mut least = cost(best);
        for direction in [1, -1] {
            let start = best;
            let mut rises = 0;
            for step in 1..=REACH {
                let scale = start + direction * step;
                let c = cost(scale);
                if c < least {
                    (best, least) = (scale, c);
                    rises = 0;
                } else {
                    rises += 1;
                    if rises == 2 {
                        break;
                    }
                }
            }
            if best != start {
                break;
            }
        }
        if let Some(last) = model.last()
            && (last - best).abs() > 1
            && cost(last) < least
        {
            best = last;
        }
        i16::try_from(best).unwrap_or(self.mean)
    }

    /// Adds the row's tokens to `histogram`, `times` over.
    pub(crate) fn count(&self, scale: i16, times: u32, histogram: &mut Histogram) {
        if scale == UNCHANGED {
            return;
        }
        let scale = i32::from(scale);
        for (e, n) in &self.same {
            histogram.add(scale, i32::from(*e), 0, n.saturating_mul(times));
        }
        for (e, t) in &self.changes {
            histogram.add(scale, i32::from(*e), *t, self.weight.saturating_mul(times));
        }
    }
}
