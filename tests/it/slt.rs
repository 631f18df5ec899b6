//! Every file of `tests/slt`, in a session of its own. `SPARSE_SLT_COMPLETE=1` writes the results into the files instead.

use std::path::Path;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use sparse_operators::{SparseConfig, session_with};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

use crate::support::root;

struct Engine(SessionContext);

/// An error as the command line shows it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl From<DataFusionError> for Failed {
    fn from(error: DataFusionError) -> Self {
        Self(sparse_operators::error::message(&error))
    }
}

#[async_trait]
impl AsyncDB for Engine {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failed> {
        let frame = self.0.sql(sql).await?;
        let types: Vec<DefaultColumnType> = frame
            .schema()
            .fields()
            .iter()
            .map(|field| column_type(field.data_type()))
            .collect();
        let rows = rows(&frame.collect().await?);
        if types.is_empty() {
            return Ok(DBOutput::StatementComplete(rows.len() as u64));
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}
}

fn column_type(ty: &DataType) -> DefaultColumnType {
    match ty {
        ty if ty.is_integer() => DefaultColumnType::Integer,
        ty if ty.is_floating() => DefaultColumnType::FloatingPoint,
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DefaultColumnType::Text,
        _ => DefaultColumnType::Any,
    }
}

fn rows(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let format = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &format).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cell = |column: &ArrayFormatter<'_>| match column.value(row).to_string() {
                empty if empty.is_empty() => "(empty)".to_owned(),
                text => text.replace('\n', "\\n"),
            };
            rows.push(columns.iter().map(cell).collect());
        }
    }
    rows
}

async fn run_file(path: &Path) {
    let cache = tempfile::tempdir().unwrap();
    let config = SparseConfig {
        cache_dir: Some(cache.path().to_path_buf()),
        offline: Some(true),
        ..SparseConfig::default()
    };
    let context = session_with(config);
    let mut runner = Runner::new(|| async { Ok(Engine(context.clone())) });
    if std::env::var_os("SPARSE_SLT_COMPLETE").is_some() {
        let done = runner.update_test_file(
            path,
            " ",
            sqllogictest::default_validator,
            sqllogictest::default_normalizer,
            sqllogictest::default_column_validator,
        );
        done.await.unwrap();
        return;
    }
    if let Err(error) = runner.run_file_async(path).await {
        panic!("{}", error.display(false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file() {
    // Paths in the files are relative to the root of the repository.
    std::env::set_current_dir(root()).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(root().join("tests/slt"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "slt"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        run_file(&file).await;
    }
}
