//! What runs, what does not, and why.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{CHAIN, MANY, Work, many, stage, status, tiny_model};
use crate::support::{example, run_ok, text};

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
