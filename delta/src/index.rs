//! `tensors.parquet`: where every block of every tensor is. One row per block; a tensor that needs no blocks has one row.
//!
//! The file is made small, for it counts in the ratio: no statistics, no page index, no embedded Arrow schema.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Int32Array, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder,
    UInt32Array, UInt64Array, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::DeltaError;
use crate::pipeline::guarded;

/// How a tensor is rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It has no bytes.
    Empty,
    /// It equals its base tensor.
    Same,
    /// It equals the tensor with this number, which comes before it.
    Twin(usize),
    /// It is decoded from blocks.
    Coded(Vec<BlockRow>),
}

/// Where the base tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BaseRef {
    /// There is none.
    None,
    /// The tensor of the same name: in the base's file of the same path if it has it, else wherever it is first.
    SameName,
    /// A tensor by name, first in this file, else anywhere.
    Named { file: Option<String>, name: String },
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorRow {
    pub(crate) file: Arc<str>,
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) base: BaseRef,
    pub(crate) predictor: String,
    /// Bytes of its codec header in the frames.
    pub(crate) header: u64,
    pub(crate) source: Source,
    /// Changed elements, where it is not decoded from blocks.
    pub(crate) changed: u64,
}

/// One block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRow {
    pub(crate) method: Arc<str>,
    pub(crate) changed: u64,
    pub(crate) payload: u32,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) checksum: u64,
}

impl TensorRow {
    pub(crate) fn changed(&self) -> u64 {
        match &self.source {
            Source::Coded(blocks) => blocks.iter().map(|b| b.changed).sum(),
            _ => self.changed,
        }
    }

    /// Bytes stored for it, header aside.
    pub(crate) fn stored(&self) -> u64 {
        match &self.source {
            Source::Coded(blocks) => blocks.iter().map(|b| u64::from(b.length)).sum(),
            _ => 0,
        }
    }

    /// The method of its blocks; "mixed" where they differ.
    pub(crate) fn method(&self) -> String {
        match &self.source {
            Source::Empty => "empty".into(),
            Source::Same => "same".into(),
            Source::Twin(_) => "twin".into(),
            Source::Coded(blocks) => match blocks.split_first() {
                Some((first, rest)) if rest.iter().all(|b| b.method == first.method) => {
                    first.method.to_string()
                }
                _ => "mixed".into(),
            },
        }
    }
}

/// The checksum of a stored block: the first 8 bytes of its BLAKE3, little-endian.
pub(crate) fn checksum(block: &[u8]) -> u64 {
    let hash = blake3::hash(block);
    let mut first = [0_u8; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn schema() -> SchemaRef {
    let list = DataType::List(Arc::new(Field::new("element", DataType::UInt64, false)));
    Arc::new(Schema::new(vec![
        Field::new("file", DataType::Utf8, false),
        Field::new("tensor", DataType::Utf8, false),
        Field::new("dtype", DataType::Utf8, false),
        Field::new("shape", list, false),
        Field::new("base", DataType::Utf8, true),
        Field::new("predictor", DataType::Utf8, false),
        Field::new("header", DataType::UInt32, false),
        Field::new("block", DataType::Int32, false),
        Field::new("method", DataType::Utf8, false),
        Field::new("changed", DataType::UInt64, false),
        Field::new("payload", DataType::UInt32, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("length", DataType::UInt32, false),
        Field::new("checksum", DataType::UInt64, false),
    ]))
}

/// Writes the index. Returns its bytes and the number of rows.
pub(crate) fn write(tensors: &[TensorRow]) -> Result<(Vec<u8>, u64), DeltaError> {
    let internal = |error: parquet::errors::ParquetError| {
        DeltaError::internal(format!("the index could not be made: {error}"))
    };
    let level = ZstdLevel::try_new(12).map_err(internal)?;
    let column = |name: &str| ColumnPath::from(name);
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by("sparse".into())
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_max_row_group_row_count(Some(1 << 20));
    // Dictionary pages pay for the words that repeat; numbers do better without.
    for name in [
        "header", "block", "changed", "payload", "offset", "length", "checksum",
    ] {
        properties = properties.set_column_dictionary_enabled(column(name), false);
    }
    for name in ["offset", "block"] {
        properties = properties.set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED);
    }
    // Few rows: one page holds each column, and a dictionary page would only add its own header.
    let rows: usize = tensors.iter().map(row_count).sum();
    if rows < 4096 {
        properties = properties.set_dictionary_enabled(false);
        for name in [
            "file",
            "tensor",
            "dtype",
            "shape.list.element",
            "base",
            "predictor",
            "method",
        ] {
            properties = properties.set_column_dictionary_enabled(column(name), false);
        }
    }
    let options = ArrowWriterOptions::new()
        .with_properties(properties.build())
        .with_skip_arrow_metadata(true);
    let mut writer =
        ArrowWriter::try_new_with_options(Vec::new(), schema(), options).map_err(internal)?;
    let mut start = 0;
    while start < tensors.len() {
        let mut end = start;
        let mut rows = 0;
        while end < tensors.len() && rows < 65_536 {
            rows += row_count(&tensors[end]);
            end += 1;
        }
        writer
            .write(&batch(&tensors[start..end])?)
            .map_err(internal)?;
        start = end;
    }
    let bytes = writer.into_inner().map_err(internal)?;
    Ok((bytes, rows as u64))
}

fn row_count(tensor: &TensorRow) -> usize {
    match &tensor.source {
        Source::Coded(blocks) => blocks.len(),
        _ => 1,
    }
}

fn batch(tensors: &[TensorRow]) -> Result<RecordBatch, DeltaError> {
    let (mut file, mut name, mut dtype) = (
        StringBuilder::new(),
        StringBuilder::new(),
        StringBuilder::new(),
    );
    let (mut base, mut predictor, mut method) = (
        StringBuilder::new(),
        StringBuilder::new(),
        StringBuilder::new(),
    );
    let element = Field::new("element", DataType::UInt64, false);
    let mut shape = ListBuilder::new(UInt64Builder::new()).with_field(element);
    let (mut header, mut block, mut payload, mut length) = (vec![], vec![], vec![], vec![]);
    let (mut changed, mut offset, mut check) = (vec![], vec![], vec![]);
    for tensor in tensors {
        let whole = BlockRow {
            method: match &tensor.source {
                Source::Empty => "empty".into(),
                Source::Same => "same".into(),
                Source::Twin(_) => "twin".into(),
                Source::Coded(_) => "".into(),
            },
            changed: tensor.changed,
            payload: 0,
            offset: if let Source::Twin(of) = tensor.source {
                of as u64
            } else {
                0
            },
            length: 0,
            checksum: 0,
        };
        let (rows, first) = match &tensor.source {
            Source::Coded(blocks) => (blocks.as_slice(), 0_i32),
            _ => (std::slice::from_ref(&whole), -1),
        };
        for (number, row) in rows.iter().enumerate() {
            file.append_value(&tensor.file);
            name.append_value(&tensor.name);
            dtype.append_value(&tensor.dtype);
            shape.values().append_slice(&tensor.shape);
            shape.append(true);
            match &tensor.base {
                BaseRef::None => base.append_null(),
                BaseRef::SameName => base.append_value(""),
                BaseRef::Named { file: None, name } if !name.contains('\n') => {
                    base.append_value(name)
                }
                BaseRef::Named { file, name } => {
                    base.append_value(format!("{}\n{name}", file.as_deref().unwrap_or("")))
                }
            }
            predictor.append_value(&tensor.predictor);
            let own_header = if number == 0 { tensor.header } else { 0 };
            header.push(
                u32::try_from(own_header)
                    .map_err(|_| DeltaError::internal("a tensor header of over 4 GiB"))?,
            );
            let number = i32::try_from(number)
                .map_err(|_| DeltaError::internal("a tensor of over 2^31 blocks"))?;
            block.push(first + number);
            method.append_value(&row.method);
            changed.push(row.changed);
            payload.push(row.payload);
            offset.push(row.offset);
            length.push(row.length);
            check.push(row.checksum);
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(file.finish()),
        Arc::new(name.finish()),
        Arc::new(dtype.finish()),
        Arc::new(shape.finish()),
        Arc::new(base.finish()),
        Arc::new(predictor.finish()),
        Arc::new(UInt32Array::from(header)),
        Arc::new(Int32Array::from(block)),
        Arc::new(method.finish()),
        Arc::new(UInt64Array::from(changed)),
        Arc::new(UInt32Array::from(payload)),
        Arc::new(UInt64Array::from(offset)),
        Arc::new(UInt32Array::from(length)),
        Arc::new(UInt64Array::from(check)),
    ];
    RecordBatch::try_new(schema(), columns)
        .map_err(|error| DeltaError::internal(format!("the index could not be made: {error}")))
}

/// Reads an index of `rows` rows, and checks everything that can be checked without the files it points to.
pub(crate) fn read(path: &Path, bytes: Vec<u8>, rows: u64) -> Result<Vec<TensorRow>, DeltaError> {
    let corrupt = |problem: String| DeltaError::corrupt(path, problem);
    // Far below what any row costs, so that the row count of a hostile footer allocates nothing.
    if rows > (bytes.len() as u64).saturating_mul(1024) {
        return Err(corrupt("it claims more rows than fit in it".into()));
    }
    let size = bytes.len() as u64;
    // The Parquet reader trusts its input more than we do: a panic in it is a corrupt file.
    let result = guarded(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes))
            .map_err(|e| corrupt(e.to_string()))?;
        let metadata = builder.metadata();
        check_places(metadata, size).map_err(corrupt)?;
        let counted = metadata.file_metadata().num_rows();
        if u64::try_from(counted).ok() != Some(rows) {
            return Err(corrupt(format!(
                "it has {counted} rows where the manifest says {rows}"
            )));
        }
        if builder
            .schema()
            .fields()
            .iter()
            .map(|f| f.name())
            .ne(schema().fields().iter().map(|f| f.name()))
        {
            return Err(corrupt("its columns are not those of an index".into()));
        }
        let reader = builder
            .with_batch_size(65_536)
            .build()
            .map_err(|e| corrupt(e.to_string()))?;
        let mut tensors = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|e| corrupt(e.to_string()))?;
            take(&batch, &mut tensors).map_err(corrupt)?;
        }
        Ok(tensors)
    });
    match result {
        Err(DeltaError::Internal { message }) => Err(corrupt(message)),
        other => other,
    }
}

/// Every column chunk lies in the file; the reader takes that for granted.
fn check_places(metadata: &ParquetMetaData, size: u64) -> Result<(), String> {
    let columns = metadata.row_groups().iter().flat_map(|g| g.columns());
    for column in columns {
        let first = column
            .dictionary_page_offset()
            .unwrap_or(column.data_page_offset());
        let end = u64::try_from(first).ok().and_then(|first| {
            let length = u64::try_from(column.compressed_size()).ok()?;
            first.checked_add(length)
        });
        if end.is_none_or(|end| end > size) {
            return Err("a column of it lies outside of the file".into());
        }
    }
    Ok(())
}

fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, String> {
    let array = batch
        .column_by_name(name)
        .and_then(|c| c.as_any().downcast_ref::<T>());
    let array = array.ok_or_else(|| format!("column {name:?} is missing or of another type"))?;
    if array.null_count() > 0 && name != "base" {
        return Err(format!("column {name:?} has nulls"));
    }
    Ok(array)
}

fn take(batch: &RecordBatch, tensors: &mut Vec<TensorRow>) -> Result<(), String> {
    let text = |name: &str| column::<StringArray>(batch, name);
    let (file, name, dtype) = (text("file")?, text("tensor")?, text("dtype")?);
    let (base, predictor, method) = (text("base")?, text("predictor")?, text("method")?);
    let shape = column::<ListArray>(batch, "shape")?;
    let small = |name: &str| column::<UInt32Array>(batch, name);
    let large = |name: &str| column::<UInt64Array>(batch, name);
    let (header, payload, length) = (small("header")?, small("payload")?, small("length")?);
    let (changed, offset, check) = (large("changed")?, large("offset")?, large("checksum")?);
    let block = column::<Int32Array>(batch, "block")?;
    for row in 0..batch.num_rows() {
        let number = block.value(row);
        let this = BlockRow {
            method: method.value(row).into(),
            changed: changed.value(row),
            payload: payload.value(row),
            offset: offset.value(row),
            length: length.value(row),
            checksum: check.value(row),
        };
        if number > 0 {
            let Some(tensor) = tensors.last_mut() else {
                return Err("it begins in the middle of a tensor".into());
            };
            let Source::Coded(blocks) = &mut tensor.source else {
                return Err(format!("tensor {:?} has stray blocks", tensor.name));
            };
            if usize::try_from(number).ok() != Some(blocks.len())
                || tensor.name != name.value(row)
                || *tensor.file != *file.value(row)
            {
                return Err(format!(
                    "the blocks of tensor {:?} are out of order",
                    tensor.name
                ));
            }
            blocks.push(this);
            continue;
        }
        let source = match (number, &*this.method) {
            (0, _) => Source::Coded(vec![this.clone()]),
            (-1, "empty") => Source::Empty,
            (-1, "same") => Source::Same,
            (-1, "twin") => Source::Twin(usize::try_from(this.offset).map_err(|e| e.to_string())?),
            _ => {
                return Err(format!(
                    "tensor {:?} has block {number} of method {:?}",
                    name.value(row),
                    this.method
                ));
            }
        };
        if let Source::Twin(of) = source
            && (of >= tensors.len() || !matches!(tensors[of].source, Source::Coded(_)))
        {
            return Err(format!(
                "tensor {:?} is said to equal one that cannot be",
                name.value(row)
            ));
        }
        let values = shape.value(row);
        let values = values
            .as_any()
            .downcast_ref::<UInt64Array>()
            .ok_or("column \"shape\" is of another type")?;
        let file: Arc<str> = match tensors.last() {
            Some(last) if *last.file == *file.value(row) => Arc::clone(&last.file),
            _ => file.value(row).into(),
        };
        tensors.push(TensorRow {
            file,
            name: name.value(row).into(),
            dtype: dtype.value(row).into(),
            shape: values.iter().map(|v| v.unwrap_or(0)).collect(),
            base: base_ref(base.is_valid(row).then(|| base.value(row))),
            predictor: predictor.value(row).into(),
            header: u64::from(header.value(row)),
            changed: if matches!(source, Source::Coded(_)) {
                0
            } else {
                this.changed
            },
            source,
        });
    }
    Ok(())
}

fn base_ref(text: Option<&str>) -> BaseRef {
    match text {
        None => BaseRef::None,
        Some("") => BaseRef::SameName,
        Some(text) => match text.split_once('\n') {
            Some((file, name)) => BaseRef::Named {
                file: (!file.is_empty()).then(|| file.into()),
                name: name.into(),
            },
            None => BaseRef::Named {
                file: None,
                name: text.into(),
            },
        },
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    fn tensors(count: usize) -> Vec<TensorRow> {
        (0..count)
            .map(|i| TensorRow {
                file: "model.safetensors".into(),
                name: format!("model.layers.{}.self_attn.q_proj.weight", i),
                dtype: "BF16".into(),
                shape: vec![1024, 384],
                base: match i % 4 {
                    0 => BaseRef::None,
                    1 => BaseRef::Named {
                        file: None,
                        name: "x".into(),
                    },
                    2 => BaseRef::Named {
                        file: Some("a/b".into()),
                        name: "y\nz".into(),
                    },
                    _ => BaseRef::SameName,
                },
                predictor: "base".into(),
                header: (i % 3) as u64,
                changed: if i % 5 == 1 { 3 } else { 0 },
                source: match i % 5 {
                    1 => Source::Same,
                    2 => Source::Twin(i - 2),
                    3 => Source::Empty,
                    _ => Source::Coded(
                        (0..=i % 3)
                            .map(|b| BlockRow {
                                method: "delta".into(),
                                changed: b as u64,
                                payload: 0,
                                offset: (i * 1000 + b) as u64,
                                length: 17,
                                checksum: checksum(&b.to_le_bytes()),
                            })
                            .collect(),
                    ),
                },
            })
            .collect()
    }

    #[test]
    fn an_index_reads_back() {
        for count in [0, 1, 20, 6000] {
            let tensors = tensors(count);
            let (bytes, rows) = write(&tensors).unwrap();
            assert_eq!(read(Path::new("i"), bytes, rows).unwrap(), tensors);
        }
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        let (bytes, rows) = write(&tensors(20)).unwrap();
        assert!(read(Path::new("i"), bytes.clone(), rows + 1).is_err());
        assert!(read(Path::new("i"), Vec::new(), 0).is_err());
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            // Whatever it says, it returns.
            drop(read(Path::new("i"), damaged, rows));
            drop(read(Path::new("i"), bytes[..at].to_vec(), rows));
        }
    }

    #[test]
    fn twins_must_come_after_what_they_equal() {
        let mut tensors = tensors(3);
        tensors[2].source = Source::Twin(2);
        let (bytes, rows) = write(&tensors).unwrap();
        assert!(read(Path::new("i"), bytes, rows).is_err());
    }
}
