//! One split: everything that makes the derivative's rows out of the base's.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, UInt64Type};
use arrow::row::{RowConverter, SortField};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::DatasetError;
use crate::canonical::cast_to;
use crate::cell::Shape;
use crate::coding::{Decoder, Encoder};
use crate::column::{self, Budget, Items, Limits, Others, Plan, Rebuilt, Source, Target};
use crate::gate::Gate;
use crate::manifest::RowCounts;
use crate::matching::{NEW, narrow, sampled};
use crate::order;
use crate::pair::{Check, Pair};
use crate::shuffle::{self, Of, Shuffle};
use crate::table::{Column, Table, gather, plain_types};

/// How the rows of a split are told to be arranged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Program {
    /// As in the base, new rows in between.
    Base,
    /// Sorted by a column of the derivative, from the least up; equal ones as in the base, then new ones.
    Sorted {
        column: usize,
        descending: bool,
        nulls_first: bool,
    },
}

/// How a split is coded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SplitPlan {
    pub(crate) base_rows: u64,
    /// Rows of the first of the base's splits.
    pub(crate) first_rows: u64,
    pub(crate) kept: u64,
    pub(crate) new: u64,
    /// Rows of the first of the base's splits that no row came from.
    pub(crate) removed: u64,
    /// Kept rows of which at least one column is stored.
    pub(crate) edited: u64,
    /// Kept rows that are so little like their base row that they count as new.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) unlike: u64,
    pub(crate) program: Program,
    /// A permutation that comes before the program, or after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shuffle: Option<Shuffle>,
    /// For each column the base's it belongs to, which is read in its type.
    pub(crate) pairs: Vec<Option<usize>>,
    pub(crate) columns: Vec<Plan>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it on so")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl SplitPlan {
    /// Rows by what became of them, for people.
    pub(crate) fn row_counts(&self) -> RowCounts {
        RowCounts {
            shared: self
                .kept
                .saturating_sub(self.edited.saturating_add(self.unlike)),
            edited: self.edited,
            new: self.new.saturating_add(self.unlike),
            removed: self.removed,
        }
    }
}

/// A coded split.
pub(crate) struct Coded {
    pub(crate) plan: SplitPlan,
    /// Which rows are kept and in which order; then one stream per column.
    pub(crate) streams: Vec<Vec<u8>>,
}

/// A matched split as it is coded: items, and the columns they have.
pub(crate) struct Split<'a> {
    pair: &'a Pair,
    /// How many rows each row of the base is kept as.
    counts: Vec<u32>,
    kept: Vec<u32>,
    rows: Vec<u32>,
    cells: Vec<Column>,
    of_base: Vec<Column>,
    shapes: Vec<Shape>,
}

impl<'a> Split<'a> {
    pub(crate) fn new(pair: &'a Pair, memory: u64) -> Result<Self, DatasetError> {
        let (base, derivative, found) = (&pair.base, &pair.derivative, &pair.rows);
        fits(derivative.rows as u64 + base.rows as u64, memory)?;
        let mut counts = vec![0_u32; base.rows];
        for &row in found.iter().filter(|&&row| row != NEW) {
            counts[row as usize] += 1;
        }
        // Items: the rows kept in the base's order, then the new ones in their own.
        let mut rows: Vec<u32> = (0..derivative.rows).map(narrow).collect();
        rows.par_sort_by_key(|&row| found[row as usize]);
        let kept_count = found.iter().filter(|&&row| row != NEW).count();
        let kept: Vec<u32> = rows[..kept_count]
            .iter()
            .map(|&row| found[row as usize])
            .collect();
        let cells: Vec<Column> = (0..derivative.columns())
            .map(|at| derivative.cells(at))
            .collect::<Result<_, _>>()?;
        let of_base: Vec<Column> = (0..base.columns())
            .map(|at| base.cells(at))
            .collect::<Result<_, _>>()?;
        let shapes: Vec<Shape> = cells
            .iter()
            .chain(&of_base)
            .map(|column| column.shape.clone())
            .collect();
        Ok(Self {
            pair,
            counts,
            kept,
            rows,
            cells,
            of_base,
            shapes,
        })
    }

    pub(crate) fn items(&self) -> Items<'_> {
        Items {
            kept: &self.kept,
            new: self.rows.len() - self.kept.len(),
            rows: &self.rows,
            marks: &[],
        }
    }

    /// Whether an item counts as new though it is made from a row of the base.
    pub(crate) fn is_unlike(&self, item: usize) -> bool {
        self.pair.unlike.binary_search(&self.rows[item]).is_ok()
    }

    /// The columns, each with the base's it belongs to.
    pub(crate) fn targets(&self) -> Vec<Target<'_>> {
        self.cells
            .iter()
            .zip(self.from())
            .map(|(column, base)| Target::new(column, base))
            .collect()
    }

    fn from(&self) -> Vec<Option<&Column>> {
        let pairs = self.pair.columns.iter();
        pairs.map(|at| at.map(|at| &self.of_base[at])).collect()
    }

    /// With the columns that others may be derived from, of these items.
    pub(crate) fn with_others<R>(&self, items: &Items<'_>, f: impl FnOnce(&Others<'_>) -> R) -> R {
        let own = self.cells.len();
        let read = |column: usize, item: usize, out: &mut Vec<u8>| match column.checked_sub(own) {
            None => self.cells[column].write(items.rows[item] as usize, out),
            Some(of) => {
                if let Some(&row) = items.kept.get(item) {
                    self.of_base[of].write(row as usize, out);
                }
            }
        };
        f(&Others {
            own,
            shapes: &self.shapes,
            read: &read,
        })
    }

    /// What each column is predicted from.
    pub(crate) fn sources(&self, others: &Others<'_>) -> Result<Vec<Source>, DatasetError> {
        choose_sources(&self.cells, &self.from(), &self.items(), others)
    }

    /// The plan and the streams, with the columns as they are coded.
    pub(crate) fn finish(
        &self,
        targets: &[Target<'_>],
        coded: Vec<(Plan, Vec<u8>)>,
    ) -> Result<Coded, DatasetError> {
        let base = &self.pair.base;
        let first = base.parts.first().map_or(0, |part| part.rows);
        let first = usize::try_from(first).unwrap_or(0);
        let items = self.items();
        let edited = count_edited(targets, &coded, &items, &self.pair.unlike);
        let order = Order {
            cells: &self.cells,
            items: &items,
            counts: &self.counts,
            first,
        };
        let (program, shuffle, arrangement) = order.arrange(&coded, &self.pair.rows)?;
        let (plans, mut streams): (Vec<Plan>, Vec<Vec<u8>>) = coded.into_iter().unzip();
        streams.insert(0, arrangement);
        let mut left = self.counts[..first].to_vec();
        for &row in &self.pair.unlike {
            let from = self.pair.rows[row as usize] as usize;
            if let Some(count) = left.get_mut(from) {
                *count = count.saturating_sub(1);
            }
        }
        let removed = left.iter().filter(|&&count| count == 0);
        Ok(Coded {
            plan: SplitPlan {
                base_rows: base.rows as u64,
                first_rows: first as u64,
                kept: items.kept.len() as u64,
                new: items.new as u64,
                removed: removed.count() as u64,
                edited,
                unlike: self.pair.unlike.len() as u64,
                program,
                shuffle,
                pairs: self.pair.columns.clone(),
                columns: plans,
            },
            streams,
        })
    }
}

/// Codes what a matched split is beyond its base.
pub(crate) fn encode(
    pair: &Pair,
    limits: Limits,
    memory: u64,
    check: &Check<'_>,
) -> Result<Coded, DatasetError> {
    let split = Split::new(pair, memory)?;
    let (items, mut targets) = (split.items(), split.targets());
    let coded = split.with_others(&items, |others| {
        let sources = split.sources(others)?;
        targets
            .par_iter_mut()
            .zip(&sources)
            .filter(|(_, source)| **source == Source::Base)
            .for_each(|(target, _)| target.compare(&items));
        let measured: Vec<(Plan, column::Weight)> = sources
            .into_par_iter()
            .zip(&targets)
            .map(|(source, target)| {
                check()?;
                column::weigh(source, target, &items, others)
            })
            .collect::<Result<_, DatasetError>>()?;
        let budget = Budget::new(limits, measured.iter().map(|(plan, _)| plan), items.len());
        if budget.bytes > memory / 2 {
            return Err(DatasetError::usage(format!(
                "the split has {} bytes of values that its base has not, too many for {memory} bytes of memory; allow more (`memory`)",
                budget.bytes
            )));
        }
        let gate = Gate::new(memory);
        measured
            .into_par_iter()
            .zip(&targets)
            .map(|((plan, weight), target)| {
                check()?;
                let plan = (plan, &weight);
                let priced = column::price(plan, target, &items, others, &budget, &gate)?;
                Ok((priced.plan, priced.stream))
            })
            .collect::<Result<Vec<_>, DatasetError>>()
    })?;
    split.finish(&targets, coded)
}

/// What each column is predicted from. Columns that are derived depend on others that are not: no circles.
fn choose_sources(
    cells: &[Column],
    from: &[Option<&Column>],
    items: &Items<'_>,
    others: &Others<'_>,
) -> Result<Vec<Source>, DatasetError> {
    let choose = |at: usize, may_use: &[usize]| {
        let target = Target::new(&cells[at], from[at]);
        column::choose(&target, items, others, may_use)
    };
    let all: Vec<usize> = (0..cells.len()).collect();
    let mut sources: Vec<Source> = all
        .par_iter()
        .map(|&at| {
            let may_use: Vec<usize> = all.iter().copied().filter(|&other| other != at).collect();
            choose(at, &may_use)
        })
        .collect::<Result<_, _>>()?;
    // Of two columns that would be derived from each other, the later is.
    let mut derived = vec![false; cells.len()];
    for at in (0..cells.len()).rev() {
        let Source::Derived(feature) = &sources[at] else {
            continue;
        };
        let is_used = sources.iter().enumerate().any(|(other, source)| {
            derived[other] && matches!(source, Source::Derived(f) if f.column == at)
        });
        if feature.column >= cells.len() || (!is_used && !derived[feature.column]) {
            derived[at] = true;
            continue;
        }
        let may_use: Vec<usize> = if is_used {
            Vec::new()
        } else {
            all.iter()
                .copied()
                .filter(|&other| other != at && other < at)
                .collect()
        };
        sources[at] = choose(at, &may_use)?;
        derived[at] = matches!(sources[at], Source::Derived(_));
    }
    // What is left of chains: the one that others are derived from is not derived itself.
    for at in 0..cells.len() {
        if let Source::Derived(feature) = &sources[at]
            && sources.get(feature.column).is_some_and(Source::is_late)
        {
            sources[at] = choose(at, &[])?;
        }
    }
    Ok(sources)
}

/// Kept rows with a value that is neither the base's nor follows from other columns.
fn count_edited(
    targets: &[Target<'_>],
    coded: &[(Plan, Vec<u8>)],
    items: &Items<'_>,
    unlike: &[u32],
) -> u64 {
    let paired: Vec<&Target<'_>> = targets
        .iter()
        .zip(coded)
        .filter(|(_, (plan, _))| plan.source == Source::Base && plan.cells > 0)
        .map(|(target, _)| target)
        .collect();
    (0..items.kept.len())
        .into_par_iter()
        .fold(
            || (0_u64, (Vec::new(), Vec::new())),
            |(count, mut room), item| {
                let same = paired
                    .iter()
                    .all(|target| target.is_same(items, item, &mut room));
                let is_edited = !same && unlike.binary_search(&items.rows[item]).is_err();
                (count + u64::from(is_edited), room)
            },
        )
        .map(|(count, _)| count)
        .sum()
}

/// Whether so many rows can be worked on in so many bytes of memory.
fn fits(rows: u64, memory: u64) -> Result<(), DatasetError> {
    /// Bytes of bookkeeping per row of both sides, at the worst moment.
    const EACH: u64 = 32;
    let needed = rows.saturating_mul(EACH).saturating_add(memory / 4);
    if needed <= memory {
        return Ok(());
    }
    Err(DatasetError::usage(format!(
        "{rows} rows of base and derivative need about {} MiB of memory, {} are allowed; allow more (`memory`) or divide the split",
        needed >> 20,
        memory >> 20
    )))
}

/// The base's rows in the order in which it is told which are kept, where that is not their own.
fn base_order(shuffle: Option<&Shuffle>, first: usize, rows: usize) -> Option<Vec<u32>> {
    let shuffle = shuffle.filter(|shuffle| shuffle.of == Of::Base)?;
    let mut order = shuffle.permutation(first);
    order.extend((first..rows).map(narrow));
    Some(order)
}

/// What the order of a derivative's rows is found from.
struct Order<'a> {
    cells: &'a [Column],
    items: &'a Items<'a>,
    counts: &'a [u32],
    first: usize,
}

impl Order<'_> {
    /// The order of the rows, by the program that says it in the fewest bytes.
    fn arrange(
        &self,
        coded: &[(Plan, Vec<u8>)],
        found: &[u32],
    ) -> Result<(Program, Option<Shuffle>, Vec<u8>), DatasetError> {
        let rows = self.items.len();
        let mut of_row = vec![0_u32; rows];
        for (item, &row) in self.items.rows.iter().enumerate() {
            of_row[row as usize] = narrow(item);
        }
        let plain = self.code(&Program::Base, None, &of_row)?;
        let mut best = (Program::Base, None, plain);
        // Some bits for every row: they are all over the place.
        if best.2.len() * 8 > rows * 3
            && let Some(shuffle) = shuffle::find(found, self.first)
        {
            let coded = self.code(&Program::Base, Some(&shuffle), &of_row)?;
            if coded.len() < best.2.len() {
                best = (Program::Base, Some(shuffle), coded);
            }
        }
        for (at, (column, (plan, _))) in self.cells.iter().zip(coded).enumerate() {
            // Columns that come after the order is known cannot give it.
            if best.2.len() < 64 + rows / 4096 || plan.source.is_late() {
                continue;
            }
            for descending in [false, true] {
                if looks_sorted(column, rows, descending)? {
                    let program = Program::Sorted {
                        column: at,
                        descending,
                        nulls_first: false,
                    };
                    let coded = self.code(&program, None, &of_row)?;
                    if coded.len() < best.2.len() {
                        best = (program, None, coded);
                    }
                }
            }
        }
        Ok(best)
    }

    fn code(
        &self,
        program: &Program,
        shuffle: Option<&Shuffle>,
        of_row: &[u32],
    ) -> Result<Vec<u8>, DatasetError> {
        let items = self.items;
        let mut encoder = Encoder::new();
        let order = base_order(shuffle, self.first, self.counts.len());
        let counts = order::code_kept(
            &mut encoder,
            self.counts.len(),
            order.as_deref(),
            self.counts,
            items.kept.len(),
        )?;
        match program {
            Program::Base => {
                let program = order::kept_items(&counts, order.as_deref());
                if let Some(shuffle) = shuffle.filter(|shuffle| shuffle.of == Of::Rows) {
                    let mut before = vec![0_u32; of_row.len()];
                    for (row, place) in shuffle.permutation(of_row.len()).into_iter().enumerate() {
                        before[place as usize] = of_row[row];
                    }
                    order::code_interleaved(&mut encoder, &program, items.new, &before)?;
                } else {
                    order::code_interleaved(&mut encoder, &program, items.new, of_row)?;
                }
            }
            Program::Sorted {
                column,
                descending,
                nulls_first,
            } => {
                let column = &self.cells[*column];
                let arrays = in_item_order(column, items.len(), |item| items.rows[item] as usize)?;
                let program = sorted(&column.ty, &arrays, *descending, *nulls_first)?;
                order::code_whole(&mut encoder, &program, of_row)?;
            }
        }
        Ok(encoder.finish())
    }
}

/// Whether nearly all neighbours, of a sample, are in order.
fn looks_sorted(column: &Column, rows: usize, descending: bool) -> Result<bool, DatasetError> {
    let at: Vec<usize> = sampled(rows.saturating_sub(1), 2000).collect();
    let pick = |offset: usize| gather(&[column], at.iter().map(|&row| (0, row + offset)));
    let (first, second) = (pick(0)?, pick(1)?);
    let Ok(converter) = converter(&column.ty, descending, false) else {
        return Ok(false);
    };
    let first = converter.convert_columns(&[first])?;
    let second = converter.convert_columns(&[second])?;
    let fine = (0..at.len())
        .filter(|&k| first.row(k) <= second.row(k))
        .count();
    let strict = (0..at.len())
        .filter(|&k| first.row(k) < second.row(k))
        .count();
    Ok(fine as f64 >= 0.95 * at.len() as f64 && strict > 0)
}

fn converter(
    ty: &DataType,
    descending: bool,
    nulls_first: bool,
) -> Result<RowConverter, DatasetError> {
    let options = arrow::compute::SortOptions {
        descending,
        nulls_first,
    };
    Ok(RowConverter::new(vec![SortField::new_with_options(
        ty.clone(),
        options,
    )])?)
}

/// The items in a stable order by their values.
fn sorted(
    ty: &DataType,
    arrays: &[ArrayRef],
    descending: bool,
    nulls_first: bool,
) -> Result<Vec<u32>, DatasetError> {
    if let Some(keys) = keys(ty, arrays, descending)? {
        return Ok(by_keys(&keys));
    }
    let converter = converter(ty, descending, nulls_first)?;
    let mut rows = converter.empty_rows(0, 0);
    for array in arrays {
        converter.append(&mut rows, &[Arc::clone(array)])?;
    }
    let mut program: Vec<u32> = (0..rows.num_rows()).map(narrow).collect();
    program.par_sort_by(|&a, &b| rows.row(a as usize).cmp(&rows.row(b as usize)));
    Ok(program)
}

/// The items in a stable order by their keys. Those kept are in order already, more often than not, and so are the new ones.
fn by_keys(keys: &[u64]) -> Vec<u32> {
    let first = keys
        .windows(2)
        .position(|pair| pair[1] < pair[0])
        .map_or(keys.len(), |at| at + 1);
    let mut rest: Vec<u32> = (first..keys.len()).map(narrow).collect();
    rest.sort_by_key(|&item| keys[item as usize]);
    let mut program = Vec::with_capacity(keys.len());
    let mut done = 0;
    for item in rest {
        let key = keys[item as usize];
        let before = done + keys[done..first].partition_point(|&other| other <= key);
        program.extend((done..before).map(narrow));
        program.push(item);
        done = before;
    }
    program.extend((done..first).map(narrow));
    program
}

/// Numbers in the order of the values, where these are whole numbers or days or time stamps and none is null.
fn keys(
    ty: &DataType,
    arrays: &[ArrayRef],
    descending: bool,
) -> Result<Option<Vec<u64>>, DatasetError> {
    let has_keys = ty.is_integer()
        || matches!(
            ty,
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(_, _)
        );
    if !has_keys || arrays.iter().any(|array| array.null_count() > 0) {
        return Ok(None);
    }
    let mut keys = Vec::new();
    for array in arrays {
        if ty.is_unsigned_integer() {
            let array = cast_to(array, &DataType::UInt64)?;
            keys.extend_from_slice(array.as_primitive::<UInt64Type>().values());
        } else {
            let array = cast_to(array, &DataType::Int64)?;
            let values = array.as_primitive::<Int64Type>().values().iter();
            keys.extend(values.map(|value| value.cast_unsigned() ^ (1 << 63)));
        }
    }
    if descending {
        keys.iter_mut().for_each(|key| *key = !*key);
    }
    Ok(Some(keys))
}

/// The values of a column item by item, in pieces.
fn in_item_order(
    column: &Column,
    count: usize,
    row_of: impl Fn(usize) -> usize,
) -> Result<Vec<ArrayRef>, DatasetError> {
    pieces(count)
        .map(|(start, end)| gather(&[column], (start..end).map(|item| (0, row_of(item)))))
        .collect()
}

/// Runs of rows that are made at once.
pub(crate) fn pieces(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    const PIECE: usize = 1 << 13;
    (0..rows.div_ceil(PIECE)).map(move |k| (k * PIECE, ((k + 1) * PIECE).min(rows)))
}

/// A split that can be read row by row.
pub(crate) struct Decoded {
    schema: SchemaRef,
    of_base: Vec<Column>,
    from: Vec<Option<usize>>,
    columns: Vec<Rebuilt>,
    kept: Vec<u32>,
    /// The item of each row.
    items: Vec<u32>,
}

pub(crate) fn decode(
    plan: &SplitPlan,
    streams: &[&[u8]],
    base: &Table,
    schema: &SchemaRef,
    memory: u64,
) -> Result<Decoded, DatasetError> {
    let damaged = |what: &str| DatasetError::damaged(what.to_owned());
    let size =
        |value: u64| usize::try_from(value).map_err(|_| damaged("a split has too many rows"));
    let (kept_count, new) = (size(plan.kept)?, size(plan.new)?);
    let total = plan
        .kept
        .checked_add(plan.new)
        .filter(|&rows| u32::try_from(rows).is_ok());
    if total.is_none() || plan.base_rows != base.rows as u64 || plan.first_rows > plan.base_rows {
        return Err(damaged("the numbers of rows do not add up"));
    }
    fits(plan.base_rows.saturating_add(total.unwrap_or(0)), memory)?;
    let stored = plan
        .columns
        .iter()
        .fold(0_u64, |sum, column| sum.saturating_add(column.bytes));
    if stored > memory / 2 {
        return Err(DatasetError::usage(format!(
            "the delta stores {stored} bytes of values, too many for {memory} bytes of memory; allow more (`memory`)"
        )));
    }
    let gate = Gate::new(memory);
    let count = schema.fields().len();
    if plan.columns.len() != count || plan.pairs.len() != count || streams.len() != count + 1 {
        return Err(damaged("the columns do not add up"));
    }
    let plain = plain_types(schema)?;
    let of_base: Vec<Column> = (0..base.columns())
        .map(|at| base.cells(at))
        .collect::<Result<_, _>>()?;
    let shapes: Vec<Shape> = plain
        .iter()
        .map(Shape::of)
        .chain(of_base.iter().map(|column| Ok(column.shape.clone())))
        .collect::<Result<_, _>>()?;
    for (pair, ty) in plan.pairs.iter().zip(&plain) {
        if pair.is_some_and(|at| at >= base.columns() || base.ty(at) != *ty) {
            return Err(damaged("a column of the base is missing"));
        }
    }
    let from: Vec<Option<&Column>> = plan
        .pairs
        .iter()
        .map(|pair| pair.and_then(|at| of_base.get(at)))
        .collect();
    for (plan, from) in plan.columns.iter().zip(&from) {
        if plan.source == Source::Base && from.is_none() {
            return Err(damaged("a column of the base is missing"));
        }
    }
    let mut order = Decoder::new(streams[0]);
    let base_order = base_order(plan.shuffle.as_ref(), size(plan.first_rows)?, base.rows);
    let counts = order::code_kept(
        &mut order,
        base.rows,
        base_order.as_deref(),
        &[],
        kept_count,
    )?;
    let kept = order::kept_rows(&counts);
    let items = Items {
        kept: &kept,
        new,
        rows: &[],
        marks: &[],
    };
    let one = |at: usize, items: &Items<'_>, others: &Others<'_>| {
        column::decode(
            &plan.columns[at],
            streams[at + 1],
            &plain[at],
            items,
            from[at],
            others,
            &gate,
        )
    };
    // First what stands for itself, then the order, then what follows from other columns or from the order.
    let nothing = Others {
        own: 0,
        shapes: &[],
        read: &|_, _, _| {},
    };
    let is_late = |at: usize| plan.columns[at].source.is_late();
    let mut columns: Vec<Option<Rebuilt>> = (0..count)
        .into_par_iter()
        .map(|at| {
            (!is_late(at))
                .then(|| one(at, &items, &nothing))
                .transpose()
        })
        .collect::<Result<_, _>>()?;
    let of_row = match &plan.program {
        Program::Base => {
            let program = order::kept_items(&counts, base_order.as_deref());
            let before = order::code_interleaved(&mut order, &program, new, &[])?;
            match plan.shuffle.filter(|shuffle| shuffle.of == Of::Rows) {
                Some(shuffle) => shuffle
                    .permutation(before.len())
                    .into_iter()
                    .map(|place| before[place as usize])
                    .collect(),
                None => before,
            }
        }
        Program::Sorted {
            column,
            descending,
            nulls_first,
        } => {
            let rebuilt = columns
                .get(*column)
                .and_then(Option::as_ref)
                .ok_or_else(|| damaged("the column the rows are sorted by is missing"))?;
            let arrays = pieces(kept.len() + new)
                .map(|(start, end)| gather_items(rebuilt, from[*column], &kept, start..end))
                .collect::<Result<Vec<_>, _>>()?;
            let program = sorted(&plain[*column], &arrays, *descending, *nulls_first)?;
            order::code_whole(&mut order, &program, &[])?
        }
    };
    order.finish()?;
    drop((counts, base_order));
    let late: Vec<(usize, Rebuilt)> = {
        for plan in &plan.columns {
            if let Source::Derived(feature) = &plan.source
                && feature.column < count
                && columns[feature.column].is_none()
            {
                return Err(damaged("columns are derived from each other"));
            }
        }
        let read = |column: usize, item: usize, out: &mut Vec<u8>| match column.checked_sub(count) {
            None => {
                if let Some(rebuilt) = &columns[column] {
                    match (rebuilt.stored_at(item), &from[column]) {
                        (Some(at), _) => rebuilt.stored.write(at, out),
                        (None, Some(from)) => from.write(kept[item] as usize, out),
                        (None, None) => {}
                    }
                }
            }
            Some(of) => {
                if let (Some(&row), Some(column)) = (kept.get(item), of_base.get(of)) {
                    column.write(row as usize, out);
                }
            }
        };
        let others = Others {
            own: count,
            shapes: &shapes,
            read: &read,
        };
        let mut rows = vec![0_u32; of_row.len()];
        for (row, &item) in of_row.iter().enumerate() {
            rows[item as usize] = narrow(row);
        }
        let items = Items {
            rows: &rows,
            ..items
        };
        (0..count)
            .into_par_iter()
            .filter(|&at| is_late(at))
            .map(|at| Ok((at, one(at, &items, &others)?)))
            .collect::<Result<_, DatasetError>>()?
    };
    for (at, rebuilt) in late {
        columns[at] = Some(rebuilt);
    }
    let columns: Vec<Rebuilt> = columns.into_iter().flatten().collect();
    let from = plan.pairs.clone();
    Ok(Decoded {
        schema: Arc::clone(schema),
        of_base,
        from,
        columns,
        kept,
        items: of_row,
    })
}

/// The values of items of a decoded column.
fn gather_items(
    rebuilt: &Rebuilt,
    from: Option<&Column>,
    kept: &[u32],
    items: impl Iterator<Item = usize>,
) -> Result<ArrayRef, DatasetError> {
    let sources: Vec<&Column> = std::iter::once(&rebuilt.stored).chain(from).collect();
    gather(
        &sources,
        items.map(|item| match rebuilt.stored_at(item) {
            Some(at) => (0, at),
            None => (1, kept[item] as usize),
        }),
    )
}

impl Decoded {
    pub(crate) fn rows(&self) -> usize {
        self.items.len()
    }

    /// Rows in order, in the derivative's own types: one batch, or several where a batch would have more values than a
    /// dictionary has keys.
    pub(crate) fn batches(
        &self,
        start: usize,
        end: usize,
    ) -> Result<Vec<RecordBatch>, DatasetError> {
        match self.batch(start, end) {
            Ok(batch) => Ok(vec![batch]),
            Err(_) if end - start > 1 => {
                let middle = start + (end - start) / 2;
                let mut batches = self.batches(start, middle)?;
                batches.extend(self.batches(middle, end)?);
                Ok(batches)
            }
            Err(error) => Err(error),
        }
    }

    fn batch(&self, start: usize, end: usize) -> Result<RecordBatch, DatasetError> {
        let columns: Vec<ArrayRef> = self
            .columns
            .par_iter()
            .zip(&self.from)
            .zip(self.schema.fields().as_ref())
            .map(|((rebuilt, from), field)| {
                let items = self.items[start..end].iter().map(|&item| item as usize);
                let from = from.and_then(|at| self.of_base.get(at));
                let array = gather_items(rebuilt, from, &self.kept, items)?;
                cast_to(&array, field.data_type())
            })
            .collect::<Result<_, DatasetError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(end - start));
        Ok(RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}
