//! Known permutations: the shuffles of common libraries, made again from a seed.
//!
//! All are Fisher-Yates from the end: the place `i`, from the last down to 1, is swapped with a place from 0 to `i` drawn by
//! rejection. What differs is the generator and which of its bits are used. So the end of a permutation is known after few
//! draws, and many seeds can be tried.

use serde::{Deserialize, Serialize};

use crate::matching::{NEW, narrow};

/// Who shuffles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Generator {
    /// `numpy.random.default_rng(seed).permutation(n)`, as `datasets` shuffles and splits.
    NumpyPcg64,
    /// `numpy.random.RandomState(seed).permutation(n)`, as pandas and scikit-learn shuffle.
    NumpyMt19937,
    /// `random.Random(seed).shuffle(list(range(n)))` of Python.
    PythonMt19937,
}

/// What is shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Of {
    /// The rows of the first of the base's splits, before some of them were taken.
    Base,
    /// The rows of the derivative, last of all.
    Rows,
}

/// A permutation that is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shuffle {
    pub(crate) generator: Generator,
    pub(crate) seed: u64,
    pub(crate) of: Of,
}

enum Random {
    Pcg {
        state: u128,
        inc: u128,
        half: Option<u32>,
    },
    Mt {
        words: Box<[u32; 624]>,
        at: usize,
        high_bits: bool,
    },
}

const PCG_MULTIPLIER: u128 = (2_549_297_995_355_413_924 << 64) + 4_865_540_595_714_422_341;

impl Random {
    fn new(generator: Generator, seed: u64) -> Self {
        match generator {
            Generator::NumpyPcg64 => {
                let v = seed_sequence(seed);
                let wide = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
                let inc = (wide(v[2], v[3]) << 1) | 1;
                let step = |state: u128| state.wrapping_mul(PCG_MULTIPLIER).wrapping_add(inc);
                let state = step(step(0).wrapping_add(wide(v[0], v[1])));
                Self::Pcg {
                    state,
                    inc,
                    half: None,
                }
            }
            Generator::NumpyMt19937 => Self::Mt {
                words: Box::new(knuth(low(seed))),
                at: 624,
                high_bits: false,
            },
            Generator::PythonMt19937 => Self::Mt {
                words: by_array(seed),
                at: 624,
                high_bits: true,
            },
        }
    }

    fn next(&mut self) -> u32 {
        match self {
            Self::Pcg { state, inc, half } => {
                if let Some(half) = half.take() {
                    return half;
                }
                *state = state.wrapping_mul(PCG_MULTIPLIER).wrapping_add(*inc);
                let folded = high64(*state) ^ low64(*state);
                let word = folded.rotate_right(u32::try_from(*state >> 122).unwrap_or(0));
                *half = Some(low(word >> 32));
                low(word)
            }
            Self::Mt { words, at, .. } => {
                // Each word of the next state when it is asked for: of most seeds only a few are.
                let k = *at % 624;
                let y = (words[k] & 0x8000_0000) | (words[(k + 1) % 624] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                words[k] = words[(k + 397) % 624] ^ (y >> 1) ^ odd;
                let mut y = words[k];
                *at = k + 1;
                y ^= y >> 11;
                y ^= (y << 7) & 0x9d2c_5680;
                y ^= (y << 15) & 0xefc6_0000;
                y ^ (y >> 18)
            }
        }
    }

    /// A number from 0 to `most`.
    fn up_to(&mut self, most: u32) -> u32 {
        let high_bits = matches!(
            self,
            Self::Mt {
                high_bits: true,
                ..
            }
        );
        loop {
            let found = if high_bits {
                let count = u64::from(most) + 1;
                let bits = 64 - count.leading_zeros();
                // 33 bits are never asked for: there are fewer rows.
                self.next().checked_shr(32 - bits.min(32)).unwrap_or(0)
            } else {
                self.next() & u32::MAX.checked_shr(most.leading_zeros()).unwrap_or(0)
            };
            if found <= most {
                return found;
            }
        }
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

fn low64(word: u128) -> u64 {
    u64::try_from(word & u128::from(u64::MAX)).unwrap_or(0)
}

fn high64(word: u128) -> u64 {
    low64(word >> 64)
}

/// The 32-bit words of a seed, the lowest first; at least one.
fn words_of(seed: u64) -> Vec<u32> {
    let mut words = vec![low(seed)];
    if seed >> 32 != 0 {
        words.push(low(seed >> 32));
    }
    words
}

/// numpy's `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_sequence(seed: u64) -> [u64; 4] {
    let entropy = words_of(seed);
    let mut constant = 0x43b0_d7e5_u32;
    let mut hashed = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mut pool = [0_u32; 4];
    for (at, word) in pool.iter_mut().enumerate() {
        *word = hashed(entropy.get(at).copied().unwrap_or(0));
    }
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                let mixed = 0xca01_f9dd_u32
                    .wrapping_mul(pool[to])
                    .wrapping_sub(0x4973_f715_u32.wrapping_mul(hashed(pool[from])));
                pool[to] = mixed ^ (mixed >> 16);
            }
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut next = |at: usize| {
        let value = pool[at % 4] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        u64::from(value ^ (value >> 16))
    };
    let mut found = [0_u64; 4];
    for (at, word) in found.iter_mut().enumerate() {
        *word = next(2 * at);
        *word |= next(2 * at + 1) << 32;
    }
    found
}

/// The Mersenne Twister's state from one word.
const fn knuth(seed: u32) -> [u32; 624] {
    let mut words = [0_u32; 624];
    words[0] = seed;
    let (mut at, mut number) = (1, 1_u32);
    while at < 624 {
        let before = words[at - 1];
        words[at] = 1_812_433_253_u32
            .wrapping_mul(before ^ (before >> 30))
            .wrapping_add(number);
        (at, number) = (at + 1, number + 1);
    }
    words
}

/// The Mersenne Twister's state from several words (`init_by_array`).
fn by_array(seed: u64) -> Box<[u32; 624]> {
    const FIRST: [u32; 624] = knuth(19_650_218);
    let key = words_of(seed);
    let mut words = Box::new(FIRST);
    let (mut i, mut j) = (1, 0);
    for _ in 0..624 {
        let before = words[i - 1];
        words[i] = (words[i] ^ (before ^ (before >> 30)).wrapping_mul(1_664_525))
            .wrapping_add(key[j])
            .wrapping_add(narrow(j));
        (i, j) = (i + 1, if j + 1 == key.len() { 0 } else { j + 1 });
        if i == 624 {
            (words[0], i) = (words[623], 1);
        }
    }
    for _ in 0..623 {
        let before = words[i - 1];
        words[i] = (words[i] ^ (before ^ (before >> 30)).wrapping_mul(1_566_083_941))
            .wrapping_sub(narrow(i));
        i += 1;
        if i == 624 {
            (words[0], i) = (words[623], 1);
        }
    }
    words[0] = 0x8000_0000;
    words
}

impl Shuffle {
    /// The place before of every place after.
    pub(crate) fn permutation(&self, count: usize) -> Vec<u32> {
        let mut random = Random::new(self.generator, self.seed);
        let mut places: Vec<u32> = (0..count).map(narrow).collect();
        for at in (1..count).rev() {
            let other = random.up_to(narrow(at));
            places.swap(at, other as usize);
        }
        places
    }

    /// The last places of [`Shuffle::permutation`], from the last on: `most` of them, a few hundred at most.
    fn tail(generator: Generator, seed: u64, count: usize, most: usize) -> Vec<u32> {
        let mut random = Random::new(generator, seed);
        // What is where another was: so few that they are looked through.
        let mut moved: Vec<(u32, u32)> = Vec::with_capacity(most);
        (1..count)
            .rev()
            .take(most)
            .map(|at| {
                let at = narrow(at);
                let other = random.up_to(at);
                let last = moved
                    .iter()
                    .find(|(place, _)| *place == at)
                    .map_or(at, |(_, what)| *what);
                if other == at {
                    return last;
                }
                match moved.iter_mut().find(|(place, _)| *place == other) {
                    Some((_, what)) => std::mem::replace(what, last),
                    None => {
                        moved.push((other, last));
                        other
                    }
                }
            })
            .collect()
    }
}

/// Rows looked at.
const LOOK: usize = 48;
/// Rows after which most wrong seeds are known to be wrong.
const FIRST_LOOK: usize = 24;

/// Finds the shuffle after which rows came from the base rows `found`; `first` is how many rows the first of the base's splits
/// has.
pub(crate) fn find(found: &[u32], first: usize) -> Option<Shuffle> {
    const SEEDS: [(Generator, u64); 3] = [
        (Generator::NumpyPcg64, 10_000),
        (Generator::NumpyMt19937, 2_100),
        (Generator::PythonMt19937, 2_100),
    ];
    /// Seeds above those that people like.
    const LIKED: [u64; 10] = [
        12_345,
        31_337,
        42_000,
        65_535,
        99_999,
        123_456,
        1_234_567,
        12_345_678,
        123_456_789,
        1_234_567_890,
    ];
    if found.len() < LOOK {
        return None;
    }
    let last: Vec<u32> = found.iter().rev().take(2 * LOOK).copied().collect();
    for (generator, seeds) in SEEDS {
        for seed in (0..seeds).chain(LIKED.into_iter().filter(|&seed| seed >= seeds)) {
            let shuffle = |of| {
                Some(Shuffle {
                    generator,
                    seed,
                    of,
                })
            };
            let look = last.len();
            let tail = |count, most| Shuffle::tail(generator, seed, count, most);
            if is_rising(&tail(found.len(), FIRST_LOOK), &last, 7)
                && is_rising(&tail(found.len(), look), &last, 9)
            {
                return shuffle(Of::Rows);
            }
            let same = |tail: &[u32]| tail.iter().zip(&last).filter(|(a, b)| a == b).count();
            if first > look
                && first != found.len()
                && same(&tail(first, FIRST_LOOK)) > 0
                && same(&tail(first, look)) * 2 >= look
            {
                return shuffle(Of::Base);
            }
        }
    }
    // The first rows of a permutation are known last.
    let mut budget = 40_000_000_usize;
    for seed in [
        42, 0, 1, 2, 3, 4, 5, 7, 10, 100, 123, 1234, 2020, 2021, 2022, 2023, 2024, 2025,
    ] {
        budget = budget.checked_sub(first)?;
        if first <= LOOK {
            return None;
        }
        let shuffle = Shuffle {
            generator: Generator::NumpyPcg64,
            seed,
            of: Of::Base,
        };
        let permutation = shuffle.permutation(first);
        let same = permutation
            .iter()
            .zip(&found[..LOOK])
            .filter(|(a, b)| a == b)
            .count();
        if same * 2 >= LOOK {
            return Some(shuffle);
        }
    }
    None
}

/// Whether base rows rise with the places that the rows had before, in so many tenths of the steps.
fn is_rising(places: &[u32], rows: &[u32], tenths: usize) -> bool {
    let mut pairs: Vec<(u32, u32)> = places
        .iter()
        .copied()
        .zip(rows.iter().copied())
        .filter(|&(_, row)| row != NEW)
        .collect();
    let is_first = places.len() <= FIRST_LOOK;
    if pairs.len() < if is_first { FIRST_LOOK / 3 } else { LOOK / 2 } {
        // Too little is seen: after a first look there is another.
        return is_first;
    }
    pairs.sort_unstable();
    let rising = pairs.windows(2).filter(|w| w[0].1 <= w[1].1).count();
    rising * 10 >= (pairs.len() - 1) * tenths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_those_of_the_libraries() {
        let of = |generator| {
            Shuffle {
                generator,
                seed: 42,
                of: Of::Rows,
            }
            .permutation(10)
        };
        // Printed by numpy 2 and Python 3.
        assert_eq!(of(Generator::NumpyPcg64), [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
        assert_eq!(of(Generator::NumpyMt19937), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
        assert_eq!(of(Generator::PythonMt19937), [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
    }

    #[test]
    fn seeds_are_found_through_edits() {
        for (generator, seed) in [
            (Generator::NumpyPcg64, 1234),
            (Generator::NumpyMt19937, 7),
            (Generator::PythonMt19937, 2021),
        ] {
            let shuffle = |of| Shuffle {
                generator,
                seed,
                of,
            };
            // Some rows removed, some added at the end, then shuffled.
            let before: Vec<u32> = (0..1000)
                .filter(|row| row % 11 != 3)
                .chain([NEW; 40])
                .collect();
            let after: Vec<u32> = shuffle(Of::Rows)
                .permutation(before.len())
                .iter()
                .map(|&at| before[at as usize])
                .collect();
            assert_eq!(find(&after, 1000), Some(shuffle(Of::Rows)));
            // The rows after the first two hundred of a shuffled base.
            let slice = &shuffle(Of::Base).permutation(1000)[200..];
            assert_eq!(find(slice, 1000), Some(shuffle(Of::Base)));
        }
        let front = Shuffle {
            generator: Generator::NumpyPcg64,
            seed: 42,
            of: Of::Base,
        };
        assert_eq!(find(&front.permutation(1000)[..300], 1000), Some(front));
        let identity: Vec<u32> = (0..500).collect();
        assert_eq!(find(&identity, 500), None);
    }
}
