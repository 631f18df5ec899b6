//! Values of a fixed number of bytes (integers, floats, times, identifiers), most significant byte first.

use super::mix::{Expected, Mix};
use super::range::Coder;

const CONTEXTS: usize = 6;
const EXPERTS: usize = 3;

/// A model of the values of one column.
pub(crate) struct Fixed {
    mix: Mix<CONTEXTS, EXPERTS>,
    width: usize,
    /// This one, and the next two, of no bytes until there is a value: the width is a file's word.
    last: Vec<u8>,
    before: Vec<u8>,
    /// What the last two differ by, applied again.
    onward: Vec<u8>,
    /// How often each expert was right lately.
    records: [u8; EXPERTS],
}

impl Fixed {
    pub(crate) fn new(width: usize, log_lines: u32) -> Self {
        Self {
            mix: Mix::new(log_lines),
            width,
            last: Vec::new(),
            before: Vec::new(),
            onward: Vec::new(),
            records: [0; EXPERTS],
        }
    }

    /// Codes a value; `base` is one that is expected to be near it.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        base: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        for known in [&mut self.last, &mut self.before, &mut self.onward] {
            known.resize(self.width, 0);
        }
        let mut right = [base.is_some(), true, true];
        let mut prefix = 0xcbf2_9ce4_8422_2325_u64;
        let whole = fold(&self.last);
        let both = whole.rotate_left(17) ^ fold(&self.before);
        let from = base.map_or(0, fold);
        for at in 0..self.width {
            let place = (at as u64) << 8;
            let equal =
                u64::from(right[1]) | (u64::from(right[0]) << 1) | (u64::from(right[2]) << 2);
            let salt = |n: u64| (n << 60) | place;
            let mixed = |n: u64, what: u64| {
                (salt(n) ^ what.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .wrapping_mul(0xd6e8_feb8_6659_fd93)
                    .rotate_left(23)
            };
            let last = u64::from(self.last[at]);
            let based = base.map_or(0, |b| u64::from(b[at]));
            let contexts = [
                mixed(1, equal),
                mixed(2, prefix),
                mixed(3, last | (equal << 8) | (based << 16)),
                mixed(4, prefix ^ whole.rotate_left(9)),
                mixed(5, prefix ^ both.rotate_left(9)),
                mixed(6, prefix ^ from.rotate_left(9) ^ u64::from(base.is_some())),
            ];
            let candidates = [
                base.map(|b| b[at]),
                Some(self.onward[at]),
                Some(self.last[at]),
            ];
            let mut experts = [None; EXPERTS];
            for (k, candidate) in candidates.iter().enumerate() {
                if let (Some(byte), true) = (candidate, right[k]) {
                    let trust = self.records[k].min(7) + 8 * u8::try_from(at.min(7)).unwrap_or(7);
                    experts[k] = Some(Expected { byte: *byte, trust });
                }
            }
            let given = if C::ENCODES { value[at] } else { 0 };
            let byte = self.mix.code(coder, given, &contexts, &experts);
            for (right, candidate) in right.iter_mut().zip(candidates) {
                *right &= candidate == Some(byte);
            }
            prefix = (prefix ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            out.push(byte);
        }
        for (record, right) in self.records.iter_mut().zip(right) {
            *record = if right {
                (*record + 1).min(7)
            } else {
                *record / 2
            };
        }
        std::mem::swap(&mut self.before, &mut self.last);
        self.last.copy_from_slice(&out[start..]);
        let mut carry = 0_i32;
        for at in (0..self.width).rev() {
            let sum = 2 * i32::from(self.last[at]) - i32::from(self.before[at]) + carry;
            self.onward[at] = sum.rem_euclid(256).to_le_bytes()[0];
            carry = sum.div_euclid(256);
        }
    }
}

fn fold(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0x8422_2325, |h: u64, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
