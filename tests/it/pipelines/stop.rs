//! Statements that take too long, and runs that are interrupted.

use std::time::{Duration, Instant};

use super::{Work, stage};
use crate::support::{stderr, text};

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
