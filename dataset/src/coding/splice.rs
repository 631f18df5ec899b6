//! Byte strings where there are many of them: told as what is copied from the base's value, left out and put in. What is put in
//! is not coded here, but goes with that of all other values to a general compressor: some hundred times as fast as mixing.

use super::bits::{Bit, Int};
use super::known::Known;
use super::range::Coder;
use crate::DatasetError;
use crate::matching::HashMap;

/// Bytes that must agree for what follows to be copied again.
const AGAIN: usize = 8;

/// How far on in the value it is looked for a place that is nearer.
const AHEAD: usize = 32;
const NOWHERE: usize = usize::MAX;

/// A model of the values of one column.
pub(crate) struct Splice {
    known: Known,
    edits: Int,
    /// Whether all that is left of the base is copied, by the number of the edit.
    all: [Bit; 4],
    copied: Int,
    left_out: Int,
    put_in: Int,
    /// Of values without a base.
    length: Int,
    found: Vec<Edit>,
}

/// One change: so many bytes are copied, so many left out, and then some of the value's put in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Edit {
    copied: usize,
    left_out: usize,
    put_in: std::ops::Range<usize>,
}

impl Splice {
    pub(crate) fn new() -> Self {
        Self {
            known: Known::new(),
            edits: Int::default(),
            all: [Bit::default(); 4],
            copied: Int::default(),
            left_out: Int::default(),
            put_in: Int::default(),
            length: Int::default(),
            found: Vec::new(),
        }
    }

    /// Codes a value of at most `most` bytes, and appends it to `out`.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        base: Option<&[u8]>,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        if let Some(value) = self.known.code(coder, value, base.is_some())? {
            out.extend_from_slice(value);
            return Ok(());
        }
        let start = out.len();
        match base {
            Some(base) => self.code_edits(coder, value, base, most, out)?,
            None => {
                let length = at_most(self.length.code(coder, value.len() as u64), most)?;
                coder.literal(value, length, out)?;
            }
        }
        self.known.learn::<C>(&out[start..]);
        Ok(())
    }

    fn code_edits<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        base: &[u8],
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        let start = out.len();
        self.found.clear();
        if C::ENCODES {
            find(base, value, &mut self.found);
        }
        let count = self.edits.code(coder, self.found.len() as u64);
        let mut at = 0;
        for number in 0..count {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            let edit = self.found.get(number).cloned().unwrap_or_default();
            let rest = base.len() - at;
            let copied = if rest == 0 || self.all[number.min(3)].code(coder, edit.copied == rest) {
                rest
            } else {
                at_most(self.copied.code(coder, edit.copied as u64), rest)?
            };
            out.extend_from_slice(&base[at..at + copied]);
            at += copied;
            let rest = base.len() - at;
            let left_out = match rest {
                0 => 0,
                rest => at_most(self.left_out.code(coder, edit.left_out as u64), rest)?,
            };
            at += left_out;
            let room = most.saturating_sub(out.len() - start);
            let put_in = at_most(self.put_in.code(coder, edit.put_in.len() as u64), room)?;
            // Each takes the value or the base on, so that they end.
            if left_out == 0 && put_in == 0 {
                return Err(DatasetError::damaged("an edit changes nothing"));
            }
            let given = value.get(edit.put_in).unwrap_or_default();
            coder.literal(given, put_in, out)?;
        }
        out.extend_from_slice(&base[at..]);
        at_most((out.len() - start) as u64, most)?;
        Ok(())
    }
}

fn at_most(count: u64, most: usize) -> Result<usize, DatasetError> {
    usize::try_from(count)
        .ok()
        .filter(|&count| count <= most)
        .ok_or_else(|| DatasetError::damaged("a value is longer than it can be"))
}

/// How a value is made from its base: what both begin and end with is copied, and in between what comes in the same order.
fn find(base: &[u8], value: &[u8], edits: &mut Vec<Edit>) {
    let front = base.iter().zip(value).take_while(|(a, b)| a == b).count();
    let (base, value) = (&base[front..], &value[front..]);
    let ends = base.iter().rev().zip(value.iter().rev());
    let back = ends.take_while(|(a, b)| a == b).count();
    let (base, value) = (&base[..base.len() - back], &value[..value.len() - back]);
    if base.is_empty() && value.is_empty() {
        return;
    }
    let word = |bytes: &[u8], at: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + AGAIN)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    // Where a word comes next from a place on, and again after that.
    let mut places: HashMap<u64, usize> = HashMap::default();
    let mut again = vec![NOWHERE; base.len()];
    if value.len() >= AGAIN {
        for at in (0..base.len()).rev() {
            if let Some(word) = word(base, at) {
                again[at] = places.insert(word, at).unwrap_or(NOWHERE);
            }
        }
    }
    let (mut copied, mut from) = (front, 0);
    let (mut begin, mut at) = (0, 0);
    let mut place_of = |at: usize, from: usize| {
        let place = places.get_mut(&word(value, at)?)?;
        while *place < from {
            *place = again[*place];
        }
        (*place != NOWHERE).then_some(*place)
    };
    while at + AGAIN <= value.len() {
        let Some(mut place) = place_of(at, from) else {
            at += 1;
            continue;
        };
        if place - from > AHEAD {
            // Far on: perhaps what comes a little later in the value is nearer.
            let later = (at + 1..at + AHEAD).filter_map(|at| Some((place_of(at, from)?, at)));
            let nearest = later.min_by_key(|(place, at)| place + at);
            if let Some(nearer) = nearest.filter(|(nearer, _)| nearer + AHEAD < place) {
                (place, at) = nearer;
            }
        }
        // What comes before is the same, too, where the word is not the first of its kind.
        let before = value[begin..at].iter().rev();
        let before = before.zip(base[from..place].iter().rev());
        let before = before.take_while(|(a, b)| a == b).count();
        let same = value[at..].iter().zip(&base[place..]);
        let same = same.take_while(|(a, b)| a == b).count();
        let edit = Edit {
            copied,
            left_out: place - before - from,
            put_in: front + begin..front + at - before,
        };
        if edit.left_out == 0 && edit.put_in.is_empty() {
            copied += before + same;
        } else {
            edits.push(edit);
            copied = before + same;
        }
        (from, at) = (place + same, at + same);
        begin = at;
    }
    if from < base.len() || begin < value.len() {
        edits.push(Edit {
            copied,
            left_out: base.len() - from,
            put_in: front + begin..front + value.len(),
        });
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::super::range::{Decoder, Encoder};
    use super::*;

    #[test]
    fn values_come_back_and_what_is_the_base_s_is_not_put_in() {
        let long = "What was there before, and stays there, word for word. ".repeat(9);
        let edited = long.replacen("stays", "remains", 3) + "And more.";
        let pairs: [(Option<&str>, &str); 12] = [
            (None, "new"),
            (None, ""),
            (None, "new"),
            (Some(""), "new"),
            (Some("all"), ""),
            (Some("same"), "same"),
            (Some("longer than it was"), "longer than it was, by some"),
            (Some("before and after"), "before, and after"),
            (Some("abcabcabcabcabcabc"), "abcabcabcabcabc"),
            (Some(&long), &edited),
            (Some(&edited), &long),
            (Some(&long), &long[60..]),
        ];
        let mut encoder = Encoder::new();
        let mut model = Splice::new();
        let code = |model: &mut Splice, encoder: &mut Encoder, base: Option<&str>, value: &str| {
            let (mut out, base) = (Vec::new(), base.map(str::as_bytes));
            model
                .code(encoder, value.as_bytes(), base, 1 << 20, &mut out)
                .unwrap();
            assert_eq!(out, value.as_bytes());
        };
        for (base, value) in pairs {
            code(&mut model, &mut encoder, base, value);
        }
        let (stream, literals) = encoder.finish_both();
        assert!(literals.len() < 80, "{}", literals.len());
        let mut decoder = Decoder::with_literals(&stream, &literals);
        let mut model = Splice::new();
        for (base, value) in pairs {
            let mut out = Vec::new();
            let base = base.map(str::as_bytes);
            model
                .code(&mut decoder, &[], base, 1 << 20, &mut out)
                .unwrap();
            assert_eq!(out, value.as_bytes());
        }
        decoder.finish().unwrap();
    }
}
