//! The SAFETENSORS file format: `SELECT ... FROM 'x.safetensors'`, `CREATE EXTERNAL TABLE ... STORED AS SAFETENSORS` and
//! `COPY (...) TO 'y.safetensors'`.

mod sink;
mod source;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{GetExt, Result, Statistics, internal_err, not_impl_err, plan_err};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::{FileFormat, FileFormatFactory};
use datafusion::datasource::physical_plan::{FileScanConfig, FileSinkConfig, FileSource};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::physical_expr::LexRequirement;
use datafusion::physical_plan::ExecutionPlan;
use object_store::{ObjectMeta, ObjectStore};

use crate::tensors;

const EXTENSION: &str = "safetensors";

/// Makes the format from a statement's OPTIONS.
#[derive(Debug, Default)]
pub struct SafetensorsFormatFactory;

impl GetExt for SafetensorsFormatFactory {
    fn get_ext(&self) -> String {
        EXTENSION.to_owned()
    }
}

impl FileFormatFactory for SafetensorsFormatFactory {
    fn create(
        &self,
        _state: &dyn Session,
        options: &HashMap<String, String>,
    ) -> Result<Arc<dyn FileFormat>> {
        Ok(Arc::new(SafetensorsFormat {
            metadata: metadata(options)?,
        }))
    }

    fn default(&self) -> Arc<dyn FileFormat> {
        Arc::new(SafetensorsFormat {
            metadata: Vec::new(),
        })
    }
}

/// The entries of `__metadata__` that OPTIONS ask for. DataFusion hands options over as they are written.
fn metadata(options: &HashMap<String, String>) -> Result<Vec<(String, String)>> {
    let mut metadata = Vec::new();
    for (key, value) in options {
        let plain = key.strip_prefix("format.").unwrap_or(key);
        // A session's own options travel here too.
        if plain.starts_with("execution.") {
            continue;
        }
        match plain.strip_prefix("metadata.") {
            Some(name) if !name.is_empty() => metadata.push((name.to_owned(), value.clone())),
            _ => {
                return plan_err!(
                    "the SAFETENSORS format has no option '{plain}'; it has 'metadata.<key>', such as \
                     OPTIONS ('metadata.format' 'pt')"
                );
            }
        }
    }
    metadata.sort();
    Ok(metadata)
}

/// The schema of every safetensors file.
fn schema() -> SchemaRef {
    let field = |c: &crate::spec::Column| Field::new(c.name, c.ty.data_type(), true);
    Arc::new(Schema::new(
        tensors::COLUMNS.iter().map(field).collect::<Vec<_>>(),
    ))
}

/// The format, with the metadata that written files get.
#[derive(Debug)]
struct SafetensorsFormat {
    metadata: Vec<(String, String)>,
}

#[async_trait]
impl FileFormat for SafetensorsFormat {
    fn get_ext(&self) -> String {
        EXTENSION.to_owned()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> Result<String> {
        match compression.is_compressed() {
            false => Ok(EXTENSION.to_owned()),
            true => internal_err!("the SAFETENSORS format is not compressed"),
        }
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        None
    }

    async fn infer_schema(
        &self,
        _state: &dyn Session,
        _store: &Arc<dyn ObjectStore>,
        _objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        Ok(schema())
    }

    async fn infer_stats(
        &self,
        _state: &dyn Session,
        _store: &Arc<dyn ObjectStore>,
        table_schema: SchemaRef,
        _object: &ObjectMeta,
    ) -> Result<Statistics> {
        Ok(Statistics::new_unknown(&table_schema))
    }

    async fn create_physical_plan(
        &self,
        _state: &dyn Session,
        conf: FileScanConfig,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if conf.file_schema().fields() != schema().fields() {
            return plan_err!(
                "a SAFETENSORS table has the columns name, dtype, shape, params, bytes, file and data; \
                 leave the list of columns out"
            );
        }
        Ok(DataSourceExec::from_data_source(conf))
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        _state: &dyn Session,
        conf: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if conf.original_url.is_empty() {
            return plan_err!(
                "INSERT INTO a SAFETENSORS table is not supported, since a safetensors file is written whole; \
                 use COPY (SELECT ...) TO 'new.safetensors'"
            );
        }
        if conf.insert_op != InsertOp::Append || !conf.table_partition_cols.is_empty() {
            return not_impl_err!("PARTITIONED BY is not supported by the SAFETENSORS format");
        }
        let single = conf
            .table_paths
            .first()
            .is_some_and(|url| conf.file_output_mode.single_file_output(url));
        if !single {
            return plan_err!(
                "COPY writes one safetensors file, and '{}' is a folder; end the path in .safetensors",
                conf.original_url
            );
        }
        check_columns(&input.schema())?;
        let sink = sink::SafetensorsSink::new(conf, self.metadata.clone());
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), order)))
    }

    fn file_source(&self, table_schema: TableSchema) -> Arc<dyn FileSource> {
        Arc::new(source::SafetensorsSource::new(table_schema))
    }
}

/// Checks the columns that COPY is given: name, dtype, shape and data are needed; params, bytes and file follow from them.
fn check_columns(given: &Schema) -> Result<()> {
    const NEEDED: [&str; 4] = ["name", "dtype", "shape", "data"];
    const IMPLIED: [&str; 3] = ["params", "bytes", "file"];
    const HOW: &str = "COPY (SELECT name, dtype, shape, data FROM ...) TO 'x.safetensors'";
    for name in NEEDED {
        let Ok(field) = given.field_with_name(name) else {
            return plan_err!("a safetensors file needs the column '{name}': {HOW}");
        };
        let fits = match (name, field.data_type()) {
            ("shape", DataType::List(item) | DataType::LargeList(item)) => {
                item.data_type().is_integer() || item.data_type().is_null()
            }
            ("shape", DataType::FixedSizeList(item, _)) => item.data_type().is_integer(),
            ("shape", _) => false,
            ("data", ty) => matches!(
                ty,
                DataType::Binary
                    | DataType::LargeBinary
                    | DataType::BinaryView
                    | DataType::FixedSizeBinary(_)
            ),
            (_, DataType::Dictionary(_, value)) => value.is_string(),
            (_, ty) => ty.is_string(),
        };
        if !fits {
            return plan_err!(
                "the column '{name}' of a safetensors file cannot be made from {}; it is {}",
                field.data_type(),
                match name {
                    "shape" => "a list of integers",
                    "data" => "binary",
                    _ => "text",
                }
            );
        }
    }
    for field in given.fields() {
        let name = field.name().as_str();
        if !NEEDED.contains(&name) && !IMPLIED.contains(&name) {
            return plan_err!("a safetensors file has no place for the column '{name}': {HOW}");
        }
    }
    Ok(())
}
