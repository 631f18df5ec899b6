//! The daemon: runs pipelines on their schedules and on demand, reloads them when they change, and answers HTTP.

mod http;
mod page;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::examine::Sessions;
use crate::graph::Graph;
use crate::schedule;
use crate::spec::{Overlap, Pipeline, SpecError, find_all};
use crate::state::{State, StateError, now_ms};
use crate::{Engine, EngineError, Params, fingerprint};

/// How often schedules are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often files are looked at.
const RELOAD_TICKS: u32 = 4;

/// Runs that may wait for one pipeline.
const MAX_QUEUE: usize = 1000;

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A pipeline is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The history.
    #[error(transparent)]
    State(#[from] StateError),
    /// The address.
    #[error("cannot listen on {address}: {source}; give another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Two files, one name.
    #[error("{} and {} are both named {name:?}; give each pipeline its own name", first.display(), second.display())]
    SameName {
        /// The name.
        name: String,
        /// The one file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// How the daemon is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// A pipeline, or a folder of them.
    pub path: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whoever changes something must have it; without one, nothing can be changed.
    pub token: Option<String>,
    /// How long running statements may go on once the daemon is to stop; then they are cancelled.
    pub grace: Duration,
}

/// A run that waits.
#[derive(Clone, Debug)]
struct Asked {
    trigger: &'static str,
    scheduled_ms: Option<i64>,
}

/// One pipeline in the daemon.
struct Slot {
    pipeline: Pipeline,
    graph: Arc<Graph>,
    /// What was wrong with its files at the latest reload.
    problem: Option<String>,
    queue: VecDeque<Asked>,
    /// Set to cancel the run under way.
    running: Option<Arc<AtomicBool>>,
}

struct Daemon {
    options: Options,
    state: Arc<State>,
    sessions: Sessions,
    slots: Mutex<BTreeMap<String, Slot>>,
    /// Set when the daemon is to stop: nothing new begins.
    stopping: AtomicBool,
}

/// Runs the daemon until `stop` says so. `ready` is told the address.
pub async fn serve(
    options: Options,
    state: Arc<State>,
    sessions: Sessions,
    ready: impl FnOnce(SocketAddr),
    stop: impl Fn() -> bool + Send + Sync + 'static,
) -> Result<(), ServeError> {
    let address = options.listen;
    let daemon = Arc::new(Daemon {
        slots: Mutex::default(),
        stopping: AtomicBool::new(false),
        options,
        state,
        sessions,
    });
    daemon.load()?;
    daemon.resume()?;
    let listen = |source| ServeError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    ready(bound);
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let router = http::router(Arc::clone(&daemon));
    let server = tokio::spawn(async move {
        let shutdown = async {
            let _ = closed.await;
        };
        axum::serve(listener, router)
            .with_graceful_shutdown(shutdown)
            .await
    });
    daemon.work(stop).await;
    let _ = close.send(());
    // Connections that stay open are not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    Ok(())
}

impl Daemon {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_one(file: &std::path::Path) -> Result<(Pipeline, Graph), SpecError> {
        let pipeline = Pipeline::read(file, &Params::default())?;
        let graph = Graph::new(&pipeline)?;
        Ok((pipeline, graph))
    }

    /// Reads every pipeline for the first time: here a wrong one is an error.
    fn load(&self) -> Result<(), ServeError> {
        for file in find_all(&self.options.path)? {
            let (pipeline, graph) = Self::read_one(&file)?;
            let mut slots = self.slots();
            if let Some(other) = slots.get(&pipeline.name) {
                return Err(ServeError::SameName {
                    name: pipeline.name.clone(),
                    first: other.pipeline.file.clone(),
                    second: pipeline.file,
                });
            }
            slots.insert(pipeline.name.clone(), slot(pipeline, graph));
        }
        for (name, slot) in self.slots().iter() {
            if slot.pipeline.schedule.is_some() && self.state.schedule_seen(name)?.is_none() {
                self.state.put_schedule(name, now_ms(), None, 0)?;
            }
        }
        Ok(())
    }

    /// Runs that were under way when their process ended are taken up again.
    fn resume(&self) -> Result<(), StateError> {
        for (name, slot) in self.slots().iter_mut() {
            let Some(_lock) = self.state.try_lock(name)? else {
                continue;
            };
            if self.state.recover(name)? > 0 {
                slot.queue.push_back(Asked {
                    trigger: "resume",
                    scheduled_ms: None,
                });
            }
        }
        Ok(())
    }

    /// Reads what changed. A pipeline that became wrong stays as it was, and says so.
    fn reload(&self) {
        let files = match find_all(&self.options.path) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!("reload: {error}");
                return;
            }
        };
        let mut read = Vec::new();
        for file in &files {
            read.push((file.clone(), Self::read_one(file)));
        }
        let mut slots = self.slots();
        let mut names = Vec::new();
        for (file, result) in read {
            match result {
                Ok((pipeline, graph)) => {
                    names.push(pipeline.name.clone());
                    if let Some(slot) = slots.get_mut(&pipeline.name) {
                        slot.pipeline = pipeline;
                        slot.graph = Arc::new(graph);
                        slot.problem = None;
                        continue;
                    }
                    if pipeline.schedule.is_some()
                        && let Err(error) =
                            self.state.put_schedule(&pipeline.name, now_ms(), None, 0)
                    {
                        tracing::warn!("{error}");
                    }
                    slots.insert(pipeline.name.clone(), slot(pipeline, graph));
                }
                Err(error) => {
                    tracing::error!("the pipeline stays as it was: {error}");
                    for slot in slots.values_mut().filter(|slot| slot.pipeline.file == file) {
                        slot.problem = Some(error.to_string());
                        names.push(slot.pipeline.name.clone());
                    }
                }
            }
        }
        slots.retain(|name, slot| names.contains(name) || slot.running.is_some());
        tracing::info!(pipelines = slots.len(), "reloaded");
    }

    /// What the files look like, to notice changes.
    fn looks(&self) -> String {
        let mut looks = String::new();
        let mut add = |path: &std::path::Path| {
            if let Some(local) = fingerprint::look_at(path) {
                looks += &local.identity;
            }
        };
        for file in find_all(&self.options.path).unwrap_or_default() {
            add(&file);
        }
        for slot in self.slots().values() {
            for stage in &slot.pipeline.stages {
                if let Some(file) = &stage.sql_file {
                    add(file);
                }
            }
        }
        looks
    }

    /// Puts the runs that are due into their queues.
    fn schedule(&self) -> Result<(), StateError> {
        let now = now_ms();
        for (name, slot) in self.slots().iter_mut() {
            let Some(schedule) = slot.pipeline.schedule.clone() else {
                continue;
            };
            let seen = self.state.schedule_seen(name)?.unwrap_or(now);
            let due = schedule::due(&schedule, seen, now);
            if due.runs.is_empty() && due.missed == 0 {
                continue;
            }
            let mut missed = due.missed;
            let lag = due.runs.last().map(|(time, _)| now - time);
            for (time, late) in due.runs {
                let busy = slot.running.is_some() || !slot.queue.is_empty();
                let asked = Asked {
                    trigger: if late { "catch_up" } else { "schedule" },
                    scheduled_ms: Some(time),
                };
                match schedule.overlap {
                    // Several that are caught up with run one after another: that is what `all` asks for.
                    Overlap::Forbid if busy && !late => {
                        tracing::warn!(
                            pipeline = name,
                            "a scheduled run is dropped: the one before is still under way"
                        );
                        missed += 1;
                    }
                    Overlap::Replace if busy => {
                        if let Some(cancel) = &slot.running {
                            cancel.store(true, Ordering::Relaxed);
                        }
                        slot.queue.clear();
                        slot.queue.push_back(asked);
                    }
                    _ if slot.queue.len() < MAX_QUEUE => slot.queue.push_back(asked),
                    _ => missed += 1,
                }
            }
            self.state.put_schedule(name, now, lag, missed)?;
        }
        Ok(())
    }

    /// Begins what waits, one run of each pipeline at a time.
    fn begin(self: &Arc<Self>, runs: &mut JoinSet<()>) {
        for (name, slot) in self.slots().iter_mut() {
            if slot.running.is_some() {
                continue;
            }
            let Some(asked) = slot.queue.pop_front() else {
                continue;
            };
            let cancel = Arc::new(AtomicBool::new(false));
            slot.running = Some(Arc::clone(&cancel));
            let (daemon, name, pipeline) = (Arc::clone(self), name.clone(), slot.pipeline.clone());
            runs.spawn(async move {
                let ended = daemon.run(pipeline, asked, cancel).await;
                if let Err(error) = ended {
                    tracing::error!(pipeline = name, "{error}");
                }
                if let Some(slot) = daemon.slots().get_mut(&name) {
                    slot.running = None;
                }
            });
        }
    }

    async fn run(
        &self,
        pipeline: Pipeline,
        asked: Asked,
        cancel: Arc<AtomicBool>,
    ) -> Result<(), EngineError> {
        let engine = Engine::new(
            pipeline,
            Arc::clone(&self.state),
            Arc::clone(&self.sessions),
        )?
        .trigger(asked.trigger, asked.scheduled_ms)
        .stop_when(move || cancel.load(Ordering::Relaxed));
        engine.run().await.map(|_| ())
    }

    /// The loop: schedules, reloads, runs, until `stop`; then waits for what is under way, and cancels what takes too long.
    async fn work(self: &Arc<Self>, stop: impl Fn() -> bool) {
        let mut runs = JoinSet::new();
        let mut looks = self.looks();
        let mut ticks = 0u32;
        while !stop() {
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(RELOAD_TICKS) {
                let now = self.looks();
                if now != looks {
                    self.reload();
                    looks = self.looks();
                }
            }
            if let Err(error) = self.schedule() {
                tracing::error!("{error}");
            }
            self.begin(&mut runs);
            while runs.try_join_next().is_some() {}
            tokio::time::sleep(TICK).await;
        }
        self.stopping.store(true, Ordering::Relaxed);
        tracing::info!(runs = runs.len(), "stopping");
        let all = async { while runs.join_next().await.is_some() {} };
        if tokio::time::timeout(self.options.grace, all).await.is_ok() {
            return;
        }
        for slot in self.slots().values() {
            if let Some(cancel) = &slot.running {
                cancel.store(true, Ordering::Relaxed);
            }
        }
        while runs.join_next().await.is_some() {}
    }
}

fn slot(pipeline: Pipeline, graph: Graph) -> Slot {
    Slot {
        pipeline,
        graph: Arc::new(graph),
        problem: None,
        queue: VecDeque::new(),
        running: None,
    }
}
