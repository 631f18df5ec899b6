//! One run: every stage as soon as those before it are done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::stage::{Ended, summary};
use super::{Engine, EngineError, Event};
use crate::examine::{AllReady, ExamineError, Ready};
use crate::state::{StageEnd, new_id};
use crate::summary::{CheckReport, RunSummary, StageSummary, Status};

/// How soon a wish to stop is noticed.
const POLL: Duration = Duration::from_millis(20);

/// Tokens of what stages share.
pub(super) struct Tokens {
    pub(super) statements: Arc<Semaphore>,
    pub(super) memory: Option<Arc<Semaphore>>,
    pub(super) gpu: Arc<Semaphore>,
}

pub(super) struct Run {
    pub(super) engine: Engine,
    pub(super) id: String,
    pub(super) tokens: Tokens,
}

impl Engine {
    /// Runs what is not up to date.
    pub async fn run(&self) -> Result<RunSummary, EngineError> {
        self.check_force()?;
        let name = &self.pipeline.name;
        let Some(_lock) = self.state.try_lock(name)? else {
            return Err(EngineError::Busy {
                pipeline: name.clone(),
            });
        };
        self.state.recover(name)?;
        let id = self.new_run()?;
        let shown: BTreeMap<&String, &String> = self
            .pipeline
            .params
            .iter()
            .map(|(name, param)| (name, &param.shown))
            .collect();
        let shown = serde_json::to_string(&shown).unwrap_or_default();
        self.state
            .begin_run(&id, name, &self.trigger, self.scheduled_ms, &shown)?;
        let start = Instant::now();
        (self.observer)(&Event::RunBegins { run: &id });
        let run = Arc::new(Run::new(self.clone(), id.clone()));
        run.lineage("START", None, None).await;
        let done = run.stages().await;
        let (stages, checks) = match done {
            Ok(done) => done,
            Err(error) => {
                let message = self.pipeline.redact(&error.to_string());
                self.state
                    .end_run(&id, Status::Failed.name(), Some(&message), self.asked_id())?;
                return Err(error);
            }
        };
        let has = |status| stages.iter().any(|stage| stage.status == status);
        let status = [Status::Cancelled, Status::Failed, Status::ChecksFailed]
            .into_iter()
            .find(|status| has(*status))
            .unwrap_or(Status::Succeeded);
        let summary = RunSummary {
            run: id.clone(),
            pipeline: name.clone(),
            status,
            seconds: start.elapsed().as_secs_f64(),
            stages,
            checks,
        };
        let error = summary.stages.iter().find_map(|stage| {
            let error = stage.error.as_ref()?;
            Some(format!("stage {}: {error}", stage.stage))
        });
        let answered = self.asked_id().filter(|_| status != Status::Cancelled);
        self.state
            .end_run(&id, status.name(), error.as_deref(), answered)?;
        (self.observer)(&Event::RunEnds(&summary));
        let ended = match status {
            Status::Succeeded => "COMPLETE",
            Status::Cancelled => "ABORT",
            _ => "FAIL",
        };
        run.lineage(ended, None, error.as_deref()).await;
        crate::notify::notify(&self.pipeline, &summary, error.as_deref()).await;
        Ok(summary)
    }
}

impl Engine {
    /// The id that was promised to who asked for the run. A run that is taken up again after its process ended has another: what
    /// the first one did stays in the history.
    fn new_run(&self) -> Result<String, EngineError> {
        if let Some(asked) = &self.asked
            && !asked.run.is_empty()
            && self.state.run(&asked.run)?.is_none()
        {
            return Ok(asked.run.clone());
        }
        Ok(new_id())
    }

    fn asked_id(&self) -> Option<i64> {
        self.asked.as_ref().map(|asked| asked.id)
    }
}

impl Run {
    fn new(engine: Engine, id: String) -> Self {
        let resources = engine.pipeline.resources;
        let semaphore = |tokens: u32| Arc::new(Semaphore::new(tokens as usize));
        Self {
            id,
            tokens: Tokens {
                statements: semaphore(resources.concurrency),
                memory: resources.memory_mib.map(semaphore),
                gpu: semaphore(resources.gpu),
            },
            engine,
        }
    }

    pub(super) fn stopped(&self) -> bool {
        (self.engine.stop)()
    }

    pub(super) async fn until_stopped(&self) {
        while !self.stopped() {
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) fn log(&self, level: &str, stage: &str, item: &str, message: &str) {
        let message = self.engine.pipeline.redact(message);
        match level {
            "error" => tracing::error!(
                run = self.id,
                pipeline = self.engine.pipeline.name,
                stage,
                item,
                "{message}"
            ),
            "warn" => tracing::warn!(
                run = self.id,
                pipeline = self.engine.pipeline.name,
                stage,
                item,
                "{message}"
            ),
            _ => tracing::info!(
                run = self.id,
                pipeline = self.engine.pipeline.name,
                stage,
                item,
                "{message}"
            ),
        }
        if let Err(error) = self
            .engine
            .state
            .log(&self.id, level, stage, item, &message)
        {
            tracing::warn!(%error, "the log could not be kept");
        }
    }

    pub(super) async fn lineage(&self, event: &str, stage: Option<&str>, error: Option<&str>) {
        let graph = &self.engine.graph;
        crate::lineage::emit(&self.engine.pipeline, graph, &self.id, event, stage, error).await;
    }

    /// Every stage, as soon as those before it are done.
    async fn stages(
        self: &Arc<Self>,
    ) -> Result<(Vec<StageSummary>, Vec<CheckReport>), EngineError> {
        let order = self.engine.order();
        let mut ready = AllReady::new();
        let mut ended: BTreeMap<String, Status> = BTreeMap::new();
        let mut begun: Vec<String> = Vec::new();
        let mut summaries = Vec::new();
        let mut checks = Vec::new();
        let mut running = tokio::task::JoinSet::new();
        loop {
            for (name, before) in &order {
                if begun.contains(name) || !before.keys().all(|name| ended.contains_key(name)) {
                    continue;
                }
                begun.push(name.clone());
                let bad = before.keys().find(|before| !ended[*before].is_good());
                let passed = match bad {
                    Some(bad) => Some((Status::Blocked, format!("stage {bad} did not end well"))),
                    None if self.stopped() => {
                        Some((Status::Cancelled, "the run was stopped".to_owned()))
                    }
                    None => None,
                };
                if let Some((status, reason)) = passed {
                    let end = StageEnd {
                        status: status.name(),
                        ..StageEnd::default()
                    };
                    self.engine.state.pass_stage(
                        &self.id,
                        &self.engine.pipeline.name,
                        name,
                        &reason,
                        &end,
                    )?;
                    let summary = summary(name, status, reason);
                    (self.engine.observer)(&Event::StageEnds(&summary));
                    summaries.push(summary);
                    ended.insert(name.clone(), status);
                    continue;
                }
                let Some(stage) = self.engine.pipeline.stage(name).cloned() else {
                    continue;
                };
                let this = Arc::clone(self);
                let ready = ready.clone();
                running.spawn(async move { (stage.name.clone(), this.stage(stage, ready).await) });
            }
            let Some(joined) = running.join_next().await else {
                if begun.len() == order.len() {
                    break;
                }
                continue;
            };
            let (name, result) = joined.map_err(|error| {
                EngineError::Unknown(format!("a stage ended unexpectedly: {error}"))
            })?;
            let end = match result {
                Ok(end) => end,
                Err(EngineError::Examine { source, .. })
                    if matches!(*source, ExamineError::Sql(_) | ExamineError::Store(_)) =>
                {
                    let message = self.engine.pipeline.redact(&source.to_string());
                    self.fail_before(&name, &message)?
                }
                Err(error) => return Err(error),
            };
            ended.insert(name.clone(), end.summary.status);
            (self.engine.observer)(&Event::StageEnds(&end.summary));
            ready.insert(name, end.ready);
            summaries.push(end.summary);
            checks.extend(end.checks);
        }
        Ok((summaries, checks))
    }

    /// A stage that failed before any of its items ran.
    fn fail_before(&self, stage: &str, message: &str) -> Result<Ended, EngineError> {
        self.log("error", stage, "", message);
        let end = StageEnd {
            status: Status::Failed.name(),
            error: Some(message.to_owned()),
            ..StageEnd::default()
        };
        self.engine
            .state
            .pass_stage(&self.id, &self.engine.pipeline.name, stage, message, &end)?;
        let mut summary = summary(stage, Status::Failed, "it could not begin".to_owned());
        summary.error = Some(message.to_owned());
        Ok(Ended {
            summary,
            checks: Vec::new(),
            ready: Ready::default(),
        })
    }
}
