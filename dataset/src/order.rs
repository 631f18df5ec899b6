//! In which order the rows stand.
//!
//! The rows of a derivative are items: those kept from the base, in the base's order, then the new ones. Their order is stored
//! as a program (the base's order, or a sort by columns) and how the rows depart from it, by an adaptive code: following the
//! program costs next to nothing, a jump what it takes to name its goal among the items left. A random order costs
//! log2(n!) bits, the least there is.

use crate::DatasetError;
use crate::coding::{Bit, Coder, Int};
use crate::free::Free;

/// How far a short jump goes, in items left.
const SHORT: u64 = 24;

/// What codes jumps along a list of items.
struct Path<'a> {
    /// The items in the order of the program.
    program: &'a [u32],
    /// The place of each item in the program (the encoder's).
    places: Vec<u32>,
    free: Free,
    ranks: Option<Ranks>,
    left: usize,
    at: usize,
    hit: [Bit; 4],
    hits: usize,
    short: [Bit; 2],
    shorts: usize,
    back: Bit,
    distance: Int,
}

impl<'a> Path<'a> {
    fn new(program: &'a [u32], encodes: bool) -> Self {
        let mut places = Vec::new();
        if encodes {
            places = vec![0; program.len()];
            for (place, &item) in program.iter().enumerate() {
                places[item as usize] = crate::matching::narrow(place);
            }
        }
        Self {
            program,
            places,
            free: Free::new(program.len()),
            ranks: None,
            left: program.len(),
            at: 0,
            hit: [Bit::starting_at(64000); 4],
            hits: 3,
            short: [Bit::default(); 2],
            shorts: 0,
            back: Bit::default(),
            distance: Int::default(),
        }
    }

    /// Codes the next item.
    fn code<C: Coder>(&mut self, coder: &mut C, item: u32) -> Result<u32, DatasetError> {
        if self.left == 0 {
            return Err(DatasetError::damaged(
                "the order of the rows does not add up",
            ));
        }
        let mut successor = self.free.from(self.at);
        if successor == self.program.len() {
            successor = self.free.from(0);
        }
        let target = if C::ENCODES {
            self.places[item as usize] as usize
        } else {
            0
        };
        let hit = self.hit[self.hits].code(coder, target == successor);
        self.hits = (self.hits * 2 + usize::from(hit)) & 3;
        let place = if hit {
            successor
        } else {
            let ranks = match self.ranks.take() {
                Some(ranks) => ranks,
                None => Ranks::new(&self.free, self.program.len()),
            };
            let place = self.jump(coder, &ranks, successor, target)?;
            self.ranks = Some(ranks);
            place
        };
        self.free.take(place);
        if let Some(ranks) = &mut self.ranks {
            ranks.remove(place);
        }
        self.left -= 1;
        self.at = place + 1;
        Ok(self.program[place])
    }

    fn jump<C: Coder>(
        &mut self,
        coder: &mut C,
        ranks: &Ranks,
        successor: usize,
        target: usize,
    ) -> Result<usize, DatasetError> {
        let left = self.left as u64;
        let from = ranks.before(successor);
        let to = if C::ENCODES {
            ranks.before(target)
        } else {
            from
        };
        let is_short = to.abs_diff(from) <= SHORT;
        let is_short = self.short[self.shorts].code(coder, is_short);
        self.shorts = usize::from(is_short);
        let rank = if is_short {
            let back = self.back.code(coder, to < from);
            let distance = self.distance.code(coder, to.abs_diff(from));
            if back {
                from.checked_sub(distance)
            } else {
                from.checked_add(distance)
            }
        } else {
            Some(coder.uniform(to, left))
        };
        rank.filter(|&rank| rank < left)
            .map(|rank| ranks.select(rank))
            .ok_or_else(|| DatasetError::damaged("the order of the rows does not add up"))
    }
}

/// Counts of the places left, by which the n-th is found (Fenwick 1994).
struct Ranks {
    tree: Vec<u32>,
}

impl Ranks {
    fn new(free: &Free, len: usize) -> Self {
        let mut tree = vec![0_u32; len + 1];
        for place in 0..len {
            tree[place + 1] += u32::from(free.is_free(place));
            let parent = (place + 1) + ((place + 1) & (place + 1).wrapping_neg());
            if parent <= len {
                tree[parent] += tree[place + 1];
            }
        }
        Self { tree }
    }

    fn remove(&mut self, place: usize) {
        let mut at = place + 1;
        while at < self.tree.len() {
            self.tree[at] -= 1;
            at += at & at.wrapping_neg();
        }
    }

    /// How many are left before `place`.
    fn before(&self, place: usize) -> u64 {
        let (mut at, mut sum) = (place, 0_u64);
        while at > 0 {
            sum += u64::from(self.tree[at]);
            at &= at - 1;
        }
        sum
    }

    /// The place with `rank` others left before it.
    fn select(&self, rank: u64) -> usize {
        let (mut at, mut rank) = (0_usize, rank);
        let mut step = self.tree.len().next_power_of_two();
        while step > 0 {
            if at + step < self.tree.len() && u64::from(self.tree[at + step]) <= rank {
                at += step;
                rank -= u64::from(self.tree[at]);
            }
            step /= 2;
        }
        at
    }
}

/// Codes which base rows are kept and how often: for each, 0, 1 or more, in the base's order or in another. How often each row
/// is kept; `most` times in all.
pub(crate) fn code_kept<C: Coder>(
    coder: &mut C,
    base_rows: usize,
    order: Option<&[u32]>,
    counts: &[u32],
    most: usize,
) -> Result<Vec<u32>, DatasetError> {
    let mut found = vec![0_u32; base_rows];
    let mut kept = 0_usize;
    let mut is_kept = [Bit::starting_at(60000); 4];
    let mut again = [Bit::starting_at(100); 2];
    let mut more = Int::default();
    let (mut last, mut repeated) = (3, 0);
    for at in 0..base_rows {
        let row = order.map_or(at, |order| order[at] as usize);
        let count = counts.get(row).copied().unwrap_or(0);
        let any = is_kept[last].code(coder, count > 0);
        last = (last * 2 + usize::from(any)) & 3;
        if !any {
            continue;
        }
        let several = again[repeated].code(coder, count > 1);
        repeated = usize::from(several);
        let count = if several {
            more.code(coder, u64::from(count.saturating_sub(2)))
                .saturating_add(2)
        } else {
            1
        };
        let count = usize::try_from(count)
            .ok()
            .filter(|&count| count <= most - kept)
            .ok_or_else(|| DatasetError::damaged("more rows are kept than there are"))?;
        kept += count;
        found[row] = crate::matching::narrow(count);
    }
    if kept != most {
        return Err(DatasetError::damaged("the numbers of rows do not add up"));
    }
    Ok(found)
}

/// The base row of each item kept.
pub(crate) fn kept_rows(counts: &[u32]) -> Vec<u32> {
    let mut kept = Vec::new();
    for (row, &count) in counts.iter().enumerate() {
        kept.extend(std::iter::repeat_n(
            crate::matching::narrow(row),
            count as usize,
        ));
    }
    kept
}

/// The items kept, in the base's order or in another.
pub(crate) fn kept_items(counts: &[u32], order: Option<&[u32]>) -> Vec<u32> {
    let kept: u32 = counts.iter().sum();
    let Some(order) = order else {
        return (0..kept).collect();
    };
    let mut next = 0;
    let starts: Vec<u32> = counts
        .iter()
        .map(|&count| {
            next += count;
            next - count
        })
        .collect();
    order
        .iter()
        .flat_map(|&row| {
            let start = starts[row as usize];
            start..start + counts[row as usize]
        })
        .collect()
}

/// Codes the item of each row, where the program has the items kept and new ones come in between in their own order.
pub(crate) fn code_interleaved<C: Coder>(
    coder: &mut C,
    program: &[u32],
    new: usize,
    items: &[u32],
) -> Result<Vec<u32>, DatasetError> {
    let kept = program.len();
    let mut path = Path::new(program, C::ENCODES);
    let mut is_new = [Bit::starting_at(2000); 4];
    let mut last = 0;
    let (mut found, mut next_new) = (Vec::new(), 0);
    for row in 0..kept + new {
        let item = items.get(row).copied().unwrap_or(0);
        let fresh = if next_new == new {
            false
        } else if path.left == 0 {
            true
        } else {
            let fresh = is_new[last].code(coder, item as usize >= kept);
            last = (last * 2 + usize::from(fresh)) & 3;
            fresh
        };
        found.push(if fresh {
            next_new += 1;
            crate::matching::narrow(kept + next_new - 1)
        } else {
            path.code(coder, item)?
        });
        if coder.is_exhausted() {
            return Err(DatasetError::damaged("the order of the rows ends early"));
        }
    }
    Ok(found)
}

/// Codes the item of each row, where the program has all items.
pub(crate) fn code_whole<C: Coder>(
    coder: &mut C,
    program: &[u32],
    items: &[u32],
) -> Result<Vec<u32>, DatasetError> {
    let mut path = Path::new(program, C::ENCODES);
    (0..program.len())
        .map(|row| path.code(coder, items.get(row).copied().unwrap_or(0)))
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;
    use crate::coding::{Decoder, Encoder};

    fn bytes(program: &[u32], new: usize, items: &[u32]) -> usize {
        let mut encoder = Encoder::new();
        code_interleaved(&mut encoder, program, new, items).unwrap();
        let stream = encoder.finish();
        let mut decoder = Decoder::new(&stream);
        let found = code_interleaved(&mut decoder, program, new, &[]).unwrap();
        assert_eq!(found, items);
        decoder.finish().unwrap();
        stream.len()
    }

    #[test]
    fn orders_come_back_and_cost_what_they_say() {
        let n = 10_000_u32;
        let identity: Vec<u32> = (0..n).collect();
        assert!(bytes(&identity, 0, &identity) < 16);
        let rotated: Vec<u32> = (n / 2..n).chain(0..n / 2).collect();
        assert!(bytes(&identity, 0, &rotated) < 24);
        let mut random = identity.clone();
        let mut seed = 7_u64;
        for at in (1..random.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random.swap(at, usize::try_from(seed >> 33).unwrap() % (at + 1));
        }
        // log2(10000!) / 8 = 14,807 bytes.
        let random = bytes(&identity, 0, &random);
        assert!(random < 14_950, "{random}");
        let with_new: Vec<u32> = (0..n).flat_map(|i| [i, n + i]).collect();
        assert!(bytes(&identity, n as usize, &with_new) < 64);
        assert_eq!(bytes(&[], 0, &[]), 0);
    }

    #[test]
    fn kept_rows_come_back() {
        let counts: Vec<u32> = (0..1000).map(|k| [1, 1, 0, 3, 1][k % 5]).collect();
        let reversed: Vec<u32> = (0..1000).rev().collect();
        for order in [None, Some(reversed.as_slice())] {
            let mut encoder = Encoder::new();
            code_kept(&mut encoder, 1000, order, &counts, 1200).unwrap();
            let stream = encoder.finish();
            let code = |most| code_kept(&mut Decoder::new(&stream), 1000, order, &[], most);
            assert_eq!(code(1200).unwrap(), counts);
            assert!(code(1199).is_err() && code(1201).is_err());
        }
        assert_eq!(kept_rows(&[1, 0, 2]), [0, 2, 2]);
        assert_eq!(kept_items(&[1, 0, 2], None), [0, 1, 2]);
        assert_eq!(kept_items(&[1, 0, 2], Some(&[2, 1, 0])), [1, 2, 0]);
    }
}
