//! Interleaved rANS: 32-bit states, 16-bit words, symbols dealt to the lanes in turn.
//!
//! J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving as in F. Giesen, "Interleaved entropy coders"
//! (arXiv 1402.3392). Symbol `j` belongs to lane `j % lanes`. The encoder runs backwards, so that the decoder reads states
//! and words forwards; both end with every state at [`LOWER`], which the decoder checks.

use crate::{
    error::{CodecError, corrupt},
    options::Coded,
    tables::TableSet,
};

/// Every state is in `LOWER..=u32::MAX` between symbols.
pub(crate) const LOWER: u32 = 1 << 16;

/// Appends states and words of `symbols` coded with `tables` in `lanes` lanes.
pub(crate) fn encode(
    symbols: &[Coded],
    tables: &TableSet,
    lanes: usize,
    words: &mut Vec<u16>,
    out: &mut Vec<u8>,
) {
    let mut states = [LOWER; 32];
    let states = &mut states[..lanes.clamp(1, 32)];
    let bits = tables.precision();
    words.clear();
    for (j, coded) in symbols.iter().enumerate().rev() {
        let state = &mut states[j % lanes];
        let (frequency, start) = tables.interval(coded.table, coded.symbol);
        let mut x = u64::from(*state);
        if x >= u64::from(frequency) << (32 - bits) {
            words.push((x & 0xffff).try_into().unwrap_or(0));
            x >>= 16;
        }
        let frequency = u64::from(frequency);
        x = ((x / frequency) << bits) + x % frequency + u64::from(start);
        *state = x.try_into().unwrap_or(LOWER);
    }
    for state in states.iter() {
        out.extend_from_slice(&state.to_le_bytes());
    }
    for word in words.iter().rev() {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// Decodes symbols one after another from states and words laid out by [`encode`].
pub(crate) struct Decoder<'a> {
    states: [u32; 32],
    lanes: usize,
    lane: usize,
    words: &'a [u8],
    at: usize,
    tables: &'a TableSet,
}

impl<'a> Decoder<'a> {
    /// Reads the states off the front of `data`; the rest must be the words.
    pub(crate) fn new(
        data: &'a [u8],
        lanes: usize,
        tables: &'a TableSet,
    ) -> Result<Self, CodecError> {
        let (head, words) = data
            .split_at_checked(4 * lanes)
            .ok_or_else(|| corrupt("the coder's states are cut off"))?;
        let mut states = [LOWER; 32];
        let (chunks, _) = head.as_chunks::<4>();
        for (state, bytes) in states.iter_mut().zip(chunks) {
            *state = u32::from_le_bytes(*bytes);
            if *state < LOWER {
                return Err(corrupt("a coder state is out of range"));
            }
        }
        Ok(Self {
            states,
            lanes,
            lane: 0,
            words,
            at: 0,
            tables,
        })
    }

    /// The next symbol, coded with `table`.
    #[inline(always)]
    pub(crate) fn next(&mut self, table: u16) -> u16 {
        let bits = self.tables.precision();
        let state = &mut self.states[self.lane & 31];
        self.lane = if self.lane + 1 == self.lanes {
            0
        } else {
            self.lane + 1
        };
        let slot = self.tables.slot(table, *state & ((1 << bits) - 1));
        let mut x = slot
            .frequency()
            .wrapping_mul(*state >> bits)
            .wrapping_add(slot.offset());
        if x < LOWER {
            let word = self
                .words
                .get(self.at..self.at + 2)
                .map_or(0, |w| u32::from(u16::from_le_bytes([w[0], w[1]])));
            self.at += 2;
            x = x << 16 | word;
        }
        *state = x;
        slot.symbol()
    }

    /// Checks that all words were read and every state is where the encoder started.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        if self.at != self.words.len() || self.states[..self.lanes].iter().any(|s| *s != LOWER) {
            return Err(corrupt("the coded symbols do not end where they should"));
        }
        Ok(())
    }
}
