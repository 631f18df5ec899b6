//! A split in memory, or in a temporary file where it is large: rows in order, any of them at hand.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, MutableArrayData, RecordBatch, RecordBatchOptions, make_array,
};
use arrow::buffer::Buffer;
use arrow::compute::{BatchCoalescer, interleave};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::FileWriter;
use memmap2::UncheckedAdvice;
use rayon::prelude::*;
use sparse_delta::support::{Residency, relieve};

use crate::DatasetError;
use crate::canonical::{canonical, cast_loosely, cast_to, describe, has_cast};
use crate::cell::{Cells, Shape};
use crate::error::During;

/// Rows of every batch but the last.
const BATCH: usize = 1 << 13;

/// Batches of one schema, in order.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch, DatasetError>> + Send>;

/// The rows of a split.
pub(crate) struct Table {
    /// As it was given.
    pub(crate) schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// The types its columns are held in.
    types: Vec<DataType>,
    pub(crate) rows: usize,
    /// What it was read from.
    pub(crate) parts: Vec<Part>,
    /// Over the temporary file that holds the batches.
    _residency: Option<Residency>,
}

/// A split that a table was read from.
pub(crate) struct Part {
    pub(crate) rows: u64,
    /// The [`LogicalHash`].
    pub(crate) hash: String,
}

/// What a table may use.
pub(crate) struct Room<'a> {
    /// Where larger ones go.
    pub(crate) scratch: &'a Path,
    /// Bytes that are kept in memory.
    pub(crate) held: usize,
    /// Bytes of temporary files that may be resident, of all tables together.
    pub(crate) mapped: u64,
    /// Bytes that the join of its rows with others may take.
    pub(crate) joined: usize,
}

/// The plain types of a schema's columns. Refuses types that have none, or from which there is no way back.
pub(crate) fn plain_types(schema: &Schema) -> Result<Vec<DataType>, DatasetError> {
    schema
        .fields()
        .iter()
        .map(|field| {
            let ty = field.data_type();
            let plain = canonical(ty)?;
            let both_ways = plain == *ty
                || (arrow::compute::can_cast_types(ty, &plain)
                    && arrow::compute::can_cast_types(&plain, ty));
            if both_ways {
                Ok(plain)
            } else {
                Err(DatasetError::unsupported(ty))
            }
        })
        .collect()
}

impl Table {
    /// No rows and no columns: what a split without a counterpart is made from.
    pub(crate) fn empty() -> Self {
        Self {
            schema: Arc::new(Schema::empty()),
            batches: Vec::new(),
            types: Vec::new(),
            rows: 0,
            parts: Vec::new(),
            _residency: None,
        }
    }

    /// Reads a split, or several of the same columns one after another.
    ///
    /// Columns for which `wanted` names another type are cast to it, where a cast exists; values without one there are null. The
    /// hashes are those of the values as they were.
    pub(crate) fn load(
        parts: Vec<(SchemaRef, Batches)>,
        wanted: &dyn Fn(usize) -> Option<DataType>,
        room: &Room<'_>,
    ) -> Result<Self, DatasetError> {
        let Some((schema, _)) = parts.first() else {
            return Ok(Self::empty());
        };
        let schema = Arc::clone(schema);
        let plain = plain_types(&schema)?;
        if u32::try_from(plain.len()).is_err() {
            return Err(DatasetError::usage("a dataset has too many columns"));
        }
        let stored: Vec<DataType> = plain
            .iter()
            .enumerate()
            .map(|(at, plain)| {
                wanted(at)
                    .filter(|ty| has_cast(plain, ty))
                    .unwrap_or_else(|| plain.clone())
            })
            .collect();
        let fields: Vec<Field> = stored
            .iter()
            .enumerate()
            .map(|(at, ty)| Field::new(at.to_string(), ty.clone(), true))
            .collect();
        let stored_schema = Arc::new(Schema::new(fields));
        let mut chunks = BatchCoalescer::new(Arc::clone(&stored_schema), BATCH);
        let mut spool = Spool::new(Arc::clone(&stored_schema), room);
        let mut table = Self {
            schema,
            types: stored,
            ..Self::empty()
        };
        for (schema, batches) in parts {
            let mut hash = LogicalHash::new(&schema)?;
            let before = table.rows;
            for batch in batches {
                table.take(&batch?, &mut hash, &stored_schema, &mut chunks, &mut spool)?;
            }
            table.parts.push(Part {
                rows: (table.rows - before) as u64,
                hash: hash.finish(),
            });
        }
        chunks.finish_buffered_batch()?;
        while let Some(chunk) = chunks.next_completed_batch() {
            spool.push(chunk)?;
        }
        (table.batches, table._residency) = spool.finish()?;
        Ok(table)
    }

    fn take(
        &mut self,
        batch: &RecordBatch,
        hash: &mut LogicalHash,
        schema: &SchemaRef,
        chunks: &mut BatchCoalescer,
        spool: &mut Spool<'_>,
    ) -> Result<(), DatasetError> {
        self.rows += batch.num_rows();
        if u32::try_from(self.rows).is_err() {
            return Err(DatasetError::usage(
                "a split has more than 4,294,967,295 rows; divide it into several",
            ));
        }
        let columns: Vec<ArrayRef> = hash
            .update(batch)?
            .iter()
            .zip(&self.types)
            .map(|(column, stored)| cast_loosely(column, stored))
            .collect::<Result<_, DatasetError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?;
        // A large batch in small pieces: the coalescer copies no more than it must.
        let mut at = 0;
        while at < batch.num_rows() {
            let count = (batch.num_rows() - at).min(BATCH);
            let piece = batch.slice(at, count);
            at += count;
            // Batches are mostly read as they are needed.
            if count == BATCH && chunks.is_empty() {
                spool.push(piece)?;
                continue;
            }
            chunks.push_batch(piece)?;
            while let Some(chunk) = chunks.next_completed_batch() {
                spool.push(chunk)?;
            }
        }
        Ok(())
    }

    /// The type a column is stored in.
    pub(crate) fn ty(&self, column: usize) -> DataType {
        self.types[column].clone()
    }

    pub(crate) fn columns(&self) -> usize {
        self.schema.fields().len()
    }

    /// The cells of a column.
    pub(crate) fn cells(&self, column: usize) -> Result<Column, DatasetError> {
        let ty = self.ty(column);
        Ok(Column {
            shape: Shape::of(&ty)?,
            ty,
            batches: self
                .batches
                .iter()
                .map(|batch| Cells::new(batch.column(column).as_ref()))
                .collect::<Result<_, _>>()?,
            arrays: self
                .batches
                .iter()
                .map(|batch| Arc::clone(batch.column(column)))
                .collect(),
        })
    }
}

/// The hash of a split's rows: BLAKE3 over the schema, the number of rows and, column by column, the BLAKE3 of its cells in
/// order. The same for the same values in the same order, however they are stored, and for nothing else.
pub(crate) struct LogicalHash {
    schema: SchemaRef,
    plain: Vec<DataType>,
    columns: Vec<blake3::Hasher>,
    rows: u64,
}

impl LogicalHash {
    pub(crate) fn new(schema: &SchemaRef) -> Result<Self, DatasetError> {
        let plain = plain_types(schema)?;
        Ok(Self {
            schema: Arc::clone(schema),
            columns: vec![blake3::Hasher::new(); plain.len()],
            plain,
            rows: 0,
        })
    }

    /// Takes the next rows in; returns their columns in plain types.
    pub(crate) fn update(&mut self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, DatasetError> {
        self.rows += batch.num_rows() as u64;
        batch
            .columns()
            .par_iter()
            .zip(&mut self.columns)
            .zip(&self.plain)
            .map(|((column, digest), plain)| {
                let column = cast_to(column, plain)?;
                digest_cells(&column, digest)?;
                Ok(column)
            })
            .collect()
    }

    pub(crate) fn finish(self) -> String {
        let mut hasher =
            blake3::Hasher::new_derive_key("sparse 2026-11 logical hash of a dataset split");
        hasher.update(describe(&self.schema).as_bytes());
        hasher.update(&self.rows.to_le_bytes());
        for column in &self.columns {
            hasher.update(column.finalize().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn digest_cells(column: &ArrayRef, digest: &mut blake3::Hasher) -> Result<(), DatasetError> {
    /// Rows written out before they are hashed.
    const ROWS: usize = 256;
    let cells = Cells::new(column.as_ref())?;
    let mut bytes = Vec::new();
    for start in (0..column.len()).step_by(ROWS) {
        cells.write_rows(start..(start + ROWS).min(column.len()), &mut bytes);
        if bytes.len() >= 1 << 16 {
            digest.update(&bytes);
            bytes.clear();
        }
    }
    digest.update(&bytes);
    Ok(())
}

/// A column of a [`Table`].
pub(crate) struct Column {
    pub(crate) ty: DataType,
    pub(crate) shape: Shape,
    batches: Vec<Cells>,
    arrays: Vec<ArrayRef>,
}

impl Column {
    /// A column of arrays, each of [`BATCH`] rows but the last.
    pub(crate) fn of(ty: &DataType, arrays: Vec<ArrayRef>) -> Result<Self, DatasetError> {
        Ok(Self {
            ty: ty.clone(),
            shape: Shape::of(ty)?,
            batches: arrays
                .iter()
                .map(|array| Cells::new(array.as_ref()))
                .collect::<Result<_, _>>()?,
            arrays,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.arrays.iter().map(|array| array.len()).sum()
    }

    /// The cells that have a row, and where. Who reads on lets go of what was read, now and then.
    fn at(&self, row: usize) -> (&Cells, usize) {
        let (batch, at) = (row / BATCH, row % BATCH);
        if at == 0 {
            relieve();
        }
        (&self.batches[batch], at)
    }

    pub(crate) fn write(&self, row: usize, out: &mut Vec<u8>) {
        let (cells, at) = self.at(row);
        cells.write(at, out);
    }

    pub(crate) fn text(&self, row: usize) -> Option<&[u8]> {
        let (cells, at) = self.at(row);
        cells.text(at)
    }

    pub(crate) fn plain(&self, row: usize) -> Option<&[u8]> {
        let (cells, at) = self.at(row);
        cells.plain(at)
    }

    /// The array that has a row, and where.
    pub(crate) fn array(&self, row: usize) -> (&ArrayRef, usize) {
        (&self.arrays[row / BATCH], row % BATCH)
    }

    pub(crate) fn hash(
        &self,
        row: usize,
        hasher: &ahash::RandomState,
        scratch: &mut Vec<u8>,
    ) -> u64 {
        let (cells, at) = self.at(row);
        cells.hash(at, hasher, scratch)
    }
}

/// The rows `picks` of several columns of one type: (which column, which row).
pub(crate) fn gather(
    columns: &[&Column],
    picks: impl Iterator<Item = (usize, usize)>,
) -> Result<ArrayRef, DatasetError> {
    relieve();
    let mut starts = Vec::new();
    let mut all: Vec<&dyn Array> = Vec::new();
    for column in columns {
        starts.push(all.len());
        all.extend(column.arrays.iter().map(AsRef::as_ref));
    }
    // Only the arrays that are picked from: there may be thousands.
    let mut place = vec![usize::MAX; all.len()];
    let mut arrays = Vec::new();
    let mut runs = 0;
    let mut last = None;
    let picks: Vec<(usize, usize)> = picks
        .map(|(column, row)| {
            let of = starts[column] + row / BATCH;
            if place[of] == usize::MAX {
                place[of] = arrays.len();
                arrays.push(all[of]);
            }
            let pick = (place[of], row % BATCH);
            runs += usize::from(last != Some(pick));
            last = Some((pick.0, pick.1 + 1));
            pick
        })
        .collect();
    if arrays.is_empty() {
        arrays.extend(all.first());
    }
    if runs * LEAST_RUN > picks.len() {
        return Ok(interleave(&arrays, &picks)?);
    }
    in_runs(&arrays, &picks)
}

/// Rows that follow each other, on average, for these to be copied together.
const LEAST_RUN: usize = 8;

/// The rows `picks` of arrays of one type, copied run by run.
fn in_runs(arrays: &[&dyn Array], picks: &[(usize, usize)]) -> Result<ArrayRef, DatasetError> {
    let data: Vec<ArrayData> = arrays.iter().map(|array| array.to_data()).collect();
    let mut copied = MutableArrayData::new(data.iter().collect(), false, picks.len());
    let runs = picks.chunk_by(|a, b| (a.0, a.1 + 1) == *b);
    for run in runs {
        let (array, start) = run[0];
        copied.try_extend(array, start, start + run.len())?;
    }
    Ok(make_array(copied.freeze()))
}

/// Where batches go: memory at first, a temporary file once they are many.
struct Spool<'a> {
    schema: SchemaRef,
    scratch: &'a Path,
    most: usize,
    mapped: u64,
    held: Vec<RecordBatch>,
    bytes: usize,
    file: Option<FileWriter<std::io::BufWriter<std::fs::File>>>,
}

impl<'a> Spool<'a> {
    fn new(schema: SchemaRef, room: &Room<'a>) -> Self {
        Self {
            schema,
            scratch: room.scratch,
            most: room.held,
            mapped: room.mapped,
            held: Vec::new(),
            bytes: 0,
            file: None,
        }
    }

    fn push(&mut self, batch: RecordBatch) -> Result<(), DatasetError> {
        if let Some(file) = &mut self.file {
            return Ok(file.write(&batch)?);
        }
        self.bytes += batch.get_array_memory_size();
        self.held.push(batch);
        if self.bytes > self.most {
            let file =
                tempfile::tempfile_in(self.scratch).during("create a file in", self.scratch)?;
            let mut file = FileWriter::try_new_buffered(file, &self.schema)?;
            for batch in self.held.drain(..) {
                file.write(&batch)?;
            }
            self.file = Some(file);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Vec<RecordBatch>, Option<Residency>), DatasetError> {
        let Some(mut file) = self.file.take() else {
            return Ok((self.held, None));
        };
        file.finish()?;
        let file = file
            .into_inner()?
            .into_inner()
            .map_err(|error| DatasetError::io("write", self.scratch, error.into_error()))?;
        let (batches, residency) = map_batches(&file, self.scratch, self.mapped)?;
        Ok((batches, Some(residency)))
    }
}

/// A map that buffers and the watch over it share.
struct Mapped(Arc<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The batches of an Arrow IPC file, in place, and a watch over its resident pages.
fn map_batches(
    file: &std::fs::File,
    path: &Path,
    resident: u64,
) -> Result<(Vec<RecordBatch>, Residency), DatasetError> {
    // SAFETY: the file has no name, so that nobody else can change or shorten it.
    let map = Arc::new(unsafe { memmap2::Mmap::map(file) }.during("map", path)?);
    let shared = Arc::clone(&map);
    let residency = Residency::over(map.len() as u64, resident, move || {
        // SAFETY: the map is read-only and of a file: the next access reads it again.
        let released = unsafe { shared.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "pages were not released");
        }
    });
    let buffer = Buffer::from(bytes::Bytes::from_owner(Mapped(map)));
    let mut batches = Vec::new();
    for batch in ipc::batches_in(&buffer)? {
        batches.push(batch);
    }
    Ok((batches, residency))
}

mod ipc {
    //! Arrow IPC in memory, read without copying.

    use arrow::ipc::convert::fb_to_schema;
    use arrow::ipc::reader::{FileDecoder, read_footer_length};
    use arrow::ipc::root_as_footer;

    use super::{Arc, Buffer, DatasetError, RecordBatch};

    const TRAILER: usize = 10;

    pub(super) fn batches_in(file: &Buffer) -> Result<Vec<RecordBatch>, DatasetError> {
        let problem = |what: &str| DatasetError::internal(format!("a temporary file {what}"));
        let end = file
            .len()
            .checked_sub(TRAILER)
            .ok_or_else(|| problem("is too short"))?;
        let trailer: [u8; TRAILER] = file[end..]
            .try_into()
            .map_err(|_| problem("is too short"))?;
        let length = read_footer_length(trailer)?;
        let start = end
            .checked_sub(length)
            .ok_or_else(|| problem("is too short"))?;
        let footer =
            root_as_footer(&file[start..end]).map_err(|error| problem(&error.to_string()))?;
        let schema = fb_to_schema(footer.schema().ok_or_else(|| problem("has no schema"))?);
        let decoder = FileDecoder::new(Arc::new(schema), footer.version());
        let mut batches = Vec::new();
        for block in footer.recordBatches().iter().flatten() {
            let size = |value: i64| usize::try_from(value).unwrap_or(0);
            let length = size(block.bodyLength()) + size(i64::from(block.metaDataLength()));
            let data = file.slice_with_length(size(block.offset()), length);
            if let Some(batch) = decoder.read_record_batch(block, &data)? {
                batches.push(batch);
            }
        }
        Ok(batches)
    }
}
