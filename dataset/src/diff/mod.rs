//! `Diff`: what a derivative dataset changed, row by row and value by value.
//!
//! Rows are matched by a key, or by their content as [`crate::Compress`] does it. Differences are handed on as they are found,
//! so that memory does not depend on how many there are.

mod compare;
mod render;
mod report;
mod rows;

use std::sync::Arc;

use serde::Serialize;
use sparse_delta::support;
use sparse_delta::{CancelToken, DeltaError, Progress};
use sparse_store::OpenOptions;

use crate::DatasetError;
use crate::compress::{Input, MEMORY, MIN_MEMORY};
use crate::input::{Dataset, Rows};
use crate::pair;

pub use report::{HTML_ROWS, Report};

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiffOp {
    /// Another column, type, order of columns, metadata or split.
    Schema,
    /// Another value in a row that both have.
    Changed,
    /// A row that the base has not.
    Added,
    /// A row that the derivative has not.
    Removed,
}

impl DiffOp {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }
}

/// One difference. Rows are counted from 0. Values are JSON, extended so that nothing is lost: binary is `x'00ff'`, numbers
/// that JSON lacks are `NaN`, `inf` and `-inf`, a NaN that is not the usual one has its bits (`NaN(0x7ff8000000000001)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffRow {
    /// What differs.
    pub op: DiffOp,
    /// The split.
    pub split: String,
    /// The row in the base's split.
    pub base_row: Option<u64>,
    /// The row in the derivative's split.
    pub derivative_row: Option<u64>,
    /// The column; none for whole rows and whole schemas.
    pub column: Option<String>,
    /// What the base has: a value, a row as an object, a type.
    pub before: Option<String>,
    /// What the derivative has.
    pub after: Option<String>,
}

/// What a diff found, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffSummary {
    /// The base as it was given.
    pub base: String,
    /// The derivative as it was given.
    pub derivative: String,
    /// The columns by which rows were matched; none where that was done by their content.
    pub key: Vec<String>,
    /// The splits of both.
    pub splits: Vec<SplitDiff>,
}

/// What differs in one split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SplitDiff {
    /// Its name.
    pub split: String,
    /// Rows of the base.
    pub base_rows: u64,
    /// Rows of the derivative.
    pub derivative_rows: u64,
    /// Rows whose values are the same in all columns that both have.
    pub same: u64,
    /// Rows with at least one other value.
    pub changed: u64,
    /// Rows that the base has not.
    pub added: u64,
    /// Rows that the derivative has not.
    pub removed: u64,
    /// Rows of both that are not in the order of the base: the fewest that would have to be moved.
    pub moved: u64,
    /// Differences of the schema.
    pub schema: u64,
    /// The columns of both.
    pub columns: Vec<ColumnDiff>,
}

/// What differs in one column, in the rows that both have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ColumnDiff {
    /// Its name.
    pub column: String,
    /// same, changed, added, removed or retyped.
    pub status: String,
    /// Its type in the base.
    pub base_type: Option<String>,
    /// Its type in the derivative.
    pub derivative_type: Option<String>,
    /// Values that differ.
    pub changed: u64,
    /// Of these, null in the base alone.
    pub from_null: u64,
    /// Of these, null in the derivative alone.
    pub to_null: u64,
}

impl DiffSummary {
    /// How many differences of a kind there are: rows, or for the schema, its differences.
    #[must_use]
    pub fn count(&self, op: DiffOp) -> u64 {
        self.splits
            .iter()
            .map(|split| match op {
                DiffOp::Schema => split.schema,
                DiffOp::Changed => split.changed,
                DiffOp::Added => split.added,
                DiffOp::Removed => split.removed,
            })
            .sum()
    }
}

/// Compares a derivative dataset with its base.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Diff {
    base: Input,
    derivative: Input,
    key: Vec<String>,
    splits: Vec<String>,
    threads: Option<usize>,
    memory: u64,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

/// Takes differences as they are found.
pub(crate) type Sink<'a> = dyn FnMut(&[DiffRow]) -> Result<(), DatasetError> + 'a;

impl Diff {
    /// What `derivative` changed in `base`.
    pub fn new(base: impl Into<Input>, derivative: impl Into<Input>) -> Self {
        Self {
            base: base.into(),
            derivative: derivative.into(),
            key: Vec::new(),
            splits: Vec::new(),
            threads: None,
            memory: MEMORY,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The columns that identify a row. Rows of equal keys are matched in order. Default: rows are matched by their content.
    pub fn key(mut self, key: Vec<String>) -> Self {
        self.key = key;
        self
    }

    /// The splits to compare. Default: all.
    pub fn splits(mut self, splits: Vec<String>) -> Self {
        self.splits = splits;
        self
    }

    sparse_delta::operation_setters!();

    /// How many bytes of memory may be used, about; what is larger goes to temporary files. Default: 1 GiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes.max(MIN_MEMORY);
        self
    }

    /// Compares, and hands differences to `sink`, some at a time: first those of the schema, then rows in the derivative's order,
    /// then the rows removed in the base's. `sink` runs on a thread of its own and may block.
    ///
    /// # Errors
    /// Datasets that cannot be read, a key that one of them has not, and what `sink` returns.
    pub async fn run(
        mut self,
        mut sink: impl FnMut(&[DiffRow]) -> Result<(), DatasetError> + Send + 'static,
    ) -> Result<DiffSummary, DatasetError> {
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let (base, derivative) =
            futures::try_join!(self.base.open(&self.open), self.derivative.open(&self.open))?;
        let job = Job {
            pairs: pairs(&base, &derivative, &self.splits)?,
            base,
            derivative,
            key: self.key,
            memory: self.memory,
            progress: self.progress,
            cancel: self.cancel,
        };
        let threads = self.threads;
        tokio::task::spawn_blocking(move || {
            let pool = support::pool(threads)?;
            support::guarded(|| Ok(pool.install(|| job.run(&mut sink))))?
        })
        .await
        .map_err(|error| DatasetError::internal(error.to_string()))?
    }
}

/// A split: its name, and its rows in the base and in the derivative.
type Pair = (String, Option<Arc<dyn Rows>>, Option<Arc<dyn Rows>>);

/// The splits of both by name; where each has one, these two whatever they are called.
fn pairs(base: &Dataset, derivative: &Dataset, only: &[String]) -> Result<Vec<Pair>, DatasetError> {
    if let ([(_, from)], [(name, to)]) = (base.splits(), derivative.splits()) {
        if let Some(other) = only.iter().find(|only| *only != name) {
            return Err(no_split(other, &[name]));
        }
        return Ok(vec![(
            name.clone(),
            Some(Arc::clone(from)),
            Some(Arc::clone(to)),
        )]);
    }
    let find = |dataset: &Dataset, name: &str| {
        let mut splits = dataset.splits().iter();
        splits
            .find(|(own, _)| own == name)
            .map(|(_, rows)| Arc::clone(rows))
    };
    let mut names: Vec<&String> = derivative.splits().iter().map(|(name, _)| name).collect();
    for (name, _) in base.splits() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if let Some(other) = only.iter().find(|only| !names.contains(only)) {
        return Err(no_split(other, &names));
    }
    Ok(names
        .into_iter()
        .filter(|name| only.is_empty() || only.contains(name))
        .map(|name| (name.clone(), find(base, name), find(derivative, name)))
        .collect())
}

fn no_split(name: &str, known: &[&String]) -> DatasetError {
    let known: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
    DatasetError::usage(format!(
        "there is no split {name:?}; the splits are {}",
        known.join(", ")
    ))
}

struct Job {
    base: Dataset,
    derivative: Dataset,
    pairs: Vec<Pair>,
    key: Vec<String>,
    memory: u64,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Job {
    fn run(self, sink: &mut Sink<'_>) -> Result<DiffSummary, DatasetError> {
        let scratch = pair::scratch();
        let room = pair::room(&scratch, self.memory);
        let count = self.pairs.len() as f64;
        let mut splits = Vec::new();
        for (at, (name, base, derivative)) in self.pairs.iter().enumerate() {
            if let Some(progress) = &self.progress {
                progress(&format!("comparing {name}"), at as f64 / count);
            }
            let check = || {
                if self.cancel.is_cancelled() {
                    return Err(DeltaError::Cancelled.into());
                }
                Ok(())
            };
            check()?;
            let split = compare::Comparison {
                split: name,
                key: &self.key,
                room: &room,
                check: &check,
            };
            splits.push(match (base, derivative) {
                (Some(base), Some(derivative)) => split.both(base, derivative, sink)?,
                (None, Some(rows)) => split.one(rows, DiffOp::Added, sink)?,
                (Some(rows), None) => split.one(rows, DiffOp::Removed, sink)?,
                (None, None) => continue,
            });
        }
        Ok(DiffSummary {
            base: self.base.id().to_owned(),
            derivative: self.derivative.id().to_owned(),
            key: self.key,
            splits,
        })
    }
}
