//! Which base row each row of a derivative came from.
//!
//! Rows that are equal in every shared column are found first (hashes, confirmed later by comparing values: a column whose value
//! differs is stored, so a false match costs bytes and never data). Columns that changed throughout are left out of that. What
//! is left is matched by columns that identify rows, by the neighbours that matched, and by the words the rows share.

mod exact;
mod join;
mod repeated;
mod similar;

use std::collections::HashMap as StdMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::Array as _;
use rayon::prelude::*;

use crate::DatasetError;
use crate::pair::Check;
use crate::table::{Column, Room, Table};

/// No base row: a new one.
pub(crate) const NEW: u32 = u32::MAX;

/// Rows looked at to know a column.
const SAMPLE: usize = 4096;
/// Rows per task.
const TASK: usize = 1 << 13;

/// The columns both sides have, in the derivative's types.
pub(crate) struct Shared {
    pub(crate) base: Vec<Column>,
    pub(crate) derivative: Vec<Column>,
}

/// Maps whose keys are hashes already.
pub(crate) type HashMap<K, V> = StdMap<K, V, BuildHasherDefault<Hashed>>;

/// A hasher that passes a hash on.
#[derive(Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, key: u32) {
        self.write_u64(u64::from(key));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = (self.0 ^ key)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
}

/// What a sample says about a shared column.
#[derive(Clone, Copy, Debug, Default)]
struct Traits {
    /// Share of the derivative's values that the base has.
    overlap: f64,
    /// Share of those that the base has once.
    unique: f64,
}

/// Where the rows of a derivative come from.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    /// The base row of each, or [`NEW`].
    pub(crate) rows: Vec<u32>,
    /// Rows of the derivative, in order, that are cheap to make from their base row and yet not that row edited: new ones, to
    /// people.
    pub(crate) unlike: Vec<u32>,
}

/// The base row of each row of the derivative.
pub(crate) fn find(
    base: &Table,
    derivative: &Table,
    shared: &Shared,
    room: &Room<'_>,
    check: &Check<'_>,
) -> Result<Matches, DatasetError> {
    let count = shared.base.len();
    if count == 0 || base.rows == 0 || derivative.rows == 0 {
        return Ok(Matches {
            rows: vec![NEW; derivative.rows],
            unlike: Vec::new(),
        });
    }
    let hasher = hasher();
    let samples: Vec<HashMap<u64, AtomicU32>> = shared
        .derivative
        .iter()
        .map(|column| sample(column, derivative.rows, &hasher))
        .collect();
    let mut base_sums = sums(&shared.base, base.rows, &hasher, |column, hash| {
        if let Some(seen) = samples[column].get(&hash) {
            seen.fetch_add(1, Ordering::Relaxed);
        }
    });
    let traits: Vec<Traits> = samples.iter().map(traits_of).collect();
    let mut sums_of_derivative = sums(&shared.derivative, derivative.rows, &hasher, |_, _| {});
    // A column that shares few of its values with the base says nothing about which row a row is.
    let changed: Vec<usize> = (0..count).filter(|&c| traits[c].overlap < 0.5).collect();
    if changed.len() < count {
        for &column in &changed {
            subtract(&mut base_sums, &shared.base[column], column, &hasher);
            subtract(
                &mut sums_of_derivative,
                &shared.derivative[column],
                column,
                &hasher,
            );
        }
    }
    let mut found = exact::join(base_sums, sums_of_derivative, room, check)?;
    let mut used = vec![false; base.rows];
    for &row in found.iter().filter(|&&row| row != NEW) {
        used[row as usize] = true;
    }
    let mut keys: Vec<usize> = (0..count)
        .filter(|&c| traits[c].overlap >= 0.5 && traits[c].unique >= 0.98)
        .collect();
    keys.sort_by(|&a, &b| traits[b].unique.total_cmp(&traits[a].unique));
    // Rows that no value identifies, but which have a key's null in common with one of the base.
    let mut by_null = vec![false; found.len()];
    for &column in &keys {
        let (from, to) = (&shared.base[column], &shared.derivative[column]);
        for row in by_key(from, to, &hasher, &mut found, &mut used) {
            let (array, at) = to.array(row as usize);
            by_null[row as usize] = array.is_null(at);
        }
    }
    let open: Vec<u32> = (0..found.len())
        .filter(|&row| found[row] == NEW || by_null[row])
        .map(narrow)
        .collect();
    if open.is_empty() {
        return Ok(Matches {
            rows: found,
            unlike: Vec::new(),
        });
    }
    between_neighbours(shared, &mut found, &mut used);
    let text = similar::main_text(shared, found.len());
    if let Some(text) = text {
        similar::join(
            (&shared.base[text], &shared.derivative[text]),
            &mut found,
            &used,
        );
    }
    // What is left by now has values of its own where rows have names.
    let is_named = keys
        .iter()
        .any(|&key| Some(key) != text && names_rows(&shared.derivative[key], derivative.rows));
    // A text that many rows have, such as one that is asked about, does not make two rows the same one.
    let own_text = text.filter(|text| !is_named || keys.contains(text));
    let unlike = similar::unlike(shared, own_text, &found, &open, is_named);
    Ok(Matches {
        rows: found,
        unlike,
    })
}

/// Whether a column whose values are all different is there to tell rows apart: whole numbers, or short texts of one word.
fn names_rows(column: &Column, rows: usize) -> bool {
    const LONGEST: usize = 64;
    column.ty.is_integer()
        || sampled(rows, 64).all(|row| {
            column.text(row).is_some_and(|text| {
                text.len() <= LONGEST && !text.iter().any(u8::is_ascii_whitespace)
            })
        })
}

/// Rows that are equal in one column which identifies rows; those of the derivative that were matched.
fn by_key(
    base: &Column,
    derivative: &Column,
    hasher: &ahash::RandomState,
    found: &mut [u32],
    used: &mut [bool],
) -> Vec<u32> {
    let mut scratch = Vec::new();
    let mut open: HashMap<u64, Vec<u32>> = HashMap::default();
    for (row, _) in found.iter().enumerate().filter(|(_, at)| **at == NEW) {
        let hash = derivative.hash(row, hasher, &mut scratch);
        open.entry(hash).or_default().push(narrow(row));
    }
    if open.is_empty() {
        return Vec::new();
    }
    let hits: Vec<(u32, u64)> = (0..used.len())
        .into_par_iter()
        .fold(
            || (Vec::new(), Vec::new()),
            |(mut hits, mut scratch), row| {
                let hash = base.hash(row, hasher, &mut scratch);
                if open.contains_key(&hash) {
                    hits.push((narrow(row), hash));
                }
                (hits, scratch)
            },
        )
        .map(|(hits, _)| hits)
        .reduce(Vec::new, |mut all, mut more| {
            all.append(&mut more);
            all
        });
    // Rows of the base that nothing came from yet are the better guess.
    let mut best: HashMap<u64, u32> = HashMap::default();
    for (row, hash) in hits {
        let place = best.entry(hash).or_insert(row);
        if used[*place as usize] && !used[row as usize] {
            *place = row;
        }
    }
    let mut matched = Vec::new();
    for (hash, rows) in open {
        if let Some(&at) = best.get(&hash) {
            for row in rows {
                found[row as usize] = at;
                used[at as usize] = true;
                matched.push(row);
            }
        }
    }
    matched
}

/// Rows between two that came from rows with as many others between them: the same ones, if they resemble each other.
fn between_neighbours(shared: &Shared, found: &mut [u32], used: &mut [bool]) {
    const MOST: usize = 64;
    let mut row = 0;
    while row < found.len() {
        if found[row] != NEW {
            row += 1;
            continue;
        }
        let start = row;
        while row < found.len() && found[row] == NEW {
            row += 1;
        }
        let before = start.checked_sub(1).map(|at| found[at]);
        let low = before.map_or(0, |at| at as usize + 1);
        let high = found.get(row).map_or(used.len(), |&at| at as usize);
        if row - start > MOST || high <= low || high - low > MOST {
            continue;
        }
        let mut from = low;
        for (open, at) in found.iter_mut().enumerate().take(row).skip(start) {
            let best = (from..high)
                .filter(|&candidate| !used[candidate])
                .map(|candidate| (likeness(shared, candidate, open), candidate))
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            if let Some((likeness, candidate)) = best
                && likeness >= 0.5
            {
                *at = narrow(candidate);
                used[candidate] = true;
                from = candidate + 1;
            }
        }
    }
}

/// How much of two rows is the same, by bytes: 0 to 1.
fn likeness(shared: &Shared, base: usize, derivative: usize) -> f64 {
    let (mut same, mut all) = (0_usize, 0_usize);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (from, to) in shared.base.iter().zip(&shared.derivative) {
        a.clear();
        b.clear();
        from.write(base, &mut a);
        to.write(derivative, &mut b);
        let most = a.len().max(b.len());
        let front = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let least = a.len().min(b.len()) - front;
        let back = a
            .iter()
            .rev()
            .zip(b.iter().rev())
            .take(least)
            .take_while(|(a, b)| a == b)
            .count();
        // Short values are the same by chance.
        let weight = if most >= 16 { most } else { most / 4 };
        all += weight;
        same += (front + back) * weight / most.max(1);
    }
    same as f64 / all.max(1) as f64
}

/// The same for every run: what is found does not depend on chance.
pub(crate) fn hasher() -> ahash::RandomState {
    ahash::RandomState::with_seeds(1, 2, 3, 4)
}

fn mixed(hash: u64, column: usize) -> u64 {
    (hash ^ (column as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15 | (((column as u64) << 1) + 1))
}

/// For each row, the sum of the mixed hashes of its columns: one column can be taken out again.
fn sums(
    columns: &[Column],
    rows: usize,
    hasher: &ahash::RandomState,
    seen: impl Fn(usize, u64) + Sync,
) -> Vec<u64> {
    let mut sums = vec![0_u64; rows];
    sums.par_chunks_mut(TASK)
        .enumerate()
        .for_each(|(task, sums)| {
            let mut scratch = Vec::new();
            for (at, column) in columns.iter().enumerate() {
                for (row, sum) in sums.iter_mut().enumerate() {
                    let hash = column.hash(task * TASK + row, hasher, &mut scratch);
                    seen(at, hash);
                    *sum = sum.wrapping_add(mixed(hash, at));
                }
            }
        });
    sums
}

fn subtract(sums: &mut [u64], column: &Column, at: usize, hasher: &ahash::RandomState) {
    sums.par_chunks_mut(TASK)
        .enumerate()
        .for_each(|(task, sums)| {
            let mut scratch = Vec::new();
            for (row, sum) in sums.iter_mut().enumerate() {
                let hash = column.hash(task * TASK + row, hasher, &mut scratch);
                *sum = sum.wrapping_sub(mixed(hash, at));
            }
        });
}

fn sample(column: &Column, rows: usize, hasher: &ahash::RandomState) -> HashMap<u64, AtomicU32> {
    let mut scratch = Vec::new();
    sampled(rows, SAMPLE)
        .map(|row| (column.hash(row, hasher, &mut scratch), AtomicU32::new(0)))
        .collect()
}

/// Up to `most` rows, evenly spread.
pub(crate) fn sampled(rows: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = rows.min(most);
    (0..count).map(move |k| k * rows / count)
}

fn traits_of(sample: &HashMap<u64, AtomicU32>) -> Traits {
    let counts = sample.values().map(|count| count.load(Ordering::Relaxed));
    let (mut some, mut once) = (0_usize, 0_usize);
    for count in counts {
        some += usize::from(count > 0);
        once += usize::from(count == 1);
    }
    Traits {
        overlap: some as f64 / sample.len().max(1) as f64,
        unique: once as f64 / some.max(1) as f64,
    }
}

/// Rows are counted in 32 bits: [`Table::load`] refuses more.
pub(crate) fn narrow(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(NEW)
}
