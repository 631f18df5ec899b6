//! Whether a stage's items are up to date, and why not: keys of what they are made from, compared with those recorded.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use serde::{Deserialize, Serialize};

use crate::analysis::{Analysis, all_params};
use crate::attempt::{register_empty, register_files};
use crate::fingerprint::{self, Seen};
use crate::graph::Graph;
use crate::spec::{Pipeline, StageSpec};
use crate::state::{Done, Outcome, State, StateError, register};
use crate::{ParamValue, Params, PipelineError, Script};

/// Changed when the meaning of what is recorded changes.
const FORMAT: &str = "1";

/// More items than anybody has models.
const MAX_ITEMS: usize = 1_000_000;

/// Makes a session with every function.
pub type Sessions = Arc<dyn Fn() -> SessionContext + Send + Sync>;

/// Why a stage cannot even be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExamineError {
    /// The history.
    #[error(transparent)]
    State(#[from] StateError),
    /// A query or statement is wrong.
    #[error("{0}")]
    Sql(String),
    /// A file could not be read.
    #[error(transparent)]
    Store(#[from] sparse_store::StoreError),
}

impl From<DataFusionError> for ExamineError {
    fn from(error: DataFusionError) -> Self {
        Self::Sql(sparse_operators::error::message(&error))
    }
}

impl From<PipelineError> for ExamineError {
    fn from(error: PipelineError) -> Self {
        Self::Sql(error.to_string())
    }
}

/// What an item is made from. Its JSON is recorded, its hash is the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// The version of sparse and of this record.
    pub(crate) version: String,
    /// The statement, as written.
    pub(crate) statement: String,
    /// Parameters it uses, secrets by where they are.
    pub(crate) params: BTreeMap<String, String>,
    /// Columns of its item that it uses.
    pub(crate) item: BTreeMap<String, String>,
    /// Content of what it reads.
    pub(crate) inputs: BTreeMap<String, String>,
    /// Content of the tables it reads.
    pub(crate) tables: BTreeMap<String, String>,
}

/// One item: of a stage without for_each, the only one.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Empty for the only one.
    pub(crate) name: String,
    pub(crate) values: BTreeMap<String, ParamValue>,
    pub(crate) key: String,
    pub(crate) parts: String,
    /// Why it must run; `None` where it is up to date.
    pub(crate) why: Option<String>,
    /// What is recorded of it.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) outputs: Vec<String>,
    pub(crate) input_bytes: u64,
}

impl Item {
    /// Its name in the table of what is done: never that of a stage.
    pub(crate) fn stored(&self) -> String {
        crate::state::stored(&self.name)
    }
}

/// What is known of a stage that is done: what later stages read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ready {
    /// By table: its files, and the hash of their contents.
    pub(crate) tables: BTreeMap<String, (Vec<PathBuf>, String)>,
    /// Statements to be said again.
    pub(crate) declares: Vec<String>,
    /// The hash of its views and external tables.
    pub(crate) declared: String,
    /// Schemas of tables that have no files, because there were no items.
    pub(crate) empty: BTreeMap<String, arrow::datatypes::SchemaRef>,
}

impl Ready {
    /// From the outcomes of its items.
    pub(crate) fn new<'o>(
        state: &State,
        key: &str,
        outcomes: impl IntoIterator<Item = &'o Outcome>,
    ) -> Self {
        let mut ready = Self::default();
        let mut hashes: BTreeMap<String, blake3::Hasher> = BTreeMap::new();
        for outcome in outcomes {
            for table in &outcome.tables {
                let entry = ready.tables.entry(table.name.clone()).or_default();
                entry.0.push(state.dir().join(&table.file));
                hashes
                    .entry(table.name.clone())
                    .or_default()
                    .update(table.hash.as_bytes());
            }
            for declare in &outcome.declares {
                if !ready.declares.contains(declare) {
                    ready.declares.push(declare.clone());
                }
            }
        }
        for (name, hash) in hashes {
            if let Some(entry) = ready.tables.get_mut(&name) {
                entry.1 = hash.finalize().to_hex().to_string();
            }
        }
        ready.declared = key.to_owned();
        ready
    }
}

/// Stages that are done, by name.
pub(crate) type AllReady = HashMap<String, Ready>;

/// What examining shares over the stages of a run.
pub(crate) struct Examiner<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) graph: &'a Graph,
    pub(crate) state: &'a Arc<State>,
    pub(crate) sessions: &'a Sessions,
    /// Contents of references looked at already.
    seen: HashMap<String, (String, u64)>,
}

/// A stage, looked at.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) items: Vec<Item>,
    /// Names of recorded items that are no longer in the catalog.
    pub(crate) gone: Vec<String>,
    /// The key of the stage as a whole.
    pub(crate) key: String,
    /// Whether the stage as a whole, its checks too, is recorded as done.
    pub(crate) whole: bool,
}

impl Examined {
    pub(crate) fn to_run(&self) -> usize {
        self.items.iter().filter(|item| item.why.is_some()).count()
    }
}

impl<'a> Examiner<'a> {
    pub(crate) fn new(
        pipeline: &'a Pipeline,
        graph: &'a Graph,
        state: &'a Arc<State>,
        sessions: &'a Sessions,
    ) -> Self {
        Self {
            pipeline,
            graph,
            state,
            sessions,
            seen: HashMap::new(),
        }
    }

    /// Looks at a stage whose predecessors are all ready.
    pub(crate) async fn examine(
        &mut self,
        stage: &StageSpec,
        ready: &AllReady,
    ) -> Result<Examined, ExamineError> {
        let analysis = self.analysis(stage)?;
        let rows = self.rows(stage, ready).await?;
        let done = self.state.done(&self.pipeline.name, &stage.name)?;
        let base = self.base(stage, analysis, ready);
        let mut items = Vec::with_capacity(rows.len());
        let mut stage_hash = blake3::Hasher::new();
        let mut names = HashSet::new();
        let mut fresh = Vec::new();
        for (name, values) in rows {
            let item = self.item(stage, analysis, &base, name, values, &done, &mut fresh)?;
            if !names.insert(item.stored()) {
                return Err(ExamineError::Sql(format!(
                    "for_each: two rows are named {:?}; set `key:` to a column that tells them apart",
                    item.name
                )));
            }
            stage_hash.update(item.name.as_bytes());
            stage_hash.update(item.key.as_bytes());
            items.push(item);
        }
        self.state.put_contents(&fresh)?;
        for check in &stage.checks {
            for text in [
                check.name.as_str(),
                check.sql.as_str(),
                check.severity.name(),
            ] {
                stage_hash.update(&[0]);
                stage_hash.update(text.as_bytes());
            }
        }
        for table in &analysis.check_reads {
            stage_hash.update(self.table_hash(table, ready).as_bytes());
        }
        let key = stage_hash.finalize().to_hex().to_string();
        let whole = done
            .get(crate::state::STAGE)
            .is_some_and(|recorded| recorded.key == key);
        let gone = done
            .into_keys()
            .filter(|name| name != crate::state::STAGE && !names.contains(name))
            .collect();
        Ok(Examined {
            items,
            gone,
            key,
            whole,
        })
    }

    fn analysis(&self, stage: &StageSpec) -> Result<&'a Analysis, ExamineError> {
        self.graph
            .analyses
            .get(&stage.name)
            .ok_or_else(|| ExamineError::Sql(format!("there is no stage {}", stage.name)))
    }

    /// A session in which all tables made before `stage` are there.
    pub(crate) async fn session(
        &self,
        stage: &StageSpec,
        ready: &AllReady,
    ) -> Result<SessionContext, ExamineError> {
        let context = (self.sessions)();
        register(&context, self.state)?;
        let analysis = self.analysis(stage)?;
        if analysis.reads.is_empty()
            && analysis.item_reads.is_empty()
            && analysis.check_reads.is_empty()
        {
            return Ok(context);
        }
        let before = self.graph.ancestors(&stage.name);
        for name in self
            .graph
            .order
            .iter()
            .filter(|name| before.contains(*name))
        {
            if let Some(ready) = ready.get(name) {
                provide(&context, ready).await?;
            }
        }
        Ok(context)
    }

    /// The rows of for_each, with their names; of a stage without it, one without columns.
    async fn rows(
        &self,
        stage: &StageSpec,
        ready: &AllReady,
    ) -> Result<Vec<NamedParams>, ExamineError> {
        let Some(each) = &stage.for_each else {
            return Ok(vec![(String::new(), BTreeMap::new())]);
        };
        let context = self.session(stage, ready).await?;
        let (script, _) = Script::parse_using(&each.query, &all_params(self.pipeline))?;
        let mut rows = Vec::new();
        for statement in script.stages() {
            let plan = context
                .state()
                .statement_to_plan(statement.statement.clone())
                .await?;
            let frame = context.execute_logical_plan(plan).await?;
            let schema = Arc::clone(frame.schema().inner());
            let key = match &each.key {
                None => 0,
                Some(key) => schema.index_of(key).map_err(|_| {
                    let names: Vec<&str> =
                        schema.fields().iter().map(|f| f.name().as_str()).collect();
                    ExamineError::Sql(format!(
                        "for_each: key: the query has no column {key}; it has {}",
                        names.join(", ")
                    ))
                })?,
            };
            for name in &self.analysis(stage)?.columns {
                if schema.index_of(name).is_err() {
                    let names: Vec<&str> =
                        schema.fields().iter().map(|f| f.name().as_str()).collect();
                    return Err(ExamineError::Sql(format!(
                        "${name} is neither a parameter nor a column of for_each; its query has {}",
                        names.join(", ")
                    )));
                }
            }
            for batch in frame.collect().await? {
                for row in items(&batch, key)? {
                    if rows.len() >= MAX_ITEMS {
                        return Err(ExamineError::Sql(
                            "for_each: more than a million rows".to_owned(),
                        ));
                    }
                    rows.push(row);
                }
            }
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(rows)
    }

    fn table_hash(&self, table: &str, ready: &AllReady) -> String {
        let Some(maker) = self
            .graph
            .makers
            .get(table)
            .and_then(|maker| ready.get(maker))
        else {
            return String::new();
        };
        match maker.tables.get(table) {
            Some((_, hash)) => hash.clone(),
            None => maker.declared.clone(),
        }
    }

    /// The parts that all items of a stage share.
    fn base(&self, stage: &StageSpec, analysis: &Analysis, ready: &AllReady) -> Parts {
        let params = analysis.params.iter().filter_map(|name| {
            let param = self.pipeline.params.get(name)?;
            Some((name.clone(), param.shown.clone()))
        });
        Parts {
            version: format!("{} ({FORMAT})", env!("CARGO_PKG_VERSION")),
            statement: stage.sql.clone(),
            params: params.collect(),
            item: BTreeMap::new(),
            inputs: BTreeMap::new(),
            tables: analysis
                .reads
                .iter()
                .map(|table| (table.clone(), self.table_hash(table, ready)))
                .collect(),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, in a loop over what they share"
    )]
    fn item(
        &mut self,
        stage: &StageSpec,
        analysis: &Analysis,
        base: &Parts,
        name: String,
        values: BTreeMap<String, ParamValue>,
        done: &HashMap<String, Done>,
        fresh: &mut Vec<(String, String)>,
    ) -> Result<Item, ExamineError> {
        let mut parts = base.clone();
        let texts: BTreeMap<&String, String> = values
            .iter()
            .filter(|(column, _)| analysis.columns.contains(*column))
            .map(|(column, value)| (column, shown(value)))
            .collect();
        let column = |name: &str| {
            texts
                .iter()
                .find(|(column, _)| column.as_str() == name)
                .map(|(_, text)| text.as_str())
        };
        parts.item = texts
            .iter()
            .map(|(column, text)| ((*column).clone(), text.clone()))
            .collect();
        let mut open = analysis.open.clone();
        let mut input_bytes = 0u64;
        for template in &analysis.inputs {
            let Some(reference) = template.fill(column) else {
                continue;
            };
            let (content, bytes) = self.content(&reference, fresh)?;
            if content == REMOTE {
                open = Some(format!(
                    "{reference} is elsewhere, where it may have changed unseen"
                ));
            }
            input_bytes = input_bytes.saturating_add(bytes);
            parts.inputs.insert(reference, content);
        }
        let outputs: Vec<String> = analysis
            .outputs
            .iter()
            .filter_map(|template| template.fill(column))
            .collect();
        let json = serde_json::to_string(&parts).unwrap_or_default();
        let key = fingerprint::text(&json);
        let mut item = Item {
            name,
            values,
            key,
            parts: json,
            why: None,
            outcome: None,
            outputs,
            input_bytes,
        };
        let recorded = done.get(&item.stored());
        item.outcome = recorded.and_then(|done| serde_json::from_str(&done.result).ok());
        item.why = match (recorded, &item.outcome) {
            (None, _) | (_, None) => Some("it never ran to its end".to_owned()),
            (Some(_), _) if stage.always => Some("always: true".to_owned()),
            (Some(done), _) if done.key != item.key => Some(differences(&done.parts, &parts)),
            (Some(_), _) if open.is_some() => open,
            (Some(_), Some(outcome)) => self.lost(outcome),
        };
        Ok(item)
    }

    /// Why recorded results no longer count.
    fn lost(&self, outcome: &Outcome) -> Option<String> {
        for table in &outcome.tables {
            if !self.state.dir().join(&table.file).is_file() {
                return Some(format!("the rows of {} are gone", table.name));
            }
        }
        for (path, recorded) in &outcome.outputs {
            match crate::attempt::identity(path) {
                None => return Some(format!("its output {path} is gone")),
                Some(now) if now != *recorded => {
                    return Some(format!("its output {path} was changed by somebody else"));
                }
                Some(_) => {}
            }
        }
        None
    }

    /// The content of what a reference names, and its bytes.
    fn content(
        &mut self,
        reference: &str,
        fresh: &mut Vec<(String, String)>,
    ) -> Result<(String, u64), ExamineError> {
        if let Some(known) = self.seen.get(reference) {
            return Ok(known.clone());
        }
        let found = match fingerprint::look(reference) {
            Seen::Missing => ("missing".to_owned(), 0),
            Seen::Remote { pinned: true } => ("pinned".to_owned(), 0),
            Seen::Remote { pinned: false } => (REMOTE.to_owned(), 0),
            Seen::Local(local) => match self.state.content(&local.identity)? {
                Some(content) => (content, local.bytes),
                None => {
                    let content = local.content()?;
                    if !local.racy {
                        fresh.push((local.identity.clone(), content.clone()));
                    }
                    (content, local.bytes)
                }
            },
        };
        self.seen.insert(reference.to_owned(), found.clone());
        Ok(found)
    }
}

/// The content of what cannot be looked at.
const REMOTE: &str = "remote";

/// Makes what a stage made known in a session.
pub(crate) async fn provide(context: &SessionContext, ready: &Ready) -> Result<(), ExamineError> {
    for (table, (files, _)) in &ready.tables {
        register_files(context, table, files).await?;
    }
    for (table, schema) in &ready.empty {
        register_empty(context, table, Arc::clone(schema))?;
    }
    for declare in &ready.declares {
        let (script, _) = Script::parse_using(declare, &Params::default())?;
        for statement in script.stages() {
            let plan = context
                .state()
                .statement_to_plan(statement.statement.clone())
                .await?;
            context.execute_logical_plan(plan).await?;
        }
    }
    Ok(())
}

/// Why a key changed.
pub(crate) fn differences(recorded: &str, now: &Parts) -> String {
    let Ok(old) = serde_json::from_str::<Parts>(recorded) else {
        return "it was recorded by another version".to_owned();
    };
    let mut why = Vec::new();
    if old.statement != now.statement {
        why.push("its SQL changed".to_owned());
    }
    if old.version != now.version {
        why.push(format!(
            "sparse changed from {} to {}",
            old.version, now.version
        ));
    }
    let mut compare = |what: &str,
                       old: &BTreeMap<String, String>,
                       now: &BTreeMap<String, String>,
                       show: bool| {
        for (name, value) in now {
            match old.get(name) {
                Some(before) if before == value => {}
                Some(before) if show => {
                    why.push(format!("{what} {name} changed from {before} to {value}"))
                }
                Some(before) if before == "missing" => why.push(format!("{what} {name} appeared")),
                Some(_) if value == "missing" => why.push(format!("{what} {name} is gone")),
                Some(_) => why.push(format!("{what} {name} changed")),
                None => why.push(format!("{what} {name} is new")),
            }
        }
        for name in old.keys().filter(|name| !now.contains_key(*name)) {
            why.push(format!("{what} {name} is no longer read"));
        }
    };
    compare("parameter", &old.params, &now.params, true);
    compare("column", &old.item, &now.item, true);
    compare("input", &old.inputs, &now.inputs, false);
    compare("table", &old.tables, &now.tables, false);
    match why.is_empty() {
        true => "it was recorded by another version".to_owned(),
        false => why.join("; "),
    }
}

/// A value as text.
pub(crate) fn shown(value: &ParamValue) -> String {
    match value {
        ParamValue::Text(text) => text.clone(),
        ParamValue::Number(number) => number.clone(),
        ParamValue::Boolean(value) => value.to_string(),
        ParamValue::Null => "null".to_owned(),
    }
}

/// An item: its name and its parameters.
type NamedParams = (String, BTreeMap<String, ParamValue>);

/// The rows of a batch as parameters.
fn items(batch: &RecordBatch, key: usize) -> Result<Vec<NamedParams>, ExamineError> {
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let texts = cast(column, &DataType::Utf8).map_err(|error| {
            ExamineError::Sql(format!(
                "for_each: column {} is no single value: {error}",
                field.name()
            ))
        })?;
        columns.push((field.name().clone(), field.data_type().clone(), texts));
    }
    let value = |at: usize, row: usize| -> Option<String> {
        let (_, _, texts) = columns.get(at)?;
        let texts = texts.as_any().downcast_ref::<StringArray>()?;
        texts.is_valid(row).then(|| texts.value(row).to_owned())
    };
    (0..batch.num_rows())
        .map(|row| {
            let name = value(key, row).filter(|name| !name.is_empty()).ok_or_else(|| {
                ExamineError::Sql("for_each: an item's key is null or empty; filter such rows, or set `key:` to another column".to_owned())
            })?;
            let values = columns
                .iter()
                .enumerate()
                .map(|(at, (column, ty, _))| {
                    let value = match value(at, row) {
                        None => ParamValue::Null,
                        Some(text) if ty.is_numeric() => ParamValue::Number(text),
                        Some(text) if *ty == DataType::Boolean => ParamValue::Boolean(text == "true"),
                        Some(text) => ParamValue::Text(text),
                    };
                    (column.clone(), value)
                })
                .collect();
            Ok((name, values))
        })
        .collect()
}
