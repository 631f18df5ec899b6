//! One try of one stage, for one item: its statements in a session of their own. What it makes becomes visible at its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::physical_plan::metrics::MetricValue;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use futures::StreamExt as _;
use sparse_store::{Location, Replace, Staged};

use crate::analysis::Kind;
use crate::fingerprint;
use crate::state::{Bytes, Measured, Outcome, Table};
use crate::{Script, Stage};

/// What one try did.
pub(crate) struct Tried {
    pub(crate) outcome: Outcome,
    pub(crate) measured: Measured,
    /// Files to be renamed to their places.
    copies: Vec<Staged>,
    /// What it writes elsewhere.
    outputs: Vec<String>,
}

/// Where a try works.
pub(crate) struct Place<'a> {
    /// The folder of the state.
    pub(crate) state: &'a Path,
    /// The folder for its tables, below `state`.
    pub(crate) folder: PathBuf,
    /// The table of its last query.
    pub(crate) table: &'a str,
}

fn exec(message: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Execution(message.to_string())
}

fn store(error: sparse_store::StoreError) -> DataFusionError {
    DataFusionError::External(Box::new(sparse_delta::DeltaError::Store(error)))
}

/// Runs the statements.
pub(crate) async fn attempt(
    context: &SessionContext,
    script: &Script,
    kinds: &[Kind],
    place: &Place<'_>,
    outputs: Vec<String>,
) -> Result<Tried, DataFusionError> {
    let mut tried = Tried {
        outcome: Outcome::default(),
        measured: Measured::default(),
        copies: Vec::new(),
        outputs,
    };
    let last_query = kinds.iter().rposition(|kind| *kind == Kind::Query);
    for (at, (stage, kind)) in script.stages().iter().zip(kinds).enumerate() {
        let table = match kind {
            Kind::Query if last_query == Some(at) => Some(place.table),
            Kind::Table(name) => Some(name.as_str()),
            _ => None,
        };
        match kind {
            Kind::Query | Kind::Table(_) => {
                rows(context, stage, table, place, &mut tried).await?;
            }
            Kind::Copy => copy(context, stage, &mut tried).await?,
            Kind::Declare(_) | Kind::Set => {
                plain(context, stage.statement.clone(), &mut tried).await?;
                tried.outcome.declares.push(stage.statement.to_string());
            }
            Kind::Other => plain(context, stage.statement.clone(), &mut tried).await?,
        }
    }
    Ok(tried)
}

/// A statement whose rows, if it has any, are dropped.
async fn plain(
    context: &SessionContext,
    statement: Statement,
    tried: &mut Tried,
) -> Result<(), DataFusionError> {
    let plan = context.state().statement_to_plan(statement).await?;
    let frame = context.execute_logical_plan(plan).await?;
    let plan = frame.create_physical_plan().await?;
    let mut stream = execute_stream(Arc::clone(&plan), context.task_ctx())?;
    while let Some(batch) = stream.next().await {
        batch?;
    }
    tried.measure(&plan);
    Ok(())
}

/// A query: its rows go to a Parquet file, where they become a table.
async fn rows(
    context: &SessionContext,
    stage: &Stage,
    table: Option<&str>,
    place: &Place<'_>,
    tried: &mut Tried,
) -> Result<(), DataFusionError> {
    let query = match &stage.statement {
        // Planned as a query: what CREATE TABLE would keep in memory goes to the file.
        Statement::Statement(sql) => match sql.as_ref() {
            Sql::CreateTable(create) => match &create.query {
                Some(query) => Statement::Statement(Box::new(Sql::Query(query.clone()))),
                None => stage.statement.clone(),
            },
            _ => stage.statement.clone(),
        },
        other => other.clone(),
    };
    let plan = context.state().statement_to_plan(query).await?;
    let frame = context.execute_logical_plan(plan).await?;
    let plan = frame.create_physical_plan().await?;
    let schema = plan.schema();
    let Some(table) = table.filter(|_| !schema.fields().is_empty()) else {
        let mut stream = execute_stream(Arc::clone(&plan), context.task_ctx())?;
        while let Some(batch) = stream.next().await {
            tried.outcome.rows += batch?.num_rows() as u64;
        }
        tried.measure(&plan);
        return Ok(());
    };
    let io = |error: std::io::Error| {
        exec(format!(
            "cannot write the rows of {table}: {error}; check free space"
        ))
    };
    let folder = place.state.join(&place.folder);
    std::fs::create_dir_all(&folder).map_err(io)?;
    let file = place.folder.join(format!("{}.parquet", file_name(table)));
    let path = place.state.join(&file);
    let mut writer = Rows::new(&path, &schema).map_err(io)?;
    let mut stream = execute_stream(Arc::clone(&plan), context.task_ctx())?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        tried.outcome.rows += batch.num_rows() as u64;
        writer.write(&batch)?;
    }
    writer.finish().map_err(io)?;
    tried.measure(&plan);
    let made = Table {
        name: table.to_owned(),
        file: file.to_string_lossy().into_owned(),
        hash: sparse_store::hash::blake3_file(&path).map_err(store)?,
    };
    register_files(context, table, &[path]).await?;
    tried.outcome.tables.push(made);
    Ok(())
}

/// A table's name as a file's.
fn file_name(table: &str) -> String {
    let plain = table
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match plain {
        true => table.to_owned(),
        false => fingerprint::text(table),
    }
}

struct Rows(ArrowWriter<std::fs::File>);

impl Rows {
    fn new(path: &Path, schema: &SchemaRef) -> std::io::Result<Self> {
        let zstd = ZstdLevel::try_new(3).map_err(std::io::Error::other)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(zstd))
            .build();
        let file = std::fs::File::create(path)?;
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties))
            .map_err(std::io::Error::other)?;
        Ok(Self(writer))
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), DataFusionError> {
        self.0
            .write(batch)
            .map_err(|error| exec(format!("cannot keep the rows: {error}")))
    }

    fn finish(self) -> std::io::Result<()> {
        self.0
            .into_inner()
            .map_err(std::io::Error::other)?
            .sync_all()
    }
}

/// COPY: written under a temporary name beside the target, so that a kill leaves the old file or the new.
async fn copy(
    context: &SessionContext,
    stage: &Stage,
    tried: &mut Tried,
) -> Result<(), DataFusionError> {
    let Statement::CopyTo(statement) = &stage.statement else {
        return plain(context, stage.statement.clone(), tried).await;
    };
    let mut statement = statement.clone();
    let Location::Local(target) = Location::parse(&statement.target).map_err(store)? else {
        // An object appears as a whole when its upload ends.
        return plain(context, stage.statement.clone(), tried).await;
    };
    let extension = target.extension().map(|e| e.to_string_lossy().into_owned());
    let staged = match &extension {
        Some(_) => Staged::file(&target),
        None => Staged::dir(&target),
    }
    .map_err(store)?;
    // DataFusion tells a file from a folder, and its format, by the extension.
    let written = match &extension {
        Some(extension) => staged.path().with_file_name(format!(
            "{}.{extension}",
            staged
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        )),
        None => staged.path().to_owned(),
    };
    let remove = Remove(extension.is_some().then(|| written.clone()));
    statement.target = written.to_string_lossy().into_owned();
    if extension.is_none() {
        statement.target.push('/');
    }
    plain(context, Statement::CopyTo(statement), tried).await?;
    if extension.is_some() {
        if written.exists() {
            std::fs::rename(&written, staged.path())
                .map_err(|error| exec(format!("cannot write {}: {error}", target.display())))?;
        } else {
            return Err(exec(format!(
                "COPY wrote nothing to {}: it has no rows",
                target.display()
            )));
        }
    }
    drop(remove);
    tried.copies.push(staged);
    Ok(())
}

/// Removes a file that was not renamed.
struct Remove(Option<PathBuf>);

impl Drop for Remove {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Tried {
    /// Renames what was staged to its place, and notes what is there now.
    pub(crate) fn commit(&mut self) -> Result<(), DataFusionError> {
        for staged in self.copies.drain(..) {
            staged.commit(Replace::Allow).map_err(store)?;
        }
        for output in &self.outputs {
            if let Some(identity) = identity(output) {
                self.outcome.outputs.push((output.clone(), identity));
            } else if matches!(Location::parse(output), Ok(Location::Local(_))) {
                return Err(exec(format!(
                    "{output} is not there, though this statement should have written it"
                )));
            }
        }
        Ok(())
    }

    /// Sums what the plan's nodes measured.
    fn measure(&mut self, plan: &Arc<dyn ExecutionPlan>) {
        let mut function = None;
        let (mut input, mut delta) = (0u64, 0u64);
        for metric in plan.metrics().iter().flat_map(|set| set.iter()) {
            if let Some(label) = metric
                .labels()
                .iter()
                .find(|label| label.name() == "function")
            {
                function = Some(label.value().to_owned());
            }
            if let MetricValue::Count { name, count } = metric.value() {
                match name.as_ref() {
                    "original_bytes" => input += count.value() as u64,
                    "artifact_bytes" => delta += count.value() as u64,
                    "failed_checks" => self.measured.verify_failures += count.value() as u64,
                    "shared_rows" | "edited_rows" | "new_rows" | "removed_rows" => {
                        let class = name.trim_end_matches("_rows").to_owned();
                        *self.measured.dataset_rows.entry(class).or_default() +=
                            count.value() as u64;
                    }
                    _ => {}
                }
            }
        }
        if let Some((kind, codec)) = function.as_deref().and_then(kind_of)
            && input > 0
        {
            self.measured.add(&Measured {
                bytes: vec![Bytes {
                    kind: kind.to_owned(),
                    codec: codec.to_owned(),
                    input_bytes: input,
                    delta_bytes: delta,
                }],
                ..Measured::default()
            });
        }
        for child in plan.children() {
            self.measure(child);
        }
    }
}

/// What a function that writes deltas makes.
fn kind_of(function: &str) -> Option<(&'static str, &'static str)> {
    match function {
        "sparse_compress" => Some(("model", "lossless")),
        "sparse_svd_compress" => Some(("model", "svd")),
        "sparse_adapter_compress" => Some(("adapter", "lossless")),
        "sparse_dataset_compress" => Some(("dataset", "lossless")),
        _ => None,
    }
}

/// The identity of an output on this machine; `None` where it is not there or not here.
pub(crate) fn identity(output: &str) -> Option<String> {
    match Location::parse(output) {
        Ok(Location::Local(path)) => fingerprint::look_at(&path).map(|local| local.identity),
        _ => None,
    }
}

/// Parquet files as one table.
pub(crate) async fn register_files(
    context: &SessionContext,
    name: &str,
    files: &[PathBuf],
) -> Result<(), DataFusionError> {
    // As URLs, so that no character of a path is taken for a pattern.
    let urls: Vec<String> = files
        .iter()
        .filter_map(|file| url::Url::from_file_path(file).ok())
        .map(String::from)
        .collect();
    let frame = context
        .read_parquet(urls, ParquetReadOptions::default())
        .await?;
    context.deregister_table(quoted(name))?;
    context.register_table(quoted(name), frame.into_view())?;
    Ok(())
}

/// A table without rows.
pub(crate) fn register_empty(
    context: &SessionContext,
    name: &str,
    schema: SchemaRef,
) -> Result<(), DataFusionError> {
    let table = MemTable::try_new(schema, vec![vec![]])?;
    context.register_table(quoted(name), Arc::new(table))?;
    Ok(())
}

fn quoted(name: &str) -> datafusion::common::TableReference {
    datafusion::common::TableReference::bare(name)
}
