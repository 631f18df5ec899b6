//! Kills at any point.

use std::path::Path;
use std::time::Instant;

use super::Work;
use crate::support::{Random, example, run, stderr, text};

/// Kills per test run, each of which takes a second or two; `SPARSE_TEST_KILLS` for more or fewer.
fn kills() -> usize {
    std::env::var("SPARSE_TEST_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(100)
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
