//! Texts and other byte strings, one after another: each byte is predicted from the bytes before it, from the place in
//! everything seen so far where the same bytes came last, and, for an edited value, from the value it was made from.

use super::mix::{Expected, Mix};
use super::range::Coder;
use crate::DatasetError;

/// Ends a value; a byte 0 or 1 inside one is written as [`ESCAPE`] and the byte plus one.
const END: u8 = 0;
const ESCAPE: u8 = 1;

const CONTEXTS: usize = 10;
/// The contexts that are mixed where time is short.
const FEW: [usize; 5] = [1, 3, 5, 7, 8];
const EXPERTS: usize = 2;

/// Bytes that must agree before the history is trusted.
const MATCH: usize = 6;
/// How far from the last place in the base value the thread is looked for, in bytes.
const NEAR: usize = 4096;

/// How many contexts are mixed.
enum Model {
    Deep(Mix<CONTEXTS, EXPERTS>),
    Quick(Mix<{ FEW.len() }, EXPERTS>),
}

/// A model of the values of one column.
pub(crate) struct Text {
    mix: Model,
    history: Vec<u8>,
    most_history: usize,
    /// Where the last [`MATCH`] bytes came before, by their hash; 0 for never.
    places: Vec<u32>,
    matched: usize,
    matched_at: usize,
    word: u64,
    word_before: u64,
    from: Thread,
    /// The value that is written, escaped.
    given: Vec<u8>,
}

/// Takes escapes out of bytes that come one by one.
#[derive(Default)]
struct Plain {
    escaped: bool,
}

impl Plain {
    /// Appends what a byte says; whether it ends the value.
    fn push(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        if self.escaped {
            out.push(byte.wrapping_sub(1));
            self.escaped = false;
        } else if byte == ESCAPE {
            self.escaped = true;
        } else if byte == END {
            return true;
        } else {
            out.push(byte);
        }
        false
    }
}

/// Where in the base value the next byte is expected.
#[derive(Default)]
struct Thread {
    base: Vec<u8>,
    at: usize,
    trust: usize,
    misses: usize,
    /// What was expected, and what came, when the thread was lost last.
    last_miss: (u8, u8),
    began: usize,
}

impl Text {
    /// A model with 2^`log_lines` lines of memory (16 bytes each) that remembers up to `most_history` bytes.
    pub(crate) fn new(log_lines: u32, most_history: usize, deep: bool) -> Self {
        Self {
            mix: if deep {
                Model::Deep(Mix::new(log_lines))
            } else {
                Model::Quick(Mix::new(log_lines))
            },
            history: vec![0],
            most_history: most_history.min(1 << 30),
            places: vec![0; 1 << log_lines.clamp(12, 22)],
            matched: 0,
            matched_at: 0,
            word: 0,
            word_before: 0,
            from: Thread::default(),
            given: Vec::new(),
        }
    }

    /// Takes a value into the history without learning its statistics: much faster, and enough to find it when it is quoted.
    pub(crate) fn remember(&mut self, value: &[u8]) {
        for &byte in value {
            self.push(byte);
        }
        self.push(END);
        self.matched = 0;
    }

    /// Codes a value, escaped as it is stored in `out`'s terms: plain bytes.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        base: Option<&[u8]>,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        self.from.base.clear();
        if let Some(base) = base {
            escape(base, &mut self.from.base);
            self.from.base.push(END);
        }
        (self.from.at, self.from.trust, self.from.misses) = (0, 10, 0);
        self.from.last_miss = (0, 0);
        self.from.began = self.history.len();
        self.given.clear();
        if C::ENCODES {
            escape(value, &mut self.given);
            self.given.push(END);
        }
        let mut plain = Plain::default();
        let mut at = 0;
        let start = out.len();
        loop {
            let next = self.given.get(at).copied().unwrap_or(END);
            at += 1;
            let byte = self.code_byte(coder, next);
            let ended = plain.push(byte, out);
            if ended {
                return Ok(());
            }
            if coder.is_exhausted() || out.len() - start > most {
                return Err(DatasetError::damaged("a value never ends"));
            }
        }
    }

    fn code_byte<C: Coder>(&mut self, coder: &mut C, byte: u8) -> u8 {
        let h = &self.history;
        let back = |n: usize| h.len().checked_sub(n).map_or(0, |at| u64::from(h[at]));
        let last4 = back(1) | (back(2) << 8) | (back(3) << 16) | (back(4) << 24);
        let last6 = last4 | (back(5) << 32) | (back(6) << 40);
        let begun = h.len() - self.from.began;
        let expected = self.from.base.get(self.from.at).copied();
        let upcoming =
            |n: usize| u64::from(self.from.base.get(self.from.at + n).copied().unwrap_or(0));
        let (a, b, c) = match expected {
            Some(_) => {
                let (e, f) = self.from.last_miss;
                (
                    upcoming(0) | (upcoming(1) << 8) | ((last4 & 0xff) << 16) | (1 << 40),
                    upcoming(0)
                        | (u64::from(e) << 8)
                        | (u64::from(f) << 16)
                        | ((self.from.trust as u64) << 24)
                        | (2 << 40),
                    upcoming(0)
                        | (upcoming(1) << 8)
                        | (upcoming(2) << 16)
                        | (upcoming(3) << 24)
                        | ((last4 & 0xffff) << 32),
                )
            }
            None => (
                last6 & 0xff_ffff_ffff,
                (last4 & 0xffff_ff00) | (3 << 40),
                last6.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (back(7) << 8) ^ (back(8) << 20),
            ),
        };
        let contexts = [
            last4 & 0xff,
            last4 & 0xffff,
            last4 & 0xff_ffff,
            last4,
            last6,
            self.word,
            self.word.wrapping_mul(0x9e37_79b9) ^ self.word_before.wrapping_mul(31),
            a,
            b,
            c ^ if begun == 0 { 1 << 62 } else { 0 },
        ]
        .map(|context| context.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(23));
        let from = expected.map(|byte| Expected {
            byte,
            trust: u8::try_from(self.from.trust.min(15) + 16 * self.from.misses.min(3))
                .unwrap_or(0),
        });
        let seen = (self.matched > 0).then(|| Expected {
            byte: self.history[self.matched_at],
            trust: u8::try_from(self.matched.min(31) + 32 * usize::from(expected.is_some()))
                .unwrap_or(0),
        });
        let byte = match &mut self.mix {
            Model::Deep(mix) => mix.code(coder, byte, &contexts, &[from, seen]),
            Model::Quick(mix) => {
                let contexts = FEW.map(|at| contexts[at]);
                mix.code(coder, byte, &contexts, &[from, seen])
            }
        };
        self.push(byte);
        if expected.is_some() {
            self.from.follow(byte, &self.history);
        }
        byte
    }

    /// Takes a byte into the history, and follows where its like came before.
    fn push(&mut self, byte: u8) {
        if byte.is_ascii_alphanumeric() || byte >= 128 {
            self.word = (self
                .word
                .wrapping_add(u64::from(byte.to_ascii_lowercase()) + 1))
            .wrapping_mul(0x2c1b_3c6d_29e1_a4b5);
        } else if self.word != 0 {
            self.word_before = self.word;
            self.word = 0;
        }
        if self.matched > 0 && self.history[self.matched_at] == byte {
            self.matched += 1;
            self.matched_at += 1;
        } else {
            self.matched = 0;
        }
        self.history.push(byte);
        if self.history.len() > self.most_history {
            self.forget();
        }
        let end = self.history.len();
        if end < MATCH + 1 {
            return;
        }
        let tail = self.history[end - MATCH..]
            .iter()
            .fold(0_u64, |h, &b| (h << 8) | u64::from(b))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slot = usize::try_from(tail >> 40).unwrap_or(0) & (self.places.len() - 1);
        if self.matched == 0 {
            let place = usize::try_from(self.places[slot]).unwrap_or(0);
            if place > 0 && place < end {
                let same = (0..32.min(place))
                    .take_while(|&k| self.history[place - 1 - k] == self.history[end - 1 - k])
                    .count();
                if same >= MATCH {
                    (self.matched, self.matched_at) = (same, place);
                }
            }
        }
        self.places[slot] = u32::try_from(end).unwrap_or(0);
    }

    /// Drops the older half of the history.
    fn forget(&mut self) {
        let keep = self.history.len() / 2;
        self.history.drain(..self.history.len() - keep);
        self.places.fill(0);
        self.matched = 0;
        self.from.began = 0;
    }
}

impl Thread {
    /// After `byte` came (it is the last of `history` already): forward, or look for the place to go on from.
    fn follow(&mut self, byte: u8, history: &[u8]) {
        let expected = self.base[self.at];
        self.at += 1;
        if byte == expected {
            self.trust = (self.trust + 1).min(15);
            if self.trust > 6 {
                return;
            }
        } else {
            self.trust = 0;
            self.misses += 1;
            self.last_miss = (expected, byte);
        }
        let begun = history.len().saturating_sub(self.began);
        for (length, trust) in [(8, 6), (5, 4), (3, 2)] {
            if length > begun || trust <= self.trust {
                continue;
            }
            let tail = &history[history.len() - length..];
            let low = self.at.saturating_sub(NEAR / 8);
            let high = (self.at + NEAR).min(self.base.len());
            let forward = find(&self.base[self.at.min(high)..high], tail).map(|at| at + self.at);
            let found = forward.or_else(|| find(&self.base[low..high], tail).map(|at| at + low));
            if let Some(found) = found {
                if found + length != self.at {
                    self.at = found + length;
                    self.trust = trust;
                }
                break;
            }
        }
        if self.trust == 0 && begun >= 2 {
            // At the beginning of a word: perhaps one was left out.
            let tail = &history[history.len() - 2..];
            if !tail[0].is_ascii_alphanumeric() {
                let high = (self.at + 256).min(self.base.len());
                if let Some(at) = find(&self.base[self.at.min(high)..high], tail) {
                    self.at += at + 2;
                    self.trust = 1;
                }
            }
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

fn escape(value: &[u8], out: &mut Vec<u8>) {
    for &byte in value {
        if byte <= ESCAPE {
            out.extend([ESCAPE, byte + 1]);
        } else {
            out.push(byte);
        }
    }
}
