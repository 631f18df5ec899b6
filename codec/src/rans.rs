//! Interleaved rANS: 32-bit states, 16-bit words, tokens dealt to the lanes in turn.
//!
//! J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving as in F. Giesen, "Interleaved entropy coders"
//! (arXiv 1402.3392). Token `j` belongs to lane `j % lanes`. The encoder runs backwards, so that the decoder reads states
//! and words forwards; both end with every state at [`LOWER`], which the decoder checks.

use crate::{
    error::{CodecError, corrupt},
    tables::TableSet,
};

/// Every state is in `LOWER..=u32::MAX` between tokens.
pub(crate) const LOWER: u32 = 1 << 16;
/// Lanes of short runs of tokens, and most lanes: as many as hide the time that each lane's next token takes.
pub(crate) const LANES: usize = 32;
pub(crate) const MOST: usize = 64;

/// Room before the words that encoders may write to.
pub(crate) const AHEAD: usize = 32;

/// Appends states and words of `tokens`, coded with the tables numbered in `tables` (from 1), in `lanes` lanes. Tokens
/// without a frequency are coded as 0 and their numbers put in `missing`, the last one first.
pub(crate) fn encode(
    tables: &[u8],
    tokens: &[u8],
    set: &TableSet,
    lanes: usize,
    words: &mut Vec<[u8; 2]>,
    missing: &mut Vec<u32>,
    out: &mut Vec<u8>,
) {
    missing.clear();
    let mut states = [LOWER; MOST];
    let lanes = lanes.clamp(1, MOST);
    let shift = 32 - set.precision();
    let count = tables.len().min(tokens.len());
    let (tables, tokens) = (&tables[..count], &tokens[..count]);
    // A token takes at most `precision` bits: less than one word. Vectors write some before those that count.
    let end = count + AHEAD;
    if words.len() < end + 1 {
        words.resize(end + 1, [0; 2]);
    }
    let mut at = end;
    let step = |state: &mut u32,
                i: usize,
                at: &mut usize,
                words: &mut [[u8; 2]],
                missing: &mut Vec<u32>| {
        let intervals = set.intervals(tables[i]);
        let mut interval = &intervals[usize::from(tokens[i])];
        if interval.frequency == 0 {
            missing.push(u32::try_from(i).unwrap_or(u32::MAX));
            interval = &intervals[0];
        }
        let x = *state;
        let full = u64::from(x) >= u64::from(interval.frequency) << shift;
        // The word is written whether needed or not, and kept by moving the mark: no branch to mispredict.
        words[*at] = low(x);
        *at -= usize::from(full);
        let x = x >> (16 * u32::from(full));
        let q = high(u128::from(x) * u128::from(interval.reciprocal));
        *state = x
            .wrapping_add(u32::from(interval.bias))
            .wrapping_add(q.wrapping_mul(u32::from(interval.others)));
    };
    // From the last token to the first; lanes follow.
    let whole = count / lanes * lanes;
    for i in (whole..count).rev() {
        step(&mut states[(i - whole) & 63], i, &mut at, words, missing);
    }
    #[cfg(target_arch = "x86_64")]
    let whole = if lanes >= LANES && crate::avx512::available() {
        let (tables, tokens) = (&tables[..whole], &tokens[..whole]);
        let encode = if lanes == MOST {
            crate::avx512::encode::<MOST>
        } else {
            crate::avx512::encode::<LANES>
        };
        // SAFETY: the CPU has AVX-512.
        unsafe { encode(&mut states, tables, tokens, set, words, &mut at, missing) }
    } else {
        whole
    };
    let mut step = |state: &mut u32, i: usize| step(state, i, &mut at, words, missing);
    for group in (0..whole / lanes).rev() {
        for (lane, state) in states[..lanes].iter_mut().enumerate().rev() {
            step(state, group * lanes + lane);
        }
    }
    for state in &states[..lanes] {
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.extend_from_slice(words[at + 1..=end].as_flattened());
}

/// The high word of a product, which fits 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a quotient of a 32-bit number"
)]
#[inline(always)]
fn high(product: u128) -> u32 {
    (product >> 64) as u32
}

/// The low word of a state, as it is stored.
#[inline(always)]
fn low(x: u32) -> [u8; 2] {
    let [a, b, _, _] = x.to_le_bytes();
    [a, b]
}

/// States and words as [`encode`] laid them out.
#[derive(Clone)]
pub(crate) struct Stream<'a> {
    pub(crate) states: [u32; MOST],
    pub(crate) words: &'a [u8],
}

impl<'a> Stream<'a> {
    pub(crate) fn new(data: &'a [u8], lanes: usize) -> Result<Self, CodecError> {
        let (head, words) = data
            .split_at_checked(4 * lanes)
            .ok_or_else(|| corrupt("the coder's states are cut off"))?;
        let mut states = [LOWER; MOST];
        for (state, bytes) in states.iter_mut().zip(head.as_chunks::<4>().0) {
            *state = u32::from_le_bytes(*bytes);
            if *state < LOWER {
                return Err(corrupt("a coder state is out of range"));
            }
        }
        Ok(Self { states, words })
    }

    /// Decodes tokens `from..` of the strip, one after another. Reads zeros past the end, which [`Self::finish`] then refuses.
    pub(crate) fn decode(
        &mut self,
        tables: &[u8],
        set: &TableSet,
        lanes: usize,
        from: usize,
        tokens: &mut [u8],
    ) {
        let slots = set.slots();
        let precision = set.precision();
        let mut lane = from % lanes.max(1);
        let mut at = 0;
        for (table, token) in tables.iter().zip(tokens) {
            let state = &mut self.states[lane & 63];
            lane = if lane + 1 == lanes { 0 } else { lane + 1 };
            let index = (usize::from(table.wrapping_sub(1)) << precision)
                + (*state & ((1 << precision) - 1)) as usize;
            let slot = slots.get(index).copied().unwrap_or(0);
            let mut x = (slot >> 20)
                .wrapping_mul(*state >> precision)
                .wrapping_add(slot >> 8 & 0xfff);
            if x < LOWER {
                let word = self
                    .words
                    .get(at..at + 2)
                    .map_or(0, |w| u32::from(u16::from_le_bytes([w[0], w[1]])));
                at += 2;
                x = x << 16 | word;
            }
            *state = x;
            *token = slot.to_le_bytes()[0];
        }
        self.skip(at);
    }

    /// Drops words that were read; past the end leaves a mark that [`Self::finish`] finds.
    pub(crate) fn skip(&mut self, bytes: usize) {
        match self.words.get(bytes..) {
            Some(rest) => self.words = rest,
            None => {
                self.words = &[];
                self.states[0] = 0;
            }
        }
    }

    /// Checks that all words were read and every state is where the encoder started.
    pub(crate) fn finish(&self, lanes: usize) -> Result<(), CodecError> {
        if !self.words.is_empty() || self.states[..lanes.min(MOST)].iter().any(|s| *s != LOWER) {
            return Err(corrupt("the coded tokens do not end where they should"));
        }
        Ok(())
    }
}

/// Decodes all tokens of a stream, with vectors where this machine has them.
pub(crate) fn decode(
    stream: &mut Stream<'_>,
    tables: &[u8],
    set: &TableSet,
    lanes: usize,
    tokens: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    let done = if lanes >= LANES && crate::avx2::available() {
        let decode = if lanes == MOST {
            crate::avx2::decode::<MOST>
        } else {
            crate::avx2::decode::<LANES>
        };
        // SAFETY: the CPU has AVX2, POPCNT and BMI1.
        unsafe { decode(stream, tables, set, tokens) }
    } else {
        0
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    stream.decode(&tables[done..], set, lanes, done, &mut tokens[done..]);
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests stop at the first surprise"
    )]
    use super::*;
    use crate::{context::CONTEXTS, tables::TOKENS};

    #[test]
    fn tokens_come_back() {
        let mut seed = 5u64;
        let mut next = move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u32
        };
        for precision in 9..=12u32 {
            let mut frequencies = Vec::new();
            for _ in 0..5 {
                let mut table = [0u16; TOKENS];
                let used = 2 + next() as usize % 100;
                table[..used].fill(1);
                let left = (1u32 << precision) - used as u32;
                table[next() as usize % used] += left as u16 / 2;
                table[next() as usize % used] += (left - left / 2) as u16;
                frequencies.push(table);
            }
            let set = TableSet::build(precision, 0, vec![[1; CONTEXTS]], &frequencies);
            for lanes in [1, 2, 4, 8, 16, 32, 64] {
                for count in [0usize, 1, 31, 32, 33, 127, 5000] {
                    let tables: Vec<u8> = (0..count).map(|_| 1 + (next() % 5) as u8).collect();
                    let tokens: Vec<u8> = tables
                        .iter()
                        .map(|t| {
                            let slot = next() % (1 << precision);
                            (set.slots()[(usize::from(t - 1) << precision) + slot as usize] & 0xff)
                                as u8
                        })
                        .collect();
                    let mut out = Vec::new();
                    let mut missing = Vec::new();
                    encode(
                        &tables,
                        &tokens,
                        &set,
                        lanes,
                        &mut Vec::new(),
                        &mut missing,
                        &mut out,
                    );
                    assert!(missing.is_empty());
                    let mut stream = Stream::new(&out, lanes).unwrap();
                    let mut back = vec![0; count];
                    let half = count / 2;
                    stream.decode(&tables[..half], &set, lanes, 0, &mut back[..half]);
                    stream.decode(&tables[half..], &set, lanes, half, &mut back[half..]);
                    stream.finish(lanes).unwrap();
                    assert_eq!(back, tokens);
                    // With all vectors that there are, and without the widest.
                    for hidden in [false, true] {
                        #[cfg(target_arch = "x86_64")]
                        crate::avx512::HIDDEN.set(hidden);
                        let mut stream = Stream::new(&out, lanes).unwrap();
                        back.fill(0);
                        super::decode(&mut stream, &tables, &set, lanes, &mut back);
                        stream.finish(lanes).unwrap();
                        assert_eq!(back, tokens, "hidden: {hidden}");
                        let mut again = Vec::new();
                        let words = &mut Vec::new();
                        encode(
                            &tables,
                            &tokens,
                            &set,
                            lanes,
                            words,
                            &mut missing,
                            &mut again,
                        );
                        assert_eq!(again, out, "hidden: {hidden}");
                    }
                }
            }
        }
    }

    #[test]
    fn all_paths_agree_on_missing_tokens_and_on_damaged_words() {
        let mut seed = 7u64;
        let mut next = move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u32
        };
        let mut table = [0u16; TOKENS];
        table[..100].fill(1);
        table[0] += (1 << 10) - 100;
        let set = TableSet::build(10, 0, vec![[1; CONTEXTS]], &[table, table]);
        for lanes in [32, 64] {
            for count in [200usize, 1000, 5003] {
                let tables: Vec<u8> = (0..count).map(|_| 1 + (next() % 2) as u8).collect();
                // About one in four has no frequency.
                let tokens: Vec<u8> = (0..count).map(|_| (next() % 133) as u8).collect();
                let coded = [false, true].map(|hidden| {
                    #[cfg(target_arch = "x86_64")]
                    crate::avx512::HIDDEN.set(hidden);
                    let _ = hidden;
                    let (mut missing, mut out) = (Vec::new(), Vec::new());
                    let words = &mut Vec::new();
                    encode(&tables, &tokens, &set, lanes, words, &mut missing, &mut out);
                    (missing, out)
                });
                assert_eq!(coded[0], coded[1]);
                let expected: Vec<u32> = (0..count as u32)
                    .rev()
                    .filter(|i| tokens[*i as usize] >= 100)
                    .collect();
                assert_eq!(coded[0].0, expected);
                for _ in 0..100 {
                    let mut bytes = coded[0].1.clone();
                    let words = bytes.len() - 4 * lanes;
                    let at = 4 * lanes + next() as usize % words;
                    match next() % 3 {
                        0 => bytes.truncate(at),
                        1 => bytes[at] ^= 1 << (next() % 8),
                        _ => bytes.insert(at, next() as u8),
                    }
                    let mut plain = vec![0; count];
                    let mut stream = Stream::new(&bytes, lanes).unwrap();
                    stream.decode(&tables, &set, lanes, 0, &mut plain);
                    let sound = stream.finish(lanes).is_ok();
                    for hidden in [false, true] {
                        #[cfg(target_arch = "x86_64")]
                        crate::avx512::HIDDEN.set(hidden);
                        let mut stream = Stream::new(&bytes, lanes).unwrap();
                        let mut back = vec![0; count];
                        super::decode(&mut stream, &tables, &set, lanes, &mut back);
                        assert_eq!(stream.finish(lanes).is_ok(), sound, "hidden: {hidden}");
                        assert!(!sound || back == plain, "hidden: {hidden}");
                    }
                }
            }
        }
    }
}
