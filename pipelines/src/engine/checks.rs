//! The checks of a stage: queries that must return no rows.

use futures::StreamExt as _;

use super::Event;
use super::run::Run;
use crate::Script;
use crate::analysis::all_params;
use crate::examine::{AllReady, ExamineError, Ready, provide};
use crate::spec::{Severity, StageSpec};
use crate::summary::CheckReport;

impl Run {
    pub(super) async fn checks(
        &self,
        stage: &StageSpec,
        ready: &AllReady,
        own: &Ready,
    ) -> Result<Vec<CheckReport>, ExamineError> {
        let mut reports = Vec::new();
        if stage.checks.is_empty() {
            return Ok(reports);
        }
        let context = self.engine.examiner().session(stage, ready).await?;
        provide(&context, own).await?;
        for check in &stage.checks {
            let counted = async {
                let (script, _) =
                    Script::parse_using(&check.sql, &all_params(&self.engine.pipeline))?;
                let mut rows = 0u64;
                for statement in script.stages() {
                    let plan = context
                        .state()
                        .statement_to_plan(statement.statement.clone())
                        .await?;
                    let mut stream = context
                        .execute_logical_plan(plan)
                        .await?
                        .execute_stream()
                        .await?;
                    while let Some(batch) = stream.next().await {
                        rows += batch?.num_rows() as u64;
                    }
                }
                Ok::<u64, ExamineError>(rows)
            };
            let result = counted
                .await
                .map_err(|error| self.engine.pipeline.redact(&error.to_string()));
            let report = CheckReport {
                stage: stage.name.clone(),
                name: check.name.clone(),
                severity: check.severity.name(),
                failed_rows: *result.as_ref().unwrap_or(&0),
                error: result.err(),
            };
            self.engine.state.put_check(
                &self.id,
                &self.engine.pipeline.name,
                &stage.name,
                &report,
            )?;
            if report.failed_rows > 0 || report.error.is_some() {
                let level = if check.severity == Severity::Error {
                    "error"
                } else {
                    "warn"
                };
                let what = report
                    .error
                    .clone()
                    .unwrap_or_else(|| format!("it returned {} rows", report.failed_rows));
                self.log(
                    level,
                    &stage.name,
                    "",
                    &format!("check {}: {what}", check.name),
                );
            }
            (self.engine.observer)(&Event::Checked(&report));
            reports.push(report);
        }
        Ok(reports)
    }
}
