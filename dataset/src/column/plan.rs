//! What a column is predicted from: chosen on a sample, by what it would cost.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::derived::{Derivation, Feature, Measure, Via, count, number};
use super::{Items, Others, Target};
use crate::DatasetError;
use crate::cell::Shape;
use crate::matching::sampled;

/// How a column is coded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) method: Method,
    /// Cells that are stored, for they are not as predicted.
    pub(crate) cells: u64,
    /// Bytes of them.
    pub(crate) bytes: u64,
    /// Bytes of the longest.
    pub(crate) longest: u64,
    /// Whether few contexts are mixed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shallow: bool,
    /// Log of the lines of the models.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) log_lines: u32,
    /// Rows of the base's column whose statistics were learned first.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) learned: u64,
    /// Rows of it that are remembered.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) remembered: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_none(value: &u64) -> bool {
    *value == 0
}

/// What a cell is predicted from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// Nothing.
    None,
    /// The base row's value in the column it is paired with; new rows are not predicted.
    Base,
    /// Another column of the same row, or of its base row.
    Derived(Feature),
    /// A number that grows by `step` from row to row, `start` in the first.
    Counter { start: i64, step: i64 },
}

impl Source {
    /// Whether the column can only be made once others, or the order of the rows, are known.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self, Self::Derived(_) | Self::Counter { .. })
    }
}

/// How stored cells are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Method {
    /// There are none.
    Nothing,
    /// By context mixing, with the predicted cell and the base's column as context.
    Mixed,
    /// By what differs from the predicted cell, and a general compressor.
    Quick,
    /// As a Parquet file of one column.
    Parquet,
}

/// Items looked at.
const SAMPLE: usize = 3000;

/// Chooses what a column is predicted from; of the derivative's columns only those of `may_use` are considered.
pub(crate) fn choose(
    target: &Target<'_>,
    items: &Items<'_>,
    others: &Others<'_>,
    may_use: &[usize],
) -> Result<Source, DatasetError> {
    let sample: Vec<usize> = sampled(items.len(), SAMPLE).collect();
    let mut room = (Vec::new(), Vec::new());
    let cells: Vec<Vec<u8>> = sample
        .iter()
        .map(|&item| {
            let mut cell = Vec::new();
            target.column.write(items.rows[item] as usize, &mut cell);
            cell
        })
        .collect();
    let price = price_of(&cells);
    let plain = cells.len() as f64 * price;
    let (mut best, mut source) = (plain, Source::None);
    if target.base.is_some() {
        let misses = sample
            .iter()
            .filter(|&&item| !target.is_same(items, item, &mut room))
            .count();
        // An edited value resembles the base's.
        let cost = flags(misses, sample.len()) + misses as f64 * price * 0.6;
        (best, source) = (cost, Source::Base);
        if plain < cost * 0.5 {
            (best, source) = (plain, Source::None);
        }
        if misses == 0 {
            return Ok(source);
        }
    }
    let ty = &target.column.ty;
    if let Some((counter, misses)) = counter(target, items, &sample, &cells) {
        let cost = flags(misses, sample.len()) + misses as f64 * price + 16.0;
        if cost < best * 0.8 {
            (best, source) = (cost, counter);
        }
    }
    let mut read = Vec::new();
    let of_base = others.own..others.shapes.len();
    for column in may_use.iter().copied().chain(of_base) {
        let shape = &others.shapes[column];
        let features = if column < others.own {
            Feature::all(column, shape)
        } else {
            Feature::value(column, shape)
        };
        for feature in features {
            for &via in ways(&feature, shape, &target.column.shape) {
                let feature = Feature {
                    via,
                    ..feature.clone()
                };
                let mut derivation = Derivation::new(via, ty);
                let mut misses = 0;
                let mut expected = Vec::new();
                for (&item, cell) in sample.iter().zip(&cells) {
                    read.clear();
                    (others.read)(column, item, &mut read);
                    let key = feature.key(shape, &read);
                    expected.clear();
                    let hit = derivation.expect(&key, &mut expected) && expected == *cell;
                    if !hit {
                        misses += 1;
                        derivation.learn(key, cell);
                    }
                    // Worse already.
                    if misses as f64 * price > best {
                        break;
                    }
                }
                let cost = flags(misses, sample.len()) + misses as f64 * price + 16.0;
                if cost < best * 0.8 {
                    (best, source) = (cost, Source::Derived(feature));
                }
            }
        }
    }
    Ok(source)
}

/// The line through two neighbours that most of the sample is on, and how much of it is not.
fn counter(
    target: &Target<'_>,
    items: &Items<'_>,
    sample: &[usize],
    cells: &[Vec<u8>],
) -> Option<(Source, usize)> {
    let ty = &target.column.ty;
    if !ty.is_integer() || items.len() < 8 {
        return None;
    }
    let value = |row: usize| {
        let mut cell = Vec::new();
        target.column.write(row, &mut cell);
        number(&cell)
    };
    let mut best: Option<(Source, usize)> = None;
    for row in [0, items.len() / 2, items.len() - 2] {
        let (Some(first), Some(second)) = (value(row), value(row + 1)) else {
            continue;
        };
        let step = second.wrapping_sub(first);
        let before = step.wrapping_mul(i64::try_from(row).unwrap_or(0));
        let start = first.wrapping_sub(before);
        let mut expected = Vec::new();
        let misses = sample
            .iter()
            .zip(cells)
            .filter(|(item, cell)| {
                expected.clear();
                count(start, step, items.rows[**item], ty, &mut expected);
                expected != **cell
            })
            .count();
        if best.as_ref().is_none_or(|(_, least)| misses < *least) {
            best = Some((Source::Counter { start, step }, misses));
        }
    }
    best
}

fn ways(feature: &Feature, from: &Shape, to: &Shape) -> &'static [Via] {
    let mut shape = from;
    for &part in &feature.path {
        if let Shape::Struct(parts) = shape {
            shape = &parts[part];
        }
    }
    match feature.measure {
        Measure::Value if shape == to => &[Via::Same, Via::Map],
        Measure::Value if matches!(shape, Shape::Fixed(1 | 2 | 4 | 8)) => &[Via::Map, Via::Steps],
        Measure::Value => &[Via::Map],
        Measure::Lower | Measure::Upper | Measure::Trimmed if matches!(to, Shape::Bytes) => {
            &[Via::Same]
        }
        Measure::Lower | Measure::Upper | Measure::Trimmed => &[],
        Measure::Ascii => &[Via::Same, Via::Map],
        _ => &[Via::Same, Via::Map, Via::Steps],
    }
}

/// What a cell costs, in bits, if nothing predicts it: by its length, or by how often its like occurs.
fn price_of(cells: &[Vec<u8>]) -> f64 {
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    for cell in cells {
        *counts.entry(cell).or_default() += 1;
    }
    let total = cells.len().max(1) as f64;
    let entropy: f64 = counts
        .values()
        .map(|&count| count as f64 * (total / count as f64).log2())
        .sum::<f64>()
        / total;
    let bytes = cells.iter().map(Vec::len).sum::<usize>() as f64 / total;
    if counts.len() * 4 < cells.len() {
        entropy.min(bytes * 3.0).max(0.01)
    } else {
        bytes * 3.0
    }
}

/// What it costs, in bits, to say which of `all` are the `some`.
fn flags(some: usize, all: usize) -> f64 {
    let (some, all) = (some as f64, all as f64);
    if some <= 0.0 || some >= all {
        return 1.0;
    }
    let p = some / all;
    all * -(p * p.log2() + (1.0 - p) * (1.0 - p).log2())
}
