-- The history of pipelines. Times are milliseconds since 1970 (UTC).
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, status TEXT NOT NULL, trigger TEXT NOT NULL,
    scheduled_ms INTEGER, started_ms INTEGER NOT NULL, ended_ms INTEGER, pid INTEGER NOT NULL,
    params TEXT NOT NULL, version TEXT NOT NULL, error TEXT
);
CREATE INDEX IF NOT EXISTS runs_by_pipeline ON runs (pipeline, started_ms);
CREATE INDEX IF NOT EXISTS runs_by_time ON runs (started_ms);
CREATE TABLE IF NOT EXISTS stages (
    run TEXT NOT NULL, pipeline TEXT NOT NULL, stage TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    started_ms INTEGER NOT NULL, ended_ms INTEGER, queued_ms INTEGER NOT NULL DEFAULT 0,
    items INTEGER NOT NULL DEFAULT 0, items_done INTEGER NOT NULL DEFAULT 0, items_skipped INTEGER NOT NULL DEFAULT 0,
    items_failed INTEGER NOT NULL DEFAULT 0, rows INTEGER NOT NULL DEFAULT 0, error TEXT,
    PRIMARY KEY (run, stage)
);
CREATE INDEX IF NOT EXISTS stages_by_pipeline ON stages (pipeline, status);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, pipeline TEXT NOT NULL, stage TEXT NOT NULL, item TEXT NOT NULL,
    attempt INTEGER NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    queued_ms INTEGER NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER, rows INTEGER NOT NULL DEFAULT 0,
    verify_failures INTEGER NOT NULL DEFAULT 0, error TEXT
);
CREATE INDEX IF NOT EXISTS attempts_by_stage ON attempts (pipeline, stage, item);
CREATE INDEX IF NOT EXISTS attempts_by_run ON attempts (run);
-- All that the metrics ask of tries: they are counted from the index alone.
CREATE INDEX IF NOT EXISTS attempts_by_status ON attempts (pipeline, stage, status, queued_ms, verify_failures);
CREATE TABLE IF NOT EXISTS bytes (
    attempt INTEGER NOT NULL, run TEXT NOT NULL, pipeline TEXT NOT NULL, kind TEXT NOT NULL, codec TEXT NOT NULL,
    input_bytes INTEGER NOT NULL, delta_bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS bytes_by_attempt ON bytes (attempt);
CREATE INDEX IF NOT EXISTS bytes_by_run ON bytes (run);
CREATE INDEX IF NOT EXISTS bytes_by_kind ON bytes (pipeline, kind, codec, input_bytes, delta_bytes);
CREATE TABLE IF NOT EXISTS dataset_rows (
    attempt INTEGER NOT NULL, run TEXT NOT NULL, pipeline TEXT NOT NULL, class TEXT NOT NULL, rows INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS checks (
    run TEXT NOT NULL, pipeline TEXT NOT NULL, stage TEXT NOT NULL, name TEXT NOT NULL, severity TEXT NOT NULL,
    failed_rows INTEGER NOT NULL, error TEXT, ended_ms INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS checks_by_run ON checks (run);
CREATE INDEX IF NOT EXISTS checks_by_pipeline ON checks (pipeline, severity);
-- What is done: one row per stage (item '') and per item.
CREATE TABLE IF NOT EXISTS done (
    pipeline TEXT NOT NULL, stage TEXT NOT NULL, item TEXT NOT NULL, key TEXT NOT NULL, parts TEXT NOT NULL,
    result TEXT NOT NULL, ended_ms INTEGER NOT NULL,
    PRIMARY KEY (pipeline, stage, item)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (identity TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS schedules (
    pipeline TEXT PRIMARY KEY, seen_ms INTEGER NOT NULL, lag_ms INTEGER NOT NULL DEFAULT 0, missed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
-- Runs that the daemon is to do, or does: they stay until they ended, so that none is lost with its process.
-- `run` is the id that the run has once it began.
CREATE TABLE IF NOT EXISTS asked (
    id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, trigger TEXT NOT NULL, scheduled_ms INTEGER, run TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS logs (
    run TEXT NOT NULL, at_ms INTEGER NOT NULL, level TEXT NOT NULL, stage TEXT NOT NULL, item TEXT NOT NULL, message TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS logs_by_run ON logs (run);
