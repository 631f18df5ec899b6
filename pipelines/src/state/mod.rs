//! The history of pipelines, and what is done: a SQLite database beside the tables that stages made.

mod read;
mod tables;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

pub use read::{RunRow, StageRow};
pub(crate) use tables::TABLES;
pub use tables::register;

use crate::summary::Status;

/// The version of the schema, in `user_version`.
const SCHEMA: i64 = 2;

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// SQLite failed.
    #[error("the history {}: {source}; check free space and permissions", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A folder could not be made or a file not opened.
    #[error("cannot write to {}: {source}; check free space and permissions, or give another --state-dir", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A later version made it.
    #[error("the history {} is of a later version of sparse (schema {found}); use that version, or another --state-dir", path.display())]
    Version {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// A page could not be rendered.
    #[error("the page cannot be shown: {0}")]
    Page(String),
    /// The lock of a pipeline.
    #[error(transparent)]
    Lock(#[from] sparse_store::StoreError),
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

/// The id of a run, a UUID of version 7: ids sort by time.
pub(crate) fn new_id() -> String {
    let random = |salt: u64| {
        let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
        hasher.write_u64(salt);
        hasher.write_u32(std::process::id());
        hasher.finish()
    };
    let (a, b) = (random(1), random(2));
    let time = now_ms();
    format!(
        "{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        (time >> 16) & 0xffff_ffff,
        time & 0xffff,
        a & 0xfff,
        0x8000 | ((a >> 12) & 0x3fff),
        b & 0xffff_ffff_ffff,
    )
}

/// A run that is waited for. It is recorded until it ended: a daemon that is killed or stopped takes it up again.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: i64,
    /// The id it has once it began.
    pub(crate) run: String,
    pub(crate) trigger: String,
    pub(crate) scheduled_ms: Option<i64>,
}

impl Asked {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            run: row.get(1)?,
            trigger: row.get(2)?,
            scheduled_ms: row.get(3)?,
        })
    }
}

/// What one try made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Tables, by name.
    pub(crate) tables: Vec<Table>,
    /// Views, external tables and settings, to be said again.
    pub(crate) declares: Vec<String>,
    /// What it wrote elsewhere, with its identity right after.
    pub(crate) outputs: Vec<(String, String)>,
    pub(crate) rows: u64,
}

/// A table as a Parquet file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// Below the state folder.
    pub(crate) file: String,
    pub(crate) hash: String,
}

/// What is recorded of something done.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) key: String,
    pub(crate) parts: String,
    pub(crate) result: String,
}

/// Bytes in and out of one kind of work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// model, adapter or dataset.
    pub kind: String,
    /// lossless, svd, ...
    pub codec: String,
    /// Bytes of what was compressed.
    pub input_bytes: u64,
    /// Bytes of the deltas.
    pub delta_bytes: u64,
}

/// What the statements of a try measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Bytes in and out.
    pub(crate) bytes: Vec<Bytes>,
    /// Rows of compressed datasets, by class: shared, edited, new or removed.
    pub(crate) dataset_rows: BTreeMap<String, u64>,
    /// Checks of artifacts that failed.
    pub(crate) verify_failures: u64,
}

impl Measured {
    /// Adds what another try measured.
    pub(crate) fn add(&mut self, other: &Self) {
        for bytes in &other.bytes {
            let same = |b: &&mut Bytes| b.kind == bytes.kind && b.codec == bytes.codec;
            match self.bytes.iter_mut().find(same) {
                Some(sum) => {
                    sum.input_bytes += bytes.input_bytes;
                    sum.delta_bytes += bytes.delta_bytes;
                }
                None => self.bytes.push(bytes.clone()),
            }
        }
        for (class, rows) in &other.dataset_rows {
            *self.dataset_rows.entry(class.clone()).or_default() += rows;
        }
        self.verify_failures += other.verify_failures;
    }
}

/// One try, to be recorded.
pub(crate) struct Attempt<'a> {
    pub(crate) run: &'a str,
    pub(crate) pipeline: &'a str,
    pub(crate) stage: &'a str,
    pub(crate) item: &'a str,
    pub(crate) attempt: u32,
    pub(crate) key: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) queued_ms: i64,
}

/// How a stage ended, to be recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct StageEnd {
    pub(crate) status: &'static str,
    pub(crate) queued_ms: i64,
    pub(crate) items: u64,
    pub(crate) done: u64,
    pub(crate) skipped: u64,
    pub(crate) failed: u64,
    pub(crate) rows: u64,
    pub(crate) error: Option<String>,
}

/// The history. Shared by all threads of a process; processes share the file.
pub struct State {
    dir: PathBuf,
    connection: Mutex<Connection>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// SQLite's integers are signed.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl State {
    /// Opens the history in `dir`, made where it is not there.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        let tables = dir.join("tables");
        std::fs::create_dir_all(&tables).map_err(io(&tables))?;
        let dir = std::path::absolute(dir).map_err(io(dir))?;
        let path = dir.join("state.db");
        let sqlite = |source| StateError::Sqlite {
            path: path.clone(),
            source,
        };
        let mut connection = Connection::open(&path).map_err(sqlite)?;
        connection
            .busy_timeout(Duration::from_secs(60))
            .map_err(sqlite)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(sqlite)?;
        // A stage that is recorded stays recorded, over a power loss too.
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(sqlite)?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(sqlite)?;
        if found > SCHEMA {
            return Err(StateError::Version {
                path: path.clone(),
                found,
            });
        }
        if found < SCHEMA {
            // Another process may do the same now.
            let tx = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(sqlite)?;
            upgrade(&tx).map_err(sqlite)?;
            tx.commit().map_err(sqlite)?;
        }
        Ok(Self {
            dir,
            connection: Mutex::new(connection),
        })
    }

    /// Its folder, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the right to run `pipeline`, if no process has it.
    pub fn try_lock(&self, pipeline: &str) -> Result<Option<sparse_store::LockGuard>, StateError> {
        Ok(sparse_store::try_lock(
            &format!("pipeline {pipeline}"),
            &self.dir,
        )?)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        work(&mut self.connection()).map_err(|source| StateError::Sqlite {
            path: self.dir.join("state.db"),
            source,
        })
    }

    /// Marks what a killed process left as under way. To be called by the holder of the pipeline's lock.
    pub(crate) fn recover(&self, pipeline: &str) -> Result<usize, StateError> {
        let now = now_ms();
        self.with(|c| {
            let tx = c.transaction()?;
            for table in ["attempts", "stages"] {
                tx.execute(
                    &format!("UPDATE {table} SET status = 'interrupted', ended_ms = ?2 WHERE pipeline = ?1 AND status = 'running'"),
                    params![pipeline, now],
                )?;
            }
            let runs = tx.execute(
                "UPDATE runs SET status = 'interrupted', ended_ms = ?2, error = 'its process ended before it did'
                 WHERE pipeline = ?1 AND status = 'running'",
                params![pipeline, now],
            )?;
            tx.commit()?;
            Ok(runs)
        })
    }

    pub(crate) fn begin_run(
        &self,
        id: &str,
        pipeline: &str,
        trigger: &str,
        scheduled_ms: Option<i64>,
        shown_params: &str,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO runs (id, pipeline, status, trigger, scheduled_ms, started_ms, pid, params, version)
                 VALUES (?1, ?2, 'running', ?3, ?4, ?5, ?6, ?7, ?8)",
                params![id, pipeline, trigger, scheduled_ms, now_ms(), std::process::id(), shown_params, env!("CARGO_PKG_VERSION")],
            )
            .map(|_| ())
        })
    }

    /// Records how a run ended and, in the same transaction, that it is asked for no longer.
    pub(crate) fn end_run(
        &self,
        id: &str,
        status: &str,
        error: Option<&str>,
        answered: Option<i64>,
    ) -> Result<(), StateError> {
        self.with(|c| {
            let tx = c.transaction()?;
            tx.execute(
                "UPDATE runs SET status = ?2, ended_ms = ?3, error = ?4 WHERE id = ?1",
                params![id, status, now_ms(), error],
            )?;
            tx.execute("DELETE FROM asked WHERE id = ?1", params![answered])?;
            tx.commit()
        })
    }

    pub(crate) fn begin_stage(
        &self,
        run: &str,
        pipeline: &str,
        stage: &str,
        reason: &str,
        items: u64,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO stages (run, pipeline, stage, status, reason, started_ms, items) VALUES (?1, ?2, ?3, 'running', ?4, ?5, ?6)",
                params![run, pipeline, stage, reason, now_ms(), int(items)],
            )
            .map(|_| ())
        })
    }

    pub(crate) fn end_stage(
        &self,
        run: &str,
        stage: &str,
        end: &StageEnd,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "UPDATE stages SET status = ?3, ended_ms = ?4, queued_ms = ?5, items = ?6, items_done = ?7, items_skipped = ?8,
                 items_failed = ?9, rows = ?10, error = ?11 WHERE run = ?1 AND stage = ?2",
                params![run, stage, end.status, now_ms(), end.queued_ms, int(end.items), int(end.done), int(end.skipped), int(end.failed), int(end.rows), end.error],
            )
            .map(|_| ())
        })
    }

    /// A stage that did not run: in one row, begin and end.
    pub(crate) fn pass_stage(
        &self,
        run: &str,
        pipeline: &str,
        stage: &str,
        reason: &str,
        end: &StageEnd,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO stages (run, pipeline, stage, status, reason, started_ms, ended_ms, items, items_skipped)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8)",
                params![run, pipeline, stage, end.status, reason, now_ms(), int(end.items), int(end.skipped)],
            )
            .map(|_| ())
        })
    }

    pub(crate) fn begin_attempt(&self, attempt: &Attempt<'_>) -> Result<i64, StateError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO attempts (run, pipeline, stage, item, attempt, key, status, reason, queued_ms, started_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'running', ?7, ?8, ?9)",
                params![attempt.run, attempt.pipeline, attempt.stage, attempt.item, attempt.attempt, attempt.key, attempt.reason, attempt.queued_ms, now_ms()],
            )?;
            Ok(c.last_insert_rowid())
        })
    }

    pub(crate) fn fail_attempt(
        &self,
        id: i64,
        status: &str,
        error: &str,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "UPDATE attempts SET status = ?2, ended_ms = ?3, error = ?4 WHERE id = ?1",
                params![id, status, now_ms(), error],
            )
            .map(|_| ())
        })
    }

    /// Records a try that succeeded and, in the same transaction, that its work is done.
    pub(crate) fn finish_attempt(
        &self,
        id: i64,
        attempt: &Attempt<'_>,
        parts: &str,
        outcome: &Outcome,
        measured: &Measured,
    ) -> Result<(), StateError> {
        let result = serde_json::to_string(outcome).unwrap_or_default();
        self.with(|c| {
            let now = now_ms();
            let tx = c.transaction()?;
            tx.execute(
                "UPDATE attempts SET status = 'succeeded', ended_ms = ?2, rows = ?3, verify_failures = ?4 WHERE id = ?1",
                params![id, now, int(outcome.rows), int(measured.verify_failures)],
            )?;
            for b in &measured.bytes {
                tx.execute(
                    "INSERT INTO bytes (attempt, run, pipeline, kind, codec, input_bytes, delta_bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![id, attempt.run, attempt.pipeline, b.kind, b.codec, int(b.input_bytes), int(b.delta_bytes)],
                )?;
            }
            for (class, rows) in &measured.dataset_rows {
                tx.execute(
                    "INSERT INTO dataset_rows (attempt, run, pipeline, class, rows) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![id, attempt.run, attempt.pipeline, class, int(*rows)],
                )?;
            }
            put_done(&tx, attempt.pipeline, attempt.stage, &stored(attempt.item), &Done {
                key: attempt.key.to_owned(),
                parts: parts.to_owned(),
                result,
            }, now)?;
            tx.execute(
                "UPDATE stages SET items_done = items_done + 1, rows = rows + ?3 WHERE run = ?1 AND stage = ?2",
                params![attempt.run, attempt.stage, int(outcome.rows)],
            )?;
            tx.commit()
        })
    }

    /// Records that a stage as a whole, its checks included, is done; items that are gone from its catalog are forgotten.
    pub(crate) fn finish_stage(
        &self,
        pipeline: &str,
        stage: &str,
        done: &Done,
        gone: &[String],
    ) -> Result<(), StateError> {
        self.with(|c| {
            let tx = c.transaction()?;
            put_done(&tx, pipeline, stage, STAGE, done, now_ms())?;
            for item in gone {
                tx.execute(
                    "DELETE FROM done WHERE pipeline = ?1 AND stage = ?2 AND item = ?3",
                    params![pipeline, stage, item],
                )?;
            }
            tx.commit()
        })
    }

    /// What is done of a stage, by item.
    pub(crate) fn done(
        &self,
        pipeline: &str,
        stage: &str,
    ) -> Result<HashMap<String, Done>, StateError> {
        self.with(|c| {
            let mut query = c.prepare_cached(
                "SELECT item, key, parts, result FROM done WHERE pipeline = ?1 AND stage = ?2",
            )?;
            query
                .query_map(params![pipeline, stage], |row| {
                    Ok((
                        row.get(0)?,
                        Done {
                            key: row.get(1)?,
                            parts: row.get(2)?,
                            result: row.get(3)?,
                        },
                    ))
                })?
                .collect()
        })
    }

    /// The content of an identity, if it was ever computed.
    pub(crate) fn content(&self, identity: &str) -> Result<Option<String>, StateError> {
        self.with(|c| {
            let mut query = c.prepare_cached("SELECT content FROM contents WHERE identity = ?1")?;
            query
                .query_row(params![identity], |row| row.get(0))
                .optional()
        })
    }

    pub(crate) fn put_contents(&self, contents: &[(String, String)]) -> Result<(), StateError> {
        if contents.is_empty() {
            return Ok(());
        }
        self.with(|c| {
            let tx = c.transaction()?;
            for (identity, content) in contents {
                tx.execute(
                    "INSERT OR REPLACE INTO contents (identity, content) VALUES (?1, ?2)",
                    params![identity, content],
                )?;
            }
            tx.commit()
        })
    }

    pub(crate) fn put_check(
        &self,
        run: &str,
        pipeline: &str,
        stage: &str,
        check: &crate::summary::CheckReport,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO checks (run, pipeline, stage, name, severity, failed_rows, error, ended_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![run, pipeline, stage, check.name, check.severity, int(check.failed_rows), check.error, now_ms()],
            )
            .map(|_| ())
        })
    }

    pub(crate) fn log(
        &self,
        run: &str,
        level: &str,
        stage: &str,
        item: &str,
        message: &str,
    ) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO logs (run, at_ms, level, stage, item, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![run, now_ms(), level, stage, item, message],
            )
            .map(|_| ())
        })
    }

    /// Up to when the schedule of a pipeline was looked at.
    pub(crate) fn schedule_seen(&self, pipeline: &str) -> Result<Option<i64>, StateError> {
        self.with(|c| {
            c.query_row(
                "SELECT seen_ms FROM schedules WHERE pipeline = ?1",
                params![pipeline],
                |row| row.get(0),
            )
            .optional()
        })
    }

    /// Records up to when a schedule was looked at, the times that get no run, and, in the same transaction, the runs that now
    /// wait: killed before or after, no time is lost and none runs twice. Returns them.
    pub(crate) fn put_schedule(
        &self,
        pipeline: &str,
        seen_ms: i64,
        missed: u64,
        asked: &[(&'static str, i64)],
    ) -> Result<Vec<Asked>, StateError> {
        self.with(|c| {
            let tx = c.transaction()?;
            tx.execute(
                "INSERT INTO schedules (pipeline, seen_ms, missed) VALUES (?1, ?2, ?3)
                 ON CONFLICT (pipeline) DO UPDATE SET seen_ms = ?2, missed = missed + ?3",
                params![pipeline, seen_ms, int(missed)],
            )?;
            let mut waiting = Vec::new();
            for (trigger, scheduled_ms) in asked {
                waiting.push(put_asked(&tx, pipeline, trigger, Some(*scheduled_ms))?);
            }
            tx.commit()?;
            Ok(waiting)
        })
    }

    /// Records how late the latest scheduled run began.
    pub(crate) fn put_lag(&self, pipeline: &str, lag_ms: i64) -> Result<(), StateError> {
        self.with(|c| {
            c.execute(
                "UPDATE schedules SET lag_ms = ?2 WHERE pipeline = ?1",
                params![pipeline, lag_ms],
            )
            .map(|_| ())
        })
    }

    /// Records that a run is waited for.
    pub(crate) fn ask(&self, pipeline: &str, trigger: &str) -> Result<Asked, StateError> {
        self.with(|c| put_asked(c, pipeline, trigger, None))
    }

    /// The runs that are waited for, oldest first.
    pub(crate) fn asked(&self, pipeline: &str) -> Result<Vec<Asked>, StateError> {
        self.with(|c| {
            c.prepare_cached(
                "SELECT id, run, trigger, scheduled_ms FROM asked WHERE pipeline = ?1 ORDER BY id",
            )?
            .query_map(params![pipeline], Asked::read)?
            .collect()
        })
    }

    /// The run of this id, while it is waited for, and its pipeline.
    pub(crate) fn waiting(&self, run: &str) -> Result<Option<(String, Asked)>, StateError> {
        self.with(|c| {
            c.prepare_cached(
                "SELECT id, run, trigger, scheduled_ms, pipeline FROM asked WHERE run = ?1 AND run <> ''",
            )?
            .query_row(params![run], |row| Ok((row.get(4)?, Asked::read(row)?)))
            .optional()
        })
    }

    /// Records how a run ended that was asked for and never began.
    pub(crate) fn end_asked(
        &self,
        asked: &Asked,
        pipeline: &str,
        status: Status,
        error: &str,
    ) -> Result<(), StateError> {
        if self.run(&asked.run)?.is_none() {
            self.begin_run(
                &asked.run,
                pipeline,
                &asked.trigger,
                asked.scheduled_ms,
                "{}",
            )?;
        }
        self.end_run(&asked.run, status.name(), Some(error), Some(asked.id))
    }

    /// Records that a run is no longer waited for.
    pub(crate) fn answered(&self, id: i64) -> Result<(), StateError> {
        self.with(|c| {
            c.execute("DELETE FROM asked WHERE id = ?1", params![id])
                .map(|_| ())
        })
    }

    /// Takes the right to be the daemon of this history, if no process has it.
    pub(crate) fn try_lock_daemon(&self) -> Result<Option<sparse_store::LockGuard>, StateError> {
        Ok(sparse_store::try_lock("daemon", &self.dir)?)
    }
}

/// Makes the tables that are not there, and those of an earlier version what they are now.
fn upgrade(c: &Connection) -> rusqlite::Result<()> {
    let found: i64 = c.pragma_query_value(None, "user_version", |row| row.get(0))?;
    c.execute_batch(include_str!("schema.sql"))?;
    if found == 1 {
        // Version 1 gave a run its id when it began.
        c.execute_batch("ALTER TABLE asked ADD COLUMN run TEXT NOT NULL DEFAULT ''")?;
    }
    c.pragma_update(None, "user_version", SCHEMA)
}

fn put_asked(
    c: &Connection,
    pipeline: &str,
    trigger: &str,
    scheduled_ms: Option<i64>,
) -> rusqlite::Result<Asked> {
    let run = new_id();
    c.execute(
        "INSERT INTO asked (pipeline, trigger, scheduled_ms, run) VALUES (?1, ?2, ?3, ?4)",
        params![pipeline, trigger, scheduled_ms, run],
    )?;
    Ok(Asked {
        id: c.last_insert_rowid(),
        run,
        trigger: trigger.to_owned(),
        scheduled_ms,
    })
}

/// An item's name in the table of what is done.
pub(crate) fn stored(item: &str) -> String {
    format!("={item}")
}

/// The item of a stage as a whole. No item's stored name is this.
pub(crate) const STAGE: &str = "";

fn put_done(
    c: &Connection,
    pipeline: &str,
    stage: &str,
    item: &str,
    done: &Done,
    now: i64,
) -> rusqlite::Result<()> {
    c.prepare_cached("INSERT OR REPLACE INTO done (pipeline, stage, item, key, parts, result, ended_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![pipeline, stage, item, done.key, done.parts, done.result, now])
        .map(|_| ())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_history_of_the_first_version_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        drop(State::open(dir.path()).unwrap());
        let old = Connection::open(dir.path().join("state.db")).unwrap();
        old.execute_batch(
            "ALTER TABLE asked DROP COLUMN run; PRAGMA user_version = 1;
             INSERT INTO asked (pipeline, trigger) VALUES ('nightly', 'api');",
        )
        .unwrap();
        drop(old);
        let all: Vec<_> = std::thread::scope(|scope| {
            let open = || State::open(dir.path()).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let waiting = all[0].asked("nightly").unwrap();
        assert_eq!((waiting.len(), waiting[0].run.as_str()), (1, ""));
        let asked = all[1].ask("nightly", "api").unwrap();
        let (pipeline, known) = all[2].waiting(&asked.run).unwrap().unwrap();
        assert_eq!((pipeline.as_str(), known.id), ("nightly", asked.id));
        assert!(all[3].waiting("").unwrap().is_none());
    }
}
