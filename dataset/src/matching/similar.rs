//! Rows that share their rarest words: edited texts without a key (Broder, "On the resemblance and containment of documents",
//! 1997: bottom-k sketches of shingles).

use rayon::prelude::*;

use super::{HashMap, NEW, Shared, likeness, narrow, sampled};
use crate::table::Column;

/// Shingles kept of a row.
const SKETCH: usize = 12;
/// Words of a shingle.
const WORDS: usize = 2;
/// Rows of the base with the same shingle, beyond which it says nothing.
const COMMON: usize = 64;
/// Candidates that are looked at closely.
const CLOSE: usize = 4;
/// The share of shingles two rows must have in common.
const LEAST: f64 = 0.25;
/// Bytes, and rows, of a base column that is sketched whole.
const SKETCHED: usize = 40 << 20;
const SKETCHED_ROWS: usize = 1 << 18;
/// Bytes of a text that are sketched.
const LONGEST: usize = 1 << 16;

/// Gives rows that are new so far the base row whose text they share most of.
pub(super) fn join((base, derivative): (&Column, &Column), found: &mut [u32], used: &[bool]) {
    let open: Vec<u32> = (0..found.len())
        .filter(|&row| found[row] == NEW)
        .map(narrow)
        .collect();
    if open.is_empty() {
        return;
    }
    let sketches: Vec<Vec<u64>> = open
        .par_iter()
        .map(|&row| bottom(derivative.text(row as usize)))
        .collect();
    let mut wanted: HashMap<u64, Vec<u32>> = HashMap::default();
    for shingle in sketches.iter().flatten() {
        wanted.entry(*shingle).or_default();
    }
    // Of a large base only the rows that nothing came from yet: those that something came from rarely have more to give.
    let bytes = text_of(base, used.len()).saturating_mul(used.len() / used.len().clamp(1, 1000));
    let all = bytes <= SKETCHED && used.len() <= SKETCHED_ROWS;
    // Base rows in order: the same list whatever the threads do.
    let hits: Vec<Vec<u64>> = (0..used.len())
        .into_par_iter()
        .map(|row| {
            if !all && used[row] {
                return Vec::new();
            }
            let mut sketch = bottom(base.text(row));
            sketch.retain(|shingle| wanted.contains_key(shingle));
            sketch
        })
        .collect();
    for (row, shingles) in hits.iter().enumerate() {
        for shingle in shingles {
            if let Some(rows) = wanted.get_mut(shingle)
                && rows.len() <= COMMON
            {
                rows.push(narrow(row));
            }
        }
    }
    drop(hits);
    let best: Vec<u32> = open
        .par_iter()
        .zip(&sketches)
        .map(|(&row, sketch)| {
            let mut counts: HashMap<u32, usize> = HashMap::default();
            for shingle in sketch {
                let rows = wanted.get(shingle).map_or(&[][..], Vec::as_slice);
                if rows.len() <= COMMON {
                    for &candidate in rows {
                        *counts.entry(candidate).or_default() += 1;
                    }
                }
            }
            let mut candidates: Vec<(usize, bool, u32)> = counts
                .into_iter()
                .map(|(candidate, count)| (count, !used[candidate as usize], candidate))
                .collect();
            candidates.sort_unstable_by(|a, b| (b.0, b.1, a.2).cmp(&(a.0, a.1, b.2)));
            let text = shingles(derivative.text(row as usize));
            candidates
                .into_iter()
                .take(CLOSE)
                .map(|(_, _, candidate)| {
                    (
                        common(&text, &shingles(base.text(candidate as usize))),
                        candidate,
                    )
                })
                .filter(|(share, _)| *share >= LEAST)
                .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
                .map_or(NEW, |(_, candidate)| candidate)
        })
        .collect();
    for (row, at) in open.into_iter().zip(best) {
        found[row as usize] = at;
    }
}

/// Which of the rows that neither their values nor a key have matched are not what an edit makes of their base row. Texts are
/// compared by the shingles that are not those of many rows: what all rows say, such as an instruction, makes no two alike.
pub(super) fn unlike(
    shared: &Shared,
    text: Option<usize>,
    found: &[u32],
    open: &[u32],
    is_named: bool,
) -> Vec<u32> {
    /// Rows looked at to know what many say.
    const LOOKED: usize = 1000;
    let matched: Vec<u32> = open
        .iter()
        .copied()
        .filter(|&row| found[row as usize] != NEW)
        .collect();
    let Some(column) = text.filter(|_| !matched.is_empty()) else {
        return if is_named { matched } else { Vec::new() };
    };
    let (base, derivative) = (&shared.base[column], &shared.derivative[column]);
    let mut counts: HashMap<u64, usize> = HashMap::default();
    let looked = base.rows().min(LOOKED);
    for row in sampled(base.rows(), LOOKED) {
        for shingle in shingles(base.text(row)) {
            *counts.entry(shingle).or_default() += 1;
        }
    }
    counts.retain(|_, count| *count >= 3.max(looked / 100));
    // Its own shingles, and whether these are most of them.
    let own = |text: Option<&[u8]>| {
        let mut all = shingles(text);
        let before = all.len();
        all.retain(|shingle| !counts.contains_key(shingle));
        let is_most = all.len() * 4 >= before * 3;
        (all, is_most)
    };
    matched
        .into_par_iter()
        .filter(|&row| {
            let (from, to) = (found[row as usize] as usize, row as usize);
            let ((a, _), (b, is_most_own)) = (own(base.text(from)), own(derivative.text(to)));
            let same = shared_by(&a, &b);
            let (least, most) = (a.len().min(b.len()), a.len().max(b.len()));
            let is_alike = match is_named {
                // A row of another name is the same one only if it says nearly the same.
                true if most > 0 => same * 4 >= most * 3,
                true => likeness(shared, from, to) >= 0.8,
                false => {
                    (least > 0 && same * 2 >= least && same * 4 >= most)
                        || (is_most_own && likeness(shared, from, to) >= 0.5)
                }
            };
            !is_alike
        })
        .collect()
}

/// The shared column with the most text.
pub(super) fn main_text(shared: &Shared, rows: usize) -> Option<usize> {
    (0..shared.derivative.len())
        .map(|c| (text_of(&shared.derivative[c], rows), c))
        .filter(|(bytes, _)| *bytes >= 16 * rows.min(1000))
        .max()
        .map(|(_, c)| c)
}

fn text_of(column: &Column, rows: usize) -> usize {
    sampled(rows, 1000)
        .filter_map(|row| column.text(row))
        .map(<[u8]>::len)
        .sum()
}

/// The hashes of all runs of [`WORDS`] words, sorted, each once.
fn shingles(text: Option<&[u8]>) -> Vec<u64> {
    let mut all = unsorted(text);
    all.sort_unstable();
    all.dedup();
    all
}

fn unsorted(text: Option<&[u8]>) -> Vec<u64> {
    let text = text.unwrap_or_default();
    let text = &text[..text.len().min(LONGEST)];
    let words: Vec<u64> = text
        .split(|byte| !byte.is_ascii_alphanumeric() && *byte < 128)
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.iter().fold(0x8422_2325_u64, |h, &b| {
                (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
            })
        })
        .collect();
    words
        .windows(WORDS)
        .map(|window| {
            let mixed = window.iter().fold(0_u64, |h, &w| {
                (h.rotate_left(21) ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
            mixed ^ (mixed >> 31)
        })
        .collect()
}

fn bottom(text: Option<&[u8]>) -> Vec<u64> {
    let mut all = unsorted(text);
    // The least first, without sorting the rest.
    if all.len() > 2 * SKETCH {
        all.select_nth_unstable(2 * SKETCH);
        all.truncate(2 * SKETCH);
    }
    all.sort_unstable();
    all.dedup();
    all.truncate(SKETCH);
    all
}

/// The share of the shingles of both that both have, of the smaller.
fn common(a: &[u64], b: &[u64]) -> f64 {
    shared_by(a, b) as f64 / a.len().min(b.len()).max(1) as f64
}

/// How many shingles both have.
fn shared_by(a: &[u64], b: &[u64]) -> usize {
    let (mut at, mut same) = (0, 0_usize);
    for shingle in a {
        while at < b.len() && b[at] < *shingle {
            at += 1;
        }
        same += usize::from(b.get(at) == Some(shingle));
    }
    same
}
