//! Context mixing: the probability of each bit of a byte from many contexts at once, mixed by weights that learn (Mahoney,
//! "Adaptive Weighing of Context Models for Lossless Data Compression", 2005). Integers only: the same on every CPU.

use std::sync::LazyLock;

use super::bits::Bit;
use super::range::Coder;

/// 65536 / (1 + exp(-x / 256)) at x = -2816, -2752, ..., 2816.
const SIGMOID: [u16; 89] = [
    1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342,
    439, 562, 720, 922, 1179, 1506, 1921, 2446, 3108, 3938, 4971, 6249, 7812, 9702, 11955, 14595,
    17625, 21025, 24743, 28693, 32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724,
    59287, 60565, 61598, 62428, 63090, 63615, 64030, 64357, 64614, 64816, 64974, 65097, 65194,
    65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508, 65514, 65519, 65523,
    65526, 65528, 65530, 65531, 65532, 65533, 65534, 65534, 65534, 65534,
];
/// The ends of the logistic domain, in 1/256.
const FAR: i32 = 2816;

/// The probability (1/65536) at `x`.
#[inline(always)]
fn squash(x: i32) -> u32 {
    let x = usize::try_from((x + FAR).clamp(0, 2 * FAR - 1)).unwrap_or(0);
    let (at, part) = (x >> 6, u32::try_from(x & 63).unwrap_or(0));
    let (low, high) = (u32::from(SIGMOID[at]), u32::from(SIGMOID[at + 1]));
    low + (((high - low) * part) >> 6)
}

/// The inverse of [`squash`] for probabilities in 1/4096.
struct Stretch([i16; 4096]);

impl Stretch {
    fn new() -> Self {
        let mut table = [0; 4096];
        let mut x = -FAR;
        for (p, value) in (0_u32..).zip(&mut table) {
            while x < FAR - 1 && squash(x) < p * 16 + 8 {
                x += 1;
            }
            *value = i16::try_from(x.clamp(-2047, 2047)).unwrap_or(0);
        }
        Self(table)
    }

    #[inline]
    fn of(&self, p1: u32) -> i32 {
        i32::from(self.0[usize::try_from(p1 >> 4).unwrap_or(0) & 4095])
    }
}

/// What was seen in a context, in one byte: how many zeros and ones, bounded, and which was last.
struct States {
    /// The state after a zero, after a one.
    next: Vec<[u8; 2]>,
    /// The probability of a one to begin with, 1/65536.
    start: Vec<u32>,
    /// How much was seen.
    weight: Vec<u8>,
}

/// The most of the more frequent bit that is counted, by the count of the other.
const MOST: [u8; 6] = [34, 16, 8, 6, 5, 5];

impl States {
    fn new() -> Self {
        let allowed = |zeros: u8, ones: u8| {
            let (less, more) = (zeros.min(ones), zeros.max(ones));
            MOST.get(usize::from(less))
                .is_some_and(|&most| more <= most)
        };
        let mut all = vec![(0_u8, 0_u8, 0_u8)];
        for total in 1..=40_u8 {
            for zeros in 0..=total {
                let ones = total - zeros;
                if allowed(zeros, ones) {
                    for last in 0..2 {
                        if (last == 0 && zeros > 0) || (last == 1 && ones > 0) {
                            all.push((zeros, ones, last));
                        }
                    }
                }
            }
        }
        let find = |state: (u8, u8, u8)| {
            let at = all.iter().position(|&s| s == state).unwrap_or(0);
            u8::try_from(at).unwrap_or(0)
        };
        let after = |(zeros, ones, _): (u8, u8, u8), bit: u8| {
            let (same, other) = if bit == 0 {
                (zeros, ones)
            } else {
                (ones, zeros)
            };
            // What was believed before counts less once it is contradicted.
            let mut other = if other > 2 {
                2 + (other - 2) / 3
            } else {
                other
            };
            let mut same = same + 1;
            while !allowed(same, other) {
                if same > 5 {
                    same -= 1;
                } else {
                    other -= 1;
                }
            }
            let (zeros, ones) = if bit == 0 {
                (same, other)
            } else {
                (other, same)
            };
            find((zeros, ones, bit))
        };
        let start = |&(zeros, ones, _): &(u8, u8, u8)| {
            let (zeros, ones) = (u32::from(zeros), u32::from(ones));
            ((2 * ones + 1) * 65536 / (2 * (zeros + ones) + 2)).clamp(64, 65472)
        };
        Self {
            next: all.iter().map(|&s| [after(s, 0), after(s, 1)]).collect(),
            start: all.iter().map(start).collect(),
            weight: all.iter().map(|s| s.0 + s.1).collect(),
        }
    }
}

/// The states of one context for the 15 nodes of half a byte, after a check of which context it is.
type Line = [u8; 16];

/// The two lines where a context may be, side by side in one line of the CPU's cache.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Lines([Line; 2]);

/// A byte that something outside the contexts expects, and how far that is to be trusted (any small number: the trust is
/// learned for each).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) byte: u8,
    pub(crate) trust: u8,
}

/// How many kinds of trust there are.
pub(crate) const TRUSTS: usize = 64;

/// Weights are in 1/65536.
const HALF_WEIGHT: i32 = 1 << 14;

/// What is mixed: the contexts, two for each expert, and two more; a whole number of registers, of which the rest stays zero.
const INPUTS: usize = 16;
type Inputs = [i32; INPUTS];

/// Codes bytes from `K` hashed contexts and `E` expected bytes. Both are known to the compiler: the loops over them are most of
/// the time there is.
pub(crate) struct Mix<const K: usize, const E: usize> {
    states: &'static States,
    stretch: &'static Stretch,
    lines: Vec<Lines>,
    /// For each context and state, the probability learned.
    by_state: Box<[[Bit; 256]; K]>,
    /// For each expert and trust, the probability that the expected bit comes.
    by_trust: Box<[[Bit; TRUSTS]; E]>,
    order0: [Bit; 256],
    weights: Vec<Inputs>,
    weights2: Vec<Inputs>,
    /// Corrections of the final probability, by order 0 and by the first expert: what is added to `identity`, modulo 2^16.
    refine: [Vec<u16>; 2],
    /// The probabilities that are corrected.
    identity: Vec<u16>,
    #[cfg(target_arch = "x86_64")]
    avx2: bool,
}

/// Sets of weights: 256 by the bits of the byte so far; 64 x 2 by what the first two experts say.
const SETS2: usize = TRUSTS * 4;

impl<const K: usize, const E: usize> Mix<K, E> {
    pub(crate) fn new(log_lines: u32) -> Self {
        const { assert!(K + 2 * E + 2 <= INPUTS) };
        static STATES: LazyLock<States> = LazyLock::new(States::new);
        static STRETCH: LazyLock<Stretch> = LazyLock::new(Stretch::new);
        let states: &'static States = &STATES;
        let starts = std::array::from_fn(|s| {
            Bit::starting_at(states.start.get(s).copied().unwrap_or(32768))
        });
        let identity: Vec<u16> = (0..45_i32)
            .map(|k| u16::try_from(squash(k * 128 - FAR)).unwrap_or(65535))
            .collect();
        Self {
            stretch: &STRETCH,
            lines: vec![Lines([[0; 16]; 2]); 1 << (log_lines.clamp(1, 24) - 1)],
            by_state: Box::new([starts; K]),
            by_trust: Box::new([[Bit::starting_at(49152); TRUSTS]; E]),
            order0: [Bit::default(); 256],
            weights: vec![[HALF_WEIGHT; INPUTS]; 256],
            weights2: vec![[HALF_WEIGHT; INPUTS]; SETS2],
            // Zeros cost nothing until they are touched.
            refine: [vec![0; 45 * 256], vec![0; 45 * TRUSTS * 256]],
            identity,
            states,
            #[cfg(target_arch = "x86_64")]
            avx2: std::arch::is_x86_feature_detected!("avx2"),
        }
    }

    /// Where a context's line is looked for first, and what it is told by. The memory there is asked for, since the lines of the
    /// contexts are far apart and none is looked at before all are asked for.
    #[inline(always)]
    fn place(&self, hash: u64) -> (usize, u8) {
        let mask = 2 * self.lines.len() - 1;
        let first = usize::try_from(hash & 0xffff_ffff).unwrap_or(0) & mask;
        prefetch(&self.lines[first >> 1]);
        (first, hash.to_le_bytes()[7].max(1))
    }

    /// Finds, or makes room for, the line of a context.
    #[inline(always)]
    fn line(&mut self, first: usize, check: u8) -> usize {
        let (pair, side) = (&mut self.lines[first >> 1].0, first & 1);
        if pair[side][0] == check {
            return first;
        }
        if pair[side ^ 1][0] == check {
            return first ^ 1;
        }
        let weight = |line: &Line| self.states.weight[usize::from(line[1])];
        let loser = if weight(&pair[side]) <= weight(&pair[side ^ 1]) {
            side
        } else {
            side ^ 1
        };
        pair[loser] = [0; 16];
        pair[loser][0] = check;
        (first & !1) | loser
    }

    /// Codes one byte. `contexts` are hashes; `experts` may be absent.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        byte: u8,
        contexts: &[u64; K],
        experts: &[Option<Expected>; E],
    ) -> u8 {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: the CPU has AVX2.
            return unsafe { self.code_avx2(coder, byte, contexts, experts) };
        }
        self.code_any(coder, byte, contexts, experts)
    }

    /// The same code, compiled for wider registers: integers have the same values in them.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn code_avx2<C: Coder>(
        &mut self,
        coder: &mut C,
        byte: u8,
        contexts: &[u64; K],
        experts: &[Option<Expected>; E],
    ) -> u8 {
        self.code_any(coder, byte, contexts, experts)
    }

    #[inline(always)]
    fn code_any<C: Coder>(
        &mut self,
        coder: &mut C,
        byte: u8,
        contexts: &[u64; K],
        experts: &[Option<Expected>; E],
    ) -> u8 {
        let mut node = 1_usize;
        let mut inputs: Inputs = [0; INPUTS];
        let mut at = [0_usize; K];
        for position in 0..8 {
            if position == 0 || position == 4 {
                let places: [(usize, u8); K] = std::array::from_fn(|k| {
                    let salted = (contexts[k] ^ ((k as u64 + 1) << 56) ^ ((node as u64) << 8))
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    self.place(salted ^ (salted >> 29))
                });
                for (at, (first, check)) in at.iter_mut().zip(places) {
                    *at = self.line(first, check);
                }
            }
            let half = if position < 4 {
                node
            } else {
                (node & ((1 << (position - 4)) - 1)) | (1 << (position - 4))
            };
            for k in 0..K {
                let state = self.lines[at[k] >> 1].0[at[k] & 1][half & 15];
                inputs[k] = if state == 0 {
                    0
                } else {
                    self.stretch.of(self.by_state[k][usize::from(state)].p1())
                };
            }
            let mut set2 = 0;
            let mut side = 0;
            for (k, expert) in experts.iter().enumerate() {
                let slot = K + 2 * k;
                (inputs[slot], inputs[slot + 1]) = (0, 0);
                // An expert is heard as long as it was right in this byte.
                if let Some(expert) = expert
                    && (usize::from(expert.byte) | 256) >> (8 - position) == node
                {
                    let trust = usize::from(expert.trust) & (TRUSTS - 1);
                    let p = self.by_trust[k][trust].p1();
                    let one = (expert.byte >> (7 - position)) & 1 == 1;
                    let x = self.stretch.of(p);
                    let y = (i32::try_from(p).unwrap_or(0) - 32768) >> 5;
                    (inputs[slot], inputs[slot + 1]) = if one { (x, y) } else { (-x, -y) };
                    if k == 0 {
                        set2 = trust * 2 + 1 + TRUSTS * 2;
                        side = trust * 2 + usize::from(one);
                    } else if set2 == 0 {
                        set2 = trust * 2;
                    }
                }
            }
            let slot = K + 2 * E;
            inputs[slot] = self.stretch.of(self.order0[node].p1());
            inputs[slot + 1] = 256;
            let (a, b) = (
                dot(&inputs, &self.weights[node]),
                dot(&inputs, &self.weights2[set2]),
            );
            let mixed = ((a + b) >> 1).clamp(1 - FAR, FAR - 1);
            let p_mixed = squash(mixed);
            let (low, part) = {
                let x = usize::try_from(mixed + FAR).unwrap_or(0);
                (x >> 7, u32::try_from(x & 127).unwrap_or(0))
            };
            let at1 = node * 45 + low;
            let at2 = (side * 128 + (node & 127)) * 45 + low;
            let (under, over) = (self.identity[low], self.identity[low + 1]);
            let refined = |table: &[u16], at: usize| {
                let under = under.wrapping_add(table[at]);
                let over = over.wrapping_add(table[at + 1]);
                (u32::from(under) * (128 - part) + u32::from(over) * part) >> 7
            };
            let p1 =
                (2 * p_mixed + refined(&self.refine[0], at1) + refined(&self.refine[1], at2)) >> 2;
            let bit = coder.bit((byte >> (7 - position)) & 1 == 1, p1.clamp(1, 65535));

            // Everything learns from the bit.
            let target = if bit { 65535_i32 } else { 0 };
            let near = usize::from(part >= 64);
            let start = self.identity[low + near];
            for (table, at) in self.refine.iter_mut().zip([at1 + near, at2 + near]) {
                let p = i32::from(start.wrapping_add(table[at]));
                let p = u16::try_from(p + ((target - p) >> 6)).unwrap_or(u16::MAX);
                table[at] = p.wrapping_sub(start);
            }
            let error = |x: i32| {
                (target - i32::try_from(squash(x.clamp(1 - FAR, FAR - 1))).unwrap_or(0)) >> 3
            };
            let (error1, error2) = (error(a), error(b));
            learn(&inputs, &mut self.weights[node], error1);
            learn(&inputs, &mut self.weights2[set2], error2);
            for (&at, by_state) in at.iter().zip(self.by_state.iter_mut()) {
                let state = &mut self.lines[at >> 1].0[at & 1][half & 15];
                if *state != 0 {
                    by_state[usize::from(*state)].update(bit);
                }
                *state = self.states.next[usize::from(*state)][usize::from(bit)];
            }
            for (k, expert) in experts.iter().enumerate() {
                if let Some(expert) = expert
                    && (usize::from(expert.byte) | 256) >> (8 - position) == node
                {
                    let trust = usize::from(expert.trust) & (TRUSTS - 1);
                    let one = (expert.byte >> (7 - position)) & 1 == 1;
                    self.by_trust[k][trust].update(one == bit);
                }
            }
            self.order0[node].update(bit);
            node = 2 * node + usize::from(bit);
        }
        u8::try_from(node & 255).unwrap_or(0)
    }
}

/// Asks for the memory of a value, without waiting for it.
#[inline(always)]
fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program sees, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[inline(always)]
fn dot(inputs: &Inputs, weights: &Inputs) -> i32 {
    let sum: i32 = inputs
        .iter()
        .zip(weights)
        .map(|(&x, &w)| (x * (w >> 2)) >> 8)
        .sum();
    sum >> 6
}

#[inline(always)]
fn learn(inputs: &Inputs, weights: &mut Inputs, error: i32) {
    for (&x, w) in inputs.iter().zip(weights) {
        *w = (*w + ((x * error + (1 << 13)) >> 14)).clamp(-(1 << 20), 1 << 20);
    }
}
