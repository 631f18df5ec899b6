//! Files of rows, written.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, IntervalUnit, SchemaRef};
use arrow::ipc::writer::{FileWriter, StreamWriter};
use arrow::json::LineDelimitedWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::DatasetError;
use crate::error::During;
use crate::input::Format;
use crate::places::MetadataPlaces;

/// Level of zstd in Parquet files: what pyarrow and parquet-rs take unless told otherwise. Level 3 took two fifths longer on a
/// generated dataset, for two hundredths of the bytes.
const LEVEL: i32 = 1;

/// Whether any part of a schema fits.
fn any(schema: &SchemaRef, fits: &dyn Fn(&DataType) -> bool) -> bool {
    fn within(ty: &DataType, fits: &dyn Fn(&DataType) -> bool) -> bool {
        fits(ty)
            || match ty {
                DataType::List(field)
                | DataType::LargeList(field)
                | DataType::ListView(field)
                | DataType::LargeListView(field)
                | DataType::FixedSizeList(field, _)
                | DataType::Map(field, _) => within(field.data_type(), fits),
                DataType::Struct(fields) => fields.iter().any(|f| within(f.data_type(), fits)),
                DataType::Dictionary(_, values) => within(values, fits),
                DataType::RunEndEncoded(_, values) => within(values.data_type(), fits),
                _ => false,
            }
    }
    schema
        .fields()
        .iter()
        .any(|field| within(field.data_type(), fits))
}

/// Whether a Parquet file keeps every type of a schema.
pub(crate) fn parquet_keeps(schema: &SchemaRef) -> bool {
    !schema.fields().is_empty()
        && !any(schema, &|ty| match ty {
            DataType::RunEndEncoded(_, _)
            | DataType::ListView(_)
            | DataType::LargeListView(_)
            | DataType::Interval(IntervalUnit::MonthDayNano) => true,
            DataType::Struct(fields) => fields.is_empty(),
            _ => false,
        })
}

/// Whether a schema has dictionaries.
pub(crate) fn has_dictionary(schema: &SchemaRef) -> bool {
    any(schema, &|ty| matches!(ty, DataType::Dictionary(_, _)))
}

/// The BLAKE3 of a file, in hexadecimal.
pub(crate) fn hash_of(path: &Path) -> Result<String, DatasetError> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).during("read", path)?;
    hasher.update_reader(file).during("read", path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Makes a file, or only its bytes; their BLAKE3.
pub(crate) fn make(
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn std::io::Write) -> Result<(), DatasetError>,
) -> Result<String, DatasetError> {
    let Some(path) = path else {
        let mut hasher = blake3::Hasher::new();
        write(&mut hasher)?;
        return Ok(hasher.finalize().to_hex().to_string());
    };
    let mut file = create(path)?;
    write(&mut file)?;
    file.flush().during("write", path)?;
    hash_of(path)
}

fn create(path: &Path) -> Result<BufWriter<File>, DatasetError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).during("create", folder)?;
    }
    Ok(BufWriter::new(File::create(path).during("create", path)?))
}

/// A file in the making.
pub(crate) enum Writer {
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Arrow(Box<FileWriter<BufWriter<File>>>),
    ArrowStream(Box<StreamWriter<BufWriter<File>>>),
    Csv(Box<arrow::csv::Writer<BufWriter<File>>>),
    Jsonl(Box<LineDelimitedWriter<BufWriter<File>>>),
}

impl Writer {
    pub(crate) fn create(
        path: &Path,
        format: Format,
        schema: &SchemaRef,
        places: &MetadataPlaces,
    ) -> Result<Self, DatasetError> {
        let file = create(path)?;
        Ok(match format {
            Format::Parquet => {
                let (carried, list) = places.split(schema);
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?))
                    .set_key_value_metadata((!list.is_empty()).then_some(list))
                    .build();
                Self::Parquet(Box::new(ArrowWriter::try_new(
                    file,
                    carried,
                    Some(properties),
                )?))
            }
            Format::Arrow => Self::Arrow(Box::new(FileWriter::try_new(file, schema)?)),
            Format::ArrowStream => {
                Self::ArrowStream(Box::new(StreamWriter::try_new(file, schema)?))
            }
            Format::Csv => Self::Csv(Box::new(
                arrow::csv::WriterBuilder::new()
                    .with_header(true)
                    .build(file),
            )),
            Format::Jsonl => Self::Jsonl(Box::new(LineDelimitedWriter::new(file))),
        })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), DatasetError> {
        match self {
            Self::Parquet(writer) => writer.write(batch)?,
            Self::Arrow(writer) => writer.write(batch)?,
            Self::ArrowStream(writer) => writer.write(batch)?,
            Self::Csv(writer) => writer.write(batch)?,
            Self::Jsonl(writer) => writer.write(batch)?,
        }
        Ok(())
    }

    pub(crate) fn finish(self, path: &Path) -> Result<(), DatasetError> {
        match self {
            Self::Parquet(writer) => {
                writer.close()?;
            }
            Self::Arrow(mut writer) => writer.finish()?,
            Self::ArrowStream(mut writer) => writer.finish()?,
            Self::Csv(writer) => writer.into_inner().flush().during("write", path)?,
            Self::Jsonl(mut writer) => {
                writer.finish()?;
                writer.into_inner().flush().during("write", path)?;
            }
        }
        Ok(())
    }
}
