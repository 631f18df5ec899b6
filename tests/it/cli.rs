//! The command line itself: help, formats, exit codes.

use std::io::Write as _;
use std::process::Stdio;

use crate::support::{example, root, run, run_fails, run_json, run_ok, sparse, stderr, text};

#[test]
fn the_page_is_up_to_date() {
    let work = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string(root().join("docs/cli.md")).unwrap();
    assert!(
        page == run_ok(work.path(), &["page"]),
        "docs/cli.md differs from the program: cargo run -p sparse-cli -- page > docs/cli.md"
    );
}

/// The examples of every command's help run, in order, with the example models and in a scratch folder.
#[test]
fn the_examples_of_the_help_run() {
    let work = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("examples"), work.path().join("examples")).unwrap();
    let mut ran = 0;
    for command in [
        "compress",
        "reconstruct",
        "svd-compress",
        "svd-reconstruct",
        "compress-adapter",
        "diff",
        "dataset-compress",
        "info",
        "verify",
        "dataset-reconstruct",
        "dataset-estimate",
        "dataset-diff",
        "features",
        "bench",
        "catalog list",
        "catalog find-base",
        "cache get-or-reconstruct",
        "cache resolve",
        "cache prefetch",
        "cache jobs",
        "cache stats",
        "cache gc",
        "cache verify",
    ] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let help = run_ok(work.path(), &arguments);
        let examples = help.split("Examples:").nth(1).unwrap();
        // Long lines are wrapped; the examples end where a line is empty.
        let examples: Vec<&str> = examples
            .lines()
            .skip(1)
            .map(str::trim)
            .take_while(|line| !line.is_empty())
            .collect();
        for line in examples.join(" ").split("sparse ").skip(1) {
            let line = format!("sparse {}", line.split("    #").next().unwrap().trim());
            // Models of the Hub and of object stores need a network.
            if !line.starts_with("sparse ")
                || line.contains("org/")
                || line.contains("://")
                || line.contains("rebuilt")
                || line.contains("./my-")
                || line.contains("--cancel")
                || line.contains("hf-cache")
            {
                continue;
            }
            let output = sparse(work.path())
                .current_dir(work.path())
                .args(line.split_whitespace().skip(1))
                .output()
                .unwrap();
            assert!(output.status.success(), "{line}: {}", stderr(&output));
            ran += 1;
        }
    }
    assert!(ran >= 14, "{ran}");
}

#[test]
fn usage_errors_say_what_to_write() {
    let work = tempfile::tempdir().unwrap();
    let usage = |arguments: &[&str], needle: &str| {
        let output = run(work.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(needle), "{}", stderr(&output));
    };
    usage(&["compress", "a"], "FINETUNE");
    usage(
        &["compress", "a", "b", "--effort", "heroic"],
        "fast, default or max",
    );
    usage(&["compres"], "compress");
    usage(&["features", "--device", "tpu"], "cuda");
    usage(&["sql", "-c", "SELEC 1"], "SELEC");
    usage(&["sql", "-c", "SELECT $x"], "--param x=VALUE");
    usage(
        &["sql", "-c", "SELECT 1", "--param", "x=1"],
        "used by no statement",
    );
    usage(
        &["sql", "-c", "SELECT * FROM sparse_nothing('x')"],
        "sparse_nothing",
    );
    run_fails(
        work.path(),
        &["sql", "-f", "no-script.sql"],
        6,
        &["no-script.sql"],
    );
}

#[test]
fn diff_can_fail_a_pipeline() {
    let work = tempfile::tempdir().unwrap();
    let diff = |finetune: &str, on: &str| {
        run(
            work.path(),
            &[
                "diff",
                &example("base"),
                &example(finetune),
                "--fail-on",
                on,
            ],
        )
        .status
        .code()
    };
    assert_eq!(diff("sft", "any"), Some(3));
    assert_eq!(diff("sft", "added,removed"), Some(0));
    assert_eq!(diff("base", "any"), Some(0));
}

#[test]
fn verify_finds_damage() {
    let work = tempfile::tempdir().unwrap();
    let delta = work.path().join("delta");
    run_ok(
        work.path(),
        &[
            "compress",
            &example("base"),
            &example("sft"),
            "-o",
            &text(&delta),
        ],
    );
    assert_eq!(
        run_json(work.path(), &["verify", &text(&delta)])["ok"],
        true
    );
    let payload = delta.join("payload-00000.bin");
    let mut bytes = std::fs::read(&payload).unwrap();
    bytes[1000] ^= 0x40;
    std::fs::write(&payload, bytes).unwrap();
    let output = run(work.path(), &["verify", &text(&delta), "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["failed"].as_u64().unwrap() >= 1);
}

#[test]
fn statements_scripts_and_standard_input() {
    let work = tempfile::tempdir().unwrap();
    let sql = |arguments: &[&str]| {
        let mut all = vec!["sql"];
        all.extend_from_slice(arguments);
        run_ok(work.path(), &all)
    };
    let csv = [
        "--format",
        "csv",
        "-c",
        "SELECT 1 AS a, 'x,y' AS b, [1, 2] AS c",
    ];
    assert_eq!(sql(&csv), "a,b,c\n1,\"x,y\",\"[1, 2]\"\n");
    let json = ["--json", "-c", "SELECT 1 AS a, [1, 2] AS c"];
    assert_eq!(sql(&json), "{\"a\":1,\"c\":[1,2]}\n");
    assert!(sql(&["-c", "SELECT 42 AS answer"]).contains("| 42     |"));
    let script = work.path().join("script.sql");
    std::fs::write(
        &script,
        "-- name: first\nCREATE TABLE t AS SELECT $n AS n, $model AS m;\n-- name: second\nSELECT n + 1 AS n, m FROM t;",
    )
    .unwrap();
    let arguments = [
        "-f",
        &text(&script),
        "--param",
        "n:=41",
        "--param",
        "model=it's",
        "--format",
        "csv",
    ];
    assert!(sql(&arguments).ends_with("n,m\n42,it's\n"));
    let mut child = sparse(work.path())
        .args(["sql", "--format", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"SELECT 7 AS n;")
        .unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"n\n7\n");
    // The statement that failed is named; those after it are not run, unless asked for.
    let output = run(
        work.path(),
        &[
            "sql",
            "-c",
            "SELECT 1; SELECT * FROM nowhere; SELECT 3 AS three",
        ],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("statement 2"),
        "{}",
        stderr(&output)
    );
    assert!(!String::from_utf8_lossy(&output.stdout).contains("three"));
    let output = run(
        work.path(),
        &[
            "sql",
            "--keep-going",
            "-c",
            "SELECT * FROM nowhere; SELECT 3 AS three",
        ],
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("three"));
    assert_eq!(output.status.code(), Some(2));
}

/// Tensors are not poured onto a terminal.
#[test]
fn bytes_are_told_by_their_number() {
    let work = tempfile::tempdir().unwrap();
    let sql = "SELECT name, data FROM sparse_tensors('examples/models/base') LIMIT 1";
    assert!(run_ok(work.path(), &["sql", "-c", sql]).contains(" bytes>"));
}

/// `sparse ... | head` ends quietly.
#[test]
fn a_closed_pipe_is_no_error() {
    let work = tempfile::tempdir().unwrap();
    let mut child = sparse(work.path())
        .args([
            "sql",
            "-c",
            "SELECT * FROM generate_series(1, 3000000)",
            "--format",
            "csv",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

/// Nobody reads standard error: the exit code still tells.
#[test]
fn a_closed_standard_error_is_no_panic() {
    let work = tempfile::tempdir().unwrap();
    for arguments in [vec!["info", "./nope"], vec!["info", "./nope", "--json"]] {
        let mut child = sparse(work.path())
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(6));
    }
}

#[test]
fn usage_errors_are_json_too() {
    let work = tempfile::tempdir().unwrap();
    let output = run(
        work.path(),
        &["compress", "--json", "--effort", "heroic", "a", "b"],
    );
    assert_eq!(output.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "usage");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("heroic")
    );
}

#[test]
fn completions_are_scripts() {
    let work = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(run_ok(work.path(), &["completions", shell]).contains("reconstruct"));
    }
}

/// No progress, no colours, no summaries where nobody looks.
#[test]
fn output_for_programs_is_plain() {
    let work = tempfile::tempdir().unwrap();
    let delta = work.path().join("delta");
    let output = run(
        work.path(),
        &[
            "compress",
            &example("base"),
            &example("sft"),
            "-o",
            &text(&delta),
            "--quiet",
        ],
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), text(&delta));
    assert_eq!(stderr(&output), "");
}
