//! The history, read: for `history`, the HTTP server and the metrics.

use rusqlite::{Row, params};
use serde::Serialize;

use super::{State, StateError};

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunRow {
    /// Its id: ids sort by time.
    pub run: String,
    /// Its pipeline.
    pub pipeline: String,
    /// running, succeeded, failed, checks_failed, cancelled or interrupted.
    pub status: String,
    /// manual, schedule, catch_up, resume, api or backfill.
    pub trigger: String,
    /// The time it was scheduled for, in milliseconds since 1970.
    pub scheduled_ms: Option<i64>,
    /// Milliseconds since 1970.
    pub started_ms: i64,
    /// Milliseconds since 1970.
    pub ended_ms: Option<i64>,
    /// Bytes of what was compressed.
    pub input_bytes: i64,
    /// Bytes of the deltas.
    pub delta_bytes: i64,
    /// Why it failed.
    pub error: Option<String>,
}

/// One stage of a run.
#[derive(Clone, Debug, Serialize)]
pub struct StageRow {
    /// Its name.
    pub stage: String,
    /// running, succeeded, up_to_date, failed, checks_failed, cancelled, blocked or interrupted.
    pub status: String,
    /// Why it ran, or did not.
    pub reason: String,
    /// Milliseconds since 1970.
    pub started_ms: i64,
    /// Milliseconds since 1970.
    pub ended_ms: Option<i64>,
    /// Its items.
    pub items: i64,
    /// Items done in this run.
    pub items_done: i64,
    /// Items that were up to date.
    pub items_skipped: i64,
    /// Items that failed.
    pub items_failed: i64,
    /// Rows returned.
    pub rows: i64,
    /// Why it failed.
    pub error: Option<String>,
}

/// One line of a run's log.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LogRow {
    pub(crate) at_ms: i64,
    pub(crate) level: String,
    pub(crate) stage: String,
    pub(crate) item: String,
    pub(crate) message: String,
}

/// Labels, and numbers under them.
pub(crate) type Numbers = (Vec<String>, Vec<f64>);

/// One try.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AttemptRow {
    pub(crate) run: String,
    pub(crate) stage: String,
    pub(crate) item: String,
    pub(crate) attempt: i64,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: Option<i64>,
    pub(crate) error: Option<String>,
}

const RUN: &str = "SELECT id, pipeline, status, trigger, started_ms, ended_ms,
    (SELECT coalesce(sum(input_bytes), 0) FROM bytes WHERE bytes.run = runs.id),
    (SELECT coalesce(sum(delta_bytes), 0) FROM bytes WHERE bytes.run = runs.id),
    error, scheduled_ms FROM ";

fn run(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        run: row.get(0)?,
        pipeline: row.get(1)?,
        status: row.get(2)?,
        trigger: row.get(3)?,
        started_ms: row.get(4)?,
        ended_ms: row.get(5)?,
        input_bytes: row.get(6)?,
        delta_bytes: row.get(7)?,
        error: row.get(8)?,
        scheduled_ms: row.get(9)?,
    })
}

const TRY: &str =
    "SELECT run, stage, item, attempt, status, reason, started_ms, ended_ms, error FROM attempts";

fn attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRow> {
    Ok(AttemptRow {
        run: row.get(0)?,
        stage: row.get(1)?,
        item: row.get(2)?,
        attempt: row.get(3)?,
        status: row.get(4)?,
        reason: row.get(5)?,
        started_ms: row.get(6)?,
        ended_ms: row.get(7)?,
        error: row.get(8)?,
    })
}

impl State {
    /// The latest runs, newest first; of one pipeline, or of all.
    pub fn runs(&self, pipeline: Option<&str>, limit: u32) -> Result<Vec<RunRow>, StateError> {
        // Chosen first, by an index; then bytes are summed, of these only.
        let chosen = match pipeline {
            Some(_) => "pipeline = ?1",
            None => "?1 IS NULL",
        };
        self.with(|c| {
            c.prepare_cached(&format!(
                "{RUN} (SELECT * FROM runs WHERE {chosen} ORDER BY started_ms DESC, id DESC LIMIT ?2) AS runs
                 ORDER BY started_ms DESC, id DESC"
            ))?
            .query_map(params![pipeline, limit], run)?
            .collect()
        })
    }

    /// The run whose id is or begins with `id`.
    pub fn run(&self, id: &str) -> Result<Option<RunRow>, StateError> {
        self.with(|c| {
            let mut query = c.prepare_cached(&format!(
                "{RUN} (SELECT * FROM runs WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id DESC LIMIT 1) AS runs"
            ))?;
            query.query_map(params![id], run)?.next().transpose()
        })
    }

    /// The stages of a run, in the order they began.
    pub fn stages(&self, run: &str) -> Result<Vec<StageRow>, StateError> {
        self.with(|c| {
            c.prepare_cached(
                "SELECT stage, status, reason, started_ms, ended_ms, items, items_done, items_skipped, items_failed, rows, error
                 FROM stages WHERE run = ?1 ORDER BY started_ms, rowid",
            )?
            .query_map(params![run], |row| {
                Ok(StageRow {
                    stage: row.get(0)?,
                    status: row.get(1)?,
                    reason: row.get(2)?,
                    started_ms: row.get(3)?,
                    ended_ms: row.get(4)?,
                    items: row.get(5)?,
                    items_done: row.get(6)?,
                    items_skipped: row.get(7)?,
                    items_failed: row.get(8)?,
                    rows: row.get(9)?,
                    error: row.get(10)?,
                })
            })?
            .collect()
        })
    }

    pub(crate) fn logs(&self, run: &str, limit: u32) -> Result<Vec<LogRow>, StateError> {
        self.with(|c| {
            let mut rows: Vec<LogRow> = c
                .prepare_cached("SELECT at_ms, level, stage, item, message FROM logs WHERE run = ?1 ORDER BY rowid DESC LIMIT ?2")?
                .query_map(params![run, limit], |row| {
                    Ok(LogRow {
                        at_ms: row.get(0)?,
                        level: row.get(1)?,
                        stage: row.get(2)?,
                        item: row.get(3)?,
                        message: row.get(4)?,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
            rows.reverse();
            Ok(rows)
        })
    }

    /// The latest tries of an item, the newest first.
    pub(crate) fn attempts(
        &self,
        pipeline: &str,
        stage: &str,
        item: &str,
        limit: u32,
    ) -> Result<Vec<AttemptRow>, StateError> {
        self.with(|c| {
            c.prepare_cached(&format!(
                "{TRY} WHERE pipeline = ?1 AND stage = ?2 AND item = ?3 ORDER BY id DESC LIMIT ?4"
            ))?
            .query_map(params![pipeline, stage, item, limit], attempt)?
            .collect()
        })
    }

    /// The tries of a run, in the order they began.
    pub(crate) fn tries(&self, run: &str, limit: u32) -> Result<Vec<AttemptRow>, StateError> {
        self.with(|c| {
            c.prepare_cached(&format!("{TRY} WHERE run = ?1 ORDER BY id LIMIT ?2"))?
                .query_map(params![run, limit], attempt)?
                .collect()
        })
    }

    /// Delta bytes per input byte of what a stage did before, if it compressed anything.
    pub(crate) fn past_share(
        &self,
        pipeline: &str,
        stage: &str,
    ) -> Result<Option<f64>, StateError> {
        self.with(|c| {
            c.query_row(
                "SELECT sum(delta_bytes) * 1.0 / nullif(sum(input_bytes), 0) FROM bytes JOIN attempts ON attempts.id = bytes.attempt
                 WHERE attempts.pipeline = ?1 AND attempts.stage = ?2",
                params![pipeline, stage],
                |row| row.get(0),
            )
        })
    }

    /// Rows of numbers under labels, for the metrics: the first `labels` columns are text, the others numbers.
    pub(crate) fn numbers(&self, sql: &str, labels: usize) -> Result<Vec<Numbers>, StateError> {
        self.with(|c| {
            let mut query = c.prepare_cached(sql)?;
            let columns = query.column_count();
            query
                .query_map([], |row| {
                    let names = (0..labels)
                        .map(|at| row.get::<_, String>(at))
                        .collect::<rusqlite::Result<_>>()?;
                    let values = (labels..columns)
                        .map(|at| row.get::<_, f64>(at))
                        .collect::<rusqlite::Result<_>>()?;
                    Ok((names, values))
                })?
                .collect()
        })
    }
}
