//! Tensors of safetensors files as rows: the columns of `sparse_tensors` and of the SAFETENSORS format. `data` is a view into
//! the mapped file; nothing of it is read until somebody looks at it.

use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryViewBuilder, BooleanArray, RecordBatch, new_null_array};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::{Result, exec_err};
use datafusion::physical_plan::PhysicalExpr;
use sparse_store::{Model, TensorEntry};

use crate::columns;
use crate::spec::{Column, Type};

/// The columns of a tensor.
pub(crate) const COLUMNS: &[Column] = &[
    Column::new("name", Type::Text, "The tensor's name."),
    Column::new(
        "dtype",
        Type::Text,
        "Its element type, as the file writes it.",
    ),
    Column::new("shape", Type::Shape, "Its dimensions."),
    Column::new("params", Type::Count, "Its elements."),
    Column::new("bytes", Type::Count, "Its bytes."),
    Column::new(
        "file",
        Type::Text,
        "The safetensors file it is in, relative to the model.",
    ),
    Column::new(
        "data",
        Type::Bytes,
        "Its bytes, little-endian and row-major; a view into the mapped file. A tensor over 2 GiB does not fit a value: \
         selecting its data is an error.",
    ),
];

/// The position of `data`.
pub(crate) const DATA: usize = 6;

/// Tensors per batch where their data is wanted: few, so that work on them spreads over cores.
pub(crate) const DATA_ROWS: usize = 16;

/// Values up to this size live inside the view itself.
const INLINE: usize = 12;

/// Where tensors are listed from: headers, and the data if it is mapped.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    model: Arc<Model>,
    /// (file, entry) of each row.
    rows: Vec<(usize, usize)>,
}

impl Listing {
    /// Every tensor of a model, in the order of its files and of their data.
    pub(crate) fn of(model: Arc<Model>) -> Self {
        let rows = model
            .files()
            .iter()
            .enumerate()
            .flat_map(|(f, file)| (0..file.header().entries.len()).map(move |e| (f, e)))
            .collect();
        Self { model, rows }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows that meet all conditions, which are over the full schema and do not look at `data`.
    pub(crate) fn filter(
        mut self,
        schema: &SchemaRef,
        filters: &[Arc<dyn PhysicalExpr>],
    ) -> Result<Self> {
        if filters.is_empty() {
            return Ok(self);
        }
        let entries: Vec<(&str, &TensorEntry)> = self.entries(&self.rows);
        let kept = matching(&entries, schema, filters)?;
        self.rows = kept
            .into_iter()
            .filter_map(|at| self.rows.get(at).copied())
            .collect();
        Ok(self)
    }

    fn entries(&self, rows: &[(usize, usize)]) -> Vec<(&str, &TensorEntry)> {
        rows.iter()
            .filter_map(|(f, e)| {
                let file = self.model.files().get(*f)?;
                Some((file.name.as_str(), file.header().entries.get(*e)?))
            })
            .collect()
    }

    /// A batch of rows with the columns wanted, in that order.
    pub(crate) fn batch(
        &self,
        range: std::ops::Range<usize>,
        wanted: &[usize],
        schema: SchemaRef,
    ) -> Result<RecordBatch> {
        let rows = range.len();
        let columns = self.metadata(range, wanted)?;
        columns::batch(schema, columns, rows)
    }

    fn metadata(&self, range: std::ops::Range<usize>, wanted: &[usize]) -> Result<Vec<ArrayRef>> {
        let rows = self.rows.get(range).unwrap_or_default();
        let entries = self.entries(rows);
        let data = || -> Result<Vec<Buffer>> {
            rows.iter()
                .map(|(f, e)| {
                    let file = self.model.files().get(*f);
                    let entry = file.and_then(|file| file.header().entries.get(*e));
                    self.bytes(file.map_or(&[], |file| file.bytes()), entry)
                })
                .collect()
        };
        to_columns(&entries, wanted, data)
    }

    /// The bytes of a tensor, as a buffer over the map that keeps the map alive.
    fn bytes(&self, file: &[u8], entry: Option<&TensorEntry>) -> Result<Buffer> {
        // The header and the file's size were checked against one another when the model was opened.
        let slice = entry.and_then(|entry| {
            let start = usize::try_from(entry.range.start).ok()?;
            let end = usize::try_from(entry.range.end).ok()?;
            file.get(start..end)
        });
        let Some(data) = slice else {
            return exec_err!("a tensor lies outside its file");
        };
        let Some(start) = NonNull::new(data.as_ptr().cast_mut()) else {
            return Ok(Buffer::from(data));
        };
        let owner = Arc::new(AssertUnwindSafe(Arc::clone(&self.model)));
        // SAFETY: `data` is part of a map that `self.model` holds, never unmapped or written while the model lives, and the
        // buffer owns a handle on the model.
        Ok(unsafe { Buffer::from_custom_allocation(start, data.len(), owner) })
    }
}

/// The positions of the tensors that meet all conditions, which are over the full schema and do not look at `data`.
pub(crate) fn matching(
    entries: &[(&str, &TensorEntry)],
    schema: &SchemaRef,
    filters: &[Arc<dyn PhysicalExpr>],
) -> Result<Vec<usize>> {
    let mut kept: Vec<usize> = (0..entries.len()).collect();
    if filters.is_empty() {
        return Ok(kept);
    }
    let all: Vec<usize> = (0..DATA).collect();
    let mut columns = to_columns(entries, &all, || Ok(Vec::new()))?;
    columns.push(new_null_array(
        schema.field(DATA).data_type(),
        entries.len(),
    ));
    let batch = columns::batch(Arc::clone(schema), columns, entries.len())?;
    for filter in filters {
        let met = filter.evaluate(&batch)?.into_array(entries.len())?;
        let met: &BooleanArray = as_boolean_array(&met)?;
        kept.retain(|at| met.is_valid(*at) && met.value(*at));
    }
    Ok(kept)
}

/// The columns wanted of tensors, given as (file, entry). `data` gives a buffer per tensor; it is called only if their data
/// is wanted.
pub(crate) fn to_columns(
    entries: &[(&str, &TensorEntry)],
    wanted: &[usize],
    data: impl Fn() -> Result<Vec<Buffer>>,
) -> Result<Vec<ArrayRef>> {
    let entry = || entries.iter().map(|(_, entry)| *entry);
    wanted
        .iter()
        .map(
            |column| match COLUMNS.get(*column).map_or("", |column| column.name) {
                "name" => Ok(columns::texts(entry().map(|e| Some(&e.name)))),
                "dtype" => Ok(columns::texts(entry().map(|e| Some(&e.dtype)))),
                "shape" => columns::shapes(entry().map(|e| e.shape.as_slice())),
                "params" => Ok(columns::counts(entry().map(|e| Some(e.params())))),
                "bytes" => Ok(columns::counts(entry().map(|e| Some(e.bytes())))),
                "file" => Ok(columns::texts(entries.iter().map(|(file, _)| Some(*file)))),
                _ => {
                    for entry in entry() {
                        value_length(&entry.name, entry.bytes())?;
                    }
                    views(entries, data()?)
                }
            },
        )
        .collect()
}

/// One value per buffer, without copying.
fn views(entries: &[(&str, &TensorEntry)], buffers: Vec<Buffer>) -> Result<ArrayRef> {
    let mut builder = BinaryViewBuilder::with_capacity(buffers.len());
    for (buffer, (_, entry)) in buffers.into_iter().zip(entries) {
        if buffer.len() <= INLINE {
            builder.append_value(&buffer);
            continue;
        }
        let length = value_length(&entry.name, buffer.len() as u64)?;
        let block = builder.append_block(buffer);
        builder.try_append_view(block, 0, length)?;
    }
    Ok(Arc::new(builder.finish()))
}

/// The length of one value, or the reason why it cannot be one.
pub(crate) fn value_length(tensor: &str, bytes: u64) -> Result<u32> {
    match u32::try_from(bytes)
        .ok()
        .filter(|length| i32::try_from(*length).is_ok())
    {
        Some(length) => Ok(length),
        None => exec_err!(
            "tensor '{tensor}' has {bytes} bytes, and a value of the column data holds at most 2 GiB; \
             leave it out (WHERE bytes < 2147483648) or do not select data"
        ),
    }
}
