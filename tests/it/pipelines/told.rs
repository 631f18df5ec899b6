//! Who is told of a run, and what nobody is told.

use std::io::Write as _;

use serde_json::Value;

use super::{CHAIN, Work};
use crate::support::{python, run_python, stderr, text};

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
fn lineage_events_are_valid() {
    let Some(python) = python() else { return };
    let work = Work::new(&format!(
        "lineage: {{ file: \"{{dir}}/lineage.jsonl\" }}\n{}",
        CHAIN.trim_start()
    ));
    work.write("numbers.csv", "id\n1\n");
    assert_eq!(work.run(&[]).0, 0);
    let whole = lineage(&python, &work);
    // START and COMPLETE of the run and of its three stages.
    assert_eq!(whole.len(), 8, "{whole:?}");
    assert_eq!((&whole[0].0[..], &whole[7].0[..]), ("START", "COMPLETE"));
    let runs: std::collections::BTreeSet<&String> = whole.iter().map(|event| &event.1).collect();
    assert_eq!(runs.len(), 4);

    // A stage that fails ends its run; the event says why, and those after it have none.
    std::fs::remove_file(work.at("lineage.jsonl")).unwrap();
    work.write("numbers.csv", "other\n1\n");
    assert_eq!(work.run(&[]).0, 1);
    let failed = lineage(&python, &work);
    let ends: Vec<(&str, &str)> = failed
        .iter()
        .filter(|event| event.0 != "START")
        .map(|event| (&event.0[..], &event.2[..]))
        .collect();
    assert_eq!(
        ends,
        [
            ("COMPLETE", "chain.numbers"),
            ("FAIL", "chain.doubled"),
            ("FAIL", "chain")
        ]
    );
    for event in failed.iter().filter(|event| event.0 == "FAIL") {
        assert!(event.3.contains("No field named id"), "{event:?}");
    }
}

/// Event type, run, job and error message of every event, each checked against the schema of OpenLineage.
fn lineage(python: &str, work: &Work) -> Vec<(String, String, String, String)> {
    let program = r"
import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
events = [json.loads(line) for line in open(sys.argv[2])]
validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
for event in events:
    validator.validate(event)
print(json.dumps([[e['eventType'], e['run']['runId'], e['job']['name'],
                   e['run']['facets'].get('errorMessage', {}).get('message', '')] for e in events]))
";
    let schema = crate::support::root().join("tests/oracles/openlineage-2-0-2.json");
    let said = run_python(
        python,
        program,
        &[&text(&schema), &text(&work.at("lineage.jsonl"))],
    );
    serde_json::from_str(&said).unwrap()
}
