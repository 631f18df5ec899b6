//! Tables from counts: contexts are joined into runs while that costs less than another table.

use std::sync::LazyLock;

use crate::{
    context::CONTEXTS,
    tables::{COLD, Frequencies, MAX_LAYERED, MAX_TABLES, TOKENS, TableSet},
    token,
};

/// Contexts counted before a set's window is chosen.
pub(crate) const WIDE: usize = 256;
/// The lowest context counted, in the unit of row scales.
pub(crate) const WIDE_FIRST: i32 = -96;

/// Counts of every token in every context, layer by layer.
#[derive(Clone)]
pub(crate) struct Histogram(Vec<[u32; TOKENS]>);

impl Histogram {
    pub(crate) fn new(layers: usize) -> Self {
        Self(vec![[0; TOKENS]; WIDE * layers])
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, layer: usize, scale: i32, exponent: i32, token: u8, count: u32) {
        let c = scale
            .saturating_sub(4 * exponent)
            .saturating_sub(WIDE_FIRST)
            .clamp(0, 255);
        let context = layer * WIDE + usize::try_from(c).unwrap_or(0);
        let cell = &mut self.0[context][usize::from(token)];
        *cell = cell.saturating_add(count);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// Tokens counted.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().flatten().map(|c| u64::from(*c)).sum()
    }

    /// Raw bits of the counted tokens in words of `width` bytes.
    pub(crate) fn raw_bits(&self, width: usize) -> f64 {
        let raw = match width {
            1 => token::raw_bits::<1>,
            2 => token::raw_bits::<2>,
            4 => token::raw_bits::<4>,
            _ => token::raw_bits::<8>,
        };
        let bits: [f64; TOKENS] =
            std::array::from_fn(|t| f64::from(raw(u8::try_from(t).unwrap_or(0))));
        let counts = self.0.iter();
        counts
            .flat_map(|counts| counts.iter().zip(&bits))
            .map(|(n, bits)| f64::from(*n) * bits)
            .sum()
    }

    /// Entropy of the counted tokens given their contexts, and what telling the distributions takes.
    pub(crate) fn entropy(&self) -> f64 {
        let mut bits = 0.0;
        for pair in self.0.chunks(2) {
            let mut counts = [0; TOKENS];
            pair.iter().for_each(|c| add(&mut counts, c));
            let total = total(&counts);
            if total > 0.0 {
                let used = counts.iter().filter(|n| **n > 0).count() as f64;
                bits += entropy(&counts) + (used - 1.0) * 3.0;
            }
        }
        bits
    }

    /// The counts by the contexts of a set, layer by layer.
    fn window(&self, first: i32) -> Vec<[u32; TOKENS]> {
        let layers = self.0.len() / WIDE;
        let mut out = vec![[0u32; TOKENS]; CONTEXTS * layers];
        for (wide, counts) in self.0.iter().enumerate() {
            let c = i32::try_from(wide % WIDE).unwrap_or(0) + WIDE_FIRST - first;
            let c = usize::try_from(c.clamp(0, 55)).unwrap_or(0);
            add(&mut out[wide / WIDE * CONTEXTS + c], counts);
        }
        out
    }

    /// The window of contexts that holds most of the information.
    fn first(&self) -> i32 {
        let mut bits = vec![0f64; WIDE];
        for (wide, counts) in self.0.iter().enumerate() {
            bits[wide % WIDE] += entropy(counts);
        }
        let best = (0..WIDE - CONTEXTS).max_by(|a, b| {
            let sum = |i: usize| bits[i..i + CONTEXTS].iter().sum::<f64>();
            sum(*a).total_cmp(&sum(*b)).then(b.cmp(a))
        });
        i32::try_from(best.unwrap_or(0)).unwrap_or(0) + WIDE_FIRST
    }

    /// Estimated bits of the counted tokens with the tables of `set`; raw bits are not counted.
    pub(crate) fn cost(&self, set: &TableSet) -> f64 {
        let mut total = 0.0;
        for (context, counts) in self.window(set.first()).iter().enumerate() {
            total += match set
                .maps()
                .as_flattened()
                .get(context)
                .copied()
                .unwrap_or(COLD)
            {
                COLD => cold_cost(counts),
                table => cross_entropy(counts, &set.frequencies(table), set.precision()),
            };
        }
        total
    }
}

fn add(sum: &mut [u32; TOKENS], more: &[u32; TOKENS]) {
    for (a, b) in sum.iter_mut().zip(more) {
        *a = a.saturating_add(*b);
    }
}

fn total(counts: &[u32; TOKENS]) -> f64 {
    counts.iter().map(|c| u64::from(*c)).sum::<u64>() as f64
}

pub(crate) fn entropy(counts: &[u32; TOKENS]) -> f64 {
    let total = total(counts);
    if total == 0.0 {
        return 0.0;
    }
    let mut parts = [0f64; 8];
    for counts in counts.as_chunks::<8>().0 {
        // Most tokens never occur.
        if *counts == [0; 8] {
            continue;
        }
        for (part, n) in parts.iter_mut().zip(counts) {
            let n = f64::from(*n);
            *part += n * log2(n.max(1.0));
        }
    }
    total * log2(total) - parts.iter().sum::<f64>()
}

/// The logarithm of a normal number from 1 on, to some 1e-10: in plain arithmetic, which the compiler does for several at a time.
#[inline(always)]
fn log2(x: f64) -> f64 {
    // The exponent and a mantissa within the root of 2 about 1.
    const HALF: u64 = 0x3fe6_a09e_0000_0000;
    let bits = x.to_bits() - HALF;
    // The exponent as a double: its bits become the lowest of 2^52.
    let exponent = f64::from_bits(0x4330_0000_0000_0000 | bits >> 52) - 4_503_599_627_370_496.0;
    let mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) + HALF);
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let q = s * s;
    let series = 1.0 / 9.0 + q * (1.0 / 11.0);
    let series = 1.0 / 5.0 + q * (1.0 / 7.0 + q * series);
    exponent + s * (1.0 + q * (1.0 / 3.0 + q * series)) * (2.0 * std::f64::consts::LOG2_E)
}

/// The logarithms of frequencies, to the base of 2.
static LOGARITHMS: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let ones = std::iter::once(0.0);
    ones.chain((1..=4096u32).map(|f| f64::from(f).log2()))
        .collect()
});

/// The logarithm of a frequency; of 0 it is 0.
#[inline(always)]
fn bits_of(frequency: u16) -> f64 {
    LOGARITHMS[usize::from(frequency).min(4096)]
}

/// Bits of the changes in `counts` stored as patches: a distance and a value each.
fn cold_cost(counts: &[u32; TOKENS]) -> f64 {
    let total = total(counts);
    let changed = total - f64::from(counts[0]);
    if changed == 0.0 {
        return 0.0;
    }
    let values: f64 = counts
        .iter()
        .enumerate()
        .skip(1)
        .filter(|(_, n)| **n > 0)
        .map(|(token, n)| f64::from(*n) * (1.5 + 1.5 * f64::from(magnitude(token)).log2()))
        .sum();
    changed * ((total / changed).log2() + 1.0 + 1.5) + values
}

/// The magnitude of a token.
fn magnitude(token: usize) -> u8 {
    u8::try_from(token)
        .unwrap_or(0)
        .cast_signed()
        .unsigned_abs()
}

fn cross_entropy(counts: &[u32; TOKENS], frequencies: &Frequencies, precision: u32) -> f64 {
    let whole = f64::from(precision);
    let patched = whole - bits_of(frequencies[0].max(1)) + PATCH_BITS;
    counts
        .iter()
        .zip(frequencies)
        .filter(|(count, _)| **count > 0)
        .map(|(count, frequency)| {
            f64::from(*count)
                * if *frequency > 0 {
                    whole - bits_of(*frequency)
                } else {
                    patched
                }
        })
        .sum()
}

/// What a patch of a rare token costs, about.
const PATCH_BITS: f64 = 22.0;

/// A run of contexts that share a table.
struct Cluster {
    contexts: std::ops::Range<usize>,
    counts: [u32; TOKENS],
    entropy: f64,
}

impl Cluster {
    fn join(&mut self, next: &Self) {
        self.contexts.end = next.contexts.end;
        add(&mut self.counts, &next.counts);
        self.entropy = entropy(&self.counts);
    }
}

/// Runs of the contexts of a layer, at most `limit`, and where those begin that are coded.
fn cluster(counts: &[[u32; TOKENS]], limit: usize) -> (Vec<Cluster>, usize) {
    if counts.as_flattened().iter().all(|n| *n == 0) {
        return (Vec::new(), CONTEXTS);
    }
    let mut clusters: Vec<Cluster> = Vec::new();
    for (context, counts) in counts.iter().enumerate() {
        let new = Cluster {
            contexts: context..context + 1,
            counts: *counts,
            entropy: entropy(counts),
        };
        match clusters.last_mut() {
            // A context never seen goes with its neighbour.
            Some(last) if total(counts) == 0.0 || total(&last.counts) == 0.0 => last.join(&new),
            _ => clusters.push(new),
        }
    }
    // Contexts so rarely changed that patches are as small are not coded at all: they cost no time then either. Changes
    // grow rarer with smaller scales, so they are a run at the lower end.
    let cold = clusters
        .iter()
        .take_while(|c| total(&c.counts) > 0.0 && is_cold(&c.counts))
        .count();
    let mut cold: Vec<Cluster> = clusters.drain(..cold).collect();
    let cold_end = cold.pop().map_or(0, |c| c.contexts.end);
    merge(&mut clusters, limit);
    (clusters, cold_end)
}

/// About `limit` tables for `histogram`.
pub(crate) fn train(histogram: &Histogram, limit: usize) -> TableSet {
    let first = histogram.first();
    let counts = histogram.window(first);
    let layers = counts.len() / CONTEXTS;
    let share = if layers > 1 {
        (2 * limit / layers).clamp(1, MAX_LAYERED / layers)
    } else {
        limit.clamp(1, MAX_TABLES)
    };
    let mut clusters = Vec::new();
    let mut map = vec![[COLD; CONTEXTS]; layers];
    for (counts, map) in counts.chunks(CONTEXTS).zip(&mut map) {
        let (mine, cold_end) = cluster(counts, share);
        for cluster in mine {
            let table = u8::try_from(clusters.len() + 1).unwrap_or(1);
            for entry in &mut map[cluster.contexts.start.max(cold_end)..cluster.contexts.end] {
                *entry = table;
            }
            clusters.push(cluster);
        }
    }
    // Few bits keep the decoder's tables in the nearest cache; sparse deltas need more to give "unchanged" its due.
    let frequencies = |precision| -> (Vec<Frequencies>, f64) {
        let tables: Vec<_> = clusters
            .iter()
            .map(|c| normalise(&c.counts, precision, false))
            .collect();
        let cost = clusters
            .iter()
            .zip(&tables)
            .map(|(c, table)| cross_entropy(&c.counts, table, precision))
            .sum();
        (tables, cost)
    };
    let (best, least) = frequencies(12);
    for precision in [10, 11] {
        let (tables, cost) = frequencies(precision);
        if cost <= least * 1.003 {
            return TableSet::build(precision, first, map, &tables);
        }
    }
    TableSet::build(12, first, map, &best)
}

fn is_cold(counts: &[u32; TOKENS]) -> bool {
    let n = total(counts);
    if n - f64::from(counts[0]) > n / 16.0 {
        return false;
    }
    // A little ratio is given for the time that uncoded words save.
    cold_cost(counts) <= entropy(counts) + 0.006 * n
}

fn merge(clusters: &mut Vec<Cluster>, limit: usize) {
    let loss = |a: &Cluster, b: &Cluster| {
        let mut counts = a.counts;
        add(&mut counts, &b.counts);
        let used = |c: &Cluster| c.counts.iter().filter(|n| **n > 0).count() as f64;
        // About what storing the smaller table costs: its tokens at some four bits each, against the bits its merger costs.
        entropy(&counts) - a.entropy - b.entropy - used(a).min(used(b)) * 4.0 - 16.0
    };
    let mut losses: Vec<f64> = clusters.windows(2).map(|p| loss(&p[0], &p[1])).collect();
    while let Some((i, least)) = losses
        .iter()
        .copied()
        .enumerate()
        .min_by(|a, b| a.1.total_cmp(&b.1))
    {
        if least >= 0.0 && clusters.len() <= limit {
            break;
        }
        let next = clusters.remove(i + 1);
        clusters[i].join(&next);
        losses.remove(i);
        if i > 0 {
            losses[i - 1] = loss(&clusters[i - 1], &clusters[i]);
        }
        if i < losses.len() {
            losses[i] = loss(&clusters[i], &clusters[i + 1]);
        }
    }
}

/// Frequencies that add up to `1 << precision`: at least one for 0 and for one other token.
fn normalise(counts: &[u32; TOKENS], precision: u32, all: bool) -> Frequencies {
    let whole = 1u32 << precision;
    // Counts come from a sample: a token never seen between two that were is lent a little.
    let smooth: [f64; TOKENS] = std::array::from_fn(|i| {
        let (below, above) = (counts[(i + 255) & 255], counts[(i + 1) & 255]);
        // The largest positive and the largest negative token are no neighbours.
        let lent = if (127..=129).contains(&i) || counts[i] > 0 {
            0.0
        } else {
            0.1 * f64::from(below.min(above))
        };
        f64::from(counts[i]) + lent
    });
    let sum: f64 = smooth.iter().sum::<f64>().max(1.0);
    let mut out: Frequencies = std::array::from_fn(|i| {
        let exact = smooth[i] * f64::from(whole) / sum;
        // Tokens that would get a small part of a slot are cheaper as patches.
        if exact < 0.1 && !(all && counts[i] > 0) {
            0
        } else {
            rounded(exact).max(1)
        }
    });
    out[0] = out[0].max(1);
    if out.iter().filter(|f| **f > 0).count() < 2 {
        out[1] = 1;
    }
    let sum: i64 = out.iter().map(|f| i64::from(*f)).sum();
    let whole = i64::from(whole);
    // Give to or take from where one slot changes the cost least.
    let used: Vec<usize> = (0..TOKENS).filter(|i| out[*i] > 0).collect();
    let change = |i: usize, f: u16| {
        if sum > whole {
            if f > 1 {
                smooth[i] * (bits_of(f) - bits_of(f - 1))
            } else {
                f64::INFINITY
            }
        } else if i64::from(f) + 1 < whole {
            -smooth[i] * (bits_of(f + 1) - bits_of(f))
        } else {
            f64::INFINITY
        }
    };
    let mut changes: Vec<f64> = used.iter().map(|i| change(*i, out[*i])).collect();
    let step = if sum > whole { -1 } else { 1 };
    let mut left = sum.abs_diff(whole);
    while left > 0 {
        let least = changes.iter().copied().fold(f64::INFINITY, f64::min);
        let Some(place) = changes.iter().position(|c| *c <= least) else {
            break;
        };
        let token = used[place];
        out[token] = out[token].saturating_add_signed(step);
        changes[place] = change(token, out[token]);
        left -= 1;
    }
    out
}

/// Frequencies, of precision 12, in which every token that occurs has a part (and 0 and 1 do).
pub(crate) fn normalise_all(counts: &[u32; TOKENS]) -> Frequencies {
    normalise(counts, 12, true)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "within 0..=4096"
)]
fn rounded(x: f64) -> u16 {
    x.round().clamp(0.0, 4096.0) as u16
}

/// Bits of each token by exponent step: what row scales are chosen by, in 1/64 bit.
pub(crate) struct Lengths {
    first: i32,
    bits: Vec<[u16; TOKENS]>,
    /// Those of token 0 alone, near each other.
    still: Vec<u16>,
}

impl Lengths {
    pub(crate) fn new(set: &TableSet) -> Self {
        let whole = f64::from(set.precision());
        let bits: Vec<[u16; TOKENS]> = set
            .maps()
            .as_flattened()
            .iter()
            .map(|table| match *table {
                COLD => std::array::from_fn(|t| if t == 0 { 0 } else { 14 * 64 }),
                table => {
                    let intervals = set.intervals(table);
                    std::array::from_fn(|t| {
                        let f = intervals[t].frequency;
                        let bits = if f > 0 {
                            whole - bits_of(f)
                        } else {
                            whole - bits_of(intervals[0].frequency.max(1)) + PATCH_BITS
                        };
                        rounded_bits(bits * 64.0)
                    })
                }
            })
            .collect();
        Self {
            first: set.first(),
            still: bits.iter().map(|bits| bits[0]).collect(),
            bits,
        }
    }

    /// The length of token 0, as [`Self::of`] has it.
    #[inline(always)]
    pub(crate) fn still(&self, layer: usize, scale: i32, exponent: i32) -> u16 {
        self.still[layer * CONTEXTS + crate::context::context(scale, exponent, self.first)]
    }

    /// The lengths of all tokens for a weight of `exponent` in a row of `scale`, by the weight's layer.
    #[inline(always)]
    pub(crate) fn of(&self, layer: usize, scale: i32, exponent: i32) -> &[u16; TOKENS] {
        &self.bits[layer * CONTEXTS + crate::context::context(scale, exponent, self.first)]
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped"
)]
fn rounded_bits(x: f64) -> u16 {
    x.clamp(0.0, 60_000.0) as u16
}
