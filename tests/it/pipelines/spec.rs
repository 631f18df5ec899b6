//! What is wrong with a pipeline, and what is well.

use serde_json::Value;

use super::Work;
use crate::support::{run_fails, sparse, stderr, text};

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
