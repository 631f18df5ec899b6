//! Items, tries, checks and tokens.

use std::path::Path;

use serde_json::Value;

use super::{Work, stage, status};
use crate::support::{example, run_ok, stderr, text};

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
    let rows = work.sql("SELECT stage, status, items, items_done, items_failed, error LIKE '%none%' AS named FROM sparse_stages ORDER BY stage");
    assert_eq!(
        rows.trim(),
        "stage,status,items,items_done,items_failed,named\ncompress,failed,3,2,1,true\nmodels,succeeded,1,1,0,\nreport,blocked,0,0,0,"
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
    // One item is asked for once more; one that is not there is an error.
    let output = work
        .sparse(
            "backfill",
            &["--stage", "compress", "--item", "sft", "--json"],
        )
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &stage(&report, "compress")["done"],
            &stage(&report, "compress")["skipped"]
        ),
        (&1.into(), &2.into()),
        "{report}"
    );
    let rows = work.sql(
        "SELECT i.item, i.reason FROM sparse_items i JOIN sparse_runs r ON r.run = i.run
         WHERE r.trigger = 'backfill' AND i.stage = 'compress'",
    );
    assert_eq!(rows.trim(), "item,reason\nsft,it was asked for");
    let output = work
        .sparse("backfill", &["--stage", "compress", "--item", "sfft"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("sfft"), "{}", stderr(&output));
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
