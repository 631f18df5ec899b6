//! What a run did, stage by stage: as rows and as JSON.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use serde::{Serialize, Serializer};

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    /// It ran to its end.
    Succeeded,
    /// It ended with an error.
    Failed,
    /// It was stopped.
    Cancelled,
    /// It was not run, because an earlier one failed or was stopped.
    Skipped,
}

impl StageStatus {
    /// As in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// How a run ended: as its worst stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Every stage ran to its end.
    Succeeded,
    /// A stage failed.
    Failed,
    /// The run was stopped.
    Cancelled,
}

/// Why a stage failed.
#[derive(Clone, Debug)]
pub struct StageError(Arc<DataFusionError>);

impl StageError {
    pub(crate) fn new(error: DataFusionError) -> Self {
        Self(Arc::new(error))
    }

    /// The error as DataFusion gave it, for exit codes.
    #[must_use]
    pub fn inner(&self) -> &DataFusionError {
        &self.0
    }
}

impl std::fmt::Display for StageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.strip_backtrace())
    }
}

impl Serialize for StageError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What one stage did.
#[derive(Clone, Debug, Serialize)]
pub struct StageReport {
    /// Its number, from 1.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its line in the script.
    pub line: u64,
    /// Its text as written.
    pub sql: String,
    /// How it ended.
    pub status: StageStatus,
    /// Rows it returned before it ended.
    pub rows: u64,
    /// Wall time: planning, running, and handing over the rows.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Why it failed.
    pub error: Option<StageError>,
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// How it ended.
    pub status: RunStatus,
    /// Wall time of all stages.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Every stage of the script, in order.
    pub stages: Vec<StageReport>,
}

fn seconds<S: Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((elapsed.as_secs_f64() * 1e6).round() / 1e6)
}

impl RunReport {
    pub(crate) fn new(stages: Vec<StageReport>) -> Self {
        let has = |status| stages.iter().any(|s| s.status == status);
        let status = if has(StageStatus::Cancelled) {
            RunStatus::Cancelled
        } else if has(StageStatus::Failed) {
            RunStatus::Failed
        } else {
            RunStatus::Succeeded
        };
        Self {
            status,
            elapsed: stages.iter().map(|s| s.elapsed).sum(),
            stages,
        }
    }

    /// The first stage that failed.
    #[must_use]
    pub fn first_failure(&self) -> Option<&StageReport> {
        self.stages.iter().find(|s| s.status == StageStatus::Failed)
    }

    /// The report as a JSON document.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        // Numbers, strings and enums only: serialisation has no way to fail.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The report as rows: stage, name, line, status, rows, seconds, error.
    pub fn to_batch(&self) -> Result<RecordBatch, ArrowError> {
        let stages = &self.stages;
        let columns: [(&str, ArrayRef, bool); 7] = [
            (
                "stage",
                Arc::new(
                    stages
                        .iter()
                        .map(|s| Some(s.index as u64))
                        .collect::<UInt64Array>(),
                ),
                false,
            ),
            (
                "name",
                Arc::new(
                    stages
                        .iter()
                        .map(|s| Some(s.name.as_str()))
                        .collect::<StringArray>(),
                ),
                false,
            ),
            (
                "line",
                Arc::new(stages.iter().map(|s| Some(s.line)).collect::<UInt64Array>()),
                false,
            ),
            (
                "status",
                Arc::new(
                    stages
                        .iter()
                        .map(|s| Some(s.status.name()))
                        .collect::<StringArray>(),
                ),
                false,
            ),
            (
                "rows",
                Arc::new(stages.iter().map(|s| Some(s.rows)).collect::<UInt64Array>()),
                false,
            ),
            (
                "seconds",
                Arc::new(
                    stages
                        .iter()
                        .map(|s| Some(s.elapsed.as_secs_f64()))
                        .collect::<Float64Array>(),
                ),
                false,
            ),
            (
                "error",
                Arc::new(
                    stages
                        .iter()
                        .map(|s| s.error.as_ref().map(ToString::to_string))
                        .collect::<StringArray>(),
                ),
                true,
            ),
        ];
        RecordBatch::try_from_iter_with_nullable(columns)
    }
}
