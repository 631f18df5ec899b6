//! One column of a derivative: what it is predicted from, and the cells that are not as predicted.

mod code;
mod derived;
mod plan;

pub(crate) use code::{Priced, Rebuilt, Weight, decode, encode, price, weigh};
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
}

impl Target<'_> {
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
        let (from, to) = (items.kept[item] as usize, items.rows[item] as usize);
        match (base.text(from), self.column.text(to)) {
            (Some(from), Some(to)) => from == to,
            (None, None) => {
                (room.0.clear(), room.1.clear());
                base.write(from, &mut room.0);
                self.column.write(to, &mut room.1);
                room.0 == room.1
            }
            _ => false,
        }
    }
}

/// What a coded column may use and how hard it is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of cells that are coded by mixing; beyond that, Parquet.
    pub(crate) mixed: usize,
    /// Bytes of the base's column that the statistics are learned from.
    pub(crate) learned: usize,
    /// Bytes of the base's column in which quotations are looked for.
    pub(crate) remembered: usize,
    /// Level of zstd.
    pub(crate) zstd: i32,
}

fn missing(what: &str) -> DatasetError {
    DatasetError::damaged(format!("{what} is missing"))
}
