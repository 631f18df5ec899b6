//! Jobs: models to be rebuilt in the background. A job is a file, so it outlives its process; whoever runs it holds its lock, so what
//! a killed process left is taken up by the next that runs jobs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::{Deserialize, Serialize};
use sparse_delta::{CancelToken, Progress};

use crate::CacheError;
use crate::cache::{DeltaCache, blocking};
use crate::entry::{absolute, time};
use crate::files::{read_json, remove_file, write_json};
use crate::layout::Layout;
use crate::lock::LockFile;

/// How often a running job says how far it is.
const TELL: Duration = Duration::from_millis(250);
/// How often a running job looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Finished jobs that are remembered.
const REMEMBERED: usize = 1000;

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// To be run by the next process that runs jobs.
    Queued,
    /// A process runs it.
    Running,
    /// The model is in the cache.
    Done,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobState {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it is still to end.
    #[must_use]
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }
}

/// A model to be rebuilt in the background.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name: the same for the same base and delta.
    pub id: String,
    /// The base model.
    pub base: String,
    /// The delta.
    pub delta: String,
    /// How it stands.
    pub state: JobState,
    /// How far it is, 0 to 1.
    pub progress: f64,
    /// What it is doing, or why it failed.
    pub message: String,
    /// Where the model is, once it is done.
    pub path: Option<PathBuf>,
    /// How often it was begun.
    pub attempts: u64,
    /// When it was asked for, ISO 8601, UTC.
    pub created: String,
    /// When its state changed last, ISO 8601, UTC.
    pub updated: String,
}

impl Job {
    fn new(id: String, base: &str, delta: &str) -> Self {
        let now = time(SystemTime::now());
        Self {
            id,
            base: base.to_owned(),
            delta: delta.to_owned(),
            state: JobState::Queued,
            progress: 0.0,
            message: String::new(),
            path: None,
            attempts: 0,
            created: now.clone(),
            updated: now,
        }
    }
}

/// Every job, oldest first. One that was running when its process died is queued.
pub(crate) fn list(layout: &Layout) -> Vec<Job> {
    let mut jobs: Vec<Job> = names(layout)
        .iter()
        .filter_map(|id| read(layout, id))
        .collect();
    jobs.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    jobs
}

fn names(layout: &Layout) -> Vec<String> {
    let entries = std::fs::read_dir(layout.jobs())
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            entry
                .file_name()
                .into_string()
                .ok()?
                .strip_suffix(".json")
                .map(str::to_owned)
        })
        .collect()
}

fn place(layout: &Layout, id: &str, what: &str) -> PathBuf {
    layout.jobs().join(format!("{id}.{what}"))
}

fn read(layout: &Layout, id: &str) -> Option<Job> {
    let path = place(layout, id, "json");
    let mut job: Job = read_json(&path)?;
    if job.state == JobState::Running {
        let lock = LockFile::open(&place(layout, id, "lock")).ok()?;
        if lock.try_shared().ok()? {
            // It may have ended between the two looks.
            job = read_json(&path)?;
            if job.state == JobState::Running {
                job.state = JobState::Queued;
                job.message = "its process ended before it was done".to_owned();
            }
        }
    }
    Some(job)
}

fn write(layout: &Layout, job: &mut Job) -> Result<(), CacheError> {
    job.updated = time(SystemTime::now());
    write_json(&place(layout, &job.id, "json"), job)
}

impl DeltaCache {
    /// Asks for models to be rebuilt in the background: a job for each delta, in their order. Asking again for one that is queued or
    /// running is the same job; one that ended is queued anew (and is done at once if the model is there). Run by
    /// [`DeltaCache::run_jobs`], in this process or another.
    ///
    /// # Errors
    /// Job files that cannot be written.
    pub fn enqueue<D: AsRef<str>>(&self, base: &str, deltas: &[D]) -> Result<Vec<Job>, CacheError> {
        let base = absolute(base);
        deltas
            .iter()
            .map(|delta| self.enqueue_one(&base, &absolute(delta.as_ref())))
            .collect()
    }

    fn enqueue_one(&self, base: &str, delta: &str) -> Result<Job, CacheError> {
        let hash = blake3::hash(format!("{}\0{base}\0{delta}", base.len()).as_bytes());
        let id = hash.to_hex()[..16].to_owned();
        let queue = LockFile::open(&self.layout.jobs().join("queue.lock"))?;
        queue.wait_exclusive()?;
        if let Some(job) = read(&self.layout, &id).filter(|job| job.state.is_pending()) {
            return Ok(job);
        }
        let mut job = Job::new(id, base, delta);
        remove_file(&place(&self.layout, &job.id, "cancel"))?;
        write(&self.layout, &mut job)?;
        self.forget_oldest()?;
        Ok(job)
    }

    /// Forgets the oldest of very many ended jobs. The caller holds the queue's lock.
    fn forget_oldest(&self) -> Result<(), CacheError> {
        if names(&self.layout).len() <= REMEMBERED {
            return Ok(());
        }
        let mut ended: Vec<Job> = list(&self.layout);
        ended.retain(|job| !job.state.is_pending());
        ended.sort_by(|a, b| a.updated.cmp(&b.updated));
        let surplus = ended.len().saturating_sub(REMEMBERED / 2);
        for job in ended.iter().take(surplus) {
            for what in ["json", "cancel"] {
                remove_file(&place(&self.layout, &job.id, what))?;
            }
        }
        Ok(())
    }

    /// Asks for models to be rebuilt, and begins to do so on threads of this process. The jobs outlive it: see
    /// [`DeltaCache::run_jobs`].
    ///
    /// # Errors
    /// As [`DeltaCache::enqueue`].
    pub fn prefetch_deltas<D: AsRef<str>>(
        &self,
        base: &str,
        deltas: &[D],
    ) -> Result<Vec<Job>, CacheError> {
        let jobs = self.enqueue(base, deltas)?;
        let this = self.clone();
        let failed = |source| CacheError::Io {
            action: "start a thread for",
            path: self.layout.jobs(),
            source,
        };
        std::thread::Builder::new()
            .name("sparse-jobs".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build();
                let ended = match runtime {
                    Ok(runtime) => runtime.block_on(this.run_jobs()).map(|_| ()),
                    Err(source) => Err(CacheError::Io {
                        action: "start a thread for",
                        path: this.layout.jobs(),
                        source,
                    }),
                };
                if let Err(error) = ended {
                    tracing::error!(%error, "jobs are left for the next process");
                }
            })
            .map_err(failed)?;
        Ok(jobs)
    }

    /// A job.
    ///
    /// # Errors
    /// A name that means no job.
    pub fn get_job_status(&self, id: &str) -> Result<Job, CacheError> {
        let valid = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid
            .then(|| read(&self.layout, id))
            .flatten()
            .ok_or_else(|| CacheError::NotFound {
                what: format!("job {id}"),
                dir: self.layout.root.clone(),
                list: "sparse cache jobs",
            })
    }

    /// Every job, oldest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<Job> {
        list(&self.layout)
    }

    /// Cancels a job: at once if it is queued, soon if a process runs it. One that has ended stays as it is.
    ///
    /// # Errors
    /// A name that means no job.
    pub fn cancel_job(&self, id: &str) -> Result<Job, CacheError> {
        let job = self.get_job_status(id)?;
        if !job.state.is_pending() {
            return Ok(job);
        }
        write_json(&place(&self.layout, id, "cancel"), &true)?;
        // Where nobody runs it, nobody else will say so.
        if let Some(claim) = self.claim(id)? {
            self.end(claim, JobState::Cancelled, "cancelled before it began")?;
        }
        self.get_job_status(id)
    }

    /// Runs every queued job, and those that killed processes left, [`DeltaCache::max_workers`] at once; ends when there is none.
    /// The jobs that were run, as they ended.
    ///
    /// # Errors
    /// Job files that cannot be written. A job that fails is a job with the state `failed`.
    pub async fn run_jobs(&self) -> Result<Vec<Job>, CacheError> {
        let mut running = FuturesUnordered::new();
        let mut ended = Vec::new();
        loop {
            while running.len() < self.max_workers && !self.cancel.is_cancelled() {
                match self.claim_next()? {
                    Some(claim) => running.push(self.run_job(claim)),
                    None => break,
                }
            }
            match running.next().await {
                Some(job) => ended.push(job?),
                None => return Ok(ended),
            }
        }
    }

    /// Takes the oldest queued job.
    fn claim_next(&self) -> Result<Option<Claim>, CacheError> {
        for job in list(&self.layout) {
            if job.state == JobState::Queued
                && let Some(claim) = self.claim(&job.id)?
            {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// Takes a job, if it is to be run and nobody runs it.
    fn claim(&self, id: &str) -> Result<Option<Claim>, CacheError> {
        let lock = LockFile::open(&place(&self.layout, id, "lock"))?;
        if !lock.try_exclusive()? {
            return Ok(None);
        }
        let job: Option<Job> = read_json(&place(&self.layout, id, "json"));
        Ok(job
            .filter(|job| job.state.is_pending())
            .map(|job| Claim { job, lock }))
    }

    /// Writes how a job ended, then lets go of it.
    fn end(&self, mut claim: Claim, state: JobState, message: &str) -> Result<Job, CacheError> {
        claim.job.state = state;
        message.clone_into(&mut claim.job.message);
        write(&self.layout, &mut claim.job)?;
        if state == JobState::Cancelled {
            remove_file(&place(&self.layout, &claim.job.id, "cancel"))?;
        }
        claim.lock.unlock()?;
        Ok(claim.job)
    }

    async fn run_job(&self, mut claim: Claim) -> Result<Job, CacheError> {
        let cancel_file = place(&self.layout, &claim.job.id, "cancel");
        if cancel_file.exists() {
            return self.end(claim, JobState::Cancelled, "cancelled before it began");
        }
        claim.job.state = JobState::Running;
        claim.job.attempts += 1;
        claim.job.message.clear();
        write(&self.layout, &mut claim.job)?;
        let token = CancelToken::default();
        let mut worker = self.clone();
        worker.cancel = token.clone();
        worker.threads = self.threads_of_worker();
        worker.progress = Some(tell(self.layout.clone(), claim.job.clone()));
        let (base, delta) = (claim.job.base.clone(), claim.job.delta.clone());
        let work = worker.get_or_reconstruct(&base, &delta);
        let mut work = std::pin::pin!(work);
        let mut asked = false;
        let result = loop {
            match tokio::time::timeout(LOOK, &mut work).await {
                Ok(result) => break result,
                Err(_) if asked => {}
                Err(_) => {
                    asked = cancel_file.exists();
                    if asked || self.cancel.is_cancelled() {
                        token.cancel();
                    }
                }
            }
        };
        match result {
            Ok(lease) => {
                claim.job.path = Some(lease.path().to_path_buf());
                claim.job.progress = 1.0;
                let message = format!("{} in {:.2} s", lease.found().name(), lease.seconds());
                self.end(claim, JobState::Done, &message)
            }
            Err(_) if asked => self.end(claim, JobState::Cancelled, "cancelled"),
            // This process was asked to stop, the job was not: it is for the next one.
            Err(_) if self.cancel.is_cancelled() => {
                self.end(claim, JobState::Queued, "its process was stopped")
            }
            Err(error) => self.end(claim, JobState::Failed, &error.to_string()),
        }
    }

    fn threads_of_worker(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if self.threads == 0 {
            cores
        } else {
            self.threads
        };
        (threads / self.max_workers).max(1)
    }

    /// Waits until jobs have ended, whoever runs them.
    ///
    /// # Errors
    /// A name that means no job.
    pub async fn wait_for(&self, ids: &[String]) -> Result<Vec<Job>, CacheError> {
        loop {
            let (this, of_ids) = (self.clone(), ids.to_vec());
            let jobs = blocking(move || {
                of_ids
                    .iter()
                    .map(|id| this.get_job_status(id))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await?;
            if jobs.iter().all(|job| !job.state.is_pending()) || self.cancel.is_cancelled() {
                return Ok(jobs);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A job that this process runs: its lock is held.
struct Claim {
    job: Job,
    lock: LockFile,
}

/// Writes progress into the job's file, now and then.
fn tell(layout: Layout, job: Job) -> Progress {
    let state = Mutex::new((Instant::now(), job));
    Arc::new(move |message: &str, fraction: f64| {
        // Somebody else is telling: that is as good.
        let Ok(mut state) = state.try_lock() else {
            return;
        };
        if state.0.elapsed() < TELL {
            return;
        }
        state.0 = Instant::now();
        state.1.progress = fraction.clamp(0.0, 1.0);
        message.clone_into(&mut state.1.message);
        if let Err(error) = write(&layout, &mut state.1) {
            tracing::debug!(%error, "progress is not written");
        }
    })
}
