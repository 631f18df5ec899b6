//! Factors as bytes: one component (a column of the left factor, then its row of the right one) after another, so that the first
//! bytes are the factors of a smaller rank.
//!
//! Floats are little-endian. Integers come in groups of [`GROUP`] entries of one vector: a bf16 scale, then the entries, two to
//! a byte (low half first) for int4; an entry is its integer times the scale.

use half::{bf16, f16};

use crate::algebra::narrow;
use crate::{Factors, SvdError};

/// Entries that share a scale.
pub const GROUP: usize = 64;
/// Shares of the largest magnitude that are tried as the largest that an integer stands for: cutting off a few large entries
/// makes the steps of all others finer.
const CUTS: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7];

/// How the entries of factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
    /// 8 bits and a scale for every 64 entries.
    Int8,
    /// 4 bits and a scale for every 64 entries.
    Int4,
}

impl Precision {
    /// Every precision, with its name.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::F32, "f32"),
        (Self::F16, "f16"),
        (Self::BF16, "bf16"),
        (Self::Int8, "int8"),
        (Self::Int4, "int4"),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(p, _)| *p == self)
            .map_or("", |(_, name)| name)
    }

    /// The precision of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(p, _)| *p)
    }

    /// Bytes of a vector of `entries`; none beyond what a `usize` holds.
    #[must_use]
    pub fn bytes(self, entries: usize) -> Option<usize> {
        let scales = entries.div_ceil(GROUP).checked_mul(2)?;
        match self {
            Self::F32 => entries.checked_mul(4),
            Self::F16 | Self::BF16 => entries.checked_mul(2),
            Self::Int8 => entries.checked_add(scales),
            Self::Int4 => entries.div_ceil(2).checked_add(scales),
        }
    }

    /// Bytes of one component of a matrix.
    #[must_use]
    pub fn component(self, rows: usize, cols: usize) -> Option<usize> {
        self.bytes(rows)?.checked_add(self.bytes(cols)?)
    }

    fn largest(self) -> f32 {
        if self == Self::Int4 { 7.0 } else { 127.0 }
    }

    fn put(self, vector: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(vector.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => out.extend(vector.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
            Self::BF16 => out.extend(vector.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
            Self::Int8 | Self::Int4 => {
                for group in vector.chunks(GROUP) {
                    let (scale, entries) = self.quantised(group);
                    out.extend_from_slice(&scale.to_le_bytes());
                    if self == Self::Int8 {
                        out.extend(entries.iter().map(|q| q.cast_unsigned()));
                    } else {
                        let nibble = |q: Option<&i8>| q.map_or(0, |q| q.cast_unsigned() & 0xf);
                        out.extend(
                            entries
                                .chunks(2)
                                .map(|two| nibble(two.first()) | nibble(two.get(1)) << 4),
                        );
                    }
                }
            }
        }
    }

    /// The scale with the least squared error, and the entries by it.
    fn quantised(self, group: &[f32]) -> (bf16, Vec<i8>) {
        let most = group.iter().fold(0f32, |most, x| most.max(x.abs()));
        let with = |cut: f32| {
            let scale = bf16::from_f32(most * cut / self.largest());
            let step = scale.to_f32();
            let entries: Vec<i8> = group
                .iter()
                .map(|x| {
                    let q = if step > 0.0 { x / step } else { 0.0 };
                    to_i8(q.round_ties_even().clamp(-self.largest(), self.largest()))
                })
                .collect();
            let error: f64 = group
                .iter()
                .zip(&entries)
                .map(|(x, q)| f64::from(x - f32::from(*q) * step).powi(2))
                .sum();
            (error, scale, entries)
        };
        let best = CUTS
            .into_iter()
            .map(with)
            .min_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or_else(
            || (bf16::ZERO, vec![0; group.len()]),
            |(_, scale, entries)| (scale, entries),
        )
    }

    /// Takes a vector off the front; the caller has checked that its bytes are there.
    fn take(self, data: &[u8], entries: usize) -> Vec<f32> {
        match self {
            Self::F32 => words(data).map(f32::from_le_bytes).collect(),
            Self::F16 => words(data)
                .map(|b| f16::from_le_bytes(b).to_f32())
                .collect(),
            Self::BF16 => words(data)
                .map(|b| bf16::from_le_bytes(b).to_f32())
                .collect(),
            Self::Int8 | Self::Int4 => {
                let mut out = Vec::with_capacity(entries);
                let whole = self.bytes(GROUP).unwrap_or(usize::MAX);
                for (number, group) in data.chunks(whole).enumerate() {
                    let n = GROUP.min(entries - number * GROUP);
                    let (scale, codes) = group.split_at(2.min(group.len()));
                    let scale = words(scale).map(bf16::from_le_bytes).next();
                    let scale = scale.map_or(0.0, bf16::to_f32);
                    if self == Self::Int8 {
                        out.extend(codes.iter().map(|q| f32::from(q.cast_signed()) * scale));
                    } else {
                        // Shifted up and down again, so that the sign comes along.
                        let value =
                            |nibble: u8| f32::from((nibble << 4).cast_signed() >> 4) * scale;
                        let both = codes.iter().flat_map(|two| [value(*two), value(two >> 4)]);
                        out.extend(both.take(n));
                    }
                }
                out
            }
        }
    }
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks().0.iter().copied()
}

#[expect(clippy::cast_possible_truncation, reason = "an integer of at most 127")]
fn to_i8(x: f32) -> i8 {
    x as i8
}

impl Factors {
    /// The factors as bytes.
    #[must_use]
    pub fn encode(&self, precision: Precision) -> Vec<u8> {
        let mut out = Vec::new();
        for (k, right) in self.right.chunks_exact(self.cols.max(1)).enumerate() {
            let left: Vec<f32> = self
                .left
                .iter()
                .skip(k)
                .step_by(self.rank.max(1))
                .copied()
                .collect();
            // A scale of its own for either side costs nothing and uses the range of either: nothing to balance here.
            precision.put(&left, &mut out);
            precision.put(right, &mut out);
        }
        out
    }

    /// The first `rank` components of factors that [`Self::encode`] made; bytes beyond them are left alone.
    ///
    /// # Errors
    /// Fewer bytes than the shape asks for, and entries that are no numbers.
    pub fn decode(
        precision: Precision,
        [rows, cols]: [usize; 2],
        rank: usize,
        data: &[u8],
    ) -> Result<Self, SvdError> {
        let corrupt = |what| SvdError::Corrupt { what };
        let component = precision
            .component(rows, cols)
            .ok_or(corrupt("a matrix that no memory holds"))?;
        let data = component
            .checked_mul(rank)
            .and_then(|size| data.get(..size))
            .ok_or(corrupt("they are cut short"))?;
        let mut factors = Self {
            rows,
            cols,
            rank,
            left: vec![0.0; rows * rank],
            right: Vec::with_capacity(rank * cols),
        };
        let split = precision.bytes(rows).unwrap_or(0);
        for (k, component) in data.chunks_exact(component.max(1)).enumerate() {
            let (left, right) = component.split_at(split);
            for (row, x) in factors
                .left
                .chunks_exact_mut(rank)
                .zip(precision.take(left, rows))
            {
                row[k] = x;
            }
            factors.right.extend(precision.take(right, cols));
        }
        let finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
        if !finite(&factors.left) || !finite(&factors.right) {
            return Err(corrupt("an entry is no number"));
        }
        Ok(factors)
    }

    /// The factors as bytes, and as [`Self::decode`] gives them back.
    ///
    /// # Errors
    /// Entries beyond what the precision holds.
    pub fn stored(&self, precision: Precision) -> Result<(Vec<u8>, Self), SvdError> {
        let bytes = self.encode(precision);
        let again = Self::decode(precision, [self.rows, self.cols], self.rank, &bytes);
        let again = again.map_err(|_| SvdError::Source {
            what: format!(
                "the factors' entries are too large for {}: use bf16 or f32",
                precision.name()
            ),
        })?;
        Ok((bytes, again))
    }

    /// The first `rank` components.
    #[must_use]
    pub fn truncated(&self, rank: usize) -> Self {
        let rank = rank.min(self.rank);
        let rows = self.left.chunks_exact(self.rank.max(1));
        Self {
            rank,
            left: rows.flat_map(|row| &row[..rank]).copied().collect(),
            right: self.right[..rank * self.cols].to_vec(),
            ..*self
        }
    }
}

/// The row's share of bits of a sign residual: one bit an element, low bit first, set where the element is below zero.
pub(crate) fn signs(row: &[f32], out: &mut Vec<u8>) {
    out.extend(row.chunks(8).map(|eight| {
        eight
            .iter()
            .enumerate()
            .fold(0u8, |byte, (i, x)| byte | u8::from(*x < 0.0) << i)
    }));
}

/// What the factors leave of a matrix, as one bit an element and one magnitude a row (as BitDelta keeps whole differences: Liu
/// et al., 2024).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signs {
    /// The magnitude of each row: the mean of its elements', which leaves the least squared error.
    pub scales: Vec<f32>,
    /// Bits of all rows, each starting with a byte of its own.
    pub bits: Vec<u8>,
}

impl Signs {
    /// Bytes of the signs of a matrix, as [`Self::encode`] writes them; none beyond what a `usize` holds.
    #[must_use]
    pub fn bytes(rows: usize, cols: usize) -> Option<usize> {
        rows.checked_mul(cols.div_ceil(8).checked_add(4)?)
    }

    /// The scales (F32, little-endian), then the bits.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let scales = self.scales.iter().flat_map(|x| x.to_le_bytes());
        scales.chain(self.bits.iter().copied()).collect()
    }

    /// What [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Another number of bytes than the shape asks for, and scales that are no numbers.
    pub fn decode([rows, cols]: [usize; 2], data: &[u8]) -> Result<Self, SvdError> {
        if Self::bytes(rows, cols) != Some(data.len()) {
            return Err(SvdError::Corrupt {
                what: "signs of another number",
            });
        }
        let (scales, bits) = data.split_at(rows * 4);
        let scales: Vec<f32> = words(scales).map(f32::from_le_bytes).collect();
        if !scales.iter().all(|x| x.is_finite()) {
            return Err(SvdError::Corrupt {
                what: "a scale is no number",
            });
        }
        Ok(Self {
            scales,
            bits: bits.to_vec(),
        })
    }

    /// Adds one row's residual to `row`.
    pub fn add_to(&self, number: usize, row: &mut [f32]) {
        let width = row.len().div_ceil(8);
        let (Some(scale), Some(bits)) = (
            self.scales.get(number),
            self.bits.get(number * width..(number + 1) * width),
        ) else {
            return;
        };
        for (eight, byte) in row.chunks_mut(8).zip(bits) {
            for (i, x) in eight.iter_mut().enumerate() {
                *x += if byte >> i & 1 == 1 { -scale } else { *scale };
            }
        }
    }

    /// Takes the signs of a row and adds them; the magnitude is the mean of the row's.
    pub(crate) fn push(&mut self, row: &mut [f32]) {
        let sum: f64 = row.iter().map(|x| f64::from(x.abs())).sum();
        let scale = narrow(sum / row.len().max(1) as f64);
        self.scales.push(scale);
        let before = self.bits.len();
        signs(row, &mut self.bits);
        for (eight, byte) in row.chunks_mut(8).zip(&self.bits[before..]) {
            for (i, x) in eight.iter_mut().enumerate() {
                *x -= if byte >> i & 1 == 1 { -scale } else { scale };
            }
        }
    }
}
