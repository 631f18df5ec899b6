//! The items of a stage: each claims its tokens, is tried, and tried again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datafusion::common::runtime::SpawnedTask;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use tokio::sync::OwnedSemaphorePermit;

use super::Event;
use super::backoff::backoff;
use super::run::Run;
use crate::analysis::Kind;
use crate::attempt::{Place, Tried, attempt};
use crate::examine::{AllReady, ExamineError, Examined, Item, Ready, provide};
use crate::script::placeholders;
use crate::spec::StageSpec;
use crate::state::{Attempt, Measured, Outcome, StateError};
use crate::summary::Status;
use crate::{Params, Script, workers};

/// How one item ended.
pub(super) struct ItemEnd {
    pub(super) status: Status,
    pub(super) error: Option<String>,
    pub(super) attempts: u64,
    pub(super) queued_ms: i64,
    pub(super) outcome: Option<Outcome>,
    pub(super) measured: Measured,
}

/// A stage that is running, for its items.
struct StageRun {
    stage: StageSpec,
    kinds: Vec<Kind>,
    /// Parameters its statement uses.
    params: Params,
    columns: BTreeSet<String>,
    ready: Vec<Ready>,
    /// Set when no further item shall begin.
    halted: AtomicBool,
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

impl Run {
    pub(super) async fn items(
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
        let mut delays = backoff(&stage.retries);
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
            let result = match result {
                // What a statement says that shares the wish to stop and saw it first.
                Err(Stopped::Failed(_)) if self.stopped() => Err(Stopped::Cancelled),
                result => result,
            };
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
    ) -> Result<Tried, DataFusionError> {
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
}
