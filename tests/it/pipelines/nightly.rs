//! The example that runs every night.

use std::path::Path;

use serde_json::Value;

use crate::support::{sparse, stderr};

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
