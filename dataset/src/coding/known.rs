//! Short values that come again and again: the first different ones are known by number.

use std::collections::HashMap;

use super::bits::Bit;
use super::range::Coder;
use crate::DatasetError;

/// How many are known.
const MOST: usize = 256;
/// Longer ones are not.
const LONGEST: usize = 64;

/// The values known of a column.
pub(super) struct Known {
    values: Vec<Vec<u8>>,
    /// The encoder's way from a value to its number.
    numbers: HashMap<Vec<u8>, usize>,
    /// Whether a value is known, by whether there is a base and whether the last one was.
    is_known: [Bit; 4],
    was_known: bool,
    /// Whether it is the one that was known last.
    is_last: Bit,
    last: usize,
    number: Box<[Bit; MOST]>,
}

impl Known {
    pub(super) fn new() -> Self {
        Self {
            values: Vec::new(),
            numbers: HashMap::new(),
            is_known: [Bit::default(); 4],
            was_known: false,
            is_last: Bit::default(),
            last: 0,
            number: Box::new([Bit::default(); MOST]),
        }
    }

    /// Codes a value that is known; `None` if it is not. Nothing is coded as long as nothing is known.
    pub(super) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        has_base: bool,
    ) -> Result<Option<&[u8]>, DatasetError> {
        if self.values.is_empty() {
            return Ok(None);
        }
        let given = C::ENCODES
            .then(|| self.numbers.get(value).copied())
            .flatten();
        let slot = 2 * usize::from(has_base) + usize::from(self.was_known);
        self.was_known = self.is_known[slot].code(coder, given.is_some());
        if !self.was_known {
            return Ok(None);
        }
        let given = given.unwrap_or(0);
        if !self.is_last.code(coder, given == self.last) {
            let mut node = 1;
            for at in (0..8).rev() {
                let bit = self.number[node].code(coder, given >> at & 1 == 1);
                node = 2 * node + usize::from(bit);
            }
            self.last = node - MOST;
        }
        let known = self.values.get(self.last);
        known
            .map(|value| Some(value.as_slice()))
            .ok_or_else(|| DatasetError::damaged("a value is told by a number that none has"))
    }

    /// Takes in a value that was not known.
    pub(super) fn learn<C: Coder>(&mut self, value: &[u8]) {
        if value.len() > LONGEST || self.values.len() == MOST {
            return;
        }
        if C::ENCODES {
            self.numbers.insert(value.to_vec(), self.values.len());
        }
        self.values.push(value.to_vec());
    }
}
