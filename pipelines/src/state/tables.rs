//! The history as SQL tables: `sparse_runs`, `sparse_stages`, `sparse_items`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
    TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use rusqlite::types::Value;

use super::State;

/// Their names.
pub(crate) const TABLES: [&str; 3] = ["sparse_runs", "sparse_stages", "sparse_items"];

#[derive(Clone, Copy, Debug)]
enum Type {
    Text,
    Int,
    Real,
    Time,
}

impl Type {
    fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Real => DataType::Float64,
            Self::Time => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        }
    }
}

type Column = (&'static str, Type, &'static str);

const RUNS: &[Column] = &[
    ("run", Type::Text, "id"),
    ("pipeline", Type::Text, "pipeline"),
    ("status", Type::Text, "status"),
    ("trigger", Type::Text, "trigger"),
    ("scheduled_at", Type::Time, "scheduled_ms"),
    ("started_at", Type::Time, "started_ms"),
    ("ended_at", Type::Time, "ended_ms"),
    ("seconds", Type::Real, "(ended_ms - started_ms) / 1000.0"),
    ("params", Type::Text, "params"),
    ("version", Type::Text, "version"),
    ("error", Type::Text, "error"),
];

const STAGES: &[Column] = &[
    ("run", Type::Text, "run"),
    ("pipeline", Type::Text, "pipeline"),
    ("stage", Type::Text, "stage"),
    ("status", Type::Text, "status"),
    ("reason", Type::Text, "reason"),
    ("started_at", Type::Time, "started_ms"),
    ("ended_at", Type::Time, "ended_ms"),
    ("seconds", Type::Real, "(ended_ms - started_ms) / 1000.0"),
    ("items", Type::Int, "items"),
    ("items_done", Type::Int, "items_done"),
    ("items_skipped", Type::Int, "items_skipped"),
    ("items_failed", Type::Int, "items_failed"),
    ("rows", Type::Int, "rows"),
    ("error", Type::Text, "error"),
];

const ITEMS: &[Column] = &[
    ("run", Type::Text, "run"),
    ("pipeline", Type::Text, "pipeline"),
    ("stage", Type::Text, "stage"),
    ("item", Type::Text, "item"),
    ("attempt", Type::Int, "attempt"),
    ("status", Type::Text, "status"),
    ("reason", Type::Text, "reason"),
    ("started_at", Type::Time, "started_ms"),
    ("ended_at", Type::Time, "ended_ms"),
    ("seconds", Type::Real, "(ended_ms - started_ms) / 1000.0"),
    ("rows", Type::Int, "rows"),
    (
        "input_bytes",
        Type::Int,
        "(SELECT sum(input_bytes) FROM bytes WHERE attempt = attempts.id)",
    ),
    (
        "delta_bytes",
        Type::Int,
        "(SELECT sum(delta_bytes) FROM bytes WHERE attempt = attempts.id)",
    ),
    ("key", Type::Text, "key"),
    ("error", Type::Text, "error"),
];

/// Registers the tables in a session. They are read when they are scanned.
pub fn register(context: &SessionContext, state: &Arc<State>) -> Result<()> {
    let sources = [
        ("runs ORDER BY started_ms", RUNS),
        ("stages ORDER BY started_ms", STAGES),
        ("attempts ORDER BY id", ITEMS),
    ];
    for (name, (from, columns)) in TABLES.into_iter().zip(sources) {
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, ty, _)| Field::new(*name, ty.data_type(), true))
            .collect();
        let table = History {
            state: Arc::clone(state),
            from,
            columns,
            schema: Arc::new(Schema::new(fields)),
        };
        context.register_table(name, Arc::new(table))?;
    }
    Ok(())
}

#[derive(Debug)]
struct History {
    state: Arc<State>,
    from: &'static str,
    columns: &'static [Column],
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for History {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = self.read()?;
        let scan =
            MemorySourceConfig::try_new_exec(&[vec![batch]], self.schema(), projection.cloned())?;
        Ok(scan)
    }
}

impl History {
    fn read(&self) -> Result<RecordBatch> {
        let expressions: Vec<&str> = self.columns.iter().map(|(.., sql)| *sql).collect();
        let sql = format!("SELECT {} FROM {}", expressions.join(", "), self.from);
        let mut values: Vec<Vec<Value>> = vec![Vec::new(); self.columns.len()];
        self.state
            .with(|c| {
                let mut query = c.prepare_cached(&sql)?;
                let mut rows = query.query([])?;
                while let Some(row) = rows.next()? {
                    for (at, column) in values.iter_mut().enumerate() {
                        column.push(row.get(at)?);
                    }
                }
                Ok(())
            })
            .map_err(|error| exec_datafusion_err!("{error}"))?;
        let rows = values.first().map_or(0, Vec::len);
        let arrays: Vec<ArrayRef> = self
            .columns
            .iter()
            .zip(values)
            .map(|((_, ty, _), values)| array(*ty, values))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(
            self.schema(),
            arrays,
            &options,
        )?)
    }
}

fn array(ty: Type, values: Vec<Value>) -> ArrayRef {
    let int = |value: &Value| match value {
        Value::Integer(number) => Some(*number),
        _ => None,
    };
    match ty {
        Type::Text => Arc::new(
            values
                .into_iter()
                .map(|value| match value {
                    Value::Text(text) => Some(text),
                    _ => None,
                })
                .collect::<StringArray>(),
        ),
        Type::Int => Arc::new(values.iter().map(int).collect::<Int64Array>()),
        Type::Real => Arc::new(
            values
                .iter()
                .map(|value| match value {
                    Value::Real(number) => Some(*number),
                    _ => None,
                })
                .collect::<Float64Array>(),
        ),
        Type::Time => Arc::new(
            values
                .iter()
                .map(int)
                .collect::<TimestampMillisecondArray>()
                .with_timezone("UTC"),
        ),
    }
}
