//! What shares a scale: a tensor, a row, or a group within a row.

use std::{fmt, ops::Range, str::FromStr};

/// Elements of a group.
const GROUP: usize = 128;

/// What shares a scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// The whole tensor.
    Tensor,
    /// A row: the elements of the last dimension.
    #[default]
    Row,
    /// 128 elements of a row, the last of a row perhaps fewer.
    Group,
}

impl Granularity {
    /// Every granularity, coarsest first; their places are their numbers on disk.
    pub const ALL: [Self; 3] = [Self::Tensor, Self::Row, Self::Group];

    /// "tensor", "row" or "group".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Row => "row",
            Self::Group => "group",
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Granularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|granularity| granularity.name() == text)
            .ok_or_else(|| format!("'{text}' is no granularity: use tensor, row or group"))
    }
}

/// The segments of a tensor, each with a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segments {
    pub(crate) elements: usize,
    pub(crate) row: usize,
    pub(crate) group: usize,
}

impl Segments {
    /// `shape` has `elements` elements.
    pub(crate) fn new(shape: &[u64], elements: usize, granularity: Granularity) -> Self {
        let last = shape
            .last()
            .and_then(|n| usize::try_from(*n).ok())
            .unwrap_or(1);
        let row = match granularity {
            Granularity::Tensor => elements,
            _ => last,
        }
        .max(1);
        let group = match granularity {
            Granularity::Group => GROUP.min(row),
            _ => row,
        };
        Self {
            elements,
            row,
            group,
        }
    }

    pub(crate) fn count(&self) -> usize {
        (self.elements / self.row).saturating_mul(self.per_row())
    }

    fn per_row(&self) -> usize {
        self.row.div_ceil(self.group)
    }

    /// The segment of an element.
    fn of(&self, element: usize) -> usize {
        element / self.row * self.per_row() + element % self.row / self.group
    }

    /// The elements of a segment.
    fn elements(&self, segment: usize) -> Range<usize> {
        let (row, group) = (segment / self.per_row(), segment % self.per_row());
        let start = row * self.row + group * self.group;
        start..((row + 1) * self.row).min(start + self.group)
    }

    /// The segments that some elements lie in, each with its part of them, counted from the first of them.
    pub(crate) fn within(
        &self,
        range: Range<usize>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let first = range.start;
        let segments = if range.is_empty() {
            0..0
        } else {
            self.of(range.start)..self.of(range.end - 1) + 1
        };
        segments.map(move |segment| {
            let all = self.elements(segment);
            let (start, end) = (all.start.max(range.start), all.end.min(range.end));
            (segment, start - first..end.max(start) - first)
        })
    }
}
