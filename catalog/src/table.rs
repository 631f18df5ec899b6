//! Tables as catalogs: Parquet, CSV and JSON-lines files with a column `model`, and perhaps `base` and `relation`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::csv;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::json;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sparse_store::{Location, StoreError};

use crate::CatalogError;
use crate::entry::{DeclaredIn, ModelEntry, Source};
use crate::weights::io;

/// Endings of tables.
const ENDINGS: [&str; 4] = ["parquet", "csv", "jsonl", "ndjson"];

/// Whether a path is one of a table.
pub(crate) fn is_table(path: &Path) -> bool {
    ending(path).is_some()
}

fn ending(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?;
    let found = ENDINGS
        .into_iter()
        .find(|ending| extension.eq_ignore_ascii_case(ending))?;
    (!path.is_dir()).then_some(found)
}

/// The models of a table, in its order. Relative paths are taken from the current folder, as everywhere; where nothing is there, from
/// the table's.
pub(crate) fn read(path: &Path) -> Result<Vec<ModelEntry>, CatalogError> {
    let invalid = |error: ArrowError| {
        CatalogError::usage(format!(
            "{} cannot be read as a table: {error}",
            path.display()
        ))
    };
    let batches = batches(path)?.map_err(invalid)?;
    let mut entries = Vec::new();
    for batch in &batches {
        let models = text(batch, "model").map_err(invalid)?.ok_or_else(|| {
            CatalogError::usage(format!(
                "{} has no column 'model'; a catalog has a column model, and perhaps base and relation",
                path.display()
            ))
        })?;
        let bases = text(batch, "base").map_err(invalid)?;
        let relations = text(batch, "relation").map_err(invalid)?;
        let value =
            |column: &Option<Vec<Option<String>>>, row: usize| column.as_ref()?.get(row)?.clone();
        for (row, model) in models.iter().enumerate() {
            let Some(model) = model else { continue };
            let mut entry = ModelEntry::new(model.clone(), Source::Table);
            entry.base = value(&bases, row);
            entry.relation = value(&relations, row);
            entry.declared_in = entry.base.is_some().then_some(DeclaredIn::Catalog);
            entry.path = local(model, path);
            if entry.path.is_none()
                && matches!(Location::parse(model), Ok(Location::Local(_)) | Err(_))
            {
                entry.problem = Some("it does not exist".to_owned());
            }
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Where a model is on this machine.
fn local(model: &str, table: &Path) -> Option<PathBuf> {
    let given = match Location::parse(model).ok()? {
        Location::Local(path) => path,
        // A relative path that looks like a Hub id.
        Location::Hub { .. } => PathBuf::from(model),
        Location::Url(_) => return None,
    };
    let beside = table.parent().unwrap_or(Path::new(".")).join(&given);
    [given, beside].into_iter().find(|path| path.exists())
}

fn batches(path: &Path) -> Result<Result<Vec<RecordBatch>, ArrowError>, CatalogError> {
    let open = || File::open(path).map_err(|error| io("open", path, error));
    if !path.exists() {
        return Err(StoreError::NotFound {
            what: format!("the catalog {}", path.display()),
            remedy: "check the path".to_owned(),
        }
        .into());
    }
    let file = open()?;
    Ok(match ending(path) {
        Some("parquet") => ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.build())
            .map_err(ArrowError::from)
            .and_then(Iterator::collect),
        Some("csv") => {
            let format = csv::reader::Format::default().with_header(true);
            format.infer_schema(open()?, None).and_then(|(schema, _)| {
                csv::ReaderBuilder::new(Arc::new(schema))
                    .with_format(format)
                    .build(file)?
                    .collect()
            })
        }
        _ => json::reader::infer_json_schema(BufReader::new(open()?), None).and_then(
            |(schema, _)| {
                json::ReaderBuilder::new(Arc::new(schema))
                    .build(BufReader::new(file))?
                    .collect()
            },
        ),
    })
}

/// A column as text; none if it is not there. Empty text is no value.
fn text(batch: &RecordBatch, name: &str) -> Result<Option<Vec<Option<String>>>, ArrowError> {
    let Some(column) = batch.column_by_name(name) else {
        return Ok(None);
    };
    let column = cast(column, &DataType::Utf8)?;
    let column = column.as_string::<i32>();
    let value = |row: usize| {
        let text = column.is_valid(row).then(|| column.value(row).trim());
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    Ok(Some((0..column.len()).map(value).collect()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn tables_of_every_kind() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("m")).unwrap();
        let csv = dir.path().join("a.csv");
        std::fs::write(
            &csv,
            "model,base,note\nm,org/base,1\norg/other,,2\n./gone,,3\n",
        )
        .unwrap();
        let lines = dir.path().join("a.jsonl");
        std::fs::write(
            &lines,
            "{\"model\": \"m\", \"base\": \"org/base\"}\n{\"model\": \"org/other\"}\n{\"model\": \"./gone\"}\n",
        )
        .unwrap();
        let parquet = dir.path().join("a.parquet");
        let batch = &batches(&csv).unwrap().unwrap()[0];
        let file = File::create(&parquet).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
        for table in [csv, lines, parquet] {
            assert!(is_table(&table));
            let entries = read(&table).unwrap();
            assert_eq!(entries.len(), 3, "{entries:?}");
            assert_eq!(entries[0].base.as_deref(), Some("org/base"));
            assert_eq!(entries[0].path, Some(dir.path().join("m")));
            assert_eq!(
                (&entries[1].base, &entries[1].path, &entries[1].problem),
                (&None, &None, &None)
            );
            assert!(entries[2].problem.is_some());
        }
        let other = dir.path().join("b.csv");
        std::fs::write(&other, "name\nx\n").unwrap();
        assert!(
            read(&other)
                .unwrap_err()
                .to_string()
                .contains("no column 'model'")
        );
        std::fs::write(dir.path().join("c.parquet"), "no parquet").unwrap();
        assert!(
            read(&dir.path().join("c.parquet"))
                .unwrap_err()
                .to_string()
                .contains("c.parquet")
        );
        assert_eq!(read(&dir.path().join("d.csv")).unwrap_err().exit_code(), 6);
    }
}
