//! Where a Parquet file has the metadata of its schema: in its own list of keys and values, in the Arrow schema it carries, or
//! in both, as pyarrow has it. Readers differ in where they look.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, parquet_to_arrow_schema};
use parquet::file::metadata::KeyValue;
use serde::{Deserialize, Serialize};

use crate::DatasetError;
use crate::error::During as _;
use crate::input::guarded;

/// Keys of a schema's metadata that the Parquet files of a split have in one place only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataPlaces {
    /// Those that the Arrow schema has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file: Vec<String>,
    /// Those that the file's own list has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schema: Vec<String>,
}

impl MetadataPlaces {
    /// Whether every key is in both places.
    pub(crate) fn is_both(&self) -> bool {
        self.file.is_empty() && self.schema.is_empty()
    }

    /// Those of a file. One without an Arrow schema has one list, which then goes for both.
    pub(crate) fn of(path: &Path) -> Result<Self, DatasetError> {
        guarded(path, || Self::read(path))
    }

    fn read(path: &Path) -> Result<Self, DatasetError> {
        let file = File::open(path).during("open", path)?;
        let bad = |error| DatasetError::data(path.display().to_string(), error);
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(bad)?;
        let metadata = reader.metadata().file_metadata();
        let Some(list) = metadata.key_value_metadata() else {
            return Ok(Self::default());
        };
        let Some(carried) = list.iter().find(|kv| kv.key == ARROW_SCHEMA_META_KEY) else {
            return Ok(Self::default());
        };
        let carried = vec![carried.clone()];
        let schema =
            parquet_to_arrow_schema(metadata.schema_descr(), Some(&carried)).map_err(bad)?;
        let all = reader.schema().metadata();
        let listed = |key: &str| list.iter().any(|kv| kv.key == key && kv.value.is_some());
        let missing = |has: &dyn Fn(&str) -> bool| {
            let mut keys: Vec<String> = all.keys().filter(|key| !has(key)).cloned().collect();
            keys.sort();
            keys
        };
        Ok(Self {
            file: missing(&|key| schema.metadata().contains_key(key)),
            schema: missing(&listed),
        })
    }

    /// A schema as the file carries it, and the list of its own.
    pub(crate) fn split(&self, schema: &SchemaRef) -> (SchemaRef, Vec<KeyValue>) {
        let has = |keys: &[String], key: &String| keys.contains(key);
        let carried: HashMap<String, String> = schema
            .metadata()
            .iter()
            .filter(|(key, _)| !has(&self.file, key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut list: Vec<KeyValue> = schema
            .metadata()
            .iter()
            .filter(|(key, _)| !has(&self.schema, key))
            .map(|(key, value)| KeyValue::new(key.clone(), value.clone()))
            .collect();
        list.sort_by(|a, b| a.key.cmp(&b.key));
        let carried = Schema::new_with_metadata(schema.fields().clone(), carried);
        (std::sync::Arc::new(carried), list)
    }
}
