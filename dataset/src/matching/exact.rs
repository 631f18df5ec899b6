//! Rows with the same hash: a sort-merge join that keeps duplicates apart.

use rayon::prelude::*;

use super::{NEW, narrow};
use crate::free::Free;

/// The base row of each derivative row, by hash. A base row is taken once as long as there are others of the same hash.
pub(super) fn join(base: Vec<u64>, derivative: Vec<u64>) -> Vec<u32> {
    let from = sorted(&base);
    drop(base);
    let to = sorted(&derivative);
    let mut found = vec![NEW; derivative.len()];
    // Where the group of a derivative row with several candidates begins, in `from`.
    let mut several: Vec<(u32, u32)> = Vec::new();
    let mut at = 0;
    let mut row = 0;
    while row < to.len() {
        let hash = to[row].0;
        let end = row + to[row..].partition_point_near(|&(h, _)| h == hash);
        while at < from.len() && from[at].0 < hash {
            at += 1;
        }
        let group = from[at..].partition_point_near(|&(h, _)| h == hash);
        if group == 1 && end - row == 1 {
            found[to[row].1 as usize] = from[at].1;
        } else if group > 0 {
            several.extend(to[row..end].iter().map(|&(_, r)| (r, narrow(at))));
        }
        at += group;
        row = end;
    }
    drop(to);
    several.par_sort_unstable();
    let mut free = Free::new(from.len());
    let mut last = None;
    let mut next = several.iter().peekable();
    for row in 0..derivative.len() {
        if let Some(&&(of, group)) = next.peek()
            && of as usize == row
        {
            next.next();
            let (start, hash) = (group as usize, derivative[row]);
            let end = start + from[start..].partition_point_near(|&(h, _)| h == hash);
            // The next one after the last match, so that runs stay runs; else the first that is left.
            let after = last.map_or(0, |last: u32| {
                from[start..end].partition_point(|&(_, at)| at <= last)
            });
            let mut place = free.from(start + after);
            if place >= end {
                place = free.from(start);
            }
            if place < end {
                free.take(place);
                found[row] = from[place].1;
            } else {
                // More of them than the base has.
                found[row] = from[start].1;
            }
        }
        if found[row] != NEW {
            last = Some(found[row]);
        }
    }
    found
}

/// Hashes with their rows, in order.
fn sorted(sums: &[u64]) -> Vec<(u64, u32)> {
    let mut rows: Vec<(u64, u32)> = sums
        .par_iter()
        .enumerate()
        .map(|(row, &sum)| (sum, narrow(row)))
        .collect();
    rows.par_sort_unstable();
    rows
}

/// `partition_point` for answers that are mostly near the front.
trait Near<T> {
    fn partition_point_near(&self, is_before: impl Fn(&T) -> bool) -> usize;
}

impl<T> Near<T> for [T] {
    fn partition_point_near(&self, is_before: impl Fn(&T) -> bool) -> usize {
        let mut high = 1;
        while high < self.len() && is_before(&self[high]) {
            high *= 2;
        }
        let high = high.min(self.len());
        self[..high].partition_point(is_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_taken_once_each_and_runs_stay_runs() {
        let base = [7, 1, 7, 2, 7, 3];
        let join = |base: &[u64], derivative: &[u64]| join(base.to_vec(), derivative.to_vec());
        assert_eq!(join(&base, &[7, 1, 7, 2, 7, 3]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(join(&base, &[2, 7, 3, 7, 7]), [3, 4, 5, 0, 2]);
        assert_eq!(join(&base, &[1, 7, 7, 7]), [1, 2, 4, 0]);
        assert_eq!(join(&base, &[7, 7, 7, 7, 9]), [0, 2, 4, 0, NEW]);
        assert_eq!(join(&[], &[1]), [NEW]);
        assert!(join(&[1], &[]).is_empty());
    }
}
