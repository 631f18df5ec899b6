//! Scripts run in a real session.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::prelude::SessionContext;
use sparse_pipelines::{
    Discard, Params, PipelineError, RunReport, RunStatus, Runner, Script, Sink, Stage, StageReport,
    StageStatus,
};

#[derive(Default)]
struct Collect {
    text: String,
    ended: Vec<String>,
    fail_at: Option<usize>,
}

impl Sink for Collect {
    fn begin(&mut self, _: &Stage, _: &SchemaRef) -> io::Result<()> {
        Ok(())
    }
    fn batch(&mut self, stage: &Stage, batch: &RecordBatch) -> io::Result<()> {
        if self.fail_at == Some(stage.index) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.text += &arrow::util::pretty::pretty_format_batches(std::slice::from_ref(batch))
            .map_err(io::Error::other)?
            .to_string();
        Ok(())
    }
    fn end(&mut self, stage: &Stage, _: &StageReport) -> io::Result<()> {
        self.ended.push(stage.name.clone());
        Ok(())
    }
}

fn script(source: &str) -> Script {
    Script::parse(source, &Params::default()).unwrap()
}

fn statuses(report: &RunReport) -> Vec<StageStatus> {
    report.stages.iter().map(|s| s.status).collect()
}

#[tokio::test]
async fn stages_run_in_order_in_one_session() {
    let context = SessionContext::new();
    let params = Params::parse(["word=it's", "n:=2"]).unwrap();
    let source = "CREATE TABLE t AS VALUES (1), (2), (3);\n-- name: filtered\nSELECT column1, $word AS w FROM t WHERE column1 >= $n;";
    let mut sink = Collect::default();
    let report = Runner::new(&context)
        .run(&Script::parse(source, &params).unwrap(), &mut sink)
        .await
        .unwrap();
    assert_eq!(report.status, RunStatus::Succeeded);
    assert_eq!(
        (
            report.stages[1].rows,
            report.stages[1].name.as_str(),
            report.stages[1].line
        ),
        (2, "filtered", 3)
    );
    assert!(
        sink.text.contains("it's") && sink.text.contains("| 3 "),
        "{}",
        sink.text
    );
    assert_eq!(sink.ended, ["1", "filtered"]);
}

#[tokio::test]
async fn the_first_failure_stops_or_not() {
    let context = SessionContext::new();
    let source = "SELECT 1; SELECT * FROM missing; SELECT 2;";
    let report = Runner::new(&context)
        .run(&script(source), &mut Discard)
        .await
        .unwrap();
    assert_eq!(
        statuses(&report),
        [
            StageStatus::Succeeded,
            StageStatus::Failed,
            StageStatus::Skipped
        ]
    );
    assert_eq!(report.status, RunStatus::Failed);
    assert!(
        report
            .first_failure()
            .unwrap()
            .error
            .as_ref()
            .unwrap()
            .to_string()
            .contains("missing")
    );

    let report = Runner::new(&context)
        .keep_going(true)
        .run(&script(source), &mut Discard)
        .await
        .unwrap();
    assert_eq!(
        statuses(&report),
        [
            StageStatus::Succeeded,
            StageStatus::Failed,
            StageStatus::Succeeded
        ]
    );
    assert_eq!(report.status, RunStatus::Failed);
}

#[tokio::test]
async fn the_report_is_rows_and_json() {
    let context = SessionContext::new();
    let report = Runner::new(&context)
        .run(&script("SELECT 1; SELECT 1/0; SELECT 3"), &mut Discard)
        .await
        .unwrap();
    let batch = report.to_batch().unwrap();
    assert_eq!((batch.num_rows(), batch.num_columns()), (3, 7));
    let json = report.to_json();
    assert_eq!(json["status"], "failed");
    assert_eq!(json["stages"][0]["rows"], 1);
    assert_eq!(json["stages"][1]["status"], "failed");
    assert!(
        json["stages"][1]["error"]
            .as_str()
            .unwrap()
            .to_lowercase()
            .contains("divide by zero")
    );
    assert_eq!(json["stages"][2]["seconds"], 0.0);
}

#[tokio::test]
async fn stopping_ends_the_stage_and_skips_the_rest() {
    let context = SessionContext::new();
    let stop = Arc::new(AtomicBool::new(false));
    let wish = Arc::clone(&stop);
    let endless = "SELECT count(*) FROM range(1000000) a CROSS JOIN range(1000000) b WHERE a.value % 7 = b.value % 11; SELECT 2";
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        wish.store(true, Ordering::Relaxed);
    });
    let start = Instant::now();
    let report = Runner::new(&context)
        .stop_when(move || stop.load(Ordering::Relaxed))
        .run(&script(endless), &mut Discard)
        .await
        .unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(
        statuses(&report),
        [StageStatus::Cancelled, StageStatus::Skipped]
    );
    assert_eq!(report.status, RunStatus::Cancelled);
}

#[tokio::test]
async fn a_closed_output_ends_the_run() {
    let context = SessionContext::new();
    for (fail_at, source, expected) in [
        (1, "SELECT 1; SELECT 2", false),
        (2, "SELECT 1; SELECT 2", true),
    ] {
        let mut sink = Collect {
            fail_at: Some(fail_at),
            ..Collect::default()
        };
        match Runner::new(&context).run(&script(source), &mut sink).await {
            Err(PipelineError::Output { source, last }) => {
                assert_eq!((source.kind(), last), (io::ErrorKind::BrokenPipe, expected))
            }
            other => unreachable!("{other:?}"),
        }
    }
}
