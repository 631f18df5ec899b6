//! Pipelines, through the binary: a folder with a pipeline and its history, and what is asked of one.

mod kill;
mod nightly;
mod plan;
mod run;
mod spec;
mod stop;
mod told;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Random, run_fails, run_ok, sparse, stderr, text};

/// A folder with a pipeline and its history.
pub(crate) struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    pub(crate) fn new(yaml: &str) -> Self {
        let work = Self {
            // Its name is the pipeline's, where that has none.
            dir: tempfile::Builder::new().prefix("work").tempdir().unwrap(),
        };
        work.write("pipeline.yaml", yaml);
        work
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content.replace("{dir}", &text(self.path()))).unwrap();
    }

    fn arguments<'a>(&self, command: &'a str, more: &[&'a str]) -> Vec<String> {
        let mut all = vec!["pipeline".to_owned(), command.to_owned(), text(self.path())];
        all.extend(more.iter().map(|argument| (*argument).to_owned()));
        all.push("--state-dir".to_owned());
        all.push(text(&self.at(".sparse")));
        all
    }

    pub(crate) fn sparse(&self, command: &str, more: &[&str]) -> std::process::Command {
        let mut process = sparse(self.path());
        process.args(self.arguments(command, more));
        process
    }

    /// Runs it; returns the exit code and the report.
    pub(crate) fn run(&self, more: &[&str]) -> (i32, Value) {
        let mut all = vec!["--json"];
        all.extend(more);
        let output = self.sparse("run", &all).output().unwrap();
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no report: {}", stderr(&output)));
        (output.status.code().unwrap(), report)
    }

    fn plan(&self) -> Value {
        let output = self.sparse("plan", &["--json"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        let dir = text(&self.at(".sparse"));
        run_ok(
            self.path(),
            &["sql", "--state-dir", &dir, "--format", "csv", "-c", sql],
        )
    }

    fn fails(&self, needles: &[&str]) {
        let dir = text(self.path());
        run_fails(self.path(), &["pipeline", "validate", &dir], 2, needles);
    }
}

/// The hour of the day, in UTC.
pub(crate) fn now_hours() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    now.as_secs() / 3600 % 24
}

fn stage<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["stages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|stage| stage["stage"] == name)
        .unwrap_or_else(|| panic!("no stage {name}: {report}"))
}

fn status<'r>(report: &'r Value, name: &str) -> &'r str {
    stage(report, name)["status"].as_str().unwrap()
}

const CHAIN: &str = r#"
name: chain
params: { factor: 2 }
stages:
  - name: doubled
    sql: SELECT id, id * $factor AS twice FROM numbers
  - name: numbers
    sql: SELECT * FROM '{dir}/numbers.csv'
  - name: out
    sql: COPY (SELECT * FROM doubled ORDER BY id) TO '{dir}/out.csv' STORED AS CSV
"#;

/// A model of one tensor.
fn tiny_model(path: &Path, seed: u64) {
    let mut random = Random::new(seed);
    let header = r#"{"w":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}}"#;
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&random.bytes(256)).unwrap();
}

/// Models under one for_each.
fn many(work: &Work, models: usize) {
    let mut csv = "name,path\n".to_owned();
    std::fs::create_dir_all(work.at("models")).unwrap();
    for at in 0..models {
        let path = work.at(&format!("models/{at:04}.safetensors"));
        tiny_model(&path, at as u64);
        csv += &format!("m{at:04},{}\n", text(&path));
    }
    work.write("models.csv", &csv);
}

const MANY: &str = r#"
name: many
resources: { concurrency: 4 }
stages:
  - name: models
    sql: SELECT name, path FROM '{dir}/models.csv'
  - name: count
    for_each: { query: "SELECT name, path FROM models" }
    sql: SELECT $name AS name, sum(params) AS params FROM sparse_tensors($path)
  - name: total
    sql: SELECT count(*) AS models, sum(params) AS params FROM count
"#;
