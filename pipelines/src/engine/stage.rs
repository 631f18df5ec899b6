//! One stage: what it has to do, its items, its checks, how it ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::plan::reason;
use super::run::Run;
use super::{EngineError, Event};
use crate::analysis::{Kind, all_params};
use crate::examine::{AllReady, ExamineError, Examined, Ready};
use crate::spec::StageSpec;
use crate::state::{Done, Measured, StageEnd};
use crate::summary::{CheckReport, StageSummary, Status};
use crate::{ParamValue, Script};

/// How one stage ended.
pub(super) struct Ended {
    pub(super) summary: StageSummary,
    pub(super) checks: Vec<CheckReport>,
    pub(super) ready: Ready,
}

impl Run {
    pub(super) async fn stage(
        self: Arc<Self>,
        stage: StageSpec,
        ready: AllReady,
    ) -> Result<Ended, EngineError> {
        let engine = &self.engine;
        let (pipeline, state) = (&engine.pipeline.name, &engine.state);
        let examine = |source| EngineError::Examine {
            stage: stage.name.clone(),
            source: Box::new(source),
        };
        let mut examiner = engine.examiner();
        let mut examined = examiner.examine(&stage, &ready).await.map_err(examine)?;
        engine.apply_force(&stage.name, &mut examined)?;
        let why = reason(&stage, &examined);
        let total = examined.items.len() as u64;
        let to_run = examined.to_run() as u64;
        if to_run == 0 && examined.whole {
            let end = StageEnd {
                status: Status::UpToDate.name(),
                items: total,
                skipped: total,
                ..StageEnd::default()
            };
            state.pass_stage(&self.id, pipeline, &stage.name, &why, &end)?;
            let mut summary = summary(&stage.name, Status::UpToDate, why);
            (summary.items, summary.skipped) = (total, total);
            let mut given = engine.ready(&examined);
            self.describe_empty(&stage, &ready, &examined, &mut given)
                .await;
            return Ok(Ended {
                summary,
                checks: Vec::new(),
                ready: given,
            });
        }
        let start = Instant::now();
        state.begin_stage(&self.id, pipeline, &stage.name, &why, total)?;
        self.log("info", &stage.name, "", &format!("begins: {why}"));
        (engine.observer)(&Event::StageBegins {
            stage: &stage.name,
            to_run,
            reason: &why,
        });
        self.lineage("START", Some(&stage.name), None).await;
        let mut ends = self
            .items(&stage, &ready, &examined)
            .await
            .map_err(examine)?;
        let mut summary = summary(&stage.name, Status::Succeeded, why);
        summary.items = total;
        summary.skipped = total - to_run;
        let mut queued_ms = 0;
        let mut measured = Measured::default();
        for (at, end) in &mut ends {
            summary.attempts += end.attempts;
            measured.add(&end.measured);
            queued_ms = queued_ms.max(end.queued_ms);
            match end.status {
                Status::Succeeded => summary.done += 1,
                Status::Cancelled => summary.status = Status::Cancelled,
                _ => summary.failed += 1,
            }
            if summary.error.is_none()
                && let Some(error) = &end.error
            {
                let item = examined
                    .items
                    .get(*at)
                    .map_or("", |item| item.name.as_str());
                summary.error = Some(match item {
                    "" => error.clone(),
                    item => format!("item {item}: {error}"),
                });
            }
            if let (Some(item), Some(outcome)) = (examined.items.get_mut(*at), end.outcome.take()) {
                summary.rows += outcome.rows;
                item.outcome = Some(outcome);
            }
        }
        summary.bytes = measured.bytes;
        summary.dataset_rows = measured.dataset_rows;
        summary.verify_failures = measured.verify_failures;
        if summary.status != Status::Cancelled && summary.failed > 0 {
            summary.status = Status::Failed;
        }
        let mut checks = Vec::new();
        let mut given = Ready::default();
        if summary.status == Status::Succeeded {
            given = engine.ready(&examined);
            self.describe_empty(&stage, &ready, &examined, &mut given)
                .await;
            checks = self.checks(&stage, &ready, &given).await.map_err(examine)?;
            let failed = checks.iter().find(|check| {
                check.severity == "error" && (check.failed_rows > 0 || check.error.is_some())
            });
            if let Some(check) = failed {
                summary.status = Status::ChecksFailed;
                summary.error = Some(match &check.error {
                    Some(error) => format!("check {}: {error}", check.name),
                    None => format!(
                        "check {} returned {} rows; it must return none",
                        check.name, check.failed_rows
                    ),
                });
            } else {
                let done = Done {
                    key: examined.key.clone(),
                    parts: String::new(),
                    result: String::new(),
                };
                state.finish_stage(pipeline, &stage.name, &done, &examined.gone)?;
                self.sweep(&stage.name)?;
            }
        }
        summary.seconds = start.elapsed().as_secs_f64();
        let end = StageEnd {
            status: summary.status.name(),
            queued_ms,
            items: total,
            done: summary.done,
            skipped: summary.skipped,
            failed: summary.failed,
            rows: summary.rows,
            error: summary.error.clone(),
        };
        state.end_stage(&self.id, &stage.name, &end)?;
        let level = if summary.status.is_good() {
            "info"
        } else {
            "error"
        };
        self.log(
            level,
            &stage.name,
            "",
            &match &summary.error {
                Some(error) => format!("{}: {error}", summary.status.name()),
                None => format!(
                    "{}: {} items done, {} up to date, {} rows",
                    summary.status.name(),
                    summary.done,
                    summary.skipped,
                    summary.rows
                ),
            },
        );
        let event = match summary.status {
            Status::Succeeded | Status::UpToDate => "COMPLETE",
            Status::Cancelled => "ABORT",
            _ => "FAIL",
        };
        self.lineage(event, Some(&stage.name), summary.error.as_deref())
            .await;
        Ok(Ended {
            summary,
            checks,
            ready: given,
        })
    }

    /// Without items there are no files, but later stages may read the table: its schema is the statement's.
    async fn describe_empty(
        &self,
        stage: &StageSpec,
        ready: &AllReady,
        examined: &Examined,
        given: &mut Ready,
    ) {
        if !examined.items.is_empty() {
            return;
        }
        let Some(analysis) = self.engine.graph.analyses.get(&stage.name) else {
            return;
        };
        let params = analysis
            .columns
            .iter()
            .fold(all_params(&self.engine.pipeline), |params, column| {
                params.with(column, ParamValue::Text(String::new()))
            });
        let described = async {
            let context = self.engine.examiner().session(stage, ready).await?;
            let (script, _) = Script::parse_using(&stage.sql, &params)?;
            let last = script
                .stages()
                .iter()
                .zip(&analysis.kinds)
                .rfind(|(_, kind)| **kind == Kind::Query);
            if let Some((statement, _)) = last {
                let plan = context
                    .state()
                    .statement_to_plan(statement.statement.clone())
                    .await?;
                given
                    .empty
                    .insert(stage.name.clone(), Arc::clone(plan.schema().inner()));
            }
            Ok::<(), ExamineError>(())
        };
        if let Err(error) = described.await {
            tracing::warn!(stage = stage.name, %error, "the columns of a stage without items are unknown");
        }
    }
}

pub(super) fn summary(stage: &str, status: Status, reason: String) -> StageSummary {
    StageSummary {
        stage: stage.to_owned(),
        status,
        reason,
        seconds: 0.0,
        items: 0,
        done: 0,
        skipped: 0,
        failed: 0,
        rows: 0,
        attempts: 0,
        bytes: Vec::new(),
        dataset_rows: BTreeMap::new(),
        verify_failures: 0,
        error: None,
    }
}
