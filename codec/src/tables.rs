//! Frequency tables: one per run of contexts, shared by the tensors of a model or a tensor's own.

use std::fmt;

use crate::{
    bits::{put_varint, take_byte, take_bytes, take_size},
    context::CONTEXTS,
    error::{CodecError, corrupt},
    lowrank::CLASSES,
    rc::{Bit, Coder, Decoder, Encoder, Number},
};

/// Tokens of the alphabet, by their byte.
pub(crate) const TOKENS: usize = 256;
/// Most tables of a set, and of one with layers: the eighth bit of a word's table says that its token is mirrored.
pub(crate) const MAX_TABLES: usize = 63;
pub(crate) const MAX_LAYERED: usize = 127;
/// The table number of contexts whose words are not coded: their few changes are patches.
pub(crate) const COLD: u8 = 0;
/// log2 of the frequencies' sum.
const PRECISIONS: std::ops::RangeInclusive<u32> = 9..=12;

/// One decoding slot: token (8 bits), offset in the token's interval (12), frequency (12).
#[inline(always)]
const fn slot(token: u32, offset: u32, frequency: u32) -> u32 {
    token | offset << 8 | frequency << 20
}

/// What coding one token needs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Interval {
    /// `ceil(2^64 / frequency)`: the quotient of any 32-bit state is the high word of its product with it.
    pub(crate) reciprocal: u64,
    /// 0: the token is coded as 0 and patched.
    pub(crate) frequency: u16,
    /// The frequencies' sum less this one.
    pub(crate) others: u16,
    /// Added to the state: where the interval starts.
    pub(crate) bias: u16,
}

impl Interval {
    fn new(frequency: u16, start: u16, precision: u32) -> Self {
        let whole = u16::try_from(1u32 << precision).unwrap_or(0);
        match frequency {
            0 => Self::default(),
            // 2^64 does not fit: the quotient comes out one too small, which the bias makes good.
            1 => Self {
                reciprocal: u64::MAX,
                frequency,
                others: whole - 1,
                bias: start + whole - 1,
            },
            _ => Self {
                reciprocal: u64::MAX / u64::from(frequency) + 1,
                frequency,
                others: whole - frequency,
                bias: start,
            },
        }
    }
}

/// Frequencies of one table.
pub(crate) type Frequencies = [u16; TOKENS];

/// Tables and the map from contexts to them.
#[derive(Clone)]
pub(crate) struct TableSet {
    precision: u32,
    /// The lowest context, in the unit of row scales.
    first: i32,
    /// Table of each context, layer by layer; [`COLD`] or a number from 1.
    map: Vec<[u8; CONTEXTS]>,
    /// Per table and token.
    intervals: Vec<[Interval; TOKENS]>,
    /// Frequency, and where the interval starts in the upper half: per table and token, for vectors.
    codes: Vec<u32>,
    slots: Vec<u32>,
}

impl fmt::Debug for TableSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TableSet {{ tables: {}, precision: {}, first: {}, map: {:?} }}",
            self.intervals.len(),
            self.precision,
            self.first,
            self.map
        )
    }
}

/// The order in which a table's frequencies are stored: 0, 1, -1, 2, -2, ...
fn stored_order() -> impl Iterator<Item = usize> {
    (0..TOKENS).map(|i| {
        if i == 0 {
            0
        } else if i % 2 == 1 {
            i.div_ceil(2)
        } else {
            TOKENS - i / 2
        }
    })
}

impl TableSet {
    /// `map` names tables from 1 to `frequencies.len()` (or [`COLD`]), for one layer of contexts or one for each class of a
    /// low-rank prediction; each table adds up to `1 << precision`.
    pub(crate) fn build(
        precision: u32,
        first: i32,
        map: Vec<[u8; CONTEXTS]>,
        frequencies: &[Frequencies],
    ) -> Self {
        let mut slots = Vec::with_capacity(frequencies.len() << precision);
        let mut codes = Vec::with_capacity(frequencies.len() * TOKENS);
        let intervals = frequencies
            .iter()
            .map(|table| {
                let mut start = 0u16;
                std::array::from_fn(|token| {
                    let frequency = table[token];
                    let t = u32::try_from(token).unwrap_or(0);
                    slots.extend(
                        (0..u32::from(frequency))
                            .map(|offset| slot(t, offset, u32::from(frequency))),
                    );
                    let interval = Interval::new(frequency, start, precision);
                    codes.push(u32::from(frequency) | u32::from(start) << 16);
                    start = start.wrapping_add(frequency);
                    interval
                })
            })
            .collect();
        Self {
            precision,
            first,
            map,
            intervals,
            codes,
            slots,
        }
    }

    pub(crate) fn precision(&self) -> u32 {
        self.precision
    }

    pub(crate) fn first(&self) -> i32 {
        self.first
    }

    /// A map for each layer.
    pub(crate) fn maps(&self) -> &[[u8; CONTEXTS]] {
        &self.map
    }

    pub(crate) fn tables(&self) -> usize {
        self.intervals.len()
    }

    /// The decoding slots of all tables; table `t` (from 1) begins at `(t - 1) << precision`.
    pub(crate) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Frequencies and starts of the intervals: those of table `t` (from 1) begin at `(t - 1) * 256`.
    pub(crate) fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// The intervals of table `t`, from 1.
    #[inline(always)]
    pub(crate) fn intervals(&self, table: u8) -> &[Interval; TOKENS] {
        &self.intervals[usize::from(table.wrapping_sub(1))]
    }

    /// The frequencies of table `t`, from 1.
    pub(crate) fn frequencies(&self, table: u8) -> Frequencies {
        let intervals = self.intervals(table);
        std::array::from_fn(|token| intervals[token].frequency)
    }

    /// Serialises: length, then precision, lowest context and number of tables, then map and frequencies by the range coder.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let mut coder = Encoder::new();
        let _infallible = Self::code(&mut coder, self.precision, self.map.len(), Some(self));
        let coded = coder.finish();
        out.push(u8::try_from(self.precision).unwrap_or(0));
        put_varint(
            out,
            u64::from((self.first << 1 ^ self.first >> 31).cast_unsigned()),
        );
        out.push(u8::try_from(self.intervals.len()).unwrap_or(0));
        put_varint(out, coded.len() as u64);
        out.extend_from_slice(&coded);
    }

    /// Takes what [`Self::put`] wrote of a set of so many layers off the front of `data`.
    pub(crate) fn take(data: &mut &[u8], layers: usize) -> Result<Self, CodecError> {
        let precision = u32::from(take_byte(data)?);
        if !PRECISIONS.contains(&precision) {
            return Err(corrupt("a table's precision is out of range"));
        }
        let first = u32::try_from(take_size(data, 1 << 20)?).unwrap_or(0);
        let first = (first >> 1).cast_signed() ^ -(first & 1).cast_signed();
        let tables = usize::from(take_byte(data)?);
        let length = take_size(data, data.len())?;
        let coded = take_bytes(data, length)?;
        if tables > if layers > 1 { MAX_LAYERED } else { MAX_TABLES } {
            return Err(corrupt("too many tables"));
        }
        let (map, frequencies) = Self::code(&mut Decoder::new(coded), precision, layers, None)?;
        if frequencies.len() != tables {
            return Err(corrupt("the number of tables differs from their map's"));
        }
        Ok(Self::build(precision, first, map, &frequencies))
    }

    /// Both directions of the coded part. The map ascends from 1 but for cold contexts; every table is the next new number.
    fn code<C: Coder>(
        coder: &mut C,
        precision: u32,
        layers: usize,
        set: Option<&Self>,
    ) -> Result<(Vec<[u8; CONTEXTS]>, Vec<Frequencies>), CodecError> {
        let mut map = vec![[COLD; CONTEXTS]; layers];
        let mut models = [Bit::mostly_zero(), Bit::mostly_zero()];
        let mut last = 0u8;
        for (place, entry) in map.as_flattened_mut().iter_mut().enumerate() {
            let mine = set
                .and_then(|s| s.map.as_flattened().get(place))
                .copied()
                .unwrap_or(COLD);
            if coder.bit(&mut models[0], mine == COLD)? {
                continue;
            }
            // The first table is new by itself.
            if coder.bit(&mut models[1], mine > last)? || last == 0 {
                last = last
                    .checked_add(1)
                    .ok_or_else(|| corrupt("too many tables"))?;
            }
            *entry = last;
        }
        let mut frequencies = Vec::new();
        // By the side of zero and the bit length of the frequency before on that side.
        let mut numbers: Vec<[Number; 14]> = vec![std::array::from_fn(|_| Number::default()); 3];
        let mut widest = Number::default();
        let whole = 1u32 << precision;
        for number in 0..usize::from(last) {
            let mine = set.and_then(|s| s.intervals.get(number));
            let used = mine.map_or(0, |m| {
                stored_order()
                    .enumerate()
                    .filter(|(_, t)| m[*t].frequency > 0)
                    .map(|(i, _)| i + 1)
                    .max()
                    .unwrap_or(0)
            });
            let used = widest.code(coder, u32::try_from(used).unwrap_or(0))?;
            let mut table = [0u16; TOKENS];
            let mut left = whole;
            let mut before = [0u16; 2];
            for (i, token) in stored_order()
                .enumerate()
                .take(usize::try_from(used).unwrap_or(0))
            {
                let side = if i == 0 { 0 } else { 1 + (i & 1) };
                // A negative token is about as frequent as its positive twin, which was just coded.
                let near = if i & 1 == 1 { before[0] } else { before[1] };
                let class = usize::try_from(16 - near.leading_zeros())
                    .unwrap_or(0)
                    .min(13);
                let frequency = numbers[side][class]
                    .code(coder, mine.map_or(0, |m| u32::from(m[token].frequency)))?;
                left = left
                    .checked_sub(frequency)
                    .ok_or_else(|| corrupt("a table's frequencies do not add up"))?;
                let frequency = u16::try_from(frequency).unwrap_or(0);
                table[token] = frequency;
                if i & 1 == 1 {
                    before[1] = frequency;
                } else {
                    before[0] = frequency;
                }
            }
            // Two tokens at least, so that a frequency fits twelve bits, and the one that patched words are coded as.
            if left != 0 || table[0] == 0 || u32::from(table[0]) == whole {
                return Err(corrupt("a table's frequencies do not add up"));
            }
            frequencies.push(table);
        }
        Ok((map, frequencies))
    }
}

/// Frequency tables of a whole model, one set per word width, trained by [`crate::TablesTrainer`].
#[derive(Clone, Debug, Default)]
pub struct SharedTables {
    /// By log2 of the word's bytes.
    pub(crate) sets: [Option<TableSet>; 4],
    /// Likewise, for words with a low-rank prediction: a layer for each class.
    pub(crate) layered: [Option<TableSet>; 4],
}

impl SharedTables {
    pub(crate) fn set(&self, width: usize, layered: bool) -> Option<&TableSet> {
        let sets = if layered { &self.layered } else { &self.sets };
        sets.get(width.trailing_zeros() as usize)?.as_ref()
    }

    /// Serialises the tables.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0u8];
        for (i, set) in self.sets.iter().chain(&self.layered).enumerate() {
            if let Some(set) = set {
                out[0] |= 1 << i;
                set.put(&mut out);
            }
        }
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] for anything else.
    pub fn from_bytes(mut data: &[u8]) -> Result<Self, CodecError> {
        let present = take_byte(&mut data)?;
        let mut this = Self::default();
        let plain = this.sets.iter_mut().map(|set| (set, 1));
        let layered = this.layered.iter_mut().map(|set| (set, CLASSES));
        for (i, (set, layers)) in plain.chain(layered).enumerate() {
            if present >> i & 1 == 1 {
                *set = Some(TableSet::take(&mut data, layers)?);
            }
        }
        if data.is_empty() {
            Ok(this)
        } else {
            Err(corrupt("the shared tables are too long"))
        }
    }
}
