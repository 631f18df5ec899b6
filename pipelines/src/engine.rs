//! Runs a pipeline: stages as their predecessors are done, items as tokens are free, each try recorded.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::analysis::{Kind, all_params};
use crate::attempt::{Place, attempt};
use crate::examine::{AllReady, ExamineError, Examined, Examiner, Item, Ready, Sessions, provide};
use crate::graph::Graph;
use crate::script::placeholders;
use crate::spec::{Pipeline, Severity, SpecError, StageSpec};
use crate::state::{Attempt, Done, Measured, Outcome, StageEnd, State, StateError, now_ms};
use crate::summary::{CheckReport, ItemPlan, Plan, RunSummary, StagePlan, StageSummary, Status};
use crate::{ParamValue, Params, Script, workers};

/// How soon a wish to stop is noticed.
const POLL: Duration = Duration::from_millis(20);

/// How many items a plan names.
const EXAMPLES: usize = 5;

/// Why a run could not be done, or a plan not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The pipeline is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The history.
    #[error(transparent)]
    State(#[from] StateError),
    /// A stage could not be looked at.
    #[error("stage {stage:?}: {source}")]
    Examine {
        /// The stage.
        stage: String,
        /// Why.
        source: Box<ExamineError>,
    },
    /// Another process runs it.
    #[error("another run of pipeline {pipeline:?} is under way; wait for its end, or stop it")]
    Busy {
        /// The pipeline.
        pipeline: String,
    },
    /// Something that was named is not there.
    #[error("{0}")]
    Unknown(String),
}

/// What happens in a run, for whoever watches.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins.
    RunBegins {
        /// Its id.
        run: &'a str,
    },
    /// A stage begins to run.
    StageBegins {
        /// The stage.
        stage: &'a str,
        /// Its items to be run.
        to_run: u64,
        /// Why.
        reason: &'a str,
    },
    /// A try of an item begins.
    ItemBegins {
        /// The stage.
        stage: &'a str,
        /// The item; empty for a stage without for_each.
        item: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// A try of an item ended.
    ItemEnds {
        /// The stage.
        stage: &'a str,
        /// The item.
        item: &'a str,
        /// Why it failed.
        error: Option<&'a str>,
        /// Before the next try.
        retry_in: Option<Duration>,
    },
    /// A check ended.
    Checked(&'a CheckReport),
    /// A stage ended, or was passed over.
    StageEnds(&'a StageSummary),
    /// The run ended.
    RunEnds(&'a RunSummary),
}

/// Called from many threads; must not block.
pub type Observer = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// What is run although nothing changed.
#[derive(Clone, Debug, Default)]
pub struct Force {
    /// Stages; with no items named, all of theirs.
    pub stages: Vec<String>,
    /// Items of those stages.
    pub items: Vec<String>,
    /// Every stage.
    pub all: bool,
}

impl Force {
    fn hits(&self, stage: &str, item: &str) -> bool {
        self.all
            || (self.stages.iter().any(|name| name == stage)
                && (self.items.is_empty() || self.items.iter().any(|name| name == item)))
    }
}

/// A pipeline with all that running it needs.
#[derive(Clone)]
pub struct Engine {
    pipeline: Arc<Pipeline>,
    graph: Arc<Graph>,
    state: Arc<State>,
    sessions: Sessions,
    observer: Observer,
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
    force: Force,
    trigger: String,
    scheduled_ms: Option<i64>,
    asked: Option<i64>,
}

impl Engine {
    /// Checks the pipeline: its SQL, its tables, its order.
    pub fn new(
        pipeline: Pipeline,
        state: Arc<State>,
        sessions: Sessions,
    ) -> Result<Self, SpecError> {
        let graph = Graph::new(&pipeline)?;
        Ok(Self {
            pipeline: Arc::new(pipeline),
            graph: Arc::new(graph),
            state,
            sessions,
            observer: Arc::new(|_| {}),
            stop: Arc::new(|| false),
            force: Force::default(),
            trigger: "manual".to_owned(),
            scheduled_ms: None,
            asked: None,
        })
    }

    /// Tells `observer` what happens.
    #[must_use]
    pub fn observe(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Asked some fifty times a second: once it says `true`, running statements are stopped and nothing new begins.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.stop = Arc::new(stop);
        self
    }

    /// Runs these although nothing changed.
    #[must_use]
    pub fn force(mut self, force: Force) -> Self {
        self.force = force;
        self
    }

    /// Who asked for the run, and the time it was scheduled for.
    #[must_use]
    pub fn trigger(mut self, trigger: &str, scheduled_ms: Option<i64>) -> Self {
        trigger.clone_into(&mut self.trigger);
        self.scheduled_ms = scheduled_ms;
        self
    }

    /// What the daemon's queue knows the run by: once it ended, unless it was stopped, it is asked for no longer.
    #[must_use]
    pub(crate) fn asked(mut self, id: i64) -> Self {
        self.asked = Some(id);
        self
    }

    /// The pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The names of its stages in order, with those before each and why.
    #[must_use]
    pub fn order(&self) -> Vec<(String, BTreeMap<String, String>)> {
        let before = |stage: &String| self.graph.before.get(stage).cloned().unwrap_or_default();
        self.graph
            .order
            .iter()
            .map(|stage| (stage.clone(), before(stage)))
            .collect()
    }

    fn check_force(&self) -> Result<(), EngineError> {
        for stage in &self.force.stages {
            if self.pipeline.stage(stage).is_none() {
                let names: Vec<&str> = self
                    .pipeline
                    .stages
                    .iter()
                    .map(|s| s.name.as_str())
                    .collect();
                return Err(EngineError::Unknown(format!(
                    "pipeline {:?} has no stage {stage:?}; it has {}",
                    self.pipeline.name,
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }

    fn examiner(&self) -> Examiner<'_> {
        Examiner::new(&self.pipeline, &self.graph, &self.state, &self.sessions)
    }

    fn apply_force(&self, stage: &str, examined: &mut Examined) {
        for item in &mut examined.items {
            if self.force.hits(stage, &item.name) {
                item.why = Some("it was asked for".to_owned());
            }
        }
    }

    /// What a run would do, and why. Nothing is run but the queries of for_each.
    pub async fn plan(&self) -> Result<Plan, EngineError> {
        self.check_force()?;
        let mut examiner = self.examiner();
        let mut ready = AllReady::new();
        let mut plans = Vec::new();
        for (name, after) in self.order() {
            let Some(stage) = self.pipeline.stage(&name) else {
                continue;
            };
            let waits: Vec<&str> = after
                .keys()
                .map(String::as_str)
                .filter(|before| !ready.contains_key(*before))
                .collect();
            if !waits.is_empty() {
                let reason = format!("it depends on what {} makes", waits.join(", "));
                plans.push(StagePlan {
                    stage: name,
                    action: "maybe",
                    reason,
                    after,
                    items: None,
                    to_run: None,
                    examples: Vec::new(),
                    input_bytes: None,
                    output_bytes: None,
                });
                continue;
            }
            let mut examined =
                examiner
                    .examine(stage, &ready)
                    .await
                    .map_err(|source| EngineError::Examine {
                        stage: name.clone(),
                        source: Box::new(source),
                    })?;
            self.apply_force(&name, &mut examined);
            let to_run = examined.to_run();
            if to_run == 0 && examined.whole {
                ready.insert(name.clone(), self.ready(&examined));
            }
            plans.push(self.stage_plan(stage, after, &examined)?);
        }
        Ok(Plan {
            pipeline: self.pipeline.name.clone(),
            stages: plans,
        })
    }

    fn stage_plan(
        &self,
        stage: &StageSpec,
        after: BTreeMap<String, String>,
        examined: &Examined,
    ) -> Result<StagePlan, EngineError> {
        let due: Vec<&Item> = examined
            .items
            .iter()
            .filter(|item| item.why.is_some())
            .collect();
        let input: u64 = due.iter().map(|item| item.input_bytes).sum();
        let share = self.state.past_share(&self.pipeline.name, &stage.name)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an estimate"
        )]
        let output = share.map(|share| (input as f64 * share) as u64);
        Ok(StagePlan {
            stage: stage.name.clone(),
            action: match (due.is_empty(), examined.whole) {
                (true, true) => "skip",
                _ => "run",
            },
            reason: reason(stage, examined),
            after,
            items: Some(examined.items.len() as u64),
            to_run: Some(due.len() as u64),
            examples: due
                .iter()
                .filter(|item| !item.name.is_empty())
                .take(EXAMPLES)
                .map(|item| ItemPlan {
                    item: item.name.clone(),
                    reason: item.why.clone().unwrap_or_default(),
                })
                .collect(),
            input_bytes: Some(input),
            output_bytes: output.filter(|_| !due.is_empty()),
        })
    }

    /// What an up-to-date stage gives to later ones.
    fn ready(&self, examined: &Examined) -> Ready {
        let outcomes = examined
            .items
            .iter()
            .filter_map(|item| item.outcome.as_ref());
        Ready::new(&self.state, &examined.key, outcomes)
    }

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
        let id = new_id();
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
                    .end_run(&id, Status::Failed.name(), Some(&message), self.asked)?;
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
        let answered = self.asked.filter(|_| status != Status::Cancelled);
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

    /// Why a stage, or one of its items, would run or not, with all that its key is made of.
    pub async fn explain(
        &self,
        stage: &str,
        item: Option<&str>,
    ) -> Result<serde_json::Value, EngineError> {
        let spec = self.pipeline.stage(stage).ok_or_else(|| {
            let names: Vec<&str> = self
                .pipeline
                .stages
                .iter()
                .map(|s| s.name.as_str())
                .collect();
            EngineError::Unknown(format!(
                "pipeline {:?} has no stage {stage:?}; it has {}",
                self.pipeline.name,
                names.join(", ")
            ))
        })?;
        let plan = self.plan().await?;
        let own = plan.stages.into_iter().find(|plan| plan.stage == stage);
        let mut document = serde_json::json!({
            "pipeline": self.pipeline.name,
            "stage": stage,
            "sql": self.pipeline.redact(&spec.sql),
            "plan": own,
        });
        let analysis = self.graph.analyses.get(stage);
        if let (Some(analysis), Some(map)) = (analysis, document.as_object_mut()) {
            let shown = |templates: &std::collections::BTreeSet<crate::analysis::Template>| {
                templates
                    .iter()
                    .map(crate::analysis::Template::shown)
                    .collect::<Vec<_>>()
            };
            map.insert("reads_tables".into(), serde_json::json!(analysis.reads));
            map.insert("makes_tables".into(), serde_json::json!(analysis.makes));
            map.insert("reads".into(), serde_json::json!(shown(&analysis.inputs)));
            map.insert("writes".into(), serde_json::json!(shown(&analysis.outputs)));
            let recorded = self.state.done(&self.pipeline.name, stage)?;
            let parts = recorded
                .get(&crate::state::stored(item.unwrap_or_default()))
                .and_then(|done| serde_json::from_str::<serde_json::Value>(&done.parts).ok());
            map.insert("recorded".into(), serde_json::json!(parts));
            let attempts =
                self.state
                    .attempts(&self.pipeline.name, stage, item.unwrap_or_default(), 10)?;
            map.insert("attempts".into(), serde_json::json!(attempts));
        }
        Ok(document)
    }
}

/// Why a stage runs, or does not.
fn reason(stage: &StageSpec, examined: &Examined) -> String {
    let due: Vec<&Item> = examined
        .items
        .iter()
        .filter(|item| item.why.is_some())
        .collect();
    match (due.as_slice(), stage.for_each.is_some()) {
        ([], _) if !examined.whole && stage.checks.is_empty() => {
            "its items are done, it is not recorded yet".to_owned()
        }
        ([], _) if !examined.whole => "its checks are due".to_owned(),
        ([], true) => format!("all {} items are up to date", examined.items.len()),
        ([], false) => "nothing changed".to_owned(),
        ([only], false) => only.why.clone().unwrap_or_default(),
        ([first, ..], _) => format!(
            "{} of {} items: {}: {}{}",
            due.len(),
            examined.items.len(),
            first.name,
            first.why.as_deref().unwrap_or_default(),
            if due.len() > 1 { ", ..." } else { "" }
        ),
    }
}

/// A UUID of version 7: ids sort by time.
fn new_id() -> String {
    let random = |salt: u64| {
        let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
        hasher.write_u64(salt);
        hasher.write_u32(std::process::id());
        hasher.finish()
    };
    let (a, b) = (random(1), random(2));
    let time = now_ms();
    format!(
        "{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        (time >> 16) & 0xffff_ffff,
        time & 0xffff,
        a & 0xfff,
        0x8000 | ((a >> 12) & 0x3fff),
        b & 0xffff_ffff_ffff,
    )
}

/// Tokens of what stages share.
struct Tokens {
    statements: Arc<Semaphore>,
    memory: Option<Arc<Semaphore>>,
    gpu: Arc<Semaphore>,
}

struct Run {
    engine: Engine,
    id: String,
    tokens: Tokens,
}

/// How one stage ended.
struct Ended {
    summary: StageSummary,
    checks: Vec<CheckReport>,
    ready: Ready,
}

/// How one item ended.
struct ItemEnd {
    status: Status,
    error: Option<String>,
    attempts: u64,
    queued_ms: i64,
    outcome: Option<Outcome>,
    measured: Measured,
}

/// A stage that is running, for its items.
struct StageRun {
    stage: StageSpec,
    kinds: Vec<Kind>,
    /// Parameters its statement uses.
    params: Params,
    columns: std::collections::BTreeSet<String>,
    ready: Vec<Ready>,
    /// Set when no further item shall begin.
    halted: AtomicBool,
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

    fn stopped(&self) -> bool {
        (self.engine.stop)()
    }

    async fn until_stopped(&self) {
        while !self.stopped() {
            tokio::time::sleep(POLL).await;
        }
    }

    fn log(&self, level: &str, stage: &str, item: &str, message: &str) {
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

    async fn lineage(&self, event: &str, stage: Option<&str>, error: Option<&str>) {
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

    async fn stage(
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
        engine.apply_force(&stage.name, &mut examined);
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

    async fn items(
        self: &Arc<Self>,
        stage: &StageSpec,
        ready: &AllReady,
        examined: &Examined,
    ) -> Result<Vec<(usize, ItemEnd)>, ExamineError> {
        let pipeline = &self.engine.pipeline;
        let names = placeholders(&stage.sql)?;
        let params = names.iter().fold(Params::default(), |params, name| {
            match pipeline.params.get(name) {
                Some(param) => params.with(name, param.value.clone()),
                None => params,
            }
        });
        if let Some(item) = examined.items.first()
            && let Some(name) = names
                .iter()
                .find(|name| pipeline.params.contains_key(*name) && item.values.contains_key(*name))
        {
            return Err(ExamineError::Sql(format!(
                "${name} is both a parameter and a column of for_each; rename one of them"
            )));
        }
        let analysis = self.engine.graph.analyses.get(&stage.name);
        let before = self.engine.graph.ancestors(&stage.name);
        let reads = analysis.is_some_and(|a| !a.reads.is_empty());
        let run = Arc::new(StageRun {
            stage: stage.clone(),
            kinds: analysis.map(|a| a.kinds.clone()).unwrap_or_default(),
            params,
            columns: analysis.map(|a| a.columns.clone()).unwrap_or_default(),
            ready: self
                .engine
                .graph
                .order
                .iter()
                .filter(|name| reads && before.contains(*name))
                .filter_map(|name| ready.get(name).cloned())
                .collect(),
            halted: AtomicBool::new(false),
        });
        let due: Vec<(usize, Item)> = examined
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| item.why.is_some())
            .map(|(at, item)| (at, item.clone()))
            .collect();
        let limit = stage
            .concurrency
            .unwrap_or(u32::MAX)
            .min(pipeline.resources.concurrency) as usize;
        let ends = futures::stream::iter(due)
            .map(|(at, item)| {
                let (this, run) = (Arc::clone(self), Arc::clone(&run));
                let item = Arc::new(item);
                let task = SpawnedTask::spawn(async move { this.item(run, item).await });
                async move { (at, task.join_unwind().await) }
            })
            .buffer_unordered(limit.max(1));
        let ends: Vec<_> = ends.collect().await;
        let mut all = Vec::new();
        for (at, end) in ends {
            match end {
                Ok(Ok(Some(end))) => all.push((at, end)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(error) => {
                    return Err(ExamineError::Sql(format!(
                        "an item ended unexpectedly: {error}"
                    )));
                }
            }
        }
        all.sort_by_key(|(at, _)| *at);
        Ok(all)
    }

    /// One item, with its retries. `None`: it never began.
    async fn item(
        self: Arc<Self>,
        run: Arc<StageRun>,
        item: Arc<Item>,
    ) -> Result<Option<ItemEnd>, StateError> {
        let engine = &self.engine;
        let stage = &run.stage;
        let why = item.why.clone().unwrap_or_default();
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(stage.retries.delay)
            .with_max_delay(stage.retries.max_delay)
            .with_max_times(stage.retries.times as usize)
            .with_jitter()
            .build();
        let mut end = ItemEnd {
            status: Status::Cancelled,
            error: None,
            attempts: 0,
            queued_ms: 0,
            outcome: None,
            measured: Measured::default(),
        };
        loop {
            let queued = Instant::now();
            let permits = tokio::select! {
                biased;
                () = self.until_stopped() => return Ok(Some(end)),
                permits = self.permits(stage) => permits,
            };
            if run.halted.load(Ordering::Relaxed) && end.attempts == 0 {
                return Ok(None);
            }
            if self.stopped() {
                return Ok(Some(end));
            }
            end.attempts += 1;
            let waited = i64::try_from(queued.elapsed().as_millis()).unwrap_or(i64::MAX);
            end.queued_ms = end.queued_ms.max(waited);
            let record = Attempt {
                run: &self.id,
                pipeline: &engine.pipeline.name,
                stage: &stage.name,
                item: &item.name,
                attempt: u32::try_from(end.attempts).unwrap_or(u32::MAX),
                key: &item.key,
                reason: &why,
                queued_ms: waited,
            };
            let id = engine.state.begin_attempt(&record)?;
            (engine.observer)(&Event::ItemBegins {
                stage: &stage.name,
                item: &item.name,
                reason: &why,
            });
            let task =
                workers::spawn(Arc::clone(&self).attempt(Arc::clone(&run), Arc::clone(&item), id));
            let joined = async {
                task.join().await.unwrap_or_else(|error| {
                    Err(DataFusionError::Execution(format!(
                        "it was stopped: {error}"
                    )))
                })
            };
            let result = tokio::select! {
                biased;
                () = self.until_stopped() => Err(Stopped::Cancelled),
                result = timed(stage.timeout, joined) => result,
            };
            drop(permits);
            let (message, again) = match result {
                Ok(mut tried) => match tried.commit() {
                    Ok(()) => {
                        engine.state.finish_attempt(
                            id,
                            &record,
                            &item.parts,
                            &tried.outcome,
                            &tried.measured,
                        )?;
                        (engine.observer)(&Event::ItemEnds {
                            stage: &stage.name,
                            item: &item.name,
                            error: None,
                            retry_in: None,
                        });
                        end.status = Status::Succeeded;
                        end.outcome = Some(tried.outcome);
                        end.measured = tried.measured;
                        end.error = None;
                        return Ok(Some(end));
                    }
                    Err(error) => (sparse_operators::error::message(&error), true),
                },
                Err(Stopped::Cancelled) => {
                    engine.state.fail_attempt(
                        id,
                        Status::Cancelled.name(),
                        "the run was stopped",
                    )?;
                    self.remove_tables(&stage.name, id);
                    end.status = Status::Cancelled;
                    end.error = Some("the run was stopped".to_owned());
                    return Ok(Some(end));
                }
                // What a statement says that shares the wish to stop and saw it first.
                Err(Stopped::Failed(_)) if self.stopped() => {
                    engine.state.fail_attempt(
                        id,
                        Status::Cancelled.name(),
                        "the run was stopped",
                    )?;
                    self.remove_tables(&stage.name, id);
                    end.status = Status::Cancelled;
                    end.error = Some("the run was stopped".to_owned());
                    return Ok(Some(end));
                }
                Err(Stopped::TimedOut(limit)) => (
                    format!(
                        "it took longer than its timeout of {} s",
                        limit.as_secs_f64()
                    ),
                    true,
                ),
                Err(Stopped::Failed(error)) => {
                    // A wrong statement, a wrong base and a corrupt file are the same at the next try.
                    let again = !matches!(sparse_operators::error::exit_code(&error), 2 | 4 | 5);
                    (sparse_operators::error::message(&error), again)
                }
            };
            let message = engine.pipeline.redact(&message);
            engine
                .state
                .fail_attempt(id, Status::Failed.name(), &message)?;
            self.remove_tables(&stage.name, id);
            let delay = again.then(|| delays.next()).flatten();
            (engine.observer)(&Event::ItemEnds {
                stage: &stage.name,
                item: &item.name,
                error: Some(&message),
                retry_in: delay,
            });
            end.status = Status::Failed;
            end.error = Some(message.clone());
            let Some(delay) = delay else {
                self.log("error", &stage.name, &item.name, &message);
                if !stage.keep_going {
                    run.halted.store(true, Ordering::Relaxed);
                }
                return Ok(Some(end));
            };
            self.log(
                "warn",
                &stage.name,
                &item.name,
                &format!("{message}; again in {:.1} s", delay.as_secs_f64()),
            );
            tokio::select! {
                () = self.until_stopped() => {
                    end.status = Status::Cancelled;
                    return Ok(Some(end));
                }
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Waits for the tokens a statement of `stage` claims; always in the same order, so that no two wait for each other.
    async fn permits(&self, stage: &StageSpec) -> Vec<OwnedSemaphorePermit> {
        let mut permits = Vec::new();
        let claims = [
            (Some(&self.tokens.gpu), stage.gpu),
            (self.tokens.memory.as_ref(), stage.memory_mib),
            (Some(&self.tokens.statements), 1),
        ];
        for (semaphore, claim) in claims {
            if let Some(semaphore) = semaphore
                && claim > 0
                && let Ok(permit) = Arc::clone(semaphore).acquire_many_owned(claim).await
            {
                permits.push(permit);
            }
        }
        permits
    }

    async fn attempt(
        self: Arc<Self>,
        run: Arc<StageRun>,
        item: Arc<Item>,
        id: i64,
    ) -> Result<crate::attempt::Tried, DataFusionError> {
        let context: SessionContext = (self.engine.sessions)();
        let outside = |error: ExamineError| DataFusionError::Execution(error.to_string());
        crate::state::register(&context, &self.engine.state)?;
        for ready in &run.ready {
            provide(&context, ready).await.map_err(outside)?;
        }
        let params = item
            .values
            .iter()
            .filter(|(column, _)| run.columns.contains(*column))
            .fold(run.params.clone(), |params, (column, value)| {
                params.with(column, value.clone())
            });
        let (script, _) = Script::parse_using(&run.stage.sql, &params)
            .map_err(|error| DataFusionError::Plan(error.to_string()))?;
        let place = Place {
            state: self.engine.state.dir(),
            folder: self.tables_of(&run.stage.name).join(id.to_string()),
            table: &run.stage.name,
        };
        attempt(&context, &script, &run.kinds, &place, item.outputs.clone()).await
    }

    /// Below the state's folder.
    fn tables_of(&self, stage: &str) -> PathBuf {
        PathBuf::from("tables")
            .join(&self.engine.pipeline.name)
            .join(stage)
    }

    fn remove_tables(&self, stage: &str, id: i64) {
        let folder = self
            .engine
            .state
            .dir()
            .join(self.tables_of(stage))
            .join(id.to_string());
        let _ = std::fs::remove_dir_all(folder);
    }

    /// Removes tables that nothing recorded names: of tries before, and of those that were killed.
    fn sweep(&self, stage: &str) -> Result<(), StateError> {
        let below = self.tables_of(stage);
        let kept: std::collections::HashSet<String> = self
            .engine
            .state
            .done(&self.engine.pipeline.name, stage)?
            .values()
            .filter_map(|done| serde_json::from_str::<Outcome>(&done.result).ok())
            .flat_map(|outcome| outcome.tables)
            .filter_map(|table| {
                let below = std::path::Path::new(&table.file)
                    .strip_prefix(&below)
                    .ok()?;
                Some(
                    below
                        .components()
                        .next()?
                        .as_os_str()
                        .to_string_lossy()
                        .into_owned(),
                )
            })
            .collect();
        let entries = std::fs::read_dir(self.engine.state.dir().join(&below));
        for entry in entries.into_iter().flatten().flatten() {
            if !kept.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    async fn checks(
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

/// Why a try did not run to its end.
enum Stopped {
    Cancelled,
    TimedOut(Duration),
    Failed(DataFusionError),
}

async fn timed<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, DataFusionError>>,
) -> Result<T, Stopped> {
    match limit {
        None => work.await.map_err(Stopped::Failed),
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .map_err(|_| Stopped::TimedOut(limit))?
            .map_err(Stopped::Failed),
    }
}

fn summary(stage: &str, status: Status, reason: String) -> StageSummary {
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
