//! Leaves: the columns that Parquet stores of rows, as levels and plain values. They are the same whatever file they are in, and
//! are had by writing the rows in the plainest form and taking that apart.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, Type};
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnDescriptor;

use super::hybrid::{self, width_of};
use super::thrift::page_header;
use crate::DatasetError;

/// How plain values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A bit each; here a byte.
    Bits,
    /// So many bytes each.
    Fixed(usize),
    /// A length of four bytes, and the bytes.
    Lengths,
}

/// How values are ordered, where the least and the greatest are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Signed,
    Float,
    Bytes,
    None,
}

/// What a leaf is, in whichever file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) most_repeated: u16,
    pub(super) most_defined: u16,
    pub(super) layout: Layout,
    order: Order,
}

impl Kind {
    pub(super) fn of(column: &ColumnDescriptor) -> Self {
        let length = usize::try_from(column.type_length()).unwrap_or(0);
        let (layout, order) = match column.physical_type() {
            Type::BOOLEAN => (Layout::Bits, Order::None),
            Type::INT32 => (Layout::Fixed(4), Order::Signed),
            Type::INT64 => (Layout::Fixed(8), Order::Signed),
            Type::INT96 => (Layout::Fixed(12), Order::None),
            Type::FLOAT => (Layout::Fixed(4), Order::Float),
            Type::DOUBLE => (Layout::Fixed(8), Order::Float),
            Type::BYTE_ARRAY => (Layout::Lengths, Order::Bytes),
            Type::FIXED_LEN_BYTE_ARRAY => (Layout::Fixed(length), Order::Bytes),
        };
        let level = |level: i16| u16::try_from(level).unwrap_or(0);
        Self {
            most_repeated: level(column.max_rep_level()),
            most_defined: level(column.max_def_level()),
            layout,
            order,
        }
    }
}

/// Plain values, and where each begins.
#[derive(Clone, Debug)]
pub(super) struct Values {
    kind: Kind,
    bytes: Vec<u8>,
    /// Where each begins, and the end; only with lengths.
    starts: Vec<usize>,
}

impl Values {
    /// No values yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            bytes: Vec::new(),
            starts: vec![0],
        }
    }

    /// `count` plain values; `None` where there are not as many, or more bytes.
    pub(super) fn append(&mut self, bytes: &[u8], count: usize) -> Option<()> {
        match self.kind.layout {
            Layout::Bits => {
                for at in 0..count {
                    self.bytes.push((bytes.get(at / 8)? >> (at % 8)) & 1);
                }
                (bytes.len() == count.div_ceil(8)).then_some(())
            }
            Layout::Fixed(width) => {
                self.bytes.extend_from_slice(bytes);
                (count.checked_mul(width)? == bytes.len()).then_some(())
            }
            Layout::Lengths => {
                let before = self.bytes.len();
                let mut at = 0_usize;
                for _ in 0..count {
                    let length = bytes.get(at..)?.first_chunk::<4>()?;
                    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
                    at = at.checked_add(4)?.checked_add(length)?;
                    self.starts.push(before + at);
                }
                self.bytes.extend_from_slice(bytes);
                (at == bytes.len()).then_some(())
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self.kind.layout {
            Layout::Bits => self.bytes.len(),
            Layout::Fixed(width) => self.bytes.len().checked_div(width).unwrap_or(0),
            Layout::Lengths => self.starts.len() - 1,
        }
    }

    /// A value as plain bytes.
    pub(super) fn get(&self, at: usize) -> &[u8] {
        match self.kind.layout {
            Layout::Bits => &self.bytes[at..=at],
            Layout::Fixed(width) => &self.bytes[at * width..(at + 1) * width],
            Layout::Lengths => &self.bytes[self.starts[at]..self.starts[at + 1]],
        }
    }

    /// Values one after another, plain.
    pub(super) fn write(&self, from: usize, to: usize, out: &mut Vec<u8>) {
        match self.kind.layout {
            Layout::Bits => {
                for eight in self.bytes[from..to].chunks(8) {
                    let byte = eight.iter().rev().fold(0, |byte, &bit| byte << 1 | bit);
                    out.push(byte);
                }
            }
            Layout::Fixed(width) => {
                out.extend_from_slice(&self.bytes[from * width..to * width]);
            }
            Layout::Lengths => {
                out.extend_from_slice(&self.bytes[self.starts[from]..self.starts[to]]);
            }
        }
    }

    /// A value without its length.
    fn bare(&self, at: usize) -> &[u8] {
        let value = self.get(at);
        match self.kind.layout {
            Layout::Lengths => value.get(4..).unwrap_or_default(),
            _ => value,
        }
    }

    /// The least and the greatest of some values, without lengths: integers by their sign, floats as numbers and without those
    /// that are none, all else by bytes.
    pub(super) fn extremes(&self, from: usize, to: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut found: Option<(&[u8], &[u8])> = None;
        for at in from..to {
            let value = self.bare(at);
            if self.kind.compare(value, value).is_none() {
                continue;
            }
            let (least, most) = found.get_or_insert((value, value));
            if self.kind.is_less(value, least) {
                *least = value;
            }
            if self.kind.is_less(most, value) {
                *most = value;
            }
        }
        found.map(|(least, most)| (least.to_vec(), most.to_vec()))
    }
}

impl Kind {
    fn compare(self, a: &[u8], b: &[u8]) -> Option<std::cmp::Ordering> {
        match self.order {
            Order::None => None,
            Order::Bytes => Some(a.cmp(b)),
            Order::Signed => Some(signed(a).cmp(&signed(b))),
            Order::Float => float(a).partial_cmp(&float(b)),
        }
    }

    pub(super) fn is_less(self, a: &[u8], b: &[u8]) -> bool {
        self.compare(a, b) == Some(std::cmp::Ordering::Less)
    }
}

fn signed(bytes: &[u8]) -> i64 {
    match (bytes.first_chunk::<8>(), bytes.first_chunk::<4>()) {
        (Some(bytes), _) => i64::from_le_bytes(*bytes),
        (_, Some(bytes)) => i32::from_le_bytes(*bytes).into(),
        _ => 0,
    }
}

fn float(bytes: &[u8]) -> f64 {
    match (bytes.first_chunk::<8>(), bytes.first_chunk::<4>()) {
        (Some(bytes), _) => f64::from_le_bytes(*bytes),
        (_, Some(bytes)) => f32::from_le_bytes(*bytes).into(),
        _ => f64::NAN,
    }
}

/// A leaf of some rows.
pub(super) struct Leaf {
    pub(super) kind: Kind,
    /// As many as there are levels; none where they are all 0.
    repeated: Vec<u16>,
    defined: Vec<u16>,
    pub(super) count: usize,
    pub(super) values: Values,
}

impl Leaf {
    /// How many of some levels have a value.
    pub(super) fn present(&self, from: usize, to: usize) -> usize {
        if self.kind.most_defined == 0 {
            return to - from;
        }
        let most = self.kind.most_defined;
        let levels = self.defined[from..to].iter();
        levels.filter(|&&level| level == most).count()
    }

    /// How many rows begin at some levels.
    pub(super) fn rows(&self, from: usize, to: usize) -> usize {
        if self.kind.most_repeated == 0 {
            return to - from;
        }
        self.repeated[from..to].iter().filter(|&&l| l == 0).count()
    }

    /// The levels in hybrid form, repetition first: each after its length, or without.
    pub(super) fn write_levels(&self, from: usize, to: usize, lengths: bool, out: &mut Vec<u8>) {
        for (most, levels) in [
            (self.kind.most_repeated, &self.repeated),
            (self.kind.most_defined, &self.defined),
        ] {
            if most == 0 {
                continue;
            }
            let levels = levels[from..to].iter().map(|&level| level.into());
            let place = out.len();
            if lengths {
                out.extend_from_slice(&[0; 4]);
            }
            hybrid::write(levels, width_of(most.into()), out);
            if lengths {
                let length = u32::try_from(out.len() - place - 4).unwrap_or(u32::MAX);
                out[place..place + 4].copy_from_slice(&length.to_le_bytes());
            }
        }
    }
}

/// The leaves of rows, which are those of one row group.
pub(super) fn leaves(
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<Vec<Leaf>, DatasetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::PLAIN)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_max_row_group_row_count(None)
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, Arc::clone(schema), Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.close()?;
    let file = Bytes::from(file);
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&file)?;
    let odd = || DatasetError::internal("a plain Parquet file is not as it should be");
    let descriptors = metadata.file_metadata().schema_descr().columns();
    let mut leaves: Vec<Leaf> = descriptors
        .iter()
        .map(|column| {
            let kind = Kind::of(column);
            Leaf {
                kind,
                repeated: Vec::new(),
                defined: Vec::new(),
                count: 0,
                values: Values::new(kind),
            }
        })
        .collect();
    for group in metadata.row_groups() {
        for (leaf, column) in leaves.iter_mut().zip(group.columns()) {
            let (start, length) = column.byte_range();
            let start = usize::try_from(start).map_err(|_| odd())?;
            let length = usize::try_from(length).map_err(|_| odd())?;
            let chunk = start
                .checked_add(length)
                .and_then(|end| file.get(start..end));
            let mut rest = chunk.ok_or_else(odd)?;
            while !rest.is_empty() {
                rest = leaf.page(rest).ok_or_else(odd)?;
            }
        }
    }
    Ok(leaves)
}

impl Leaf {
    /// Adds the page at the beginning; what follows it.
    fn page<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let header = page_header(bytes)?;
        let size = usize::try_from(header.packed).ok()?;
        let count = usize::try_from(header.values).ok()?;
        let (mut body, rest) = bytes.get(header.bytes..)?.split_at_checked(size)?;
        let mut present = count;
        for (most, levels) in [
            (self.kind.most_repeated, &mut self.repeated),
            (self.kind.most_defined, &mut self.defined),
        ] {
            if most == 0 {
                continue;
            }
            let (length, after) = body.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (own, after) = after.split_at_checked(length)?;
            let found = hybrid::read(own, width_of(most.into()), count)?;
            present = found.iter().filter(|&&level| level == most).count();
            levels.extend_from_slice(&found);
            body = after;
        }
        if self.kind.most_defined == 0 {
            present = count;
        }
        self.values.append(body, present)?;
        self.count += count;
        Some(rest)
    }
}
