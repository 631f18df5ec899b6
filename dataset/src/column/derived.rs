//! Columns that follow from others: a length, a count, a bucket, a code for a value.

use std::collections::{BTreeMap, HashMap};

use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use crate::cell::{Reader, Shape, write_leb};

/// What is read from another column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Feature {
    /// The other column.
    pub(crate) column: usize,
    /// Which parts of structs, from the outside in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) path: Vec<usize>,
    pub(crate) measure: Measure,
    pub(crate) via: Via,
}

/// A measure of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// The value itself.
    Value,
    /// Bytes of a text.
    Bytes,
    /// Characters of a text.
    Chars,
    /// Words of a text, divided by white space.
    Words,
    /// Whether a text is ASCII.
    Ascii,
    /// Elements of a list.
    Count,
    /// Characters of all texts in a list, to any depth.
    TotalChars,
    /// Words of all texts in a list, to any depth.
    TotalWords,
    /// The text in lower case.
    Lower,
    /// The text in upper case.
    Upper,
    /// The text without white space at its ends.
    Trimmed,
}

/// How the measure gives the column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Via {
    /// It is the value.
    Same,
    /// The value is the one that came with the same measure last.
    Map,
    /// The value is the one that both the next lower and the next higher measure came with.
    Steps,
}

/// A measure taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Number(i64),
    /// A cell.
    Cell(Vec<u8>),
    /// There is no value to measure.
    Null,
}

impl Measure {
    /// The measures of a shape.
    pub(crate) fn of(shape: &Shape) -> &'static [Self] {
        match shape {
            Shape::Bytes => &[
                Self::Value,
                Self::Chars,
                Self::Bytes,
                Self::Words,
                Self::Ascii,
                Self::Lower,
                Self::Upper,
                Self::Trimmed,
            ],
            Shape::List(_) => &[Self::Count, Self::TotalChars, Self::TotalWords],
            Shape::Fixed(_) | Shape::Bool => &[Self::Value],
            _ => &[],
        }
    }
}

impl Feature {
    /// Every feature of a column, `via` to be filled in.
    pub(crate) fn all(column: usize, shape: &Shape) -> Vec<Self> {
        let mut all = Vec::new();
        collect(column, shape, &mut Vec::new(), &mut all);
        all
    }

    /// The value of a column itself, where that is something to go by.
    pub(crate) fn value(column: usize, shape: &Shape) -> Vec<Self> {
        let measure = Measure::Value;
        let path = Vec::new();
        let feature = Self {
            column,
            path,
            measure,
            via: Via::Same,
        };
        let is_plain = Measure::of(shape).contains(&measure);
        is_plain.then_some(feature).into_iter().collect()
    }

    /// Measures the cell of the other column.
    pub(crate) fn key(&self, shape: &Shape, cell: &[u8]) -> Key {
        self.try_key(shape, cell).unwrap_or(Key::Null)
    }

    fn try_key(&self, shape: &Shape, cell: &[u8]) -> Option<Key> {
        let mut reader = Reader::new(cell);
        let mut shape = shape;
        for &part in &self.path {
            let Shape::Struct(parts) = shape else {
                return None;
            };
            if reader.byte().ok()? == 0 {
                return None;
            }
            for before in parts.get(..part)? {
                reader.cell(before).ok()?;
            }
            shape = parts.get(part)?;
        }
        let cell = reader.cell(shape).ok()?;
        if cell.first() != Some(&1) {
            return None;
        }
        let size = |value: usize| Some(Key::Number(i64::try_from(value).unwrap_or(i64::MAX)));
        let text = || {
            let mut reader = Reader::new(cell);
            reader.byte().ok()?;
            let length = reader.leb().ok()?;
            reader.take(length).ok()
        };
        match self.measure {
            Measure::Value => match (shape, self.via) {
                (Shape::Fixed(1 | 2 | 4 | 8), Via::Steps) => number(cell).map(Key::Number),
                _ => Some(Key::Cell(cell.to_vec())),
            },
            Measure::Bytes => size(text()?.len()),
            Measure::Chars => size(chars(text()?)),
            Measure::Words => size(words(text()?)),
            Measure::Ascii => size(usize::from(text()?.is_ascii())),
            Measure::Count => {
                let mut reader = Reader::new(cell);
                reader.byte().ok()?;
                size(reader.leb().ok()?)
            }
            Measure::TotalChars => size(total(shape, &mut Reader::new(cell), chars)?),
            Measure::TotalWords => size(total(shape, &mut Reader::new(cell), words)?),
            Measure::Lower => changed(text()?, |t| t.to_lowercase()),
            Measure::Upper => changed(text()?, |t| t.to_uppercase()),
            Measure::Trimmed => changed(text()?, |t| t.trim().to_owned()),
        }
    }
}

fn collect(column: usize, shape: &Shape, path: &mut Vec<usize>, all: &mut Vec<Feature>) {
    for &measure in Measure::of(shape) {
        all.push(Feature {
            column,
            path: path.clone(),
            measure,
            via: Via::Same,
        });
    }
    if let Shape::Struct(parts) = shape
        && path.len() < 2
    {
        for (at, part) in parts.iter().enumerate() {
            path.push(at);
            collect(column, part, path, all);
            path.pop();
        }
    }
}

fn chars(text: &[u8]) -> usize {
    // Bytes that do not continue a character.
    text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

fn words(text: &[u8]) -> usize {
    String::from_utf8_lossy(text).split_whitespace().count()
}

fn changed(text: &[u8], change: impl Fn(&str) -> String) -> Option<Key> {
    let text = change(std::str::from_utf8(text).ok()?);
    let mut cell = vec![1];
    write_leb(&mut cell, text.len() as u64);
    cell.extend_from_slice(text.as_bytes());
    Some(Key::Cell(cell))
}

fn total(shape: &Shape, reader: &mut Reader<'_>, measure: fn(&[u8]) -> usize) -> Option<usize> {
    if reader.byte().ok()? == 0 {
        return Some(0);
    }
    Some(match shape {
        Shape::Bytes => {
            let length = reader.leb().ok()?;
            measure(reader.take(length).ok()?)
        }
        Shape::List(child) => {
            let mut sum = 0;
            for _ in 0..reader.leb().ok()? {
                sum += total(child, reader, measure)?;
            }
            sum
        }
        Shape::Struct(parts) => {
            let mut sum = 0;
            for part in parts {
                sum += total(part, reader, measure)?;
            }
            sum
        }
        other => {
            reader.skip_value(other).ok()?;
            0
        }
    })
}

/// What is known of a column from the items before, and what that says of the next.
pub(crate) struct Derivation {
    via: Via,
    ty: DataType,
    map: HashMap<Key, Vec<u8>>,
    steps: BTreeMap<i64, Vec<u8>>,
}

/// Different measures that are remembered.
const MOST_KEYS: usize = 1 << 20;

impl Derivation {
    pub(crate) fn new(via: Via, ty: &DataType) -> Self {
        Self {
            via,
            ty: ty.clone(),
            map: HashMap::new(),
            steps: BTreeMap::new(),
        }
    }

    /// The cell expected with this measure, appended to `out`; whether there is one.
    pub(crate) fn expect(&self, key: &Key, out: &mut Vec<u8>) -> bool {
        let cell = match (self.via, key) {
            (Via::Same, Key::Null) => {
                out.push(0);
                return true;
            }
            (Via::Same, Key::Cell(cell)) => Some(cell),
            (Via::Same, Key::Number(number)) => return write_number(*number, &self.ty, out),
            (Via::Steps, Key::Number(number)) => {
                let below = self.steps.range(..=*number).next_back();
                let above = self.steps.range(*number..).next();
                match (below, above) {
                    (Some((_, below)), Some((_, above))) if below == above => Some(below),
                    (Some((at, below)), Some((to, above))) => {
                        Some(if number.abs_diff(*at) <= number.abs_diff(*to) {
                            below
                        } else {
                            above
                        })
                    }
                    (Some((_, one)), None) | (None, Some((_, one))) => Some(one),
                    (None, None) => None,
                }
            }
            (_, key) => self.map.get(key),
        };
        out.extend_from_slice(cell.map_or(&[], Vec::as_slice));
        cell.is_some()
    }

    /// Takes in what came with a measure.
    pub(crate) fn learn(&mut self, key: Key, cell: &[u8]) {
        if self.via == Via::Same {
            return;
        }
        if let (Via::Steps, Key::Number(number)) = (self.via, &key) {
            if self.steps.len() < MOST_KEYS {
                self.steps.insert(*number, cell.to_vec());
            }
        } else if self.map.len() < MOST_KEYS || self.map.contains_key(&key) {
            self.map.insert(key, cell.to_vec());
        }
    }
}

/// The number in a cell of at most eight bytes, as a signed one of its width; `None` for null.
pub(super) fn number(cell: &[u8]) -> Option<i64> {
    let (&1, value) = cell.split_first()? else {
        return None;
    };
    let first = if value.first()? & 128 == 0 { 0_u8 } else { 255 };
    let mut wide = [first; 8];
    let start = 8_usize.checked_sub(value.len())?;
    wide[start..].copy_from_slice(value);
    Some(i64::from_be_bytes(wide))
}

/// The cell of a counter at a row, appended to `out`; false if the type has no place for it.
pub(super) fn count(start: i64, step: i64, row: u32, ty: &DataType, out: &mut Vec<u8>) -> bool {
    let number = start.wrapping_add(step.wrapping_mul(i64::from(row)));
    write_number(number, ty, out)
}

/// The cell of a number in a type; false if the type has no place for it.
fn write_number(number: i64, ty: &DataType, out: &mut Vec<u8>) -> bool {
    macro_rules! integer {
        ($ty:ty) => {
            match <$ty>::try_from(number) {
                Ok(value) => {
                    out.push(1);
                    out.extend(value.to_be_bytes());
                    true
                }
                Err(_) => false,
            }
        };
    }
    match ty {
        DataType::Int8 => integer!(i8),
        DataType::Int16 => integer!(i16),
        DataType::Int32 => integer!(i32),
        DataType::Int64 => integer!(i64),
        DataType::UInt8 => integer!(u8),
        DataType::UInt16 => integer!(u16),
        DataType::UInt32 => integer!(u32),
        DataType::UInt64 => integer!(u64),
        DataType::Boolean => {
            out.extend([1, u8::from(number != 0)]);
            true
        }
        DataType::Float64 => {
            out.push(1);
            out.extend((number as f64).to_be_bytes());
            true
        }
        DataType::Float32 => {
            out.push(1);
            #[expect(clippy::cast_possible_truncation, reason = "it is a prediction")]
            out.extend((number as f64 as f32).to_be_bytes());
            true
        }
        DataType::Utf8 | DataType::LargeUtf8 => {
            let text = number.to_string();
            out.push(1);
            write_leb(out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
            true
        }
        _ => false,
    }
}
