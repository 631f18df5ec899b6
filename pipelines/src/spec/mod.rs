//! A pipeline as its YAML file describes it.

mod read;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ParamValue;

pub use read::find_all;

/// What is wrong with a pipeline's files: where, what, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{}: {}{problem}; {remedy}", file.display(), at(*line), within(place))]
pub struct SpecError {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1; 0 where it is about the whole file.
    pub line: u64,
    /// Such as `stage "compress"`; empty at the top.
    pub place: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

fn at(line: u64) -> String {
    match line {
        0 => String::new(),
        line => format!(":{line}"),
    }
}

fn within(place: &str) -> String {
    match place {
        "" => String::new(),
        place => format!("{place}: "),
    }
}

impl SpecError {
    pub(crate) fn new(
        file: &Path,
        line: u64,
        place: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            line,
            place: place.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// A parameter: a value, or where a secret is found.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// As written; of a secret, `env:NAME` or `file:PATH`. This is what is stored and shown.
    pub shown: String,
    /// What statements get.
    pub value: ParamValue,
    /// Whether the value is never shown.
    pub secret: bool,
}

/// A pipeline: stages, and how they are run.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Its name: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The YAML file.
    pub file: PathBuf,
    /// Parameters, secrets resolved.
    pub params: BTreeMap<String, Parameter>,
    /// What its stages share.
    pub resources: Resources,
    /// When `serve` runs it.
    pub schedule: Option<Schedule>,
    /// Who is told.
    pub notify: Vec<Notification>,
    /// Where OpenLineage events go.
    pub lineage: Option<Lineage>,
    /// Its stages, as written.
    pub stages: Vec<StageSpec>,
}

/// What the stages of a pipeline share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Statements at a time.
    pub concurrency: u32,
    /// MiB that running statements may claim together; `None` for no limit.
    pub memory_mib: Option<u32>,
    /// GPUs that running statements may claim together.
    pub gpu: u32,
}

/// One stage.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// Its name; the table its last query makes goes by it.
    pub name: String,
    /// Its line in the YAML file.
    pub line: u64,
    /// The SQL, as written.
    pub sql: String,
    /// The file of the SQL, where it has its own.
    pub sql_file: Option<PathBuf>,
    /// Stages that come first, beyond those whose tables it reads.
    pub needs: Vec<String>,
    /// One item per row of this query.
    pub for_each: Option<ForEach>,
    /// Items at a time; `None`: as many as the pipeline allows.
    pub concurrency: Option<u32>,
    /// MiB that one statement claims.
    pub memory_mib: u32,
    /// GPUs that one statement claims.
    pub gpu: u32,
    /// How often a failed statement is tried again, and when.
    pub retries: Retries,
    /// The longest one try may take.
    pub timeout: Option<Duration>,
    /// Whether items after a failed one are run.
    pub keep_going: bool,
    /// Run even where nothing changed.
    pub always: bool,
    /// Paths it reads that its SQL does not show.
    pub inputs: Vec<String>,
    /// Paths it writes that its SQL does not show.
    pub outputs: Vec<String>,
    /// Queries that must return no rows.
    pub checks: Vec<Check>,
}

/// A loop over a query.
#[derive(Clone, Debug)]
pub struct ForEach {
    /// One item per row; its columns are parameters of the stage.
    pub query: String,
    /// The column that names an item.
    pub key: Option<String>,
    /// Its line.
    pub line: u64,
}

/// How failed statements are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first.
    pub times: u32,
    /// Before the second try; doubled for each further one, with jitter.
    pub delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
}

/// A query that must return no rows.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// The query.
    pub sql: String,
    /// Whether rows stop the pipeline.
    pub severity: Severity,
    /// Its line.
    pub line: u64,
}

/// What rows of a check mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The run goes on, and says so.
    Warn,
    /// The stage is not done, and nothing that needs it runs.
    Error,
}

impl Severity {
    /// As written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// When a pipeline runs by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Five or six fields, or `@daily` and the like.
    pub cron: String,
    /// The IANA zone its fields are in.
    pub timezone: chrono_tz::Tz,
    /// What happens to times that passed while nobody was there.
    pub misfire: Misfire,
    /// How old a missed time may be to be caught up with.
    pub catch_up: Duration,
    /// What happens when the run before is still under way.
    pub overlap: Overlap,
}

/// What happens to missed times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfire {
    /// They are counted and dropped.
    Skip,
    /// One run stands for all of them.
    Once,
    /// Each gets its run.
    All,
}

/// What happens when the run before is still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The new one is dropped, and counted as missed.
    Forbid,
    /// The new one waits.
    Queue,
    /// The old one is cancelled.
    Replace,
}

/// Who is told of what.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Of these ends of a run.
    pub on: Vec<When>,
    /// A JSON document is posted here.
    pub webhook: Option<String>,
    /// This is run, with the JSON document on standard input.
    pub command: Vec<String>,
}

/// An end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every stage is done.
    Success,
    /// A stage failed, or the run was stopped.
    Failure,
    /// A check failed, warnings too.
    Check,
}

/// Where OpenLineage events go.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// An OpenLineage endpoint, such as `http://host:5000/api/v1/lineage`.
    pub url: Option<String>,
    /// A file that gets one event per line.
    pub file: Option<PathBuf>,
    /// The namespace of its jobs.
    pub namespace: String,
}

impl Pipeline {
    /// The stage of a name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&StageSpec> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// `text` without the values of secrets.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for param in self.params.values().filter(|param| param.secret) {
            if let ParamValue::Text(secret) = &param.value
                && !secret.is_empty()
            {
                out = out.replace(secret.as_str(), "***");
            }
        }
        out
    }
}
