//! Runs a script: one stage after another, in one session.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::workers;
use crate::{PipelineError, RunReport, Script, Stage, StageError, StageReport, StageStatus};

/// How soon a wish to stop is noticed. Polling, because the wish is shared with threads that know no async.
const POLL: Duration = Duration::from_millis(20);

/// Where the rows of stages go. Called in order, from one task.
pub trait Sink {
    /// The stage begins to return rows; no columns, where it returns none (DDL).
    fn begin(&mut self, stage: &Stage, schema: &SchemaRef) -> io::Result<()>;
    /// Some of its rows.
    fn batch(&mut self, stage: &Stage, batch: &RecordBatch) -> io::Result<()>;
    /// The stage ended, well or not; also called for a stage that never began to return rows, not for skipped ones.
    fn end(&mut self, stage: &Stage, report: &StageReport) -> io::Result<()>;
}

/// Drops all rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Sink for Discard {
    fn begin(&mut self, _: &Stage, _: &SchemaRef) -> io::Result<()> {
        Ok(())
    }
    fn batch(&mut self, _: &Stage, _: &RecordBatch) -> io::Result<()> {
        Ok(())
    }
    fn end(&mut self, _: &Stage, _: &StageReport) -> io::Result<()> {
        Ok(())
    }
}

/// Runs scripts in a session.
#[derive(Clone)]
pub struct Runner<'a> {
    context: &'a SessionContext,
    keep_going: bool,
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// Why a stage did not run to its end.
enum Ended {
    Failed(DataFusionError),
    Cancelled,
    Output(io::Error),
}

impl From<DataFusionError> for Ended {
    fn from(error: DataFusionError) -> Self {
        Self::Failed(error)
    }
}

impl<'a> Runner<'a> {
    /// A runner that stops at the first failure.
    #[must_use]
    pub fn new(context: &'a SessionContext) -> Self {
        Self {
            context,
            keep_going: false,
            stop: Arc::new(|| false),
        }
    }

    /// Whether stages after a failed one are run.
    #[must_use]
    pub fn keep_going(mut self, keep_going: bool) -> Self {
        self.keep_going = keep_going;
        self
    }

    /// Asked some fifty times a second: once it says `true`, the running stage is stopped and the rest skipped.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.stop = Arc::new(stop);
        self
    }

    /// Runs every stage of `script` and hands the rows to `sink`. An error is one of the sink; failures of stages are reported.
    pub async fn run<S: Sink + ?Sized>(
        &self,
        script: &Script,
        sink: &mut S,
    ) -> Result<RunReport, PipelineError> {
        let total = script.stages().len();
        let mut reports = Vec::with_capacity(total);
        let mut stopped = false;
        for stage in script.stages() {
            if stopped {
                reports.push(report(stage, StageStatus::Skipped, 0, Duration::ZERO, None));
                continue;
            }
            let start = Instant::now();
            let mut rows = 0;
            tracing::debug!(stage = stage.index, name = stage.name, "stage begins");
            let ended = tokio::select! {
                biased;
                () = self.stopped() => Err(Ended::Cancelled),
                ended = self.stage(stage, sink, &mut rows) => ended,
            };
            let output = |source| PipelineError::Output {
                source,
                last: stage.index == total,
            };
            let (status, error) = match ended {
                Ok(()) => (StageStatus::Succeeded, None),
                Err(Ended::Output(source)) => return Err(output(source)),
                Err(Ended::Cancelled) => (StageStatus::Cancelled, None),
                // What a statement says that shares the wish to stop and saw it first.
                Err(Ended::Failed(_)) if (self.stop)() => (StageStatus::Cancelled, None),
                Err(Ended::Failed(error)) => (StageStatus::Failed, Some(StageError::new(error))),
            };
            stopped = match status {
                StageStatus::Succeeded | StageStatus::Skipped => false,
                StageStatus::Failed => !self.keep_going,
                StageStatus::Cancelled => true,
            };
            let report = report(stage, status, rows, start.elapsed(), error);
            tracing::debug!(stage = stage.index, name = stage.name, status = status.name(), rows, elapsed = ?report.elapsed, "stage ended");
            sink.end(stage, &report).map_err(output)?;
            reports.push(report);
        }
        Ok(RunReport::new(reports))
    }

    /// The statement runs on threads of its own: it may compute for long between two batches, and the wish to stop is to be
    /// noticed meanwhile.
    async fn stage<S: Sink + ?Sized>(
        &self,
        stage: &Stage,
        sink: &mut S,
        rows: &mut u64,
    ) -> Result<(), Ended> {
        let (sender, mut receiver) = mpsc::channel(1);
        let task = workers::spawn(statement(
            self.context.clone(),
            stage.statement.clone(),
            sender,
        ));
        while let Some(output) = receiver.recv().await {
            match output {
                Output::Schema(schema) => sink.begin(stage, &schema).map_err(Ended::Output)?,
                Output::Rows(batch) => {
                    *rows += batch.num_rows() as u64;
                    sink.batch(stage, &batch).map_err(Ended::Output)?;
                }
            }
        }
        match task.join().await {
            Ok(ended) => Ok(ended?),
            Err(error) => Err(DataFusionError::ExecutionJoin(Box::new(error)).into()),
        }
    }

    async fn stopped(&self) {
        while !(self.stop)() {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What a statement returns, in order.
enum Output {
    Schema(SchemaRef),
    Rows(RecordBatch),
}

/// Plans a statement against the session as those before left it, and runs it until it ends or nobody takes its rows.
async fn statement(
    context: SessionContext,
    statement: Statement,
    to: mpsc::Sender<Output>,
) -> Result<(), DataFusionError> {
    let plan = context.state().statement_to_plan(statement).await?;
    let mut stream = context
        .execute_logical_plan(plan)
        .await?
        .execute_stream()
        .await?;
    let mut next = Output::Schema(stream.schema());
    while to.send(next).await.is_ok() {
        match stream.next().await {
            Some(batch) => next = Output::Rows(batch?),
            None => break,
        }
    }
    Ok(())
}

fn report(
    stage: &Stage,
    status: StageStatus,
    rows: u64,
    elapsed: Duration,
    error: Option<StageError>,
) -> StageReport {
    StageReport {
        index: stage.index,
        name: stage.name.clone(),
        line: stage.line,
        sql: stage.sql.clone(),
        status,
        rows,
        elapsed,
        error,
    }
}
