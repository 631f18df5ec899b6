//! One column of a derivative: what it is predicted from, and the cells that are not as predicted.

mod code;
mod derived;
mod plan;

pub(crate) use code::{Priced, Rebuilt, Weight, decode, price, weigh};
pub(crate) use plan::{Method, Plan, Source, choose};

use crate::DatasetError;
use crate::cell::Shape;
use crate::table::Column;

/// The rows of a derivative as they are coded: those kept from the base, in its order, then the new ones.
pub(crate) struct Items<'a> {
    /// The base row of each item kept.
    pub(crate) kept: &'a [u32],
    /// How many new ones follow.
    pub(crate) new: usize,
    /// The derivative's row of each item.
    pub(crate) rows: &'a [u32],
    /// Items before which it is noted what has been written: where a sample is coded to know what the whole costs.
    pub(crate) marks: &'a [usize],
}

impl Items<'_> {
    pub(crate) fn len(&self) -> usize {
        self.kept.len() + self.new
    }
}

/// The columns that others may be derived from, the derivative's and then the base's: the shape, and how to read an item (nothing
/// is read of a new item in the base).
pub(crate) struct Others<'a> {
    /// How many are the derivative's.
    pub(crate) own: usize,
    pub(crate) shapes: &'a [Shape],
    pub(crate) read: &'a (dyn Fn(usize, usize, &mut Vec<u8>) + Sync + 'a),
}

/// The column as the encoder has it.
pub(crate) struct Target<'a> {
    pub(crate) column: &'a Column,
    /// The base's column it is paired with.
    pub(crate) base: Option<&'a Column>,
    /// For each item kept, in bits, whether it has its base's value; where they were compared.
    same: Option<Vec<u64>>,
}

impl<'a> Target<'a> {
    pub(crate) fn new(column: &'a Column, base: Option<&'a Column>) -> Self {
        Self {
            column,
            base,
            same: None,
        }
    }

    /// Compares all items with their base's values: once for all that asks.
    pub(crate) fn compare(&mut self, items: &Items<'_>) {
        let mut room = Default::default();
        let mut same = vec![0_u64; items.kept.len().div_ceil(64)];
        for item in 0..items.kept.len() {
            same[item / 64] |= u64::from(self.is_same(items, item, &mut room)) << (item % 64);
        }
        self.same = Some(same);
    }

    /// Whether an item has its base's value.
    pub(crate) fn is_same(
        &self,
        items: &Items<'_>,
        item: usize,
        room: &mut (Vec<u8>, Vec<u8>),
    ) -> bool {
        let Some(base) = self.base.filter(|_| item < items.kept.len()) else {
            return false;
        };
        if let Some(same) = &self.same {
            return same[item / 64] >> (item % 64) & 1 == 1;
        }
        let (from, to) = (items.kept[item] as usize, items.rows[item] as usize);
        match (base.plain(from), self.column.plain(to)) {
            (Some(from), Some(to)) => from == to,
            (None, None) => {
                room.0.clear();
                room.1.clear();
                base.write(from, &mut room.0);
                self.column.write(to, &mut room.1);
                room.0 == room.1
            }
            _ => false,
        }
    }
}

/// What the columns of a split may use and how hard it is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a column's cells that are coded by mixing; beyond that, Parquet.
    pub(crate) mixed: u64,
    /// Bytes of all columns' cells up to which every context is mixed; beyond that, the best few.
    pub(crate) deep: u64,
    /// Rows of a split beyond which time matters more than bytes: cells are not mixed where they have more bytes than one for
    /// [`QUICK_SHARE`] values of the split.
    pub(crate) quick: usize,
    /// Bytes of the base's column that the statistics are learned from, and of all of them.
    pub(crate) learned: u64,
    pub(crate) learned_in_all: u64,
    /// Bytes of the base's column in which quotations are looked for.
    pub(crate) remembered: u64,
    /// Level of zstd.
    pub(crate) zstd: i32,
}

/// A byte takes about as long to be mixed as so many values to be written to Parquet, times a few: mixing is not to be what
/// takes the time where there is much else to do.
const QUICK_SHARE: u64 = 32;

/// The limits, and what there is to be done within them.
pub(crate) struct Budget {
    limits: Limits,
    /// Bytes of all cells.
    pub(crate) bytes: u64,
    /// What all columns would learn, if each may.
    learned: u64,
    /// Whether cells are told in the quickest way.
    quick: bool,
}

impl Budget {
    /// For the columns of a split of so many rows.
    pub(crate) fn new<'p>(
        limits: Limits,
        plans: impl Iterator<Item = &'p Plan> + Clone,
        rows: usize,
    ) -> Self {
        let mixed = || plans.clone().filter(|plan| plan.bytes <= limits.mixed);
        let bytes = plans.clone().map(|plan| plan.bytes).sum();
        let values = (rows as u64).saturating_mul(plans.clone().count() as u64);
        Self {
            limits,
            bytes,
            quick: rows > limits.quick && bytes > values / QUICK_SHARE,
            learned: mixed().map(|plan| Self::wish(limits, plan)).sum(),
        }
    }

    fn wish(limits: Limits, plan: &Plan) -> u64 {
        if plan.cells == 0 {
            return 0;
        }
        limits.learned.min(12 * plan.bytes + (32 << 10))
    }

    /// Bytes that a column may learn.
    fn learned(&self, plan: &Plan) -> u64 {
        let wish = Self::wish(self.limits, plan);
        if self.quick {
            return wish;
        }
        // Of much, the statistics are soon learned from itself.
        let most = self.limits.learned_in_all / if self.is_deep() { 1 } else { 4 };
        if self.learned <= most {
            return wish;
        }
        let share = most as f64 / self.learned as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a small number"
        )]
        let bytes = (wish as f64 * share) as u64;
        bytes
    }

    fn is_deep(&self) -> bool {
        self.bytes <= self.limits.deep
    }
}

fn missing(what: &str) -> DatasetError {
    DatasetError::damaged(format!("{what} is missing"))
}
