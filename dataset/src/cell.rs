//! One value of a column as bytes: what is hashed, compared and coded, whatever the column's type.
//!
//! A cell is a byte 0 for null, or a byte 1 and the value: numbers, times and decimals in their own width, most significant
//! byte first; booleans in one byte; strings and binaries after their length (LEB128); lists and maps after their number
//! of elements, each a cell; structs and fixed-size lists as the cells of their parts. Equal bytes are equal values, bit for
//! bit: NaN payloads, -0.0, and null against empty are told apart.

use arrow::array::{Array, ArrayData, ArrayRef, make_array};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::datatypes::DataType;

use crate::DatasetError;
use crate::gate::Gate;

/// A column to read cells from.
pub(crate) struct Cells {
    nulls: Option<NullBuffer>,
    offset: usize,
    kind: Kind,
}

enum Kind {
    Null,
    Bool(Buffer),
    Fixed {
        values: Buffer,
        width: usize,
        number: bool,
    },
    Bytes(Offsets, Buffer),
    List(Offsets, Box<Cells>),
    FixedList(usize, Box<Cells>),
    Struct(Vec<Cells>),
}

enum Offsets {
    Narrow(Buffer),
    Wide(Buffer),
}

impl Offsets {
    fn range(&self, row: usize) -> (usize, usize) {
        let at = |value: i64| usize::try_from(value).unwrap_or(0);
        match self {
            Self::Narrow(buffer) => {
                let offsets = buffer.typed_data::<i32>();
                (at(offsets[row].into()), at(offsets[row + 1].into()))
            }
            Self::Wide(buffer) => {
                let offsets = buffer.typed_data::<i64>();
                (at(offsets[row]), at(offsets[row + 1]))
            }
        }
    }
}

/// What a canonical type is made of (see [`crate::canonical`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Null,
    Bool,
    Fixed(usize),
    Bytes,
    List(Box<Shape>),
    FixedList(usize, Box<Shape>),
    Struct(Vec<Shape>),
}

impl Shape {
    /// How many parts it has that are no other's.
    pub(crate) fn leaves(&self) -> usize {
        match self {
            Self::List(child) | Self::FixedList(_, child) => child.leaves(),
            Self::Struct(parts) => parts.iter().map(Self::leaves).sum::<usize>().max(1),
            _ => 1,
        }
    }

    pub(crate) fn of(ty: &DataType) -> Result<Self, DatasetError> {
        Ok(match ty {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool,
            DataType::FixedSizeBinary(width) => Self::Fixed(usize::try_from(*width).unwrap_or(0)),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => {
                Self::Bytes
            }
            DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
                Self::List(Box::new(Self::of(field.data_type())?))
            }
            DataType::FixedSizeList(field, size) => Self::FixedList(
                usize::try_from(*size).unwrap_or(0),
                Box::new(Self::of(field.data_type())?),
            ),
            DataType::Struct(fields) => Self::Struct(
                fields
                    .iter()
                    .map(|field| Self::of(field.data_type()))
                    .collect::<Result<_, _>>()?,
            ),
            ty => match ty.primitive_width() {
                Some(width) => Self::Fixed(width),
                None => return Err(DatasetError::unsupported(ty)),
            },
        })
    }
}

/// Numbers whose bytes are turned most significant first. Binary of a fixed size is left as it is.
fn is_number(ty: &DataType) -> bool {
    ty.primitive_width().is_some()
}

impl Cells {
    pub(crate) fn new(array: &dyn Array) -> Result<Self, DatasetError> {
        Self::of(&array.to_data())
    }

    fn of(data: &ArrayData) -> Result<Self, DatasetError> {
        let child = |at: usize| Ok::<_, DatasetError>(Box::new(Self::of(&data.child_data()[at])?));
        let buffer = |at: usize| data.buffers()[at].clone();
        let kind = match data.data_type() {
            DataType::Null => Kind::Null,
            DataType::Boolean => Kind::Bool(buffer(0)),
            DataType::FixedSizeBinary(width) => Kind::Fixed {
                values: buffer(0),
                width: usize::try_from(*width).unwrap_or(0),
                number: false,
            },
            DataType::Utf8 | DataType::Binary => Kind::Bytes(Offsets::Narrow(buffer(0)), buffer(1)),
            DataType::LargeUtf8 | DataType::LargeBinary => {
                Kind::Bytes(Offsets::Wide(buffer(0)), buffer(1))
            }
            DataType::List(_) | DataType::Map(_, _) => {
                Kind::List(Offsets::Narrow(buffer(0)), child(0)?)
            }
            DataType::LargeList(_) => Kind::List(Offsets::Wide(buffer(0)), child(0)?),
            DataType::FixedSizeList(_, size) => {
                Kind::FixedList(usize::try_from(*size).unwrap_or(0), child(0)?)
            }
            DataType::Struct(_) => Kind::Struct(
                data.child_data()
                    .iter()
                    .map(Self::of)
                    .collect::<Result<_, _>>()?,
            ),
            ty => match ty.primitive_width() {
                Some(width) => Kind::Fixed {
                    values: buffer(0),
                    width,
                    number: true,
                },
                None => return Err(DatasetError::unsupported(ty)),
            },
        };
        Ok(Self {
            nulls: data.nulls().cloned(),
            offset: data.offset(),
            kind,
        })
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        matches!(self.kind, Kind::Null)
            || self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The bytes of a string or binary, the content alone; `None` for null and for other types.
    pub(crate) fn text(&self, row: usize) -> Option<&[u8]> {
        match &self.kind {
            Kind::Bytes(offsets, data) if !self.is_null(row) => {
                let (start, end) = offsets.range(self.offset + row);
                Some(&data[start..end])
            }
            _ => None,
        }
    }

    /// The bytes of a string, binary or number as they lie in memory; `None` for null and for other types. Of two columns of one
    /// type, equal bytes are equal values.
    pub(crate) fn plain(&self, row: usize) -> Option<&[u8]> {
        match &self.kind {
            Kind::Fixed { values, width, .. } if !self.is_null(row) => {
                let at = (self.offset + row) * width;
                Some(&values[at..at + width])
            }
            _ => self.text(row),
        }
    }

    /// Appends the cell of a row.
    pub(crate) fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            out.push(0);
            return;
        }
        out.push(1);
        let at = self.offset + row;
        match &self.kind {
            Kind::Null => {}
            Kind::Bool(bits) => {
                out.push(u8::from(arrow::util::bit_util::get_bit(
                    bits.as_slice(),
                    at,
                )));
            }
            Kind::Fixed {
                values,
                width,
                number,
            } => {
                let value = &values[at * width..(at + 1) * width];
                if *number {
                    out.extend(value.iter().rev());
                } else {
                    out.extend_from_slice(value);
                }
            }
            Kind::Bytes(offsets, data) => {
                let (start, end) = offsets.range(at);
                write_leb(out, (end - start) as u64);
                out.extend_from_slice(&data[start..end]);
            }
            Kind::List(offsets, child) => {
                let (start, end) = offsets.range(at);
                write_leb(out, (end - start) as u64);
                for element in start..end {
                    child.write(element, out);
                }
            }
            Kind::FixedList(size, child) => {
                for element in at * size..(at + 1) * size {
                    child.write(element, out);
                }
            }
            Kind::Struct(children) => {
                for child in children {
                    child.write(at, out);
                }
            }
        }
    }

    /// Appends the cells of rows, one after another.
    pub(crate) fn write_rows(&self, rows: std::ops::Range<usize>, out: &mut Vec<u8>) {
        let at = self.offset + rows.start..self.offset + rows.end;
        match &self.kind {
            Kind::Fixed {
                values,
                width,
                number: true,
            } if self.nulls.is_none() => {
                let values = &values[at.start * width..at.end * width];
                match width {
                    1 => write_numbers::<1>(values, out),
                    2 => write_numbers::<2>(values, out),
                    4 => write_numbers::<4>(values, out),
                    8 => write_numbers::<8>(values, out),
                    16 => write_numbers::<16>(values, out),
                    32 => write_numbers::<32>(values, out),
                    _ => {
                        for row in rows {
                            self.write(row, out);
                        }
                    }
                }
            }
            Kind::Bytes(Offsets::Narrow(offsets), data) if self.nulls.is_none() => {
                let offsets = &offsets.typed_data::<i32>()[at.start..=at.end];
                write_texts(offsets, data, out);
            }
            Kind::Bytes(Offsets::Wide(offsets), data) if self.nulls.is_none() => {
                let offsets = &offsets.typed_data::<i64>()[at.start..=at.end];
                write_texts(offsets, data, out);
            }
            _ => {
                for row in rows {
                    self.write(row, out);
                }
            }
        }
    }

    /// A hash of the cell of a row; `scratch` is room to work in.
    pub(crate) fn hash(
        &self,
        row: usize,
        hasher: &ahash::RandomState,
        scratch: &mut Vec<u8>,
    ) -> u64 {
        if let Some(plain) = self.plain(row) {
            return match plain.try_into().map(u64::from_le_bytes) {
                Ok(number) => hasher.hash_one(number),
                Err(_) => hasher.hash_one(plain),
            };
        }
        scratch.clear();
        self.write(row, scratch);
        hasher.hash_one(scratch.as_slice())
    }
}

/// Cells of numbers of `WIDTH` bytes.
fn write_numbers<const WIDTH: usize>(values: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let count = values.len() / WIDTH;
    out.resize(start + count * (WIDTH + 1), 1);
    let cells = out[start..].chunks_exact_mut(WIDTH + 1);
    for (cell, value) in cells.zip(values.chunks_exact(WIDTH)) {
        for (to, from) in cell[1..].iter_mut().zip(value.iter().rev()) {
            *to = *from;
        }
    }
}

/// Cells of texts that lie between `offsets`.
fn write_texts<O: Copy + TryInto<usize>>(offsets: &[O], data: &[u8], out: &mut Vec<u8>) {
    let at = |offset: O| offset.try_into().unwrap_or(0);
    for pair in offsets.windows(2) {
        let text = &data[at(pair[0])..at(pair[1])];
        out.push(1);
        write_leb(out, text.len() as u64);
        out.extend_from_slice(text);
    }
}

pub(crate) fn write_leb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push((value & 127).to_le_bytes()[0] | 128);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Reads cells again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// What large nulls that are made of the cells must have room in.
    gate: Option<&'a Gate>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            gate: None,
        }
    }

    /// Of cells that may come from anywhere.
    pub(crate) fn within(bytes: &'a [u8], gate: &'a Gate) -> Self {
        Self {
            rest: bytes,
            gate: Some(gate),
        }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DatasetError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| DatasetError::damaged("a value ends early"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DatasetError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn leb(&mut self) -> Result<usize, DatasetError> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return usize::try_from(value)
                    .map_err(|_| DatasetError::damaged("a length is too large"));
            }
        }
        Err(DatasetError::damaged("a length is too large"))
    }

    /// The next cell's bytes.
    pub(crate) fn cell(&mut self, shape: &Shape) -> Result<&'a [u8], DatasetError> {
        let before = self.rest;
        self.skip(shape)?;
        Ok(&before[..before.len() - self.rest.len()])
    }

    fn skip(&mut self, shape: &Shape) -> Result<(), DatasetError> {
        if self.byte()? == 0 {
            return Ok(());
        }
        self.skip_value(shape)
    }

    /// Skips what follows the first byte of a cell that holds a value.
    pub(crate) fn skip_value(&mut self, shape: &Shape) -> Result<(), DatasetError> {
        match shape {
            Shape::Null => {}
            Shape::Bool => {
                self.byte()?;
            }
            Shape::Fixed(width) => {
                self.take(*width)?;
            }
            Shape::Bytes => {
                let length = self.leb()?;
                self.take(length)?;
            }
            Shape::List(child) => {
                for _ in 0..self.leb()? {
                    self.skip(child)?;
                }
            }
            Shape::FixedList(size, child) => {
                for _ in 0..*size {
                    self.skip(child)?;
                }
            }
            Shape::Struct(children) => {
                for child in children {
                    self.skip(child)?;
                }
            }
        }
        Ok(())
    }
}

/// Nulls of so many bytes are not counted: they come to little more than their cells.
const SMALL: u64 = 16;

/// Makes a column from cells.
pub(crate) struct Builder {
    ty: DataType,
    len: usize,
    /// Bytes that a null takes: one of a fixed size as many as a value.
    of_null: u64,
    valid: Vec<bool>,
    any_null: bool,
    kind: Building,
}

enum Building {
    Null,
    Bool(Vec<bool>),
    Fixed {
        width: usize,
        number: bool,
        data: Vec<u8>,
    },
    Bytes {
        wide: bool,
        offsets: Vec<i64>,
        data: Vec<u8>,
    },
    List {
        wide: bool,
        offsets: Vec<i64>,
        child: Box<Builder>,
    },
    FixedList {
        size: usize,
        child: Box<Builder>,
    },
    Struct(Vec<Builder>),
}

impl Builder {
    pub(crate) fn new(ty: &DataType) -> Result<Self, DatasetError> {
        let child = |ty: &DataType| Ok::<_, DatasetError>(Box::new(Self::new(ty)?));
        let kind = match ty {
            DataType::Null => Building::Null,
            DataType::Boolean => Building::Bool(Vec::new()),
            DataType::Utf8 | DataType::Binary | DataType::LargeUtf8 | DataType::LargeBinary => {
                Building::Bytes {
                    wide: matches!(ty, DataType::LargeUtf8 | DataType::LargeBinary),
                    offsets: vec![0],
                    data: Vec::new(),
                }
            }
            DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
                Building::List {
                    wide: matches!(ty, DataType::LargeList(_)),
                    offsets: vec![0],
                    child: child(field.data_type())?,
                }
            }
            DataType::FixedSizeList(field, size) => Building::FixedList {
                size: usize::try_from(*size).unwrap_or(0),
                child: child(field.data_type())?,
            },
            DataType::Struct(fields) => Building::Struct(
                fields
                    .iter()
                    .map(|field| Self::new(field.data_type()))
                    .collect::<Result<_, _>>()?,
            ),
            ty => match Shape::of(ty)? {
                Shape::Fixed(width) => Building::Fixed {
                    width,
                    number: is_number(ty),
                    data: Vec::new(),
                },
                _ => return Err(DatasetError::unsupported(ty)),
            },
        };
        let of_null = match &kind {
            Building::Null | Building::Bool(_) => 1,
            Building::Fixed { width, .. } => 1 + *width as u64,
            Building::Bytes { .. } | Building::List { .. } => 9,
            Building::FixedList { size, child } => {
                (*size as u64).saturating_mul(child.of_null).max(1)
            }
            Building::Struct(children) => children
                .iter()
                .fold(1_u64, |sum, child| sum.saturating_add(child.of_null)),
        };
        Ok(Self {
            ty: ty.clone(),
            len: 0,
            of_null,
            valid: Vec::new(),
            any_null: false,
            kind,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads one cell.
    pub(crate) fn push(&mut self, cell: &mut Reader<'_>) -> Result<(), DatasetError> {
        if cell.byte()? == 0 {
            if let Some(gate) = cell.gate.filter(|_| self.of_null > SMALL) {
                gate.keep(self.of_null)?;
            }
            self.push_null();
            return Ok(());
        }
        self.len += 1;
        self.valid.push(true);
        match &mut self.kind {
            Building::Null => {}
            Building::Bool(bits) => bits.push(cell.byte()? != 0),
            Building::Fixed {
                width,
                number,
                data,
            } => {
                let value = cell.take(*width)?;
                if *number {
                    data.extend(value.iter().rev());
                } else {
                    data.extend_from_slice(value);
                }
            }
            Building::Bytes { offsets, data, .. } => {
                let length = cell.leb()?;
                data.extend_from_slice(cell.take(length)?);
                offsets.push(i64::try_from(data.len()).unwrap_or(i64::MAX));
            }
            Building::List { offsets, child, .. } => {
                for _ in 0..cell.leb()? {
                    child.push(cell)?;
                }
                offsets.push(i64::try_from(child.len).unwrap_or(i64::MAX));
            }
            Building::FixedList { size, child } => {
                for _ in 0..*size {
                    child.push(cell)?;
                }
            }
            Building::Struct(children) => {
                for child in children {
                    child.push(cell)?;
                }
            }
        }
        Ok(())
    }

    fn push_null(&mut self) {
        self.len += 1;
        self.valid.push(false);
        self.any_null = true;
        match &mut self.kind {
            Building::Null => {}
            Building::Bool(bits) => bits.push(false),
            Building::Fixed { width, data, .. } => data.resize(data.len() + *width, 0),
            Building::Bytes { offsets, .. } | Building::List { offsets, .. } => {
                offsets.push(offsets.last().copied().unwrap_or(0));
            }
            Building::FixedList { size, child } => {
                for _ in 0..*size {
                    child.push_null();
                }
            }
            Building::Struct(children) => children.iter_mut().for_each(Self::push_null),
        }
    }

    /// The column. Checked as Arrow checks what comes from outside (UTF-8 among other things).
    pub(crate) fn finish(self) -> Result<ArrayRef, DatasetError> {
        Ok(make_array(self.data()?))
    }

    fn data(self) -> Result<ArrayData, DatasetError> {
        let mut builder = ArrayData::builder(self.ty.clone()).len(self.len);
        let has_nulls = self.any_null && !matches!(self.kind, Building::Null);
        if has_nulls {
            builder = builder.nulls(Some(NullBuffer::from(self.valid)));
        }
        let offsets_of = |offsets: Vec<i64>, wide: bool| {
            if wide {
                Ok(Buffer::from_vec(offsets))
            } else {
                let narrow: Result<Vec<i32>, _> =
                    offsets.iter().map(|&o| i32::try_from(o)).collect();
                narrow
                    .map(Buffer::from_vec)
                    .map_err(|_| DatasetError::damaged("a column is longer than its type allows"))
            }
        };
        builder = match self.kind {
            Building::Null => builder,
            Building::Bool(bits) => {
                builder.add_buffer(arrow::buffer::BooleanBuffer::from(bits).into_inner())
            }
            Building::Fixed { data, .. } => builder
                .add_buffer(Buffer::from_vec(data))
                .align_buffers(true),
            Building::Bytes {
                wide,
                offsets,
                data,
            } => builder
                .add_buffer(offsets_of(offsets, wide)?)
                .add_buffer(Buffer::from_vec(data)),
            Building::List {
                wide,
                offsets,
                child,
            } => builder
                .add_buffer(offsets_of(offsets, wide)?)
                .add_child_data(child.data()?),
            Building::FixedList { child, .. } => builder.add_child_data(child.data()?),
            Building::Struct(children) => {
                for child in children {
                    builder = builder.add_child_data(child.data()?);
                }
                builder
            }
        };
        builder
            .build()
            .map_err(|error| DatasetError::damaged(format!("a column is not valid: {error}")))
    }
}
