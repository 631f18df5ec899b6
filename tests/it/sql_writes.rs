//! What functions that write do under every statement that may plan, run, repeat or stop them.

use std::path::Path;

use datafusion::prelude::SessionContext;
use sparse_operators::{SparseConfig, session_with};

use crate::support::{assert_same, example, names, run_ok, sparse, stderr, text};

fn session(work: &Path) -> SessionContext {
    session_with(SparseConfig {
        cache_dir: Some(work.join("cache")),
        offline: Some(true),
        ..SparseConfig::default()
    })
}

async fn column(context: &SessionContext, sql: &str) -> Vec<String> {
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let mut values = Vec::new();
    for batch in batches {
        let column = batch.column(0);
        for row in 0..batch.num_rows() {
            values.push(
                datafusion::arrow::util::display::array_value_to_string(column, row).unwrap(),
            );
        }
    }
    values
}

fn call(output: &Path) -> String {
    format!(
        "sparse_compress('{}', '{}', '{}')",
        example("base"),
        example("sft"),
        text(output)
    )
}

/// The artifact is whole: it gives the fine-tune.
fn assert_whole(work: &Path, delta: &Path) {
    let again = work.join("again");
    let _ = std::fs::remove_dir_all(&again);
    run_ok(
        work,
        &[
            "reconstruct",
            &example("base"),
            &text(delta),
            "-o",
            &text(&again),
        ],
    );
    assert_same(example("sft").as_ref(), &again);
}

#[tokio::test(flavor = "multi_thread")]
async fn planning_writes_nothing() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let delta = work.path().join("delta");
    let call = call(&delta);
    for sql in [
        format!("EXPLAIN SELECT * FROM {call}"),
        format!("EXPLAIN VERBOSE SELECT * FROM {call}"),
        format!("PREPARE p AS SELECT * FROM {call}"),
        format!("CREATE VIEW v AS SELECT * FROM {call}"),
        format!("SELECT * FROM {call} LIMIT 0"),
        format!("SELECT * FROM {call} WHERE false"),
    ] {
        context.sql(&sql).await.unwrap().collect().await.unwrap();
        assert!(!delta.exists(), "{sql}");
    }
    assert_eq!(
        names(work.path())
            .iter()
            .filter(|n| n.contains("delta"))
            .count(),
        0
    );
    let plan = column(
        &context,
        &format!("EXPLAIN FORMAT INDENT SELECT tensor FROM {call}"),
    )
    .await;
    assert!(!plan.is_empty());
    // EXPLAIN ANALYZE runs what it explains.
    let sql = format!("EXPLAIN ANALYZE SELECT * FROM {call}");
    context.sql(&sql).await.unwrap().collect().await.unwrap();
    assert_whole(work.path(), &delta);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_leaves_a_whole_artifact() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let delta = work.path().join("delta");
    let rows = column(
        &context,
        &format!("SELECT status FROM {} LIMIT 1", call(&delta)),
    )
    .await;
    assert_eq!(rows, ["created"]);
    assert_whole(work.path(), &delta);
    let filtered = format!(
        "SELECT status FROM {} WHERE tensor LIKE '%norm%' LIMIT 2",
        call(&delta)
    );
    assert_eq!(column(&context, &filtered).await, ["exists", "exists"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cte_used_twice_works_once() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let delta = work.path().join("delta");
    let sql = format!(
        "WITH d AS (SELECT tensor, status FROM {}) SELECT count(*) FROM d AS a JOIN d AS b ON a.tensor = b.tensor",
        call(&delta)
    );
    let tensors = column(
        &context,
        "SELECT count(*) FROM sparse_tensors('examples/models/sft')",
    );
    std::env::set_current_dir(crate::support::root()).unwrap();
    let tensors = tensors.await;
    assert_eq!(column(&context, &sql).await, tensors);
    assert_whole(work.path(), &delta);
    let union = format!(
        "SELECT * FROM (SELECT status FROM {0} UNION ALL SELECT status FROM {0})",
        call(&delta)
    );
    assert!(
        column(&context, &union)
            .await
            .iter()
            .all(|status| status == "exists")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_and_views_run_again() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let delta = work.path().join("delta");
    let statement = format!("SELECT DISTINCT status FROM {}", call(&delta));
    column(&context, &format!("PREPARE p AS {statement}")).await;
    assert_eq!(column(&context, "EXECUTE p").await, ["created"]);
    assert_eq!(column(&context, "EXECUTE p").await, ["exists"]);
    std::fs::remove_dir_all(&delta).unwrap();
    column(&context, &format!("CREATE VIEW v AS {statement}")).await;
    assert_eq!(column(&context, "SELECT * FROM v").await, ["created"]);
    assert_eq!(column(&context, "SELECT * FROM v").await, ["exists"]);
    // A parameter is not known when the statement is planned; the error says so.
    let sql = "PREPARE q AS SELECT * FROM sparse_compress($1, 'x')";
    let error = context.sql(sql).await.unwrap_err().to_string();
    assert!(error.contains("'base'") && error.contains("$1"), "{error}");
}

/// Many at once: one makes the artifact, the others find it.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_statements_share_one_artifact() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let delta = work.path().join("delta");
    let sql = format!("SELECT DISTINCT status FROM {}", call(&delta));
    let statuses: Vec<String> = futures::future::join_all((0..4).map(|_| column(&context, &sql)))
        .await
        .concat();
    assert_eq!(
        statuses
            .iter()
            .filter(|status| *status == "created")
            .count(),
        1
    );
    assert_eq!(
        statuses.iter().filter(|status| *status == "exists").count(),
        3
    );
    assert_whole(work.path(), &delta);
}

#[test]
fn two_processes_at_once() {
    let work = tempfile::tempdir().unwrap();
    let delta = work.path().join("delta");
    let sql = format!("SELECT DISTINCT status FROM {}", call(&delta));
    let children: Vec<_> = (0..3)
        .map(|_| {
            sparse(work.path())
                .args(["sql", "--format", "csv", "-c", &sql])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut statuses = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        statuses.push(text.lines().nth(1).unwrap().to_owned());
    }
    statuses.sort();
    assert_eq!(statuses, ["created", "exists", "exists"]);
    assert_whole(work.path(), &delta);
}

/// A statement that is dropped half way leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_statement_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let delta = work.path().join("delta");
    let sql = format!("SELECT * FROM {}", call(&delta));
    for wait in [0_u64, 5, 20] {
        let frame = context.sql(&sql).await.unwrap();
        let running = tokio::spawn(async move { frame.collect().await });
        tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
        running.abort();
        let _ = running.await;
    }
    // What was under way ends by itself; a new statement waits for it where needed.
    column(
        &context,
        &format!("SELECT DISTINCT status FROM {}", call(&delta)),
    )
    .await;
    assert_whole(work.path(), &delta);
    let left: Vec<String> = names(work.path())
        .into_iter()
        .filter(|n| n.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A batch: a failure in it fails the statement, and what was committed before is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_commits_whole_artifacts() {
    let work = tempfile::tempdir().unwrap();
    let context = session(work.path());
    let out = text(work.path());
    let (base, models) = (example("base"), example(""));
    let rows = format!(
        "SELECT '{base}' AS base, '{models}' || m AS finetune, '{out}/' || m AS output FROM (VALUES ('sft'), ('lora-merged'), ('none')) AS t(m)"
    );
    let sql = format!("SELECT count(DISTINCT path) FROM sparse_compress(({rows}))");
    let error = context
        .sql(&sql)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("none"), "{error}");
    let sql = format!(
        "SELECT status || ' ' || count(DISTINCT finetune) FROM sparse_compress(({rows}), on_error => 'skip') GROUP BY status ORDER BY status"
    );
    let statuses = column(&context, &sql).await;
    assert!(statuses.contains(&"failed 1".to_owned()), "{statuses:?}");
    assert_whole(work.path(), &work.path().join("sft"));
}
