//! Pipelines, through the binary: plans, runs, skips, failures, checks, history, kills.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Random, example, python, run, run_fails, run_ok, run_python, sparse, stderr, text,
};

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

#[test]
fn what_is_wrong_is_named_with_file_line_stage_key_and_remedy() {
    for (yaml, needles) in [
        ("name: x\nstagse:\n  - name: a\n", &["no stages"][..]),
        (
            "stages:\n  - name: a\n    sql: SELECT 1\nparms: {}\n",
            &["pipeline.yaml:4", "parms", "did you mean params?"],
        ),
        (
            "stages:\n  - name: a\n    sql: SELECT 1\n    retrys: 3\n",
            &[
                "pipeline.yaml:4",
                "stage \"a\"",
                "retrys",
                "did you mean retries?",
            ],
        ),
        (
            "stages:\n  - name: a\n    sql: SELECT 1\n    timeout: soon\n",
            &[":4", "timeout", "\"soon\"", "30m"],
        ),
        (
            "stages:\n  - name: a\n    sql: SELEC 1\n",
            &["stage \"a\"", "SELEC"],
        ),
        (
            "stages:\n  - name: a\n    sql: SELECT $x\n",
            &["stage \"a\"", "$x", "params"],
        ),
        (
            "stages:\n  - name: a\n    sql: SELECT * FROM modls\n  - name: models\n    sql: SELECT 1\n",
            &["modls", "did you mean models?"],
        ),
        (
            "stages:\n  - name: a\n    sql: SELECT 1\n  - name: a\n    sql: SELECT 2\n",
            &[":4", "line 2"],
        ),
        (
            "stages:\n  - name: a\n    sql: SELECT * FROM b\n  - name: b\n    sql: SELECT * FROM a\n",
            &["wait for each other: a, b"],
        ),
        (
            "stages:\n  - name: a\n    needs: [c]\n    sql: SELECT 1\n",
            &["there is no stage c"],
        ),
        (
            "stages:\n  - name: a\n    gpu: 1\n    sql: SELECT 1\n",
            &["gpu", "resources"],
        ),
        (
            "stages:\n  - name: a\n    sql: INSERT INTO t SELECT 1\n",
            &["stage \"a\"", "COPY"],
        ),
        (
            "stages:\n  - name: a\n    sql: CREATE TABLE t (x INT)\n",
            &["table without a query", "AS SELECT"],
        ),
        (
            "schedule: { cron: \"99 * * * *\" }\nstages:\n  - name: a\n    sql: SELECT 1\n",
            &[":1", "cron", "0 2 * * *"],
        ),
        (
            "schedule: { cron: \"0 2 * * *\", timezone: Berlin }\nstages:\n  - name: a\n    sql: SELECT 1\n",
            &["timezone", "Europe/Berlin"],
        ),
        (
            "params: { token: env:NO_SUCH_VARIABLE_HERE }\nstages:\n  - name: a\n    sql: SELECT 1\n",
            &["NO_SUCH_VARIABLE_HERE", "export"],
        ),
        ("stages: [\n", &["not YAML"]),
    ] {
        Work::new(yaml).fails(needles);
    }
    let missing = tempfile::tempdir().unwrap();
    run_fails(
        missing.path(),
        &["pipeline", "run", &text(&missing.path().join("none"))],
        2,
        &["none", "pipeline.yaml"],
    );
}

#[test]
fn the_pipeline_of_the_documentation_is_well() {
    let page = std::fs::read_to_string(crate::support::root().join("docs/pipelines.md")).unwrap();
    let yaml = page.split("```yaml\n").nth(1).unwrap();
    let work = Work::new(yaml.split("```").next().unwrap());
    let mut command = sparse(work.path());
    command
        .args(["pipeline", "validate", "--json"])
        .arg(work.path())
        .env("NIGHTLY_HOOK", "https://hooks.example/secret");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all[0]["pipeline"], "nightly");
    assert_eq!(all[0]["stages"][2], "report", "{all}");
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

#[test]
fn only_what_changed_runs_and_the_plan_says_why() {
    let work = Work::new(CHAIN);
    work.write("numbers.csv", "id\n1\n2\n");
    let plan = work.plan();
    assert_eq!(stage(&plan, "numbers")["action"], "run");
    assert_eq!(stage(&plan, "doubled")["action"], "maybe");
    assert_eq!(stage(&plan, "doubled")["after"]["numbers"], "reads numbers");

    let (code, report) = work.run(&[]);
    assert_eq!(
        (code, report["status"].as_str()),
        (0, Some("succeeded")),
        "{report}"
    );
    assert_eq!(
        std::fs::read_to_string(work.at("out.csv")).unwrap(),
        "id,twice\n1,2\n2,4\n"
    );
    // A fresh file may change again within the clock's tick; after that its identity is enough.
    let (code, report) = work.run(&[]);
    assert_eq!(code, 0);
    for name in ["numbers", "doubled", "out"] {
        assert_eq!(status(&report, name), "up_to_date", "{report}");
    }
    // Touched, but the same bytes.
    work.write("numbers.csv", "id\n1\n2\n");
    assert_eq!(stage(&work.plan(), "numbers")["action"], "skip");
    // Other bytes.
    work.write("numbers.csv", "id\n1\n3\n");
    let plan = work.plan();
    assert_eq!(stage(&plan, "numbers")["action"], "run");
    assert!(
        stage(&plan, "numbers")["reason"]
            .as_str()
            .unwrap()
            .contains("numbers.csv changed"),
        "{plan}"
    );
    let (_, report) = work.run(&[]);
    assert_eq!(stage(&report, "doubled")["reason"], "table numbers changed");
    assert_eq!(
        std::fs::read_to_string(work.at("out.csv")).unwrap(),
        "id,twice\n1,2\n3,6\n"
    );
    // A parameter.
    let (_, report) = work.run(&["--param", "factor:=3"]);
    assert_eq!(status(&report, "numbers"), "up_to_date");
    assert_eq!(
        stage(&report, "doubled")["reason"],
        "parameter factor changed from 2 to 3"
    );
    // The SQL, with the same result: what reads it stays.
    work.write(
        "pipeline.yaml",
        &CHAIN
            .replace("factor: 2", "factor: 3")
            .replace("SELECT id, id", "SELECT id,  id"),
    );
    let (_, report) = work.run(&[]);
    assert_eq!(stage(&report, "doubled")["reason"], "its SQL changed");
    assert_eq!(status(&report, "out"), "up_to_date");
    // An output that somebody changed, or removed.
    std::fs::write(work.at("out.csv"), "other").unwrap();
    assert!(
        stage(&work.plan(), "out")["reason"]
            .as_str()
            .unwrap()
            .contains("changed by somebody else")
    );
    std::fs::remove_file(work.at("out.csv")).unwrap();
    assert!(
        stage(&work.plan(), "out")["reason"]
            .as_str()
            .unwrap()
            .contains("is gone")
    );
    work.run(&[]);
    assert!(work.at("out.csv").exists());
    // Asked for.
    let again = work
        .sparse("backfill", &["--stage", "numbers", "--json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(stage(&report, "numbers")["reason"], "it was asked for");
    assert_eq!(status(&report, "doubled"), "up_to_date");

    let explained = work.sparse("explain", &["doubled"]).output().unwrap();
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(
        explained.contains("skip: nothing changed") && explained.contains("reads tables: numbers"),
        "{explained}"
    );
    let history = run_ok(
        work.path(),
        &[
            "pipeline",
            "history",
            "--state-dir",
            &text(&work.at(".sparse")),
        ],
    );
    assert!(
        history.lines().count() >= 7 && history.contains("chain"),
        "{history}"
    );
}

#[test]
fn items_fail_alone_are_tried_again_and_are_rows_of_the_history() {
    let work = Work::new(
        r#"
name: each
resources: { concurrency: 3 }
stages:
  - name: models
    sql: SELECT * FROM (VALUES ('sft', '{models}/sft'), ('lora-merged', '{models}/lora-merged'), ('none', '{dir}/none')) AS t(name, path)
  - name: compress
    for_each: { query: "SELECT name, path FROM models", key: name }
    retries: { times: 2, delay: 10ms }
    on_error: continue
    sql: SELECT $name AS name, sum(compressed_bytes) AS bytes FROM sparse_compress('{base}', $path, '{dir}/deltas/' || $name)
  - name: report
    sql: SELECT count(*) AS n FROM compress
"#
        .replace("{models}", Path::new(&example("base")).parent().unwrap().to_str().unwrap())
        .replace("{base}", &example("base"))
        .as_str(),
    );
    let (code, report) = work.run(&[]);
    assert_eq!(code, 1, "{report}");
    let compress = stage(&report, "compress");
    assert_eq!(
        (&compress["done"], &compress["failed"]),
        (&2.into(), &1.into()),
        "{compress}"
    );
    // The two that went well needed one try each, the one that cannot three.
    assert_eq!(compress["attempts"], 5);
    assert!(
        compress["error"].as_str().unwrap().contains("none"),
        "{compress}"
    );
    assert_eq!(compress["bytes"][0]["kind"], "model");
    assert_eq!(status(&report, "report"), "blocked");
    run_ok(
        work.path(),
        &[
            "verify",
            &text(&work.at("deltas/sft")),
            "--base",
            &example("base"),
        ],
    );
    let rows = work.sql("SELECT item, attempt, status FROM sparse_items WHERE stage = 'compress' ORDER BY item, attempt");
    assert_eq!(
        rows.trim(),
        "item,attempt,status\nlora-merged,1,succeeded\nnone,1,failed\nnone,2,failed\nnone,3,failed\nsft,1,succeeded"
    );
    assert_eq!(
        work.sql("SELECT count(*) AS n FROM sparse_runs WHERE status = 'failed'")
            .trim(),
        "n\n1"
    );
    // Only the one that failed is tried again.
    let plan = work.plan();
    assert_eq!(
        (
            &stage(&plan, "compress")["items"],
            &stage(&plan, "compress")["to_run"]
        ),
        (&3.into(), &1.into())
    );
    assert_eq!(stage(&plan, "compress")["examples"][0]["item"], "none");
    crate::support::copy(Path::new(&example("sft")), &work.at("none"));
    let (code, report) = work.run(&[]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(
        (
            &stage(&report, "compress")["done"],
            &stage(&report, "compress")["skipped"]
        ),
        (&1.into(), &2.into())
    );
}

#[test]
fn checks_warn_or_stop_and_people_are_told() {
    let yaml = r#"
name: checked
notify:
  - { on: [check], command: [sh, -c, "cat > {dir}/told.json"] }
stages:
  - name: rows
    sql: SELECT 1 AS x
    checks:
      - { name: only a warning, severity: warn, sql: SELECT * FROM rows }
      - { name: no ones, severity: SEV, sql: SELECT * FROM rows WHERE x = 1 }
  - name: after
    sql: SELECT * FROM rows
"#;
    let work = Work::new(&yaml.replace("SEV", "error"));
    let (code, report) = work.run(&[]);
    assert_eq!(code, 3, "{report}");
    assert_eq!(
        (status(&report, "rows"), status(&report, "after")),
        ("checks_failed", "blocked")
    );
    let told: Value =
        serde_json::from_slice(&std::fs::read(work.at("told.json")).unwrap()).unwrap();
    assert_eq!(
        (&told["pipeline"], &told["status"]),
        (&"checked".into(), &"checks_failed".into())
    );
    // The rows are done; their checks are due again.
    let (code, report) = work.run(&[]);
    assert_eq!(
        (code, &stage(&report, "rows")["attempts"]),
        (3, &0.into()),
        "{report}"
    );
    work.write("pipeline.yaml", &yaml.replace("SEV", "warn"));
    let (code, report) = work.run(&[]);
    assert_eq!(
        (code, status(&report, "after")),
        (0, "succeeded"),
        "{report}"
    );
    assert_eq!(report["checks"].as_array().unwrap().len(), 2);
}

/// The pairs of items that ran at one time, of four whose stage has the given claim, of eight that may.
fn pairs_at_once(claim: &str) -> u64 {
    let work = Work::new(
        &r#"
resources: { concurrency: 8, gpu: 1, memory: 3GiB }
stages:
  - name: work
    for_each: { query: "SELECT CAST(value AS VARCHAR) AS item FROM range(4)" }
    CLAIM
    sql: SELECT $item AS item, count(*) AS n FROM range(3000) a CROSS JOIN range(3000) b WHERE (a.value * b.value) % 7 = 3
"#
        .replace("CLAIM", claim),
    );
    let (code, report) = work.run(&[]);
    assert_eq!((code, &stage(&report, "work")["done"]), (0, &4.into()));
    let pairs = work.sql(
        "SELECT count(*) AS n FROM sparse_items a JOIN sparse_items b ON a.item < b.item AND a.started_at < b.ended_at \
         AND b.started_at < a.ended_at",
    );
    pairs.lines().nth(1).unwrap().parse().unwrap()
}

#[test]
fn items_wait_for_the_gpu_and_for_memory() {
    assert!(pairs_at_once("") > 0);
    assert_eq!(pairs_at_once("gpu: 1"), 0);
    assert_eq!(pairs_at_once("memory: 2GiB"), 0);
}

#[test]
fn a_webhook_is_told_and_logs_are_json() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}/told");
    let told = std::thread::spawn(move || {
        use std::io::{BufRead as _, Read as _};
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            .unwrap();
        (first, serde_json::from_slice::<Value>(&body).unwrap())
    });
    let work = Work::new(&format!(
        "name: told\nnotify:\n  - {{ on: [failure], webhook: \"{url}\" }}\nstages:\n  - name: bad\n    sql: SELECT CAST('x' AS INT) AS n\n"
    ));
    let output = work
        .sparse("run", &["--log", "info", "--log-format", "json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let lines: Vec<Value> = stderr(&output)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line["stage"] == "bad" && line["pipeline"] == "told"),
        "{}",
        stderr(&output)
    );
    // Who is told nothing waits no longer.
    let _ = std::net::TcpStream::connect(address);
    let (first, body) = told.join().unwrap();
    assert!(first.starts_with("POST /told "), "{first}");
    assert_eq!(
        (&body["pipeline"], &body["status"]),
        (&"told".into(), &"failed".into()),
        "{body}"
    );
}

#[test]
fn a_terminal_shows_how_far_a_run_is() {
    let Some(python) = python() else { return };
    let work = Work::new(
        "stages:\n  - name: work\n    for_each: { query: \"SELECT CAST(value AS VARCHAR) AS item FROM range(3)\" }\n    sql: SELECT $item AS item\n",
    );
    let command = work.sparse("run", &[]);
    let mut arguments = vec![command.get_program().to_str().unwrap()];
    arguments.extend(
        command
            .get_args()
            .map(|argument| argument.to_str().unwrap()),
    );
    // What the command writes to a terminal passes through.
    let program = "
import os, pty, sys
os.environ['TERM'] = 'xterm'
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
";
    let said = run_python(&python, program, &arguments);
    assert!(said.contains("0/3") && said.contains("work"), "{said}");
    // A file gets the outcome alone.
    let output = work.sparse("run", &[]).output().unwrap();
    assert!(!stderr(&output).contains("0/3"), "{}", stderr(&output));
}

#[test]
fn the_plan_says_how_many_bytes_are_read_and_written() {
    let work = Work::new(
        &"stages:\n  - name: delta\n    sql: SELECT * FROM sparse_compress('{base}', '{sft}', '{dir}/delta')\n"
            .replace("{base}", &example("base"))
            .replace("{sft}", &example("sft")),
    );
    let plan = work.plan();
    let first = stage(&plan, "delta")["input_bytes"].as_u64().unwrap();
    assert!(first >= 2 * 1_739_008, "{plan}");
    assert!(stage(&plan, "delta")["output_bytes"].is_null(), "{plan}");
    let (code, report) = work.run(&[]);
    assert_eq!(code, 0, "{report}");
    // What is written is estimated by what was written before.
    std::fs::remove_dir_all(work.at("delta")).unwrap();
    let plan = work.plan();
    let written = stage(&plan, "delta")["output_bytes"].as_u64().unwrap();
    assert!(written > 100_000 && written < first / 2, "{plan}");
}

#[test]
fn secrets_are_used_and_shown_nowhere() {
    let work = Work::new(
        "params: { token: \"file:{dir}/secret\" }\nstages:\n  - name: a\n    sql: SELECT length($token) AS n\n  - name: b\n    sql: SELECT CAST($token AS INT) AS n FROM a\n",
    );
    work.write("secret", "s3cr3t-v4lue\n");
    let output = work
        .sparse("run", &["--log", "trace,sqlparser=off,datafusion=off"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = format!(
        "{}{}",
        stderr(&output),
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(said.contains("***") && !said.contains("s3cr3t"), "{said}");
    for (name, bytes) in crate::support::files(&work.at(".sparse")) {
        let found = bytes.windows(6).any(|window| window == b"s3cr3t");
        assert!(!found, "{name} holds the secret");
    }
}

#[test]
fn a_statement_that_takes_too_long_or_is_interrupted_ends() {
    let endless = "SELECT count(*) AS n FROM range(1000000) a CROSS JOIN range(1000000) b WHERE a.value % 7 = b.value % 11";
    let work = Work::new(&format!(
        "stages:\n  - name: slow\n    timeout: TIME\n    sql: {endless}\n"
    ));
    let yaml = std::fs::read_to_string(work.at("pipeline.yaml")).unwrap();
    work.write("pipeline.yaml", &yaml.replace("TIME", "300ms"));
    let (code, report) = work.run(&[]);
    assert_eq!(code, 1);
    assert!(
        stage(&report, "slow")["error"]
            .as_str()
            .unwrap()
            .contains("timeout of 0.3 s"),
        "{report}"
    );

    work.write("pipeline.yaml", &yaml.replace("TIME", "1h"));
    let metrics = text(&work.at("metrics.prom"));
    let mut child = work
        .sparse("run", &["--metrics-file", &metrics])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while work_is_not_running(&work) {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    // A second run of the same pipeline is refused meanwhile.
    let output = work.sparse("run", &[]).output().unwrap();
    assert!(
        output.status.code() == Some(1) && stderr(&output).contains("under way"),
        "{}",
        stderr(&output)
    );
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        work.sql("SELECT status FROM sparse_runs ORDER BY started_at DESC LIMIT 1")
            .contains("cancelled")
    );
    let metrics = std::fs::read_to_string(metrics).unwrap();
    assert!(
        metrics.contains("sparse_command_last_exit_code{command=\"pipeline\"} 130"),
        "{metrics}"
    );
    assert!(
        metrics.contains("sparse_pipeline_runs_total{pipeline=\""),
        "{metrics}"
    );
}

fn work_is_not_running(work: &Work) -> bool {
    work.at(".sparse/state.db").exists()
        && !work
            .sql("SELECT count(*) AS n FROM sparse_items WHERE status = 'running'")
            .contains("\n1")
}

#[test]
fn lineage_events_are_valid() {
    let Some(python) = python() else { return };
    let work = Work::new(&format!(
        "lineage: {{ file: \"{{dir}}/lineage.jsonl\" }}\n{}",
        CHAIN.trim_start()
    ));
    work.write("numbers.csv", "id\n1\n");
    assert_eq!(work.run(&[]).0, 0);
    let program = r"
import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
events = [json.loads(line) for line in open(sys.argv[2])]
validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
for event in events:
    validator.validate(event)
print(len(events), events[0]['eventType'], events[-1]['eventType'], len({e['run']['runId'] for e in events}))
";
    let schema = crate::support::root().join("tests/oracles/openlineage-2-0-2.json");
    let said = run_python(
        &python,
        program,
        &[&text(&schema), &text(&work.at("lineage.jsonl"))],
    );
    // START and COMPLETE of the run and of its three stages.
    assert_eq!(said.trim(), "8 START COMPLETE 4");
}

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

#[test]
fn a_second_run_over_a_thousand_models_does_nothing() {
    let work = Work::new(MANY);
    many(&work, 1000);
    let (code, report) = work.run(&[]);
    assert_eq!((code, &stage(&report, "count")["done"]), (0, &1000.into()));
    // The models were made a moment ago: until their times are old enough to trust, contents are compared.
    std::thread::sleep(Duration::from_secs(2));
    work.run(&[]);
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let (code, report) = work.run(&[]);
        times.push(start.elapsed());
        assert_eq!(
            (code, &stage(&report, "count")["skipped"]),
            (0, &1000.into())
        );
        assert_eq!(status(&report, "total"), "up_to_date");
    }
    times.sort();
    eprintln!("no-change runs over 1,000 models, whole process: {times:?}");
    // One model changed: one item runs.
    tiny_model(&work.at("models/0500.safetensors"), 9999);
    let (_, report) = work.run(&[]);
    assert_eq!(
        (
            &stage(&report, "count")["done"],
            &stage(&report, "count")["skipped"]
        ),
        (&1.into(), &999.into())
    );
    assert_eq!(stage(&report, "count")["status"], "succeeded");
}

/// Kills per test run, each of which takes a second or two; `SPARSE_TEST_KILLS=100` for more.
fn kills() -> usize {
    std::env::var("SPARSE_TEST_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(40)
}

#[test]
fn killed_at_random_points_nothing_finished_is_done_again_and_nothing_is_torn() {
    let work = Work::new(
        &r#"
name: killed
resources: { concurrency: 2 }
stages:
  - name: models
    sql: SELECT * FROM '{dir}/models.csv'
  - name: compress
    for_each: { query: "SELECT name, path FROM models" }
    sql: SELECT $name AS name, sum(compressed_bytes) AS bytes FROM sparse_compress('{base}', $path, '{dir}/deltas/' || $name)
  - name: rebuilt
    for_each: { query: "SELECT name FROM models" }
    sql: SELECT $name AS name, count(*) AS files FROM sparse_reconstruct('{base}', '{dir}/deltas/' || $name, '{dir}/rebuilt/' || $name)
  - name: report
    needs: [rebuilt]
    sql: COPY (SELECT * FROM compress ORDER BY name) TO '{dir}/report.csv' STORED AS CSV
"#
        .replace("{base}", &example("base")),
    );
    let names: Vec<String> = (0..6).map(|at| format!("m{at}")).collect();
    let mut csv = "name,path\n".to_owned();
    for (at, name) in names.iter().enumerate() {
        csv += &format!("{name},{}\n", example(["sft", "lora-merged"][at % 2]));
    }
    work.write("models.csv", &csv);
    // How long a whole run takes.
    let start = Instant::now();
    assert_eq!(work.run(&[]).0, 0);
    let whole = start.elapsed();
    let clear = || {
        for name in ["deltas", "rebuilt", ".sparse"] {
            let _ = std::fs::remove_dir_all(work.at(name));
        }
        let _ = std::fs::remove_file(work.at("report.csv"));
    };
    let mut random = Random::new(
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .subsec_nanos()
            .into(),
    );
    let (mut killed, mut rounds) = (0, 0);
    while killed < kills() {
        clear();
        rounds += 1;
        // Killed again and again until a run gets through.
        for _ in 0..30 {
            let before = finished(&work);
            let mut child = work
                .sparse("run", &[])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
            let done = child.try_wait().unwrap().is_some();
            if !done {
                child.kill().unwrap();
                killed += 1;
            }
            child.wait().unwrap();
            whole_or_absent(&work, &names);
            // What was recorded as done before is recorded once, and was not tried again.
            let after = finished(&work);
            for item in &before {
                let times = after.iter().filter(|other| *other == item).count();
                assert_eq!(times, 1, "{item} was done {times} times");
            }
            if done || killed >= kills() {
                break;
            }
        }
        let (code, report) = work.run(&[]);
        assert_eq!(code, 0, "{report}");
        let once = work.sql("SELECT stage, item, count(*) AS n FROM sparse_items WHERE status = 'succeeded' GROUP BY stage, item HAVING count(*) > 1");
        assert_eq!(once.lines().count(), 1, "done more than once: {once}");
        assert_eq!(
            std::fs::read_to_string(work.at("report.csv"))
                .unwrap()
                .lines()
                .count(),
            7
        );
        assert!(
            work.sql("SELECT count(*) AS n FROM sparse_runs WHERE status = 'running'")
                .contains("\n0")
        );
        let left: Vec<String> = crate::support::files(work.path())
            .into_keys()
            .filter(|name| name.contains("sparse-tmp"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    eprintln!("{killed} kills in {rounds} rounds; a whole run takes {whole:?}");
}

fn finished(work: &Work) -> Vec<String> {
    if !work.at(".sparse/state.db").exists() {
        return Vec::new();
    }
    work.sql("SELECT stage || ' ' || item AS done FROM sparse_items WHERE status = 'succeeded' ORDER BY done")
        .lines()
        .skip(1)
        .map(str::to_owned)
        .collect()
}

/// Every output is whole, or not there.
fn whole_or_absent(work: &Work, names: &[String]) {
    for name in names {
        let delta = work.at("deltas").join(name);
        if delta.exists() {
            let output = run(work.path(), &["verify", &text(&delta)]);
            assert!(output.status.success(), "{name}: {}", stderr(&output));
        }
        let rebuilt = work.at("rebuilt").join(name);
        if rebuilt.exists() {
            let of = example(["sft", "lora-merged"][usize::from(name.ends_with(['1', '3', '5']))]);
            crate::support::assert_same(Path::new(&of), &rebuilt);
        }
    }
    if let Ok(report) = std::fs::read_to_string(work.at("report.csv")) {
        assert_eq!(report.lines().count(), 7, "{report}");
    }
}

/// Runs the nightly example in a copy of the examples, twice: the second time nothing runs. Returns the rows of its report.
fn nightly(prepare: impl FnOnce(&Path)) -> Vec<String> {
    let work = tempfile::tempdir().unwrap();
    let examples = work.path().join("examples");
    crate::support::copy(&crate::support::root().join("examples"), &examples);
    prepare(&examples.join("models"));
    let run = || {
        let mut command = sparse(work.path());
        command
            .current_dir(work.path())
            .args(["pipeline", "run", "examples/nightly", "--json"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let report = run();
    assert_eq!(report["status"], "succeeded", "{report}");
    let again = run();
    for stage in again["stages"].as_array().unwrap() {
        assert_eq!(stage["status"], "up_to_date", "{stage}");
    }
    let csv = std::fs::read_to_string(work.path().join("nightly-out/report.csv")).unwrap();
    csv.lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn the_nightly_example_runs() {
    let declared = nightly(|_| ());
    // Models that do not say what they come from: their weights do. The base is nobody's fine-tune, near as one of them is.
    let found = nightly(|models| {
        for name in ["base", "lora-merged", "sft"] {
            std::fs::remove_file(models.join(name).join("README.md")).unwrap();
        }
    });
    for (rows, outcome) in [(declared, "declared"), (found, "found")] {
        assert_eq!(rows.len(), 2, "{rows:?}");
        for (row, name) in rows.iter().zip(["lora-merged", "sft"]) {
            let start = format!("examples/models/{name},examples/models/base,{outcome},");
            assert!(row.starts_with(&start), "{rows:?}");
        }
    }
}
