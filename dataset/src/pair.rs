//! A split of the derivative and what it came from: the rows of both, which column belongs to which, and which row.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, SchemaRef};

use crate::DatasetError;
use crate::canonical::{canonical, cast_loosely, cast_to, describe_fields, has_cast};
use crate::input::{Dataset, Rows};
use crate::manifest::BaseSplit;
use crate::matching::{self, Matches, NEW, Shared, hasher, sampled};
use crate::table::{Room, Table};

/// A named split.
type Split = (String, Arc<dyn Rows>);

/// One split of each side, loaded and matched.
pub(crate) struct Pair {
    pub(crate) base: Table,
    pub(crate) derivative: Table,
    /// The splits of the base that its rows are of, one after another.
    pub(crate) splits: Vec<String>,
    /// For each column of the derivative, the base's it belongs to; both are of one type in the tables.
    pub(crate) columns: Vec<Option<usize>>,
    /// For each row of the derivative the base's, or [`NEW`]. The values are still to be compared.
    pub(crate) rows: Vec<u32>,
    /// Rows of the derivative, in order, that count as new though they are made from a row of the base.
    pub(crate) unlike: Vec<u32>,
    /// How long the matching of rows took.
    pub(crate) matching: Duration,
}

/// What is done between steps: an error there ends the work.
pub(crate) type Check<'a> = dyn Fn() -> Result<(), DatasetError> + Sync + 'a;

impl Pair {
    /// Reads a split of the derivative and the splits of the base that it came from: the one of its name, and, if that has not
    /// its rows, all others of the same columns.
    pub(crate) fn load(
        base: &Dataset,
        name: &str,
        rows: &Arc<dyn Rows>,
        room: &Room<'_>,
        check: &Check<'_>,
    ) -> Result<Self, DatasetError> {
        let derivative = Table::load(vec![(rows.schema()?, rows.read()?)], &|_| None, room)?;
        check()?;
        let Some(counterpart) = base.counterpart(name) else {
            return Ok(Self {
                base: Table::empty(),
                splits: Vec::new(),
                columns: vec![None; derivative.columns()],
                rows: vec![NEW; derivative.rows],
                unlike: Vec::new(),
                matching: Duration::ZERO,
                derivative,
            });
        };
        let mut best = Against::load(&[counterpart], &derivative, room, check)?;
        let mut matching = best.matching;
        let new = best.new_rows();
        let fields = describe_fields(counterpart.1.schema()?.as_ref());
        let mut all = vec![counterpart];
        for split in base.splits() {
            if split.0 != counterpart.0 && describe_fields(split.1.schema()?.as_ref()) == fields {
                all.push(split);
            }
        }
        // A few new rows are the usual thing; many may be another split's.
        if all.len() > 1 && new > derivative.rows / 50 && new >= 32 {
            check()?;
            let wide = Against::load(&all, &derivative, room, check)?;
            matching += wide.matching;
            if wide.new_rows() + new / 20 < new {
                best = wide;
            }
        }
        Ok(Self {
            splits: best.splits,
            base: best.base,
            columns: best.columns,
            rows: best.matches.rows,
            unlike: best.matches.unlike,
            matching,
            derivative,
        })
    }

    /// The splits of the base, as a manifest tells of them.
    pub(crate) fn base_splits(&self) -> Vec<BaseSplit> {
        let parts = self.splits.iter().zip(&self.base.parts);
        parts
            .map(|(name, part)| BaseSplit {
                name: name.clone(),
                rows: part.rows,
                hash: part.hash.clone(),
            })
            .collect()
    }

    /// The logical hash of the derivative's split.
    pub(crate) fn hash(&self) -> &str {
        self.derivative
            .parts
            .first()
            .map_or("", |part| part.hash.as_str())
    }
}

/// Some splits of the base, matched with a derivative.
struct Against {
    base: Table,
    splits: Vec<String>,
    columns: Vec<Option<usize>>,
    matches: Matches,
    matching: Duration,
}

impl Against {
    fn load(
        splits: &[&Split],
        derivative: &Table,
        room: &Room<'_>,
        check: &Check<'_>,
    ) -> Result<Self, DatasetError> {
        let mut columns = named_alike(splits[0], &derivative.schema)?;
        let types: Vec<DataType> = (0..derivative.columns())
            .map(|column| derivative.ty(column))
            .collect();
        let base = load_splits(splits, &columns, &types, room)?;
        for (to, from) in columns.iter_mut().enumerate() {
            *from = from.filter(|&from| base.ty(from) == types[to]);
        }
        pair_renamed(&base, derivative, &mut columns)?;
        let shared = shared(&base, derivative, &columns)?;
        let started = Instant::now();
        Ok(Self {
            matches: matching::find(&base, derivative, &shared, room, check)?,
            matching: started.elapsed(),
            splits: splits.iter().map(|(name, _)| name.clone()).collect(),
            base,
            columns,
        })
    }

    fn new_rows(&self) -> usize {
        self.matches.rows.iter().filter(|&&row| row == NEW).count()
    }
}

/// Reads splits of a base one after another, each column in the type of the derivative's column it is paired with.
pub(crate) fn load_splits(
    splits: &[&Split],
    columns: &[Option<usize>],
    types: &[DataType],
    room: &Room<'_>,
) -> Result<Table, DatasetError> {
    let parts = splits
        .iter()
        .map(|(_, rows)| Ok((rows.schema()?, rows.read()?)))
        .collect::<Result<_, DatasetError>>()?;
    let wanted = |column: usize| {
        let to = columns.iter().position(|&from| from == Some(column))?;
        types.get(to).cloned()
    };
    Table::load(parts, &wanted, room)
}

fn shared(
    base: &Table,
    derivative: &Table,
    columns: &[Option<usize>],
) -> Result<Shared, DatasetError> {
    let mut shared = Shared {
        base: Vec::new(),
        derivative: Vec::new(),
    };
    for (to, from) in columns.iter().enumerate() {
        if let Some(from) = from {
            shared.base.push(base.cells(*from)?);
            shared.derivative.push(derivative.cells(to)?);
        }
    }
    Ok(shared)
}

/// The columns of the same name whose values, at the beginning of the base, have a cast to the derivative's type.
fn named_alike(
    (_, rows): &Split,
    derivative: &SchemaRef,
) -> Result<Vec<Option<usize>>, DatasetError> {
    let schema = rows.schema()?;
    let first = rows.read()?.next().transpose()?;
    derivative
        .fields()
        .iter()
        .map(|field| {
            let Some((at, other)) = schema.column_with_name(field.name()) else {
                return Ok(None);
            };
            let from = canonical(other.data_type())?;
            let to = canonical(field.data_type())?;
            if from == to {
                return Ok(Some(at));
            }
            if !has_cast(&from, &to) {
                return Ok(None);
            }
            let Some(batch) = &first else {
                return Ok(Some(at));
            };
            let plain = cast_to(batch.column(at), &from)?;
            let valid = |array: &dyn arrow::array::Array| array.len() - array.null_count();
            let cast = cast_loosely(&plain, &to)?;
            Ok((valid(&cast) * 10 >= valid(&plain) * 9).then_some(at))
        })
        .collect()
}

/// Pairs columns that no column is named like, if nearly all values of a sample are in the other. Values that occur often say
/// nothing about that.
fn pair_renamed(
    base: &Table,
    derivative: &Table,
    columns: &mut [Option<usize>],
) -> Result<(), DatasetError> {
    const SAMPLE: usize = 1000;
    let mut open: Vec<usize> = (0..base.columns())
        .filter(|&from| !columns.contains(&Some(from)))
        .collect();
    let unpaired: Vec<usize> = (0..columns.len())
        .filter(|&to| columns[to].is_none())
        .collect();
    for to in unpaired {
        if !open.iter().any(|&from| base.ty(from) == derivative.ty(to)) {
            continue;
        }
        let column = derivative.cells(to)?;
        let mut scratch = Vec::new();
        let sample: HashSet<u64> = sampled(derivative.rows, SAMPLE)
            .map(|row| column.hash(row, &hasher(), &mut scratch))
            .collect();
        if sample.len() * 5 < derivative.rows.min(SAMPLE) {
            continue;
        }
        let mut best = None;
        for (place, &from) in open.iter().enumerate() {
            if base.ty(from) != derivative.ty(to) {
                continue;
            }
            let other = base.cells(from)?;
            let found: HashSet<u64> = (0..base.rows)
                .map(|row| other.hash(row, &hasher(), &mut scratch))
                .filter(|hash| sample.contains(hash))
                .collect();
            if found.len() * 10 >= sample.len() * 8 {
                best = best.max(Some((found.len(), std::cmp::Reverse(place))));
            }
        }
        if let Some((_, std::cmp::Reverse(place))) = best {
            columns[to] = Some(open.remove(place));
        }
    }
    Ok(())
}

/// Where the temporary files of an operation go.
pub(crate) fn scratch() -> std::path::PathBuf {
    std::env::temp_dir()
}

/// The room tables have, of a number of bytes for everything.
pub(crate) fn room(scratch: &Path, memory: u64) -> Room<'_> {
    Room {
        scratch,
        held: usize::try_from(memory / 8).unwrap_or(usize::MAX),
        mapped: memory / 3,
        joined: usize::try_from(memory / 4).unwrap_or(usize::MAX),
    }
}
