//! Cells of any type: a tree of models, one for each part of the type.

use super::bits::{Bit, Int};
use super::fixed::Fixed;
use super::near::{self, Near};
use super::range::Coder;
use super::splice::Splice;
use super::text::Text;
use crate::DatasetError;
use crate::cell::{Reader, Shape, write_leb};

/// A model of the cells of one column.
pub(crate) struct CellModel {
    shape: Shape,
    /// Whether there is a value, by whether there was one last time and whether the base has one.
    valid: [Bit; 6],
    last_valid: bool,
    kind: Kind,
}

enum Kind {
    Null,
    /// By the last two, and the base's.
    Bool(Box<[Bit; 12]>, usize),
    Fixed(Box<Fixed>),
    Near(Box<Near>),
    Bytes(Box<Text>),
    Splice(Box<Splice>),
    List {
        same: Bit,
        length: Box<Int>,
        child: Box<CellModel>,
    },
    Parts(Vec<CellModel>),
    Repeat(usize, Box<CellModel>),
}

/// How much a model may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Whether every context is mixed, or the best few.
    pub(crate) deep: bool,
    /// Whether values are not mixed, but told in the quickest way.
    pub(crate) quick: bool,
    /// Log of the lines of memory (16 bytes each) of every part.
    pub(crate) log_lines: u32,
    /// Bytes of history of every part.
    pub(crate) history: usize,
    /// No value is longer than this.
    pub(crate) longest: usize,
}

impl CellModel {
    pub(crate) fn new(shape: &Shape, room: Room) -> Self {
        let child = |shape: &Shape| Box::new(Self::new(shape, room));
        let kind = match shape {
            Shape::Null => Kind::Null,
            Shape::Bool => Kind::Bool(Box::new([Bit::default(); 12]), 0),
            Shape::Fixed(width) if room.quick && *width <= near::WIDEST => {
                Kind::Near(Box::new(Near::new(*width, room.log_lines.min(18))))
            }
            Shape::Fixed(_) | Shape::Bytes if room.quick => Kind::Splice(Box::new(Splice::new())),
            Shape::Fixed(width) => {
                Kind::Fixed(Box::new(Fixed::new(*width, room.log_lines.min(18))))
            }
            Shape::Bytes => {
                let text = Text::new(room.log_lines, room.history, room.deep);
                Kind::Bytes(Box::new(text))
            }
            Shape::List(element) => Kind::List {
                same: Bit::default(),
                length: Box::default(),
                child: child(element),
            },
            Shape::FixedList(size, element) => Kind::Repeat(*size, child(element)),
            Shape::Struct(parts) => {
                Kind::Parts(parts.iter().map(|part| Self::new(part, room)).collect())
            }
        };
        Self {
            shape: shape.clone(),
            valid: [Bit::starting_at(60000); 6],
            last_valid: true,
            kind,
        }
    }

    /// Takes what a cell holds into the histories of texts without learning its statistics.
    pub(crate) fn remember(&mut self, cell: &mut Reader<'_>) -> Result<(), DatasetError> {
        if cell.byte()? == 0 {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Null => {}
            Kind::Bool(..) => {
                cell.byte()?;
            }
            Kind::Fixed(_) | Kind::Near(_) => {
                let Shape::Fixed(width) = self.shape else {
                    return Ok(());
                };
                cell.take(width)?;
            }
            // Nothing is remembered of what is not mixed.
            Kind::Splice(_) => cell.skip_value(&self.shape)?,
            Kind::Bytes(text) => {
                let length = cell.leb()?;
                text.remember(cell.take(length)?);
            }
            Kind::List { child, .. } => {
                for _ in 0..cell.leb()? {
                    child.remember(cell)?;
                }
            }
            Kind::Parts(parts) => {
                for part in parts {
                    part.remember(cell)?;
                }
            }
            Kind::Repeat(size, child) => {
                for _ in 0..*size {
                    child.remember(cell)?;
                }
            }
        }
        Ok(())
    }

    /// Codes one cell: reads it from `cell` (the encoder), appends it to `out` (both). `base` is a cell it is expected to
    /// resemble.
    pub(crate) fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        cell: &mut Reader<'_>,
        base: Option<&mut Reader<'_>>,
        out: &mut Vec<u8>,
        room: Room,
    ) -> Result<(), DatasetError> {
        let mut base = base;
        let based = match &mut base {
            None => 0,
            Some(base) => 1 + usize::from(base.byte()?),
        };
        if based < 2 {
            base = None;
        }
        let given = C::ENCODES && cell.byte()? != 0;
        let slot = based.min(2) * 2 + usize::from(self.last_valid);
        let valid = self.valid[slot].code(coder, given);
        self.last_valid = valid;
        if !valid {
            out.push(0);
            if let Some(base) = base {
                base.skip_value(&self.shape)?;
            }
            return Ok(());
        }
        out.push(1);
        if coder.is_exhausted() || out.len() > room.longest {
            return Err(DatasetError::damaged("a value never ends"));
        }
        let width = match self.shape {
            Shape::Fixed(width) => Some(width),
            _ => None,
        };
        if width.is_some_and(|width| width > room.longest.saturating_sub(out.len())) {
            return Err(DatasetError::damaged(
                "a value is longer than its column says",
            ));
        }
        match &mut self.kind {
            Kind::Null => {}
            Kind::Bool(bits, last) => {
                let based = match base {
                    None => 0,
                    Some(base) => 1 + usize::from(base.byte()? != 0),
                };
                let given = C::ENCODES && cell.byte()? != 0;
                let bit = bits[based * 4 + *last].code(coder, given);
                *last = (*last * 2 + usize::from(bit)) & 3;
                out.push(u8::from(bit));
            }
            Kind::Fixed(fixed) => {
                let (value, base) = bytes_of::<C>(cell, base, width)?;
                fixed.code(coder, value, base, out);
            }
            Kind::Near(near) => {
                let (value, base) = bytes_of::<C>(cell, base, width)?;
                near.code(coder, value, base, out)?;
            }
            Kind::Bytes(text) => {
                let (value, base) = bytes_of::<C>(cell, base, width)?;
                let mut found = Vec::new();
                text.code(coder, value, base, room.longest, &mut found)?;
                write_leb(out, found.len() as u64);
                out.extend_from_slice(&found);
            }
            Kind::Splice(splice) => {
                let (value, base) = bytes_of::<C>(cell, base, width)?;
                let mut found = Vec::new();
                splice.code(coder, value, base, room.longest, &mut found)?;
                match width {
                    None => write_leb(out, found.len() as u64),
                    Some(width) if width == found.len() => {}
                    Some(_) => return Err(DatasetError::damaged("a value has another width")),
                }
                out.extend_from_slice(&found);
            }
            Kind::List {
                same,
                length,
                child,
            } => {
                let given = if C::ENCODES { cell.leb()? } else { 0 };
                let mut base = base;
                let expected = match &mut base {
                    Some(base) => Some(base.leb()?),
                    None => None,
                };
                let count = match expected {
                    Some(expected) if same.code(coder, given == expected) => expected,
                    _ => usize::try_from(length.code(coder, given as u64))
                        .map_err(|_| DatasetError::damaged("a list is too long"))?,
                };
                write_leb(out, count as u64);
                for at in 0..count {
                    let base = match (&mut base, expected) {
                        (Some(base), Some(expected)) if at < expected => Some(&mut **base),
                        _ => None,
                    };
                    child.code(coder, cell, base, out, room)?;
                    if out.len() > room.longest {
                        return Err(DatasetError::damaged("a list never ends"));
                    }
                }
                if let (Some(base), Some(expected)) = (base, expected) {
                    for _ in count..expected {
                        base.cell(&child.shape)?;
                    }
                }
            }
            Kind::Parts(parts) => {
                let mut base = base;
                for part in parts {
                    part.code(coder, cell, base.as_deref_mut(), out, room)?;
                }
            }
            Kind::Repeat(size, child) => {
                let mut base = base;
                for _ in 0..*size {
                    child.code(coder, cell, base.as_deref_mut(), out, room)?;
                    if out.len() > room.longest {
                        return Err(DatasetError::damaged("a list never ends"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The bytes of a value, which the encoder has, and those of its base: so many, or after their number.
fn bytes_of<'a, 'b, C: Coder>(
    cell: &mut Reader<'a>,
    base: Option<&mut Reader<'b>>,
    width: Option<usize>,
) -> Result<(&'a [u8], Option<&'b [u8]>), DatasetError> {
    fn take<'r>(reader: &mut Reader<'r>, width: Option<usize>) -> Result<&'r [u8], DatasetError> {
        let count = match width {
            Some(width) => width,
            None => reader.leb()?,
        };
        reader.take(count)
    }
    let value = if C::ENCODES { take(cell, width)? } else { &[] };
    let base = base.map(|base| take(base, width)).transpose()?;
    Ok((value, base))
}
