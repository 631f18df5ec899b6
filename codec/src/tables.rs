//! Frequency tables: one per cluster of contexts, shared by the tensors of a model or a tensor's own.

use std::fmt;

use crate::{
    bits::{put_varint, take_byte, take_size},
    context::CONTEXTS,
    error::{CodecError, corrupt},
    pack,
    token::{ESCAPE, SYMBOLS},
};

/// Largest table set: contexts are clustered into at most this many tables.
pub(crate) const MAX_TABLES: usize = 64;
/// Bits of the frequencies' sum.
const PRECISIONS: std::ops::RangeInclusive<u32> = 10..=14;

/// One decoding slot: symbol (8 bits), frequency - 1 and the slot's offset in the symbol's interval.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slot(u64);

impl Slot {
    fn new(symbol: usize, frequency: u32, offset: u32) -> Self {
        Self(symbol as u64 | u64::from(frequency) << 16 | u64::from(offset) << 40)
    }
    #[inline(always)]
    pub(crate) fn symbol(self) -> u16 {
        (self.0 & 0xff).try_into().unwrap_or(0)
    }
    #[inline(always)]
    pub(crate) fn frequency(self) -> u32 {
        (self.0 >> 16 & 0xff_ffff).try_into().unwrap_or(0)
    }
    #[inline(always)]
    pub(crate) fn offset(self) -> u32 {
        (self.0 >> 40).try_into().unwrap_or(0)
    }
}

/// Counts of every symbol in every context.
#[derive(Clone)]
pub(crate) struct Histogram(Vec<[u32; SYMBOLS]>);

impl Histogram {
    pub(crate) fn new() -> Self {
        Self(vec![[0; SYMBOLS]; CONTEXTS])
    }
    #[inline(always)]
    pub(crate) fn add(&mut self, context: usize, symbol: u16) {
        let count = &mut self.0[context.min(CONTEXTS - 1)][usize::from(symbol & 0xff)];
        *count = count.saturating_add(1);
    }
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *mine = mine.saturating_add(*theirs);
        }
    }
    /// Bits an ideal coder would spend, tables not counted.
    pub(crate) fn entropy(&self) -> f64 {
        self.0.iter().map(entropy).sum()
    }
    /// Symbols counted.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().flatten().map(|c| u64::from(*c)).sum()
    }
}

fn entropy(counts: &[u32; SYMBOLS]) -> f64 {
    let total: f64 = counts.iter().map(|c| f64::from(*c)).sum();
    counts
        .iter()
        .filter(|c| **c > 0)
        .map(|c| f64::from(*c) * (total / f64::from(*c)).log2())
        .sum()
}

/// Tables and the map from contexts to them.
#[derive(Clone)]
pub(crate) struct TableSet {
    precision: u32,
    /// Table of each context.
    map: Vec<u16>,
    /// Per table and symbol: frequency, start. A frequency of zero: the symbol is coded as an escape.
    intervals: Vec<[(u32, u32); SYMBOLS]>,
    slots: Vec<Slot>,
}

impl fmt::Debug for TableSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TableSet {{ tables: {}, precision: {} }}",
            self.intervals.len(),
            self.precision
        )
    }
}

impl TableSet {
    /// Clusters the contexts of `histogram` into at most `limit` tables, where merging two costs less than a table.
    pub(crate) fn train(histogram: &Histogram, limit: usize) -> Self {
        let clusters = cluster(histogram, limit.clamp(1, MAX_TABLES));
        let mut map = vec![0u16; CONTEXTS];
        for (number, cluster) in clusters.iter().enumerate() {
            for context in cluster.contexts.clone() {
                map[context] = u16::try_from(number).unwrap_or(0);
            }
        }
        let build = |precision| {
            let frequencies: Vec<_> = clusters
                .iter()
                .map(|c| normalise(&c.counts, precision))
                .collect();
            Self::build(precision, map.clone(), &frequencies)
        };
        let cost = |set: &Self| -> f64 {
            clusters
                .iter()
                .zip(&set.intervals)
                .map(|(c, t)| cross_entropy(&c.counts, t, set.precision))
                .sum()
        };
        // Few bits keep the decoder's tables in the nearest cache; sparse deltas need more to give "unchanged" its due.
        let small = build(11);
        let large = build(13);
        if cost(&large) < cost(&small) * 0.99 {
            large
        } else {
            small
        }
    }

    fn build(precision: u32, map: Vec<u16>, frequencies: &[[u32; SYMBOLS]]) -> Self {
        let mut slots = Vec::with_capacity(frequencies.len() << precision);
        let intervals = frequencies
            .iter()
            .map(|frequencies| {
                let mut start = 0;
                std::array::from_fn(|symbol| {
                    let frequency = frequencies[symbol];
                    slots.extend((0..frequency).map(|offset| Slot::new(symbol, frequency, offset)));
                    let interval = (frequency, start);
                    start += frequency;
                    interval
                })
            })
            .collect();
        Self {
            precision,
            map,
            intervals,
            slots,
        }
    }

    pub(crate) fn precision(&self) -> u32 {
        self.precision
    }

    /// The table of a context.
    #[inline(always)]
    pub(crate) fn table(&self, context: usize) -> u16 {
        self.map[context.min(CONTEXTS - 1)]
    }

    /// Whether the table has the symbol; if not it is coded as an escape.
    #[inline(always)]
    pub(crate) fn has(&self, table: u16, symbol: u16) -> bool {
        self.interval(table, symbol).0 > 0
    }

    /// Frequency and start of a symbol.
    #[inline(always)]
    pub(crate) fn interval(&self, table: u16, symbol: u16) -> (u32, u32) {
        self.intervals[usize::from(table)][usize::from(symbol & 0xff)]
    }

    #[inline(always)]
    pub(crate) fn slot(&self, table: u16, slot: u32) -> Slot {
        self.slots
            .get((usize::from(table) << self.precision) + slot as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Estimated bits of `histogram` coded with these tables.
    pub(crate) fn cost(&self, histogram: &Histogram) -> f64 {
        histogram
            .0
            .iter()
            .enumerate()
            .map(|(context, counts)| {
                cross_entropy(
                    counts,
                    &self.intervals[usize::from(self.table(context))],
                    self.precision,
                )
            })
            .sum()
    }

    /// Serialises: precision, number of tables, runs of the map, and per table its symbols and frequencies.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.push(u8::try_from(self.precision).unwrap_or(0));
        put_varint(&mut out, self.intervals.len() as u64);
        for number in 0..self.intervals.len() {
            put_varint(
                &mut out,
                self.map
                    .iter()
                    .filter(|t| usize::from(**t) == number)
                    .count() as u64,
            );
        }
        for table in &self.intervals {
            let used: Vec<_> = table
                .iter()
                .enumerate()
                .filter(|(_, (f, _))| *f > 0)
                .collect();
            put_varint(&mut out, used.len() as u64);
            let mut next = 0;
            for (symbol, (frequency, _)) in used {
                put_varint(&mut out, (symbol - next) as u64);
                put_varint(&mut out, u64::from(*frequency));
                next = symbol + 1;
            }
        }
        pack::pack(&out)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(packed: &mut &[u8]) -> Result<Self, CodecError> {
        let bytes = pack::unpack(packed, 1 << 18)?;
        let mut data = bytes.as_slice();
        let precision = u32::from(take_byte(&mut data)?);
        if !PRECISIONS.contains(&precision) {
            return Err(corrupt("a table's precision is out of range"));
        }
        let tables = take_size(&mut data, MAX_TABLES)?;
        let mut map = Vec::with_capacity(CONTEXTS);
        for number in 0..tables {
            let run = take_size(&mut data, CONTEXTS - map.len())?;
            map.resize(map.len() + run, u16::try_from(number).unwrap_or(0));
        }
        if map.len() != CONTEXTS {
            return Err(corrupt("the contexts are not all mapped"));
        }
        let mut frequencies = Vec::with_capacity(tables);
        for _ in 0..tables {
            let mut table = [0u32; SYMBOLS];
            let (mut next, mut sum) = (0, 0);
            for _ in 0..take_size(&mut data, SYMBOLS)? {
                let symbol = next + take_size(&mut data, SYMBOLS)?;
                let frequency = take_size(&mut data, 1 << precision)?;
                *table
                    .get_mut(symbol)
                    .ok_or_else(|| corrupt("a symbol is out of range"))? =
                    u32::try_from(frequency).unwrap_or(0);
                sum += frequency;
                next = symbol + 1;
            }
            if sum != 1 << precision || table[usize::from(ESCAPE)] == 0 {
                return Err(corrupt("a table's frequencies do not add up"));
            }
            frequencies.push(table);
        }
        if !data.is_empty() {
            return Err(corrupt("the tables are too long"));
        }
        Ok(Self::build(precision, map, &frequencies))
    }
}

fn cross_entropy(counts: &[u32; SYMBOLS], table: &[(u32, u32); SYMBOLS], precision: u32) -> f64 {
    let whole = f64::from(1u32 << precision);
    let escape = f64::from(table[usize::from(ESCAPE)].0.max(1));
    counts
        .iter()
        .zip(table)
        .filter(|(count, _)| **count > 0)
        .map(|(count, (frequency, _))| {
            let bits = if *frequency > 0 {
                (whole / f64::from(*frequency)).log2()
            } else {
                (whole / escape).log2() + 16.0
            };
            f64::from(*count) * bits
        })
        .sum()
}

/// A run of contexts that share a table.
struct Cluster {
    contexts: std::ops::Range<usize>,
    counts: [u32; SYMBOLS],
    entropy: f64,
}

fn cluster(histogram: &Histogram, limit: usize) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> = Vec::new();
    for (context, counts) in histogram.0.iter().enumerate() {
        let empty = counts.iter().all(|c| *c == 0);
        match clusters.last_mut() {
            // A context never seen goes with its neighbour.
            Some(last) if empty => last.contexts.end = context + 1,
            Some(last) if last.entropy == 0.0 && last.counts.iter().all(|c| *c == 0) => {
                last.contexts.end = context + 1;
                last.counts = *counts;
                last.entropy = entropy(counts);
            }
            _ => clusters.push(Cluster {
                contexts: context..context + 1,
                counts: *counts,
                entropy: entropy(counts),
            }),
        }
    }
    loop {
        let best = clusters
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let counts = sum(&pair[0].counts, &pair[1].counts);
                let loss = entropy(&counts) - pair[0].entropy - pair[1].entropy;
                // About what storing the smaller table costs: its symbols at some six bits each.
                let saved = pair
                    .iter()
                    .map(|c| c.counts.iter().filter(|n| **n > 0).count())
                    .min()
                    .unwrap_or(0) as f64
                    * 6.0
                    + 16.0;
                (i, loss - saved)
            })
            .min_by(|a, b| a.1.total_cmp(&b.1));
        match best {
            Some((i, gain)) if gain < 0.0 || clusters.len() > limit => {
                let next = clusters.remove(i + 1);
                let here = &mut clusters[i];
                here.contexts.end = next.contexts.end;
                here.counts = sum(&here.counts, &next.counts);
                here.entropy = entropy(&here.counts);
            }
            _ => return clusters,
        }
    }
}

fn sum(a: &[u32; SYMBOLS], b: &[u32; SYMBOLS]) -> [u32; SYMBOLS] {
    std::array::from_fn(|i| a[i].saturating_add(b[i]))
}

/// Frequencies that add up to `1 << precision`, at least one for each symbol counted and for the escape.
fn normalise(counts: &[u32; SYMBOLS], precision: u32) -> [u32; SYMBOLS] {
    let whole = 1u32 << precision;
    let total: u64 = counts.iter().map(|c| u64::from(*c)).sum::<u64>().max(1);
    let mut out: [u32; SYMBOLS] = std::array::from_fn(|i| {
        let exact = f64::from(counts[i]) * f64::from(whole) / total as f64;
        // Symbols that would get less than half a slot are cheaper as escapes.
        if counts[i] == 0 || exact < 0.25 {
            0
        } else {
            rounded(exact).max(1)
        }
    });
    let escape = &mut out[usize::from(ESCAPE)];
    *escape = (*escape).max(1);
    let mut sum: u32 = out.iter().sum();
    while sum != whole {
        // Give to or take from where one slot changes the cost least.
        let (best, _) = (0..SYMBOLS)
            .filter(|i| {
                if sum > whole {
                    out[*i] > 1
                } else {
                    out[*i] > 0
                }
            })
            .map(|i| {
                let (count, f) = (f64::from(counts[i]), f64::from(out[i]));
                let change = if sum > whole {
                    count * (f / (f - 1.0)).log2()
                } else {
                    -count * ((f + 1.0) / f).log2()
                };
                (i, change)
            })
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or((usize::from(ESCAPE), 0.0));
        if sum > whole {
            out[best] -= 1;
            sum -= 1;
        } else {
            out[best] += 1;
            sum += 1;
        }
    }
    out
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "within 0..=1 << 14"
)]
fn rounded(x: f64) -> u32 {
    x.round().clamp(0.0, 65536.0) as u32
}

/// Frequency tables of a whole model, one set per word width, trained by [`crate::TablesTrainer`].
#[derive(Clone, Debug, Default)]
pub struct SharedTables {
    /// By log2 of the word's bytes.
    pub(crate) sets: [Option<TableSet>; 4],
}

impl SharedTables {
    pub(crate) fn set(&self, width: usize) -> Option<&TableSet> {
        self.sets.get(width.trailing_zeros() as usize)?.as_ref()
    }

    /// Serialises the tables.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0u8];
        for (i, set) in self.sets.iter().enumerate() {
            if let Some(set) = set {
                out[0] |= 1 << i;
                out.extend_from_slice(&set.to_bytes());
            }
        }
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(mut data: &[u8]) -> Result<Self, CodecError> {
        let present = take_byte(&mut data)?;
        if present >= 16 {
            return Err(corrupt("unknown table sets"));
        }
        let mut sets = [const { None }; 4];
        for (i, set) in sets.iter_mut().enumerate() {
            if present >> i & 1 == 1 {
                *set = Some(TableSet::from_bytes(&mut data)?);
            }
        }
        if data.is_empty() {
            Ok(Self { sets })
        } else {
            Err(corrupt("the shared tables are too long"))
        }
    }
}
