//! One split of both sides, compared.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use rayon::prelude::*;

use super::render::{metadata, render, render_row, text, type_of};
use super::rows::{self, Matched};
use super::{ColumnDiff, DiffOp, DiffRow, Sink, SplitDiff};
use crate::DatasetError;
use crate::canonical::canonical;
use crate::input::Rows;
use crate::matching::{NEW, Shared};
use crate::pair::Check;
use crate::split::pieces;
use crate::table::{Batches, Column, Room, Table, plain_types};

/// Pieces of rows that are compared before what was found is handed on.
const PIECES: usize = 16;

/// What the comparison of a split needs to know.
pub(super) struct Comparison<'a> {
    pub(super) split: &'a str,
    pub(super) key: &'a [String],
    pub(super) room: &'a Room<'a>,
    pub(super) check: &'a Check<'a>,
}

/// A column that both sides have.
struct Pair {
    /// Where it is in the summary.
    at: usize,
    name: String,
    /// The base's values in the derivative's type; none where there is no cast.
    cast: Option<Column>,
    /// The base's values as they are, where the type is another one.
    own: Option<Column>,
    derivative: Column,
}

impl Pair {
    fn before(&self, row: usize) -> Result<String, DatasetError> {
        match self.own.as_ref().or(self.cast.as_ref()) {
            Some(column) => cell(column, row),
            None => Ok("null".to_owned()),
        }
    }

    /// Whether a row of the base has the value of a row of the derivative. A value that the cast loses is another one.
    fn is_same(&self, base: usize, derivative: usize, room: &mut (Vec<u8>, Vec<u8>)) -> bool {
        let is_null = |column: &Column| is_null(column, base);
        let Some(cast) = &self.cast else {
            return self.own.as_ref().is_some_and(is_null) && self.derivative_is_null(derivative);
        };
        if let Some(own) = &self.own
            && is_null(cast)
            && !is_null(own)
        {
            return false;
        }
        match (cast.text(base), self.derivative.text(derivative)) {
            (Some(from), Some(to)) => from == to,
            (None, None) => {
                room.0.clear();
                room.1.clear();
                cast.write(base, &mut room.0);
                self.derivative.write(derivative, &mut room.1);
                room.0 == room.1
            }
            _ => false,
        }
    }

    fn derivative_is_null(&self, row: usize) -> bool {
        is_null(&self.derivative, row)
    }
}

/// Whether a person would call two rows, matched because that is cheap to store, the same row changed: a value is the same, or
/// there is text that resembled the other.
fn resembles(pairs: &[Pair], base: usize, derivative: usize) -> bool {
    const TEXT: usize = 16;
    let mut room = (Vec::new(), Vec::new());
    pairs.iter().any(|pair| {
        let is_text = |text: Option<&[u8]>| text.is_some_and(|text| text.len() >= TEXT);
        let both = is_text(pair.derivative.text(derivative))
            && pair
                .cast
                .as_ref()
                .is_some_and(|cast| is_text(cast.text(base)));
        both || (!pair.derivative_is_null(derivative) && pair.is_same(base, derivative, &mut room))
    })
}

fn is_null(column: &Column, row: usize) -> bool {
    let (array, at) = column.array(row);
    array.data_type() == &DataType::Null || array.is_null(at)
}

fn cell(column: &Column, row: usize) -> Result<String, DatasetError> {
    let (array, at) = column.array(row);
    render(array.as_ref(), at)
}

/// What pieces of rows add to the summary.
#[derive(Default)]
struct Found {
    rows: Vec<DiffRow>,
    same: u64,
    changed: u64,
    added: u64,
    /// (changed, from null, to null) for each pair.
    columns: Vec<(u64, u64, u64)>,
}

impl Comparison<'_> {
    fn row(&self, op: DiffOp) -> DiffRow {
        DiffRow {
            op,
            split: self.split.to_owned(),
            base_row: None,
            derivative_row: None,
            column: None,
            before: None,
            after: None,
        }
    }

    /// A split that only one side has: a difference of the schema, and all of its rows.
    pub(super) fn one(
        &self,
        rows: &Arc<dyn Rows>,
        op: DiffOp,
        sink: &mut Sink<'_>,
    ) -> Result<SplitDiff, DatasetError> {
        let schema = rows.schema()?;
        let is_added = op == DiffOp::Added;
        let sides = |value: String| {
            if is_added {
                (None, Some(value))
            } else {
                (Some(value), None)
            }
        };
        let (before, after) = sides(format!("split {}", text(self.split)));
        sink(&[DiffRow {
            before,
            after,
            ..self.row(DiffOp::Schema)
        }])?;
        let mut count = 0_u64;
        for batch in rows.read()? {
            (self.check)()?;
            let batch = batch?;
            let start = count;
            count += batch.num_rows() as u64;
            let names: Vec<&str> = names(&schema);
            let columns = plain_columns(&batch)?;
            let found = (0..batch.num_rows())
                .into_par_iter()
                .map(|at| {
                    let row = start + at as u64;
                    let cells = columns.iter().map(|column| (column.as_ref(), at));
                    let (before, after) = sides(render_row(names.iter().copied().zip(cells))?);
                    Ok(DiffRow {
                        base_row: (!is_added).then_some(row),
                        derivative_row: is_added.then_some(row),
                        before,
                        after,
                        ..self.row(op)
                    })
                })
                .collect::<Result<Vec<_>, DatasetError>>()?;
            sink(&found)?;
        }
        let columns = schema
            .fields()
            .iter()
            .map(|field| {
                let (base_type, derivative_type) = sides(type_of(field));
                ColumnDiff {
                    column: field.name().clone(),
                    status: op.name().to_owned(),
                    base_type,
                    derivative_type,
                    ..ColumnDiff::default()
                }
            })
            .collect();
        let only = |wanted: bool| if wanted { count } else { 0 };
        Ok(SplitDiff {
            split: self.split.to_owned(),
            base_rows: only(!is_added),
            derivative_rows: only(is_added),
            added: only(is_added),
            removed: only(!is_added),
            schema: 1,
            columns,
            ..SplitDiff::default()
        })
    }

    /// A split that both sides have.
    pub(super) fn both(
        &self,
        base: &Arc<dyn Rows>,
        derivative: &Arc<dyn Rows>,
        sink: &mut Sink<'_>,
    ) -> Result<SplitDiff, DatasetError> {
        let (base_schema, schema) = (base.schema()?, derivative.schema()?);
        let (mut columns, found) = self.schemas(&base_schema, &schema);
        let schema_count = found.len() as u64;
        if !found.is_empty() {
            sink(&found)?;
        }
        let types = plain_types(&schema)?;
        let named_alike = |column: usize| {
            let (at, _) = schema.column_with_name(base_schema.field(column).name())?;
            types.get(at).cloned()
        };
        let to = Table::load(
            vec![(Arc::clone(&schema), derivative.read()?)],
            &|_| None,
            self.room,
        )?;
        let from = Table::load(
            vec![(Arc::clone(&base_schema), base.read()?)],
            &named_alike,
            self.room,
        )?;
        (self.check)()?;
        let retyped = retyped(&base_schema, &schema)?;
        let own = load_columns(base, &base_schema, &retyped, self.room)?;
        let pairs = pair(&from, &own, &retyped, &to, &columns)?;
        let matched = self.matched(&from, &to, &pairs)?;
        (self.check)()?;

        let mut summary = SplitDiff {
            split: self.split.to_owned(),
            base_rows: from.rows as u64,
            derivative_rows: to.rows as u64,
            moved: matched.moved(),
            schema: schema_count,
            ..SplitDiff::default()
        };
        let all = all_columns(&to)?;
        let all_pieces: Vec<(usize, usize)> = pieces(to.rows).collect();
        for some in all_pieces.chunks(PIECES) {
            (self.check)()?;
            let found: Vec<Found> = some
                .par_iter()
                .map(|&(start, end)| self.rows(start, end, &matched, &pairs, &all))
                .collect::<Result<_, _>>()?;
            for piece in found {
                summary.same += piece.same;
                summary.changed += piece.changed;
                summary.added += piece.added;
                for (pair, counts) in pairs.iter().zip(piece.columns) {
                    let column = &mut columns[pair.at];
                    column.changed += counts.0;
                    column.from_null += counts.1;
                    column.to_null += counts.2;
                }
                if !piece.rows.is_empty() {
                    sink(&piece.rows)?;
                }
            }
        }
        for column in &mut columns {
            if column.status == "same" && column.changed > 0 {
                "changed".clone_into(&mut column.status);
            }
        }
        summary.removed = self.removed(base, &base_schema, &matched, sink)?;
        summary.columns = columns;
        Ok(summary)
    }

    fn matched(
        &self,
        base: &Table,
        derivative: &Table,
        pairs: &[Pair],
    ) -> Result<Matched, DatasetError> {
        let comparable: Vec<&Pair> = pairs.iter().filter(|pair| pair.cast.is_some()).collect();
        let same = |from: usize, to: usize| {
            let mut room = (Vec::new(), Vec::new());
            pairs.iter().all(|pair| pair.is_same(from, to, &mut room))
        };
        if self.key.is_empty() {
            let mut shared = Shared {
                base: Vec::new(),
                derivative: Vec::new(),
            };
            for (at, field) in derivative.schema.fields().iter().enumerate() {
                if let Some((from, _)) = base.schema.column_with_name(field.name())
                    && base.ty(from) == derivative.ty(at)
                {
                    shared.base.push(base.cells(from)?);
                    shared.derivative.push(derivative.cells(at)?);
                }
            }
            let matches = crate::matching::find(base, derivative, &shared, self.room, self.check)?;
            let mut found = matches.rows;
            for row in matches.unlike {
                found[row as usize] = NEW;
            }
            for (row, base) in found.iter_mut().enumerate() {
                if *base != NEW && !resembles(pairs, *base as usize, row) {
                    *base = NEW;
                }
            }
            return Ok(Matched::once(found, base.rows, same));
        }
        let key = self
            .key
            .iter()
            .map(|name| {
                comparable
                    .iter()
                    .find(|pair| pair.name == *name)
                    .and_then(|pair| Some((pair.cast.as_ref()?, &pair.derivative)))
                    .ok_or_else(|| {
                        let known: Vec<&str> =
                            comparable.iter().map(|pair| pair.name.as_str()).collect();
                        DatasetError::usage(format!(
                            "split {:?}: the key {name:?} is no column of both sides; columns of both are {}",
                            self.split,
                            known.join(", ")
                        ))
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Matched::new(
            rows::by_key(&key, base.rows, derivative.rows),
            base.rows,
        ))
    }

    /// The differences of some rows of the derivative.
    fn rows(
        &self,
        start: usize,
        end: usize,
        matched: &Matched,
        pairs: &[Pair],
        all: &[(String, Column)],
    ) -> Result<Found, DatasetError> {
        let mut found = Found {
            columns: vec![(0, 0, 0); pairs.len()],
            ..Found::default()
        };
        let mut room = (Vec::new(), Vec::new());
        for row in start..end {
            let base = matched.base_row(row);
            if base == NEW {
                found.added += 1;
                let cells = all.iter().map(|(name, column)| {
                    let (array, at) = column.array(row);
                    (name.as_str(), (array.as_ref(), at))
                });
                found.rows.push(DiffRow {
                    derivative_row: Some(row as u64),
                    after: Some(render_row(cells)?),
                    ..self.row(DiffOp::Added)
                });
                continue;
            }
            let base = base as usize;
            let before = found.rows.len();
            for (pair, counts) in pairs.iter().zip(&mut found.columns) {
                if pair.is_same(base, row, &mut room) {
                    continue;
                }
                let own = pair.own.as_ref().or(pair.cast.as_ref());
                counts.0 += 1;
                counts.1 += u64::from(own.is_some_and(|column| is_null(column, base)));
                counts.2 += u64::from(pair.derivative_is_null(row));
                found.rows.push(DiffRow {
                    base_row: Some(base as u64),
                    derivative_row: Some(row as u64),
                    column: Some(pair.name.clone()),
                    before: Some(pair.before(base)?),
                    after: Some(cell(&pair.derivative, row)?),
                    ..self.row(DiffOp::Changed)
                });
            }
            if found.rows.len() == before {
                found.same += 1;
            } else {
                found.changed += 1;
            }
        }
        Ok(found)
    }

    /// The rows of the base that no row came from, as they are in the base.
    fn removed(
        &self,
        base: &Arc<dyn Rows>,
        schema: &SchemaRef,
        matched: &Matched,
        sink: &mut Sink<'_>,
    ) -> Result<u64, DatasetError> {
        if matched.unused() == 0 {
            return Ok(0);
        }
        let names = names(schema);
        let mut start = 0_usize;
        for batch in base.read()? {
            (self.check)()?;
            let batch = batch?;
            let columns = plain_columns(&batch)?;
            let found = (0..batch.num_rows())
                .into_par_iter()
                .filter(|at| !matched.is_used(start + at))
                .map(|at| {
                    let cells = columns.iter().map(|column| (column.as_ref(), at));
                    Ok(DiffRow {
                        base_row: Some((start + at) as u64),
                        before: Some(render_row(names.iter().copied().zip(cells))?),
                        ..self.row(DiffOp::Removed)
                    })
                })
                .collect::<Result<Vec<_>, DatasetError>>()?;
            start += batch.num_rows();
            if !found.is_empty() {
                sink(&found)?;
            }
        }
        Ok(matched.unused())
    }

    /// The columns of both sides, and what differs in the schemas.
    fn schemas(&self, base: &Schema, derivative: &Schema) -> (Vec<ColumnDiff>, Vec<DiffRow>) {
        let mut columns = Vec::new();
        let mut found = Vec::new();
        let mut differs = |column: Option<&str>, before: Option<String>, after: Option<String>| {
            found.push(DiffRow {
                column: column.map(str::to_owned),
                before,
                after,
                ..self.row(DiffOp::Schema)
            });
        };
        for to in derivative.fields() {
            let from = base.field_with_name(to.name()).ok();
            let (before, after) = (from.map(type_of), type_of(to));
            let status = match &before {
                None => "added",
                Some(before) if *before != after => "retyped",
                Some(_) => "same",
            };
            if status != "same" {
                differs(Some(to.name()), before.clone(), Some(after.clone()));
            }
            if let Some(from) = from.filter(|from| from.metadata() != to.metadata()) {
                let (before, after) = (metadata(from.metadata()), metadata(to.metadata()));
                differs(Some(to.name()), Some(before), Some(after));
            }
            columns.push(ColumnDiff {
                column: to.name().clone(),
                status: status.to_owned(),
                base_type: before,
                derivative_type: Some(after),
                ..ColumnDiff::default()
            });
        }
        for from in base.fields() {
            if derivative.field_with_name(from.name()).is_err() {
                differs(Some(from.name()), Some(type_of(from)), None);
                columns.push(ColumnDiff {
                    column: from.name().clone(),
                    status: "removed".to_owned(),
                    base_type: Some(type_of(from)),
                    ..ColumnDiff::default()
                });
            }
        }
        let order = |own: &Schema, other: &Schema| -> Vec<String> {
            let fields = own.fields().iter().map(|field| field.name());
            fields
                .filter(|name| other.field_with_name(name).is_ok())
                .map(|name| text(name))
                .collect()
        };
        let (before, after) = (order(base, derivative), order(derivative, base));
        if before != after {
            let list = |names: &[String]| format!("columns [{}]", names.join(", "));
            differs(None, Some(list(&before)), Some(list(&after)));
        }
        if base.metadata() != derivative.metadata() {
            let (before, after) = (metadata(base.metadata()), metadata(derivative.metadata()));
            differs(None, Some(before), Some(after));
        }
        (columns, found)
    }
}

fn names(schema: &SchemaRef) -> Vec<&str> {
    let fields = schema.fields().iter();
    fields.map(|field| field.name().as_str()).collect()
}

/// The columns of a batch in plain types.
fn plain_columns(batch: &RecordBatch) -> Result<Vec<ArrayRef>, DatasetError> {
    batch
        .columns()
        .iter()
        .map(|column| crate::canonical::cast_to(column, &canonical(column.data_type())?))
        .collect()
}

fn all_columns(table: &Table) -> Result<Vec<(String, Column)>, DatasetError> {
    let fields = table.schema.fields().iter().enumerate();
    fields
        .map(|(at, field)| Ok((field.name().clone(), table.cells(at)?)))
        .collect()
}

/// The columns of the base that have another plain type in the derivative.
fn retyped(base: &Schema, derivative: &Schema) -> Result<Vec<usize>, DatasetError> {
    let mut all = Vec::new();
    for (at, field) in base.fields().iter().enumerate() {
        if let Ok(other) = derivative.field_with_name(field.name())
            && canonical(field.data_type())? != canonical(other.data_type())?
        {
            all.push(at);
        }
    }
    Ok(all)
}

/// Some columns of the base, in their own types.
fn load_columns(
    base: &Arc<dyn Rows>,
    schema: &SchemaRef,
    columns: &[usize],
    room: &Room<'_>,
) -> Result<Table, DatasetError> {
    if columns.is_empty() {
        return Ok(Table::empty());
    }
    let fields: Vec<Field> = columns.iter().map(|&at| schema.field(at).clone()).collect();
    let some = Arc::new(Schema::new(fields));
    let columns = columns.to_vec();
    let batches: Batches = Box::new(base.read()?.map(move |batch| Ok(batch?.project(&columns)?)));
    // Metadata of the whole schema is not that of some columns.
    let with = Arc::clone(&some);
    let batches: Batches =
        Box::new(batches.map(move |batch| Ok(batch?.with_schema(Arc::clone(&with))?)));
    Table::load(vec![(some, batches)], &|_| None, room)
}

fn pair(
    from: &Table,
    own: &Table,
    retyped: &[usize],
    to: &Table,
    columns: &[ColumnDiff],
) -> Result<Vec<Pair>, DatasetError> {
    let mut pairs = Vec::new();
    for (at, field) in to.schema.fields().iter().enumerate() {
        let Some((base, _)) = from.schema.column_with_name(field.name()) else {
            continue;
        };
        let cast = (from.ty(base) == to.ty(at))
            .then(|| from.cells(base))
            .transpose()?;
        let own = retyped
            .iter()
            .position(|&column| column == base)
            .map(|column| own.cells(column))
            .transpose()?;
        pairs.push(Pair {
            at: columns
                .iter()
                .position(|column| column.column == *field.name())
                .unwrap_or(at),
            name: field.name().clone(),
            cast,
            own,
            derivative: to.cells(at)?,
        });
    }
    Ok(pairs)
}
