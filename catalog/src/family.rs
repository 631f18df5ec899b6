//! Which of several related models the others descend from.
//!
//! Fine-tunes of one base often move the same way, so that a sibling can be nearer than the base they share. Over all relatives
//! the base is still the centre: the model from which the others, the fine-tune in question among them, are nearest on average.
//! Members that are near one another (the checkpoints of one run) count for less each, so that many of a kind pull the centre less.

use crate::distance::{Scaled, gaps};
use crate::sample::mix;

/// Times the samples are drawn again to see whether the choice stands.
const DRAWS: u64 = 200;

/// Distances between every two members, sample by sample.
pub(crate) struct Family {
    members: usize,
    chunks: usize,
    /// (sum of bits, weights compared) of a pair's sample.
    gaps: Vec<(f64, f64)>,
    /// How much each member counts.
    weights: Vec<f64>,
}

/// The centre of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Centre {
    pub(crate) member: usize,
    /// The share of draws of the samples that give the same one.
    pub(crate) confidence: f64,
}

impl Family {
    /// The last member is the model in question.
    pub(crate) fn new(members: &[&Scaled]) -> Self {
        let chunks = members.first().map_or(0, |member| member.len());
        let mut all = vec![(0.0, 0.0); members.len() * members.len() * chunks];
        for (a, one) in members.iter().enumerate() {
            for (b, other) in members.iter().enumerate().skip(a + 1) {
                for (chunk, gap) in gaps(one, other).into_iter().enumerate() {
                    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
                    let count = gap.count as f64;
                    let value = (gap.bits * count, count);
                    for at in [a * members.len() + b, b * members.len() + a] {
                        if let Some(slot) = all.get_mut(at * chunks + chunk) {
                            *slot = value;
                        }
                    }
                }
            }
        }
        let mut family = Self {
            members: members.len(),
            chunks,
            gaps: all,
            weights: Vec::new(),
        };
        family.weights = family.weigh();
        family
    }

    /// One over the relatives that are about as near to a relative as it is itself: those at the median distance from the model in
    /// question, or further, are not near. The model in question, whose base is sought, counts whole.
    fn weigh(&self) -> Vec<f64> {
        let same = vec![1.0; self.chunks];
        let me = self.members.saturating_sub(1);
        let mut distances: Vec<f64> = (0..me)
            .map(|other| self.distance(me, other, &same))
            .collect();
        distances.sort_by(f64::total_cmp);
        let far = distances.get(distances.len() / 2).copied().unwrap_or(0.0);
        let near = |a: usize, b: usize| match a == b {
            true => 1.0,
            false => (1.0 - self.distance(a, b, &same) / far.max(f64::MIN_POSITIVE)).max(0.0),
        };
        (0..me)
            .map(|a| 1.0 / (0..me).map(|b| near(a, b)).sum::<f64>())
            .chain([1.0])
            .collect()
    }

    /// Mean bits between two members, samples counted as often as `times` says.
    fn distance(&self, a: usize, b: usize, times: &[f64]) -> f64 {
        let at = (a * self.members + b) * self.chunks;
        let pair = self.gaps.get(at..at + self.chunks).unwrap_or(&[]);
        let (bits, count) = pair
            .iter()
            .zip(times)
            .fold((0.0, 0.0), |sum, (gap, times)| {
                (sum.0 + gap.0 * times, sum.1 + gap.1 * times)
            });
        if count > 0.0 { bits / count } else { 0.0 }
    }

    /// The centre among the relatives that `allowed` names, seen from all members. None if none is allowed.
    pub(crate) fn centre(&self, allowed: &[usize]) -> Option<Centre> {
        self.centre_by(allowed, &self.weights)
    }

    /// The centre of all members that `allowed` names, the model in question too: each counts the same, since it would be alone to
    /// count whole.
    pub(crate) fn plain_centre(&self, allowed: &[usize]) -> Option<Centre> {
        self.centre_by(allowed, &vec![1.0; self.members])
    }

    fn centre_by(&self, allowed: &[usize], weights: &[f64]) -> Option<Centre> {
        let member = self.nearest_to_all(allowed, weights, |_| 1.0)?;
        let mut same = 0_u32;
        let mut times = vec![0_u32; self.chunks];
        for draw in 0..DRAWS {
            times.iter_mut().for_each(|times| *times = 0);
            for pick in 0..self.chunks as u64 {
                let at = mix(draw << 32 | pick) % self.chunks as u64;
                if let Some(times) = usize::try_from(at).ok().and_then(|at| times.get_mut(at)) {
                    *times += 1;
                }
            }
            let drawn = |chunk: usize| f64::from(times.get(chunk).copied().unwrap_or(0));
            if self.nearest_to_all(allowed, weights, drawn) == Some(member) {
                same += 1;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let confidence = f64::from(same) / DRAWS as f64;
        Some(Centre { member, confidence })
    }

    fn nearest_to_all(
        &self,
        allowed: &[usize],
        weights: &[f64],
        times: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let times: Vec<f64> = (0..self.chunks).map(times).collect();
        let mut best: Option<(f64, usize)> = None;
        for &candidate in allowed {
            let cost: f64 = weights
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != candidate)
                .map(|(other, weight)| weight * self.distance(candidate, other, &times))
                .sum();
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, candidate));
            }
        }
        best.map(|(_, member)| member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(offsets: &[f32]) -> Scaled {
        offsets
            .iter()
            .enumerate()
            .map(|(chunk, offset)| {
                let value = |at: u64| (mix(at + chunk as u64 * 999) >> 52) as f32 + offset;
                Some((0..64).map(value).collect())
            })
            .collect()
    }

    #[test]
    fn the_centre_of_siblings_that_move_alike() {
        let base = member(&[0.0; 16]);
        let long = member(&[9.0; 16]);
        let short = member(&[6.0; 16]);
        let other = member(&[-30.0; 16]);
        let third = member(&[-4.0; 16]);
        let family = Family::new(&[&long, &base, &short, &other, &third]);
        // The nearest to `long` is `short`; all of them together are nearest to the base.
        assert_eq!(
            family
                .plain_centre(&[0, 1, 2, 3, 4])
                .map(|centre| centre.member),
            Some(1)
        );
        let centre = family.centre(&[0, 1, 2, 3]);
        assert_eq!(
            centre,
            Some(Centre {
                member: 1,
                confidence: 1.0
            })
        );
        assert_eq!(family.centre(&[]), None);
    }
}
