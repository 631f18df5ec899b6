//! The metrics: computed from the history, so that a restart resets nothing and one-shot runs and the daemon agree; encoded
//! as Prometheus reads them, pushed to a Pushgateway, or written to a textfile.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder as _, TextEncoder};
use sparse_cache::{CacheStats, Job, JobState};

use crate::state::{Bytes, State, StateError};

/// Upper bounds of durations, in seconds: from statements of tenths of a second to compressions of hours.
const BOUNDS: [f64; 12] = [
    0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 7200.0, 14_400.0, 43_200.0,
];

/// A count that went through SQLite as a number with a point.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of rows"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

/// Metrics in the making.
#[derive(Default)]
pub struct Metrics {
    families: BTreeMap<&'static str, MetricFamily>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics")
            .field("families", &self.families.len())
            .finish()
    }
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    pairs
        .iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        })
        .collect()
}

/// What a command that is no pipeline did.
#[derive(Clone, Debug, Default)]
pub struct CommandRun {
    /// Its name.
    pub command: String,
    /// Seconds since 1970.
    pub started: f64,
    /// Wall time.
    pub seconds: f64,
    /// The exit code of the process.
    pub exit_code: u8,
    /// Bytes in and out.
    pub bytes: Vec<Bytes>,
    /// Rows of a compressed dataset, by class: shared, edited, new or removed.
    pub dataset_rows: Vec<(&'static str, u64)>,
    /// Checks of artifacts that failed.
    pub verify_failures: u64,
}

#[expect(clippy::cast_precision_loss, reason = "metrics are f64")]
fn float(count: u64) -> f64 {
    count as f64
}

impl Metrics {
    /// With the version of this program.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self::default();
        metrics.gauge(
            "sparse_build_info",
            "The version of sparse.",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1.0,
        );
        metrics
    }

    fn family(&mut self, name: &'static str, help: &str, ty: MetricType) -> &mut Vec<Metric> {
        let family = self.families.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(ty);
            family
        });
        family.mut_metric()
    }

    fn gauge(&mut self, name: &'static str, help: &str, pairs: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_label(labels(pairs));
        metric.set_gauge(gauge);
        self.family(name, help, MetricType::GAUGE).push(metric);
    }

    fn counter(&mut self, name: &'static str, help: &str, pairs: &[(&str, &str)], value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::from_label(labels(pairs));
        metric.set_counter(counter);
        self.family(name, help, MetricType::COUNTER).push(metric);
    }

    /// `buckets`: by bound, how many were no longer.
    fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        pairs: &[(&str, &str)],
        (count, sum): (f64, f64),
        buckets: &[f64],
    ) {
        let mut histogram = Histogram::default();
        histogram.set_bucket(
            BOUNDS
                .into_iter()
                .zip(buckets)
                .map(|(bound, count)| {
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(whole(*count));
                    bucket
                })
                .collect(),
        );
        histogram.set_sample_count(whole(count));
        histogram.set_sample_sum(sum);
        let mut metric = Metric::from_label(labels(pairs));
        metric.set_histogram(histogram);
        self.family(name, help, MetricType::HISTOGRAM).push(metric);
    }

    /// Adds what a command did.
    pub fn command(&mut self, run: &CommandRun) {
        let pairs = [("command", run.command.as_str())];
        self.gauge(
            "sparse_command_last_start_timestamp_seconds",
            "When the command began.",
            &pairs,
            run.started,
        );
        let ended = run.started + run.seconds;
        if run.exit_code == 0 {
            self.gauge(
                "sparse_command_last_success_timestamp_seconds",
                "When the command ended well.",
                &pairs,
                ended,
            );
        } else {
            self.gauge(
                "sparse_command_last_failure_timestamp_seconds",
                "When the command failed or was interrupted.",
                &pairs,
                ended,
            );
        }
        self.gauge(
            "sparse_command_last_duration_seconds",
            "How long the command took.",
            &pairs,
            run.seconds,
        );
        self.gauge(
            "sparse_command_last_exit_code",
            "The command's exit code.",
            &pairs,
            f64::from(run.exit_code),
        );
        for bytes in &run.bytes {
            let (kind, codec) = (bytes.kind.as_str(), bytes.codec.as_str());
            let both = [pairs[0], ("kind", kind), ("codec", codec)];
            self.gauge(
                "sparse_command_last_input_bytes",
                "Bytes of what was compressed.",
                &both,
                float(bytes.input_bytes),
            );
            self.gauge(
                "sparse_command_last_delta_bytes",
                "Bytes of the deltas.",
                &both,
                float(bytes.delta_bytes),
            );
        }
        for (class, rows) in &run.dataset_rows {
            self.gauge(
                "sparse_command_last_dataset_rows",
                "Rows of the dataset that was compressed, by what became of them.",
                &[pairs[0], ("class", class)],
                float(*rows),
            );
        }
        self.gauge(
            "sparse_command_last_verify_failures",
            "Checks of artifacts that failed.",
            &pairs,
            float(run.verify_failures),
        );
    }

    /// Adds how the cache of rebuilt models does. Its counters are over all processes, since it was made.
    pub fn cache(&mut self, stats: &CacheStats, jobs: &[Job]) {
        self.gauge(
            "sparse_cache_size_bytes",
            "Bytes of rebuilt models, damaged ones and room reserved for models being rebuilt included.",
            &[],
            float(stats.cache_size_bytes),
        );
        self.gauge(
            "sparse_cache_limit_bytes",
            "Bytes of rebuilt models that the cache may hold.",
            &[],
            float(stats.cache_limit_bytes),
        );
        self.gauge(
            "sparse_cache_models",
            "Rebuilt models that are in the cache.",
            &[],
            float(stats.entries),
        );
        for (result, count) in [
            ("hit", stats.cache_hits),
            ("miss", stats.cache_misses),
            ("wait", stats.cache_waits),
        ] {
            self.counter(
                "sparse_cache_requests_total",
                "Requests for rebuilt models: there already, rebuilt, or rebuilt by another process meanwhile.",
                &[("result", result)],
                float(count),
            );
        }
        for (reason, count) in [("room", stats.evictions), ("damaged", stats.quarantined)] {
            self.counter(
                "sparse_cache_evictions_total",
                "Models that left the cache: for room, or because they were found damaged.",
                &[("reason", reason)],
                float(count),
            );
        }
        for state in [
            JobState::Queued,
            JobState::Running,
            JobState::Done,
            JobState::Failed,
            JobState::Cancelled,
        ] {
            let count = jobs.iter().filter(|job| job.state == state).count();
            self.gauge(
                "sparse_prefetch_jobs",
                "Jobs that rebuild models ahead of their use; the latest ended ones are remembered.",
                &[("state", state.name())],
                float(count as u64),
            );
        }
    }

    /// Adds what the history tells, of one pipeline or of all.
    pub fn history(&mut self, state: &State, pipeline: Option<&str>) -> Result<(), StateError> {
        // Names of pipelines are letters, digits, '-', '_' and '.': a quote cannot be in one.
        let only = pipeline.map_or_else(
            || "1 = 1".to_owned(),
            |name| format!("pipeline = '{}'", name.replace('\'', "''")),
        );
        let rows = |sql: &str, labels| state.numbers(&sql.replace("{only}", &only), labels);
        for (sql, name, help, keys) in COUNTERS {
            for (values, numbers) in rows(sql, keys.len())? {
                self.counter(name, help, &pair(keys, &values), numbers.iter().sum());
            }
        }
        for (sql, name, help, keys) in GAUGES {
            for (values, numbers) in rows(sql, keys.len())? {
                self.gauge(name, help, &pair(keys, &values), numbers.iter().sum());
            }
        }
        let keys = ["pipeline", "stage"];
        for (seconds, from, name, help) in HISTOGRAMS {
            // Counted by SQLite: a history has many more rows than stages.
            let buckets: Vec<String> = BOUNDS
                .iter()
                .map(|bound| format!("sum({seconds} <= {bound})"))
                .collect();
            let sql = format!(
                "SELECT pipeline, stage, count(*), sum({seconds}), {} FROM {from} GROUP BY 1, 2",
                buckets.join(", ")
            );
            for (values, numbers) in rows(&sql, keys.len())? {
                if let [count, sum, buckets @ ..] = numbers.as_slice() {
                    self.histogram(name, help, &pair(&keys, &values), (*count, *sum), buckets);
                }
            }
        }
        Ok(())
    }

    /// As Prometheus reads it.
    #[must_use]
    pub fn encode(self) -> String {
        let mut families: Vec<MetricFamily> = self.families.into_values().collect();
        families.retain(|family| !family.get_metric().is_empty());
        let mut out = Vec::new();
        // Writing to memory has no way to fail, and every family has metrics.
        let _ = TextEncoder::new().encode(&families, &mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

fn pair<'a>(keys: &[&'a str], values: &'a [String]) -> Vec<(&'a str, &'a str)> {
    keys.iter()
        .copied()
        .zip(values.iter().map(String::as_str))
        .collect()
}

type Family = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

/// Statuses a run ends with: each has a series from the first run on, so that a first failure is an increase.
const COUNTERS: &[Family] = &[
    (
        "SELECT p.pipeline, s.status, (SELECT count(*) FROM runs WHERE runs.pipeline = p.pipeline AND runs.status = s.status)
         FROM (SELECT DISTINCT pipeline FROM runs WHERE {only}) p,
              (SELECT 'succeeded' AS status UNION SELECT 'failed' UNION SELECT 'checks_failed' UNION SELECT 'cancelled' UNION SELECT 'interrupted') s",
        "sparse_pipeline_runs_total",
        "Runs that ended, by how.",
        &["pipeline", "status"],
    ),
    (
        "SELECT pipeline, stage, status, count(*) FROM stages WHERE {only} AND status <> 'running' GROUP BY 1, 2, 3",
        "sparse_stage_runs_total",
        "Stages that ended, by how.",
        &["pipeline", "stage", "status"],
    ),
    (
        "SELECT pipeline, stage, status, count(*) FROM attempts WHERE {only} AND status <> 'running' GROUP BY 1, 2, 3",
        "sparse_stage_attempts_total",
        "Tries of statements that ended, by how.",
        &["pipeline", "stage", "status"],
    ),
    (
        "SELECT p.pipeline, s.reason, (SELECT count(*) FROM stages WHERE stages.pipeline = p.pipeline AND stages.status = s.reason)
         FROM (SELECT DISTINCT pipeline FROM runs WHERE {only}) p,
              (SELECT 'up_to_date' AS reason UNION SELECT 'blocked' UNION SELECT 'cancelled') s",
        "sparse_stages_skipped_total",
        "Stages that did not run, by why.",
        &["pipeline", "reason"],
    ),
    (
        "SELECT pipeline, kind, sum(input_bytes) FROM bytes WHERE {only} GROUP BY 1, 2",
        "sparse_input_bytes_total",
        "Bytes of what was compressed.",
        &["pipeline", "kind"],
    ),
    (
        "SELECT pipeline, kind, codec, sum(delta_bytes) FROM bytes WHERE {only} GROUP BY 1, 2, 3",
        "sparse_delta_bytes_total",
        "Bytes of the deltas.",
        &["pipeline", "kind", "codec"],
    ),
    (
        "SELECT pipeline, max(sum(input_bytes) - sum(delta_bytes), 0) FROM bytes WHERE {only} GROUP BY 1",
        "sparse_saved_bytes_total",
        "Bytes that the deltas save.",
        &["pipeline"],
    ),
    (
        "SELECT pipeline, class, sum(rows) FROM dataset_rows WHERE {only} GROUP BY 1, 2",
        "sparse_dataset_rows_total",
        "Rows of compressed datasets: shared with the base, edited, new, or removed from it.",
        &["pipeline", "class"],
    ),
    (
        "SELECT p.pipeline, (SELECT coalesce(sum(verify_failures), 0) FROM attempts WHERE attempts.pipeline = p.pipeline)
         FROM (SELECT DISTINCT pipeline FROM runs WHERE {only}) p",
        "sparse_verify_failures_total",
        "Checks of artifacts that failed, by sparse_verify.",
        &["pipeline"],
    ),
    (
        "SELECT p.pipeline, s.severity, (SELECT count(*) FROM checks WHERE checks.pipeline = p.pipeline AND checks.severity = s.severity
             AND (failed_rows > 0 OR error IS NOT NULL))
         FROM (SELECT DISTINCT pipeline FROM runs WHERE {only}) p, (SELECT 'warn' AS severity UNION SELECT 'error') s",
        "sparse_check_failures_total",
        "Checks of pipelines that failed.",
        &["pipeline", "severity"],
    ),
    (
        "SELECT p.pipeline, coalesce((SELECT missed FROM schedules WHERE schedules.pipeline = p.pipeline), 0)
         FROM (SELECT pipeline FROM runs UNION SELECT pipeline FROM schedules) p WHERE {only}",
        "sparse_pipeline_missed_runs_total",
        "Scheduled times that got no run.",
        &["pipeline"],
    ),
];

const GAUGES: &[Family] = &[
    (
        "SELECT pipeline, max(started_ms) / 1000.0 FROM runs WHERE {only} GROUP BY 1",
        "sparse_pipeline_last_start_timestamp_seconds",
        "When the latest run began.",
        &["pipeline"],
    ),
    (
        "SELECT pipeline, max(ended_ms) / 1000.0 FROM runs WHERE {only} AND status = 'succeeded' GROUP BY 1",
        "sparse_pipeline_last_success_timestamp_seconds",
        "When the latest run that ended well ended.",
        &["pipeline"],
    ),
    (
        "SELECT pipeline, max(ended_ms) / 1000.0 FROM runs WHERE {only} AND status NOT IN ('succeeded', 'running') GROUP BY 1",
        "sparse_pipeline_last_failure_timestamp_seconds",
        "When the latest run that did not end well ended.",
        &["pipeline"],
    ),
    (
        "SELECT p.pipeline, coalesce((SELECT lag_ms / 1000.0 FROM schedules WHERE schedules.pipeline = p.pipeline), 0.0)
         FROM (SELECT pipeline FROM runs UNION SELECT pipeline FROM schedules) p WHERE {only}",
        "sparse_pipeline_schedule_lag_seconds",
        "How late the latest scheduled run began.",
        &["pipeline"],
    ),
    (
        "SELECT p.pipeline, (SELECT count(*) FROM stages WHERE stages.pipeline = p.pipeline AND status = 'running')
         FROM (SELECT DISTINCT pipeline FROM runs WHERE {only}) p",
        "sparse_stages_running",
        "Stages that are under way.",
        &["pipeline"],
    ),
    (
        // Beside a maximum, SQLite takes the other columns from its row.
        "SELECT b.pipeline, b.kind, sum(b.delta_bytes) * 1.0 / sum(b.input_bytes)
         FROM (SELECT pipeline, kind, run, max(attempt) FROM bytes WHERE {only} GROUP BY pipeline, kind) latest
         JOIN bytes b ON b.run = latest.run AND b.pipeline = latest.pipeline AND b.kind = latest.kind
         GROUP BY 1, 2 HAVING sum(b.input_bytes) > 0",
        "sparse_delta_ratio",
        "Bytes of the deltas per byte compressed, in the latest run that compressed: 0 to 1, less is better.",
        &["pipeline", "kind"],
    ),
];

/// Seconds, the rows they are of, name, help.
const HISTOGRAMS: [(&str, &str, &str, &str); 2] = [
    (
        "(ended_ms - started_ms) / 1000.0",
        "stages WHERE {only} AND ended_ms IS NOT NULL AND status IN ('succeeded', 'failed', 'checks_failed')",
        "sparse_stage_duration_seconds",
        "How long stages ran that were not up to date.",
    ),
    (
        "queued_ms / 1000.0",
        "attempts WHERE {only}",
        "sparse_stage_queue_seconds",
        "How long statements waited for concurrency, memory and GPU tokens.",
    ),
];

/// Puts metrics on a Pushgateway, in place of what the group held. Pipelines are a group by their name, never by a run's id.
pub async fn push(gateway: &str, group: &[(&str, &str)], metrics: Metrics) -> Result<(), String> {
    let mut url = url::Url::parse(gateway)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| "it is no http(s) URL; write http://host:9091".to_owned())?;
    {
        let mut path = url
            .path_segments_mut()
            .map_err(|()| "it is no http(s) URL; write http://host:9091".to_owned())?;
        path.pop_if_empty().extend(["metrics", "job", "sparse"]);
        for (name, value) in group {
            path.extend([*name, *value]);
        }
    }
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| error.without_url().to_string())?;
    let answer = client
        .put(url)
        .header("Content-Type", "text/plain; version=0.0.4")
        .body(metrics.encode())
        .send()
        .await
        .map_err(|error| format!("the request failed: {}", error.without_url()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.unwrap_or_default();
    Err(format!(
        "it answered {status}: {}",
        text.lines().next().unwrap_or_default()
    ))
}

/// Writes metrics to a file for the node exporter's textfile collector, by one rename.
pub fn write(path: &Path, metrics: Metrics) -> Result<(), sparse_store::StoreError> {
    let staged = sparse_store::Staged::file(path)?;
    let io = |source| sparse_store::StoreError::Io {
        action: "write to",
        path: path.to_owned(),
        source,
    };
    std::fs::File::create(staged.path())
        .and_then(|mut file| file.write_all(metrics.encode().as_bytes()))
        .map_err(io)?;
    staged.commit(sparse_store::Replace::Allow)?;
    Ok(())
}
