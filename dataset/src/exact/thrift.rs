//! Thrift's compact protocol, as far as it takes to walk over a structure of Parquet's and see what is where.

use super::hybrid::read_leb;

/// A plain value of a structure.
pub(super) struct Value<'a> {
    /// The fields on the way to it; elements of a list have the list's.
    pub(super) path: &'a [u64],
    pub(super) kind: Kind,
    /// Where it is, its length included.
    pub(super) start: usize,
    pub(super) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An integer in the protocol's signed form, and its size in bits.
    Integer(i64, u8),
    /// So many bytes, the last ones of the value.
    Bytes(usize),
    Other,
}

/// What is told on the way.
pub(super) trait Visit {
    /// A structure begins.
    fn enter(&mut self, path: &[u64], at: usize);
    /// A value is there.
    fn value(&mut self, value: &Value<'_>);
}

/// Deeper than any structure of Parquet's.
const DEEPEST: usize = 32;

/// Walks over the structure at the beginning; where it ends. `None` if it is none.
pub(super) fn walk(bytes: &[u8], visit: &mut dyn Visit) -> Option<usize> {
    let mut walker = Walker {
        bytes,
        at: 0,
        depth: 0,
        path: Vec::new(),
    };
    walker.structure(visit)?;
    Some(walker.at)
}

/// The signed form of integers.
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    path: Vec<u64>,
}

impl Walker<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn integer(&mut self) -> Option<i64> {
        let value = read_leb(self.bytes, &mut self.at)?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn structure(&mut self, visit: &mut dyn Visit) -> Option<()> {
        visit.enter(&self.path, self.at);
        let mut field = 0_i64;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(());
            }
            field = match header >> 4 {
                0 => self.integer()?,
                delta => field.checked_add(i64::from(delta))?,
            };
            self.path.push(u64::try_from(field).ok()?);
            self.any(header & 15, false, visit)?;
            self.path.pop();
        }
    }

    fn any(&mut self, kind: u8, is_element: bool, visit: &mut dyn Visit) -> Option<()> {
        self.depth += 1;
        let found = (self.depth <= DEEPEST)
            .then(|| self.value(kind, is_element, visit))
            .flatten();
        self.depth -= 1;
        found
    }

    fn value(&mut self, kind: u8, is_element: bool, visit: &mut dyn Visit) -> Option<()> {
        let start = self.at;
        let kind = match kind {
            1 | 2 => {
                self.at += usize::from(is_element);
                Kind::Other
            }
            3 => {
                self.byte()?;
                Kind::Other
            }
            4 => Kind::Integer(self.integer()?, 16),
            5 => Kind::Integer(self.integer()?, 32),
            6 => Kind::Integer(self.integer()?, 64),
            7 => {
                self.at += 8;
                Kind::Other
            }
            8 => {
                let length = usize::try_from(read_leb(self.bytes, &mut self.at)?).ok()?;
                self.at = self.at.checked_add(length)?;
                Kind::Bytes(length)
            }
            9 | 10 => {
                let header = self.byte()?;
                let count = match header >> 4 {
                    15 => read_leb(self.bytes, &mut self.at)?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    self.any(header & 15, true, visit)?;
                    if self.at > self.bytes.len() {
                        return None;
                    }
                }
                return Some(());
            }
            12 => return self.structure(visit),
            _ => return None,
        };
        if self.at > self.bytes.len() {
            return None;
        }
        visit.value(&Value {
            path: &self.path,
            kind,
            start,
            end: self.at,
        });
        Some(())
    }
}

/// What the header of a page says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PageHeader {
    /// Bytes of the header itself.
    pub(super) bytes: usize,
    pub(super) kind: i64,
    pub(super) raw: i64,
    pub(super) packed: i64,
    pub(super) values: i64,
    pub(super) encoding: i64,
    /// Of the second version: bytes of levels.
    pub(super) definition: i64,
    pub(super) repetition: i64,
}

struct OfPage(PageHeader);

impl Visit for OfPage {
    fn enter(&mut self, _path: &[u64], _at: usize) {}

    fn value(&mut self, value: &Value<'_>) {
        let Kind::Integer(number, _) = value.kind else {
            return;
        };
        let header = &mut self.0;
        match value.path {
            [1] => header.kind = number,
            [2] => header.raw = number,
            [3] => header.packed = number,
            [5 | 7 | 8, 1] => header.values = number,
            [5 | 7, 2] | [8, 4] => header.encoding = number,
            [8, 5] => header.definition = number,
            [8, 6] => header.repetition = number,
            _ => {}
        }
    }
}

/// The header of the page at the beginning.
pub(super) fn page_header(bytes: &[u8]) -> Option<PageHeader> {
    let mut visit = OfPage(PageHeader::default());
    let end = walk(bytes, &mut visit)?;
    Some(PageHeader {
        bytes: end,
        ..visit.0
    })
}
