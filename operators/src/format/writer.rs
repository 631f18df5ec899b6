//! Writing: rows are checked and their data spooled to an unnamed file; then the header, whose size nobody knows before the
//! last row, and the data in the order that safetensors wants go to the file itself.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, RecordBatch, StringViewArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, UInt64Type};
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion::error::DataFusionError;
use serde_json::{Map, Value, json};
use sparse_codec::DType;

/// Longest header that Python's safetensors reads.
const MAX_HEADER: usize = 100_000_000;

/// Collects tensors for one file.
pub(super) struct TensorWriter {
    spool: BufWriter<File>,
    written: u64,
    tensors: Vec<Tensor>,
    names: HashSet<String>,
    metadata: Vec<(String, String)>,
}

struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    /// Where its data is in the spool.
    start: u64,
    length: u64,
}

impl TensorWriter {
    /// Spools to an unnamed file in `folder`, which is gone whatever happens.
    pub(super) fn new(folder: &Path, metadata: Vec<(String, String)>) -> Result<Self> {
        let spool = tempfile::tempfile_in(folder).map_err(|error| {
            exec_datafusion_err!(
                "cannot make a temporary file in {}: {error}",
                folder.display()
            )
        })?;
        Ok(Self {
            spool: BufWriter::with_capacity(1 << 20, spool),
            written: 0,
            tensors: Vec::new(),
            names: HashSet::new(),
            metadata,
        })
    }

    /// Number of tensors so far.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Adds the tensors of a batch with the columns name, dtype, shape and data.
    pub(super) fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let shape_type = DataType::List(Arc::new(Field::new_list_field(DataType::UInt64, true)));
        let names = column(batch, "name", &DataType::Utf8View)?;
        let names: &StringViewArray = names.as_string_view();
        let dtypes = column(batch, "dtype", &DataType::Utf8View)?;
        let dtypes: &StringViewArray = dtypes.as_string_view();
        let shapes = column(batch, "shape", &shape_type)?;
        let shapes = shapes.as_list::<i32>();
        let data = column(batch, "data", &DataType::BinaryView)?;
        let data: &BinaryViewArray = data.as_binary_view();
        for row in 0..batch.num_rows() {
            if names.is_null(row) {
                return exec_err!("COPY: a row has no tensor name");
            }
            let name = names.value(row);
            if dtypes.is_null(row) || shapes.is_null(row) || data.is_null(row) {
                return exec_err!("COPY: the dtype, shape or data of tensor '{name}' is null");
            }
            let shape = shapes.value(row);
            if shape.null_count() > 0 {
                return exec_err!("COPY: the shape of tensor '{name}' has a null dimension");
            }
            let shape = shape.as_primitive::<UInt64Type>().values().to_vec();
            self.add(name, dtypes.value(row), shape, data.value(row))?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, dtype: &str, shape: Vec<u64>, data: &[u8]) -> Result<()> {
        let Some(known) = DType::parse(dtype) else {
            return exec_err!(
                "COPY: tensor '{name}' has dtype '{dtype}', which is not a safetensors dtype (BF16, F16, F32, I64, ...)"
            );
        };
        let bits = shape
            .iter()
            .try_fold(u64::from(known.bits()), |bits, n| bits.checked_mul(*n));
        let length = data.len() as u64;
        if bits.is_none_or(|bits| !bits.is_multiple_of(8) || bits / 8 != length) {
            return exec_err!(
                "COPY: tensor '{name}' of {dtype} and shape {shape:?} does not have {length} bytes of data"
            );
        }
        if name == "__metadata__" || !self.names.insert(name.to_owned()) {
            return exec_err!("COPY: tensor name '{name}' is given twice, or reserved");
        }
        self.spool.write_all(data).map_err(spooling)?;
        let start = self.written;
        self.written += length;
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype: known,
            shape,
            start,
            length,
        });
        Ok(())
    }

    /// Writes the file: alignment of dtypes descending, then names, as safetensors' own writer does.
    pub(super) fn finish(mut self, mut out: File) -> io::Result<()> {
        self.tensors.sort_by(|a, b| {
            rank(b.dtype)
                .cmp(&rank(a.dtype))
                .then_with(|| a.name.cmp(&b.name))
        });
        let header = self.header()?;
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut spool = self
            .spool
            .into_inner()
            .map_err(|error| error.into_error())?;
        for tensor in &self.tensors {
            spool.seek(SeekFrom::Start(tensor.start))?;
            let copied = io::copy(&mut Read::by_ref(&mut spool).take(tensor.length), &mut out)?;
            if copied != tensor.length {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        out.flush()
    }

    fn header(&self) -> io::Result<Vec<u8>> {
        let mut map = Map::new();
        if !self.metadata.is_empty() {
            let entries = self
                .metadata
                .iter()
                .map(|(k, v)| (k.clone(), Value::from(v.as_str())));
            map.insert("__metadata__".to_owned(), Value::Object(entries.collect()));
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            let end = offset + tensor.length;
            let entry = json!({
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            });
            map.insert(tensor.name.clone(), entry);
            offset = end;
        }
        let mut header = serde_json::to_vec(&Value::Object(map)).map_err(io::Error::other)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        if header.len() > MAX_HEADER {
            return Err(io::Error::other(
                "the header is over 100 MB, more than safetensors readers accept",
            ));
        }
        Ok(header)
    }
}

/// The position in safetensors' own order of dtypes, which is that of their alignment.
fn rank(dtype: DType) -> usize {
    DType::ALL
        .iter()
        .position(|(known, _, _)| *known == dtype)
        .unwrap_or(0)
}

fn column(batch: &RecordBatch, name: &str, ty: &DataType) -> Result<ArrayRef> {
    let Some(column) = batch.column_by_name(name) else {
        return exec_err!("COPY: the column '{name}' is missing");
    };
    // A number that is no dimension must be an error, not a null.
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    Ok(cast_with_options(column, ty, &options)?)
}

fn spooling(error: io::Error) -> DataFusionError {
    exec_datafusion_err!(
        "COPY: cannot write the temporary file: {error}; free some space, nothing was written"
    )
}
