//! The daemon: runs pipelines on their schedules and on demand, reloads them when they change, and answers HTTP.

mod http;
mod page;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sparse_cache::DeltaCache;
use tokio::task::JoinSet;

use crate::examine::Sessions;
use crate::graph::Graph;
use crate::schedule;
use crate::spec::{Overlap, Pipeline, SpecError, find_all};
use crate::state::{Asked, State, StateError, now_ms};
use crate::summary::Status;
use crate::{Engine, EngineError, Params, fingerprint};

/// How often schedules are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often files are looked at.
const RELOAD_TICKS: u32 = 4;

/// A clock may be put back by so much before the schedules are looked at anew.
const CLOCK_MS: i64 = 60_000;

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
    /// Another process is the daemon of this history.
    #[error("another daemon uses the state folder {}; stop it, or give another --state-dir", dir.display())]
    Running {
        /// The folder.
        dir: PathBuf,
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
#[derive(Clone)]
pub struct Options {
    /// A pipeline, or a folder of them.
    pub path: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whoever changes something must have it; without one, nothing can be changed.
    pub token: Option<String>,
    /// How long running statements may go on once the daemon is to stop; then they are cancelled.
    pub grace: Duration,
    /// The cache that `/metrics` tells of.
    pub cache: Option<DeltaCache>,
}

impl std::fmt::Debug for Options {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("listen", &self.listen)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
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
    /// Its file is no longer there: once its run ended, it goes too.
    gone: bool,
}

struct Daemon {
    options: Options,
    state: Arc<State>,
    sessions: Sessions,
    slots: Mutex<BTreeMap<String, Slot>>,
    /// What was wrong at the latest reload with files that are no pipeline here yet.
    problems: Mutex<Vec<String>>,
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
        problems: Mutex::default(),
        stopping: AtomicBool::new(false),
        options,
        state,
        sessions,
    });
    let Some(_lock) = daemon.state.try_lock_daemon()? else {
        return Err(ServeError::Running {
            dir: daemon.state.dir().to_owned(),
        });
    };
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

    fn problems(&self) -> MutexGuard<'_, Vec<String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The history may be readable again at the next tick; until then the log says what is wrong.
    fn note(result: Result<(), StateError>) {
        if let Err(error) = result {
            tracing::error!("{error}");
        }
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
                self.state.put_schedule(name, now_ms(), 0, &[])?;
            }
        }
        Ok(())
    }

    /// Runs that waited or were under way when the process before ended are taken up again.
    fn resume(&self) -> Result<(), StateError> {
        for (name, slot) in self.slots().iter_mut() {
            slot.queue = self.state.asked(name)?.into();
            let Some(_lock) = self.state.try_lock(name)? else {
                continue;
            };
            if self.state.recover(name)? > 0 && slot.queue.is_empty() {
                slot.ask(&self.state, "resume")?;
            }
        }
        Ok(())
    }

    /// Reads what changed. A pipeline that became wrong stays as it was, and says so.
    fn reload(&self) -> Result<(), StateError> {
        let mut problems = Vec::new();
        let files = match find_all(&self.options.path) {
            Ok(files) => files,
            Err(error) => {
                tracing::error!("the pipelines stay as they were: {error}");
                *self.problems() = vec![error.to_string()];
                return Ok(());
            }
        };
        let read: Vec<_> = files
            .into_iter()
            .map(|file| (Self::read_one(&file), file))
            .collect();
        let mut slots = self.slots();
        let mut names = BTreeSet::new();
        for (result, file) in read {
            let (pipeline, graph) = match result {
                Ok(both) => both,
                Err(error) => {
                    tracing::error!("{error}");
                    let mut known = false;
                    for slot in slots.values_mut().filter(|slot| slot.pipeline.file == file) {
                        slot.problem = Some(error.to_string());
                        names.insert(slot.pipeline.name.clone());
                        known = true;
                    }
                    if !known {
                        problems.push(error.to_string());
                    }
                    continue;
                }
            };
            let name = pipeline.name.clone();
            if !names.insert(name.clone()) {
                let problem = format!(
                    "{}: another pipeline is named {name:?} too; give each its own name",
                    file.display()
                );
                tracing::error!("{problem}");
                problems.push(problem);
                continue;
            }
            let now = slots.entry(name.clone());
            let before = match &now {
                Entry::Occupied(slot) => slot.get().pipeline.schedule.clone(),
                Entry::Vacant(_) => None,
            };
            // Times of a schedule that was not there yet were not missed.
            if pipeline.schedule.is_some() && pipeline.schedule != before {
                self.state.put_schedule(&name, now_ms(), 0, &[])?;
            }
            match now {
                Entry::Occupied(mut slot) => {
                    let slot = slot.get_mut();
                    slot.pipeline = pipeline;
                    slot.graph = Arc::new(graph);
                    (slot.problem, slot.gone) = (None, false);
                }
                Entry::Vacant(place) => {
                    place.insert(slot(pipeline, graph));
                }
            }
        }
        for (name, slot) in slots.iter_mut().filter(|(name, _)| !names.contains(*name)) {
            tracing::info!(pipeline = name, "its file is gone");
            slot.gone = true;
            slot.pipeline.schedule = None;
            for asked in slot.queue.drain(..) {
                self.state.answered(asked.id)?;
            }
        }
        slots.retain(|_, slot| !slot.gone || slot.running.is_some());
        *self.problems() = problems;
        tracing::info!(pipelines = slots.len(), "reloaded");
        Ok(())
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
            // A time seen that is yet to come is of a clock that was wrong.
            if due.runs.is_empty() && due.missed == 0 && seen <= now + CLOCK_MS {
                continue;
            }
            let mut missed = due.missed;
            // A process that is no daemon may run it, too.
            let elsewhere = slot.running.is_none() && self.state.try_lock(name)?.is_none();
            let mut asked: Vec<(&'static str, i64)> = Vec::new();
            for (time, late) in due.runs {
                let busy = slot.running.is_some()
                    || elsewhere
                    || !slot.queue.is_empty()
                    || !asked.is_empty();
                let trigger = if late { "catch_up" } else { "schedule" };
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
                        // Of scheduled runs that wait, the latest is enough; who asked by hand gets an answer.
                        let (scheduled, others): (VecDeque<Asked>, _) =
                            std::mem::take(&mut slot.queue)
                                .into_iter()
                                .partition(|asked| asked.scheduled_ms.is_some());
                        slot.queue = others;
                        missed += (scheduled.len() + asked.len()) as u64;
                        for old in scheduled {
                            self.state.answered(old.id)?;
                        }
                        asked = vec![(trigger, time)];
                    }
                    _ if slot.queue.len() + asked.len() < MAX_QUEUE => asked.push((trigger, time)),
                    _ => missed += 1,
                }
            }
            slot.queue
                .extend(self.state.put_schedule(name, due.seen, missed, &asked)?);
        }
        Ok(())
    }

    /// Begins what waits, one run of each pipeline at a time.
    fn begin(self: &Arc<Self>, runs: &mut JoinSet<()>) -> Result<(), StateError> {
        for (name, slot) in self.slots().iter_mut() {
            if slot.running.is_some() || slot.queue.is_empty() {
                continue;
            }
            // Where another process runs it, the daemon waits.
            if self.state.try_lock(name)?.is_none() {
                continue;
            }
            let Some(asked) = slot.queue.pop_front() else {
                continue;
            };
            if let Some(time) = asked.scheduled_ms {
                Self::note(self.state.put_lag(name, (now_ms() - time).max(0)));
            }
            let cancel = Arc::new(AtomicBool::new(false));
            slot.running = Some(Arc::clone(&cancel));
            let (daemon, name, pipeline) = (Arc::clone(self), name.clone(), slot.pipeline.clone());
            runs.spawn(async move {
                let ended = daemon.run(pipeline, &asked, cancel).await;
                daemon.ended(&name, asked, ended);
            });
        }
        Ok(())
    }

    async fn run(
        &self,
        pipeline: Pipeline,
        asked: &Asked,
        cancel: Arc<AtomicBool>,
    ) -> Result<Status, EngineError> {
        let engine = Engine::new(
            pipeline,
            Arc::clone(&self.state),
            Arc::clone(&self.sessions),
        )?
        .trigger(&asked.trigger, asked.scheduled_ms)
        .asked(asked.clone())
        .stop_when(move || cancel.load(Ordering::Relaxed));
        engine.run().await.map(|summary| summary.status)
    }

    /// After a run: it is no longer waited for, unless it could not begin, or was cut short by the daemon's end.
    fn ended(&self, name: &str, asked: Asked, ended: Result<Status, EngineError>) {
        let mut slots = self.slots();
        let mut waits = None;
        let mut problem = None;
        match ended {
            Ok(Status::Cancelled) if self.stopping.load(Ordering::Relaxed) => return,
            Ok(_) => {}
            Err(EngineError::Busy { .. }) => waits = Some(asked.clone()),
            Err(error) => {
                tracing::error!(pipeline = name, "{error}");
                problem = Some(error.to_string());
            }
        }
        // Who asked finds the run in the history, also when it could not begin.
        Self::note(match &problem {
            Some(problem) => self.state.end_asked(&asked, name, Status::Failed, problem),
            None if waits.is_none() => self.state.answered(asked.id),
            None => Ok(()),
        });
        if let Some(slot) = slots.get_mut(name) {
            slot.running = None;
            if problem.is_some() {
                slot.problem = problem;
            }
            if let Some(asked) = waits {
                slot.queue.push_front(asked);
            }
            if slot.gone {
                slots.remove(name);
            }
        }
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
                    Self::note(self.reload());
                    looks = self.looks();
                }
            }
            Self::note(self.schedule());
            Self::note(self.begin(&mut runs));
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
        gone: false,
    }
}

impl Slot {
    /// Puts a run into the queue that nobody scheduled. Returns its id.
    fn ask(&mut self, state: &State, trigger: &str) -> Result<String, StateError> {
        let asked = state.ask(&self.pipeline.name, trigger)?;
        let run = asked.run.clone();
        self.queue.push_back(asked);
        Ok(run)
    }
}
