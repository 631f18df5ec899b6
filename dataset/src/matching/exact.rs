//! Rows with the same hash. What the base has once is joined by a plan of DataFusion; duplicates are kept apart and taken one
//! after another, which is no join.

use std::sync::Arc;

use rayon::prelude::*;

use super::join::Sides;
use super::repeated::Repeated;
use super::{NEW, narrow};
use crate::DatasetError;
use crate::free::Free;
use crate::pair::Check;
use crate::table::Room;

/// The base row of each derivative row, by hash. A base row is taken once as long as there are others of the same hash.
pub(super) fn join(
    base: Vec<u64>,
    derivative: Vec<u64>,
    room: &Room<'_>,
    check: &Check<'_>,
) -> Result<Vec<u32>, DatasetError> {
    let sides = Sides {
        repeated: Arc::new(Repeated::new(&base)),
        base: Arc::new(base),
        derivative: Arc::new(derivative),
    };
    let mut found = sides.join(room, check)?;
    let from = sorted(&sides.base, &sides.repeated);
    if !from.is_empty() {
        check()?;
        drop(sides.base);
        let to = sorted(&sides.derivative, &sides.repeated);
        take(&from, to, &sides.derivative, &mut found);
    }
    Ok(found)
}

/// Finds the rows whose hashes may repeat in the base: `from` there, `to` in the derivative.
fn take(from: &[(u64, u32)], to: Vec<(u64, u32)>, derivative: &[u64], found: &mut [u32]) {
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
    for row in 0..found.len() {
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
}

/// Hashes that may repeat, with their rows, in order.
fn sorted(hashes: &[u64], repeated: &Repeated) -> Vec<(u64, u32)> {
    let mut rows: Vec<(u64, u32)> = hashes
        .par_iter()
        .enumerate()
        .filter(|&(_, &hash)| repeated.has(hash))
        .map(|(row, &hash)| (hash, narrow(row)))
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
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    /// As much memory as `joined` says for joins.
    fn room(scratch: &std::path::Path, joined: usize) -> Room<'_> {
        Room {
            scratch,
            held: 0,
            mapped: 0,
            joined,
        }
    }

    fn joined(base: &[u64], derivative: &[u64], bytes: usize) -> Vec<u32> {
        let scratch = tempfile::tempdir().unwrap();
        let room = room(scratch.path(), bytes);
        join(base.to_vec(), derivative.to_vec(), &room, &|| Ok(())).unwrap()
    }

    #[test]
    fn duplicates_are_taken_once_each_and_runs_stay_runs() {
        let base = [7, 1, 7, 2, 7, 3];
        let join = |base: &[u64], derivative: &[u64]| joined(base, derivative, 1 << 20);
        assert_eq!(join(&base, &[7, 1, 7, 2, 7, 3]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(join(&base, &[2, 7, 3, 7, 7]), [3, 4, 5, 0, 2]);
        assert_eq!(join(&base, &[1, 7, 7, 7]), [1, 2, 4, 0]);
        assert_eq!(join(&base, &[7, 7, 7, 7, 9]), [0, 2, 4, 0, NEW]);
        assert_eq!(join(&[], &[1]), [NEW]);
        assert!(join(&[1], &[]).is_empty());
    }

    /// What a join finds, one row at a time.
    fn one_by_one(base: &[u64], derivative: &[u64]) -> Vec<u32> {
        let mut rows: HashMap<u64, Vec<u32>> = HashMap::new();
        for (row, &hash) in base.iter().enumerate() {
            rows.entry(hash).or_default().push(narrow(row));
        }
        let (mut taken, mut last) = (HashSet::new(), None);
        let find = |hash| {
            let rows = rows.get(hash)?;
            let mut free = rows.iter().filter(|row| !taken.contains(*row));
            let first = free.clone().next();
            let next = free.find(|&&row| last.is_none_or(|last| row > last));
            let row = *next.or(first).unwrap_or(&rows[0]);
            taken.insert(row);
            last = Some(row);
            Some(row)
        };
        let found: Vec<Option<u32>> = derivative.iter().map(find).collect();
        found.into_iter().map(|row| row.unwrap_or(NEW)).collect()
    }

    /// A number that looks like a hash.
    fn hash(number: u64) -> u64 {
        (number + 1)
            .wrapping_mul(0xd134_2543_de82_ef95)
            .rotate_left(23)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn both_ways_find_what_is_found_one_by_one(
            base in prop::collection::vec(0_u64..300, 0..200),
            derivative in prop::collection::vec(0_u64..300, 0..200),
        ) {
            let base: Vec<u64> = base.into_iter().map(hash).collect();
            let derivative: Vec<u64> = derivative.into_iter().map(hash).collect();
            let expected = one_by_one(&base, &derivative);
            prop_assert_eq!(&joined(&base, &derivative, 1 << 20), &expected);
            let scratch = tempfile::tempdir().unwrap();
            let room = room(scratch.path(), 1 << 22);
            let sides = Sides {
                repeated: Arc::new(Repeated::new(&base)),
                base: Arc::new(base),
                derivative: Arc::new(derivative),
            };
            let (tables, _) = sides.join_by(&room, false);
            let (sorted, _) = sides.join_by(&room, true);
            prop_assert_eq!(tables, sorted);
        }
    }

    #[test]
    fn rows_that_are_sorted_in_files_find_the_same_in_parts_and_whole() {
        // Every third of the base repeats, every fifth of the derivative does, some of either side are not on the other.
        let base: Vec<u64> = (0..300_000).map(|row| hash(row - row % 3 / 2)).collect();
        let derivative =
            (0..250_000).map(|row| hash(20_000 + (row * 7 - row % 5 / 4 * 7) % 299_993));
        let derivative: Vec<u64> = derivative.collect();
        let expected = one_by_one(&base, &derivative);
        assert!(expected.iter().filter(|&&row| row == NEW).count() > 1000);
        for bytes in [64 << 20, 6 << 20, 4 << 20] {
            assert_eq!(joined(&base, &derivative, bytes), expected, "{bytes}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let room = room(scratch.path(), 4 << 20);
        let sides = Sides {
            repeated: Arc::new(Repeated::new(&base)),
            base: Arc::new(base),
            derivative: Arc::new(derivative),
        };
        let (_, spilled) = sides.join_by(&room, true);
        assert!(spilled > 0);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_join_is_cancelled() {
        let hashes: Vec<u64> = (0..50_000).map(hash).collect();
        let scratch = tempfile::tempdir().unwrap();
        let stop = || Err(sparse_delta::DeltaError::Cancelled.into());
        let error = join(
            hashes.clone(),
            hashes,
            &room(scratch.path(), 64 << 20),
            &stop,
        );
        assert_eq!(error.unwrap_err().exit_code(), 130);
    }
}
