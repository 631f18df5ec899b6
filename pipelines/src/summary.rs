//! What a run of a pipeline did, and what it would do: as JSON.

use serde::Serialize;

use crate::state::Bytes;

/// How a run, a stage or an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It ran to its end.
    Succeeded,
    /// Nothing had changed.
    UpToDate,
    /// It ended with an error.
    Failed,
    /// A check of severity error returned rows.
    ChecksFailed,
    /// It was stopped.
    Cancelled,
    /// A stage that it needs did not end well.
    Blocked,
}

impl Status {
    /// As stored.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::UpToDate => "up_to_date",
            Self::Failed => "failed",
            Self::ChecksFailed => "checks_failed",
            Self::Cancelled => "cancelled",
            Self::Blocked => "blocked",
        }
    }

    /// Whether stages after it may run.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Succeeded | Self::UpToDate)
    }
}

/// What one check found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Its stage.
    pub stage: String,
    /// Its name.
    pub name: String,
    /// warn or error.
    pub severity: &'static str,
    /// Rows it returned; none are well.
    pub failed_rows: u64,
    /// Why it could not run.
    pub error: Option<String>,
}

/// What one stage did.
#[derive(Clone, Debug, Serialize)]
pub struct StageSummary {
    /// Its name.
    pub stage: String,
    /// How it ended.
    pub status: Status,
    /// Why it ran, or did not.
    pub reason: String,
    /// Wall time.
    pub seconds: f64,
    /// Its items.
    pub items: u64,
    /// Items done in this run.
    pub done: u64,
    /// Items that were up to date.
    pub skipped: u64,
    /// Items that failed.
    pub failed: u64,
    /// Rows returned.
    pub rows: u64,
    /// Tries, failed ones too.
    pub attempts: u64,
    /// Bytes in and out.
    pub bytes: Vec<Bytes>,
    /// Rows of compressed datasets, by class: shared, edited, new or removed.
    pub dataset_rows: std::collections::BTreeMap<String, u64>,
    /// Checks of artifacts that failed, by `sparse_verify`.
    pub verify_failures: u64,
    /// Why it failed: the first item's error.
    pub error: Option<String>,
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// Its id.
    pub run: String,
    /// The pipeline.
    pub pipeline: String,
    /// How it ended.
    pub status: Status,
    /// Wall time.
    pub seconds: f64,
    /// Its stages, in the order they ended.
    pub stages: Vec<StageSummary>,
    /// Its checks.
    pub checks: Vec<CheckReport>,
}

impl RunSummary {
    /// The exit code of a process that did this run: 0 ok, 1 a stage failed, 3 checks failed, 130 interrupted.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.status {
            Status::Succeeded | Status::UpToDate => 0,
            Status::Failed | Status::Blocked => 1,
            Status::ChecksFailed => 3,
            Status::Cancelled => 130,
        }
    }
}

/// What a stage would do.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// Its name.
    pub stage: String,
    /// run, skip, or maybe (that depends on what a stage before it makes).
    pub action: &'static str,
    /// Why.
    pub reason: String,
    /// The stages before it, with why.
    pub after: std::collections::BTreeMap<String, String>,
    /// Its items; unknown before the stages that it reads have run.
    pub items: Option<u64>,
    /// Items that would run.
    pub to_run: Option<u64>,
    /// Some of them, with why.
    pub examples: Vec<ItemPlan>,
    /// Bytes that it would read, as far as its SQL names files.
    pub input_bytes: Option<u64>,
    /// Bytes that it would write, as the share was before.
    pub output_bytes: Option<u64>,
}

/// What an item would do.
#[derive(Clone, Debug, Serialize)]
pub struct ItemPlan {
    /// Its name.
    pub item: String,
    /// Why it would run.
    pub reason: String,
}

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The pipeline.
    pub pipeline: String,
    /// Its stages, in order.
    pub stages: Vec<StagePlan>,
}
