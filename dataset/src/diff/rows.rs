//! Which row of the base each row of the derivative is compared with: each at most once.

use rayon::prelude::*;

use crate::matching::{NEW, narrow};
use crate::table::Column;

/// Rows of the derivative and the rows of the base they are compared with.
pub(super) struct Matched {
    found: Vec<u32>,
    used: Vec<bool>,
    unused: u64,
}

impl Matched {
    pub(super) fn new(found: Vec<u32>, base_rows: usize) -> Self {
        let mut used = vec![false; base_rows];
        for &row in found.iter().filter(|&&row| row != NEW) {
            used[row as usize] = true;
        }
        let unused = used.iter().filter(|used| !**used).count() as u64;
        Self {
            found,
            used,
            unused,
        }
    }

    /// Of several rows made from one of the base, one is compared with it: the first that is the same, or else the first.
    pub(super) fn once(
        mut found: Vec<u32>,
        base_rows: usize,
        same: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let mut claimed = vec![NEW; base_rows];
        for row in 0..found.len() {
            let base = found[row];
            if base == NEW {
                continue;
            }
            let first = claimed[base as usize];
            if first == NEW {
                claimed[base as usize] = narrow(row);
            } else if !same(base as usize, first as usize) && same(base as usize, row) {
                found[first as usize] = NEW;
                claimed[base as usize] = narrow(row);
            } else {
                found[row] = NEW;
            }
        }
        Self::new(found, base_rows)
    }

    /// The row of the base, or [`NEW`].
    pub(super) fn base_row(&self, row: usize) -> u32 {
        self.found[row]
    }

    pub(super) fn is_used(&self, base: usize) -> bool {
        self.used[base]
    }

    pub(super) fn unused(&self) -> u64 {
        self.unused
    }

    /// The fewest rows that would have to be moved to have the base's order: all but the longest increasing run of them.
    pub(super) fn moved(&self) -> u64 {
        let mut ends: Vec<u32> = Vec::new();
        let mut count = 0_u64;
        for &row in self.found.iter().filter(|&&row| row != NEW) {
            count += 1;
            let at = ends.partition_point(|&end| end < row);
            if at == ends.len() {
                ends.push(row);
            } else {
                ends[at] = row;
            }
        }
        count - ends.len() as u64
    }
}

/// Rows of equal keys, the first with the first and so on. Hashes are confirmed by comparing the keys.
pub(super) fn by_key(
    key: &[(&Column, &Column)],
    base_rows: usize,
    derivative_rows: usize,
) -> Vec<u32> {
    let hasher = ahash::RandomState::with_seeds(5, 6, 7, 8);
    let write = |base: bool, row: usize, out: &mut Vec<u8>| {
        out.clear();
        for (from, to) in key {
            if base { from } else { to }.write(row, out);
        }
    };
    let mut index: Vec<(u64, u32)> = (0..base_rows)
        .into_par_iter()
        .map_init(Vec::new, |room, row| {
            write(true, row, room);
            (hasher.hash_one(room.as_slice()), narrow(row))
        })
        .collect();
    index.par_sort_unstable();
    let mut used = vec![false; base_rows];
    let (mut wanted, mut room) = (Vec::new(), Vec::new());
    // Where the unused rows of a hash begin, so that many equal keys do not cost the square of their number.
    let mut begin: std::collections::HashMap<u64, usize> = std::collections::HashMap::new();
    (0..derivative_rows)
        .map(|row| {
            write(false, row, &mut wanted);
            let hash = hasher.hash_one(wanted.as_slice());
            let first = match begin.get(&hash) {
                Some(&first) => first,
                None => index.partition_point(|&(other, _)| other < hash),
            };
            let mut start = first;
            let mut found = NEW;
            for (at, &(other, base)) in index.iter().enumerate().skip(first) {
                if other != hash {
                    break;
                }
                if used[base as usize] {
                    if at == start {
                        start = at + 1;
                    }
                    continue;
                }
                write(true, base as usize, &mut room);
                if room == wanted {
                    used[base as usize] = true;
                    found = base;
                    if at == start {
                        start = at + 1;
                    }
                    break;
                }
            }
            // One row of a hash needs no note: it is looked at again in no time.
            let more = index.get(start).is_some_and(|&(other, _)| other == hash);
            if start > first && (more || begin.contains_key(&hash)) {
                begin.insert(hash, start);
            }
            found
        })
        .collect()
}
