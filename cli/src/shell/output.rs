//! Rows on standard output: a table, CSV or JSON lines.

use std::io::{self, Write as _};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use sparse_pipelines::{Sink, Stage, StageReport, StageStatus};

use crate::args::Format;

/// Rows of one table; more rows begin another, so that memory stays bounded.
const TABLE_ROWS: usize = 10_000;
/// Bytes of a binary value that a table shows; more are told by their number.
const SHOWN_BYTES: usize = 16;

/// Prints rows as they come.
pub(crate) struct Printer {
    format: Format,
    timed: bool,
    schema: Option<SchemaRef>,
    kept: Vec<RecordBatch>,
    rows: usize,
    tables: usize,
}

impl Printer {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            timed: false,
            schema: None,
            kept: Vec::new(),
            rows: 0,
            tables: 0,
        }
    }

    /// Whether rows and time are told after a statement.
    pub(crate) fn timed(mut self, timed: bool) -> Self {
        self.timed = timed;
        self
    }

    fn flush_table(&mut self) -> io::Result<()> {
        let batches = std::mem::take(&mut self.kept);
        self.rows = 0;
        self.tables += 1;
        let text = pretty_format_batches(&batches).map_err(io::Error::other)?;
        writeln!(io::stdout(), "{text}")
    }
}

impl Sink for Printer {
    fn begin(&mut self, _: &Stage, schema: &SchemaRef) -> io::Result<()> {
        let columns = !schema.fields().is_empty();
        self.schema = columns.then(|| Arc::clone(schema));
        (self.rows, self.tables) = (0, 0);
        self.kept.clear();
        if self.format == Format::Csv && columns {
            let names: Vec<String> = schema.fields().iter().map(|f| quoted(f.name())).collect();
            writeln!(io::stdout(), "{}", names.join(","))?;
        }
        Ok(())
    }

    fn batch(&mut self, _: &Stage, batch: &RecordBatch) -> io::Result<()> {
        if batch.num_columns() == 0 {
            return Ok(());
        }
        match self.format {
            Format::Table => {
                let shown = readable(batch, Some(SHOWN_BYTES)).map_err(io::Error::other)?;
                self.rows += shown.num_rows();
                self.kept.push(shown);
                if self.rows >= TABLE_ROWS {
                    self.flush_table()?;
                }
            }
            Format::Csv => {
                let plain = readable(batch, None).map_err(io::Error::other)?;
                let mut bytes = Vec::new();
                let mut writer = WriterBuilder::new().with_header(false).build(&mut bytes);
                writer.write(&plain).map_err(io::Error::other)?;
                drop(writer);
                io::stdout().write_all(&bytes)?;
            }
            Format::Json => {
                let mut bytes = Vec::new();
                let mut writer = LineDelimitedWriter::new(&mut bytes);
                writer.write(batch).map_err(io::Error::other)?;
                writer.finish().map_err(io::Error::other)?;
                drop(writer);
                io::stdout().write_all(&bytes)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, _: &Stage, report: &StageReport) -> io::Result<()> {
        let schema = self.schema.take();
        if self.format == Format::Table && report.status == StageStatus::Succeeded {
            if let Some(schema) = schema
                && self.kept.is_empty()
                && self.tables == 0
            {
                self.kept.push(RecordBatch::new_empty(schema));
            }
            if !self.kept.is_empty() {
                self.flush_table()?;
            }
            if self.timed {
                let seconds = report.elapsed.as_secs_f64();
                writeln!(io::stdout(), "{} rows in {seconds:.3} s", report.rows)?;
            }
        }
        io::stdout().flush()
    }
}

fn quoted(name: &str) -> String {
    if name.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

/// Columns that are lists, structs or bytes, as text: CSV has no other form, and a table no room. Bytes beyond `limit` are
/// told by their number.
fn readable(batch: &RecordBatch, limit: Option<usize>) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let binary = matches!(
            column.data_type(),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView
        );
        if !binary && !column.data_type().is_nested() {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
            continue;
        }
        let texts = if binary {
            shortened(column, limit)?
        } else {
            let formatter = ArrayFormatter::try_new(column.as_ref(), &FormatOptions::default())?;
            (0..column.len())
                .map(|row| {
                    column
                        .is_valid(row)
                        .then(|| formatter.value(row).to_string())
                })
                .collect()
        };
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(Arc::new(texts));
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

fn shortened(column: &ArrayRef, limit: Option<usize>) -> Result<StringArray, ArrowError> {
    let column = arrow::compute::cast(column, &DataType::LargeBinary)?;
    let Some(values) = column
        .as_any()
        .downcast_ref::<arrow::array::LargeBinaryArray>()
    else {
        return Err(ArrowError::CastError("bytes".to_owned()));
    };
    Ok(values
        .iter()
        .map(|value| {
            value.map(|bytes| match limit {
                Some(limit) if bytes.len() > limit => format!("<{} bytes>", bytes.len()),
                _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_lists_become_text() -> Result<(), ArrowError> {
        let bytes = arrow::array::BinaryArray::from(vec![&b"\x01\x02"[..], &[0; 100][..]]);
        let batch = RecordBatch::try_from_iter([("data", Arc::new(bytes) as ArrayRef)])?;
        let text = |batch: RecordBatch| {
            let column = Arc::clone(batch.column(0));
            let column = column.as_any().downcast_ref::<StringArray>();
            column.map(|c| (c.value(0).to_owned(), c.value(1).len()))
        };
        assert_eq!(
            text(readable(&batch, Some(16))?),
            Some(("0102".to_owned(), "<100 bytes>".len()))
        );
        assert_eq!(
            text(readable(&batch, None)?),
            Some(("0102".to_owned(), 200))
        );
        Ok(())
    }
}
