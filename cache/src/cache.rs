//! `DeltaCache`: a model's path, rebuilt if it is not there.

use std::fs::FileTimes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use sparse_delta::{CancelToken, Device, Progress};
use sparse_store::OpenOptions;

use crate::CacheError;
use crate::artifact::Artifact;
use crate::entry::{CacheEntry, Meta, last_used, time};
use crate::error::During;
use crate::files::read_json;
use crate::jobs;
use crate::layout::{Layout, is_key};
use crate::ledger::{Collected, Ledger, Reservation};
use crate::lock::{LockFile, pause};
use crate::stats::{CacheStats, Counters};

/// Eviction goes on until this share of the limit is used, if the cache is not told otherwise.
const LOW_WATER: f64 = 0.9;

/// A bounded cache of rebuilt models, shared by any number of processes. Clones are the same cache.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_cache::CacheError> {
/// use sparse_cache::DeltaCache;
///
/// let cache = DeltaCache::new().max_cache_size_gb(100.0).open()?;
/// let model = cache.get_or_reconstruct("org/base", "./my-delta").await?;
/// println!("load {}", model.path().display()); // it stays at least as long as `model` is held
/// println!("{} hits", cache.get_stats()?.cache_hits);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DeltaCache {
    pub(crate) layout: Layout,
    pub(crate) limit: u64,
    low_water: f64,
    pub(crate) max_workers: usize,
    pub(crate) threads: usize,
    pub(crate) device: Device,
    pub(crate) patience: Duration,
    pub(crate) options: OpenOptions,
    pub(crate) progress: Option<Progress>,
    pub(crate) cancel: CancelToken,
}

/// How a model came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It was in the cache.
    Hit,
    /// It was rebuilt by another process meanwhile.
    Waited,
    /// It was rebuilt now.
    Rebuilt,
}

impl Found {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Waited => "waited",
            Self::Rebuilt => "rebuilt",
        }
    }
}

/// A model in the cache. It is not evicted while this is held, by this process or another.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    key: String,
    found: Found,
    seconds: f64,
    _lock: LockFile,
}

impl Lease {
    /// The folder to load.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entry's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How it came to be there.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found
    }

    /// Seconds the request took.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

/// What a full check of an entry found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The entry's key.
    pub key: String,
    /// Whether every byte is as it was rebuilt.
    pub ok: bool,
    /// What is wrong, and what became of it.
    pub problem: Option<String>,
}

impl Default for DeltaCache {
    fn default() -> Self {
        Self::new()
    }
}

impl DeltaCache {
    /// The cache in the default cache folder, of at most 100 GB, with two workers. [`DeltaCache::open`] makes its folders.
    #[must_use]
    pub fn new() -> Self {
        let options = OpenOptions::default();
        Self {
            layout: Layout::new(&options.cache()),
            limit: 100_000_000_000,
            low_water: LOW_WATER,
            max_workers: 2,
            threads: 0,
            device: Device::default(),
            patience: Duration::from_secs(600),
            options,
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// How models are opened. Its cache folder holds this cache, too.
    #[must_use]
    pub fn open_options(mut self, options: OpenOptions) -> Self {
        self.layout = Layout::new(&options.cache());
        self.options = options;
        self
    }

    /// The cache folder; models are in its `reconstructed`.
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        self.layout = Layout::new(&dir);
        self.options.cache_dir = Some(dir);
        self
    }

    /// The most bytes of models, in gigabytes (10^9). A model larger than that is not cached.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, which is as good as any answer"
    )]
    pub fn max_cache_size_gb(self, gigabytes: f64) -> Self {
        self.max_cache_size_bytes((gigabytes * 1e9) as u64)
    }

    /// The most bytes of models.
    #[must_use]
    pub fn max_cache_size_bytes(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// Where eviction stops, once room is needed: at this share of the limit, 0 to 1. Default: 0.9.
    #[must_use]
    pub fn low_water(mut self, share: f64) -> Self {
        self.low_water = share.clamp(0.0, 1.0);
        self
    }

    /// How many jobs run at once.
    #[must_use]
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers.max(1);
        self
    }

    /// Where models are rebuilt, as for [`sparse_delta::Reconstruct`].
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How many threads one rebuild uses; 0 for all.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// How long a request waits for room that others use, before it fails. Default: ten minutes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Told what is being done and how far it is.
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Stops requests from outside.
    #[must_use]
    pub fn cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Makes the folders of the cache.
    ///
    /// # Errors
    /// Folders that cannot be made.
    pub fn open(self) -> Result<Self, CacheError> {
        self.layout.create()?;
        Ok(self)
    }

    /// The model that `delta` (a folder, URL, or key in the delta store) makes of `base`: the fine-tune, the base with an adapter
    /// merged in, or an approximation at its largest rank. On a hit the base is not opened: the delta names it by its fingerprint.
    ///
    /// # Errors
    /// What rebuilding fails with, a model larger than the cache, and a cache full of models that are pinned or in use.
    pub async fn get_or_reconstruct(&self, base: &str, delta: &str) -> Result<Lease, CacheError> {
        let began = Instant::now();
        let dir = sparse_delta::support::artifact_dir(delta, &self.options).await?;
        let artifact = blocking(move || Ok(Artifact::read(&dir)?)).await?;
        let key = artifact.key();
        let lock = Arc::new(LockFile::open(&self.layout.of(&key, "lock"))?);
        let mut found = Found::Hit;
        loop {
            if self.cancel.is_cancelled() {
                return Err(sparse_delta::DeltaError::Cancelled.into());
            }
            let (this, of_key, of_lock) = (self.clone(), key.clone(), Arc::clone(&lock));
            match blocking(move || this.look(&of_key, &of_lock)).await? {
                Look::Whole => break,
                Look::Mine => match self.build(base, delta, &artifact, &key).await {
                    Ok(room) => {
                        found = Found::Rebuilt;
                        // Exclusive to shared is not one step, but what has room reserved is not evicted.
                        let shared = lock.try_shared()?;
                        drop(room);
                        if shared && self.is_there(&key) {
                            break;
                        }
                        lock.unlock()?;
                    }
                    Err(error) => {
                        lock.unlock()?;
                        return Err(error);
                    }
                },
                Look::Busy => {
                    if found == Found::Hit {
                        found = Found::Waited;
                    }
                    tokio::time::sleep(pause(began)).await;
                }
            }
        }
        self.touch(&key)?;
        Counters::update(&self.layout, |counters| match found {
            Found::Hit => counters.hits += 1,
            Found::Waited => counters.waits += 1,
            Found::Rebuilt => counters.misses += 1,
        })?;
        let lock = Arc::into_inner(lock).ok_or_else(|| CacheError::Internal {
            message: "a lock is held twice".to_owned(),
        })?;
        Ok(Lease {
            path: self.layout.model(&key),
            key,
            found,
            seconds: began.elapsed().as_secs_f64(),
            _lock: lock,
        })
    }

    /// Takes the entry's lock: shared if the entry is whole, exclusively if it is for this process to make.
    fn look(&self, key: &str, lock: &LockFile) -> Result<Look, CacheError> {
        if self.is_there(key) {
            if !lock.try_shared()? {
                return Ok(Look::Busy);
            }
            match self.glance(key) {
                Some(Ok(())) => return Ok(Look::Whole),
                Some(Err(problem)) => tracing::warn!(key, problem, "a cached model is damaged"),
                None => {}
            }
            lock.unlock()?;
        }
        if !lock.try_exclusive()? {
            return Ok(Look::Busy);
        }
        match self.glance(key) {
            // Another process was faster.
            Some(Ok(())) => {
                lock.unlock()?;
                return Ok(Look::Busy);
            }
            Some(Err(problem)) => self.set_aside(key, &problem)?,
            None => {}
        }
        Ok(Look::Mine)
    }

    fn is_there(&self, key: &str) -> bool {
        self.layout.of(key, "json").exists() && self.layout.model(key).is_dir()
    }

    /// Whether the entry is whole, by a glance; none if it is not there.
    fn glance(&self, key: &str) -> Option<Result<(), String>> {
        if !self.layout.model(key).exists() {
            return None;
        }
        let meta: Option<Meta> = read_json(&self.layout.of(key, "json"));
        Some(match meta {
            Some(meta) => meta.glance(&self.layout.model(key)),
            None => Err("its state file is gone".to_owned()),
        })
    }

    /// Moves a damaged entry out of the way. The caller holds its lock exclusively.
    fn set_aside(&self, key: &str, problem: &str) -> Result<(), CacheError> {
        let damaged = self.layout.damaged();
        std::fs::create_dir_all(&damaged).during("create", &damaged)?;
        let stamp = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_nanos());
        let aside = damaged.join(format!("{key}-{stamp}"));
        let model = self.layout.model(key);
        tracing::warn!(key, problem, aside = %aside.display(), "set aside");
        std::fs::rename(&model, &aside).during("set aside", &model)?;
        crate::files::remove_file(&self.layout.of(key, "json"))?;
        Counters::update(&self.layout, |counters| counters.quarantined += 1)
    }

    /// Rebuilds an entry, and gives the room it had reserved. The caller holds its lock exclusively.
    async fn build(
        &self,
        base: &str,
        delta: &str,
        artifact: &Artifact,
        key: &str,
    ) -> Result<Reservation, CacheError> {
        let began = Instant::now();
        let room = artifact.room(base, self).await?;
        let room = self.reserve(key, room).await?;
        let model = self.layout.model(key);
        let staged = artifact.stage(base, delta, &model, self).await?;
        let quick = staged.quick_fingerprint().await?;
        let seconds = began.elapsed().as_secs_f64();
        // Before the model appears: an entry without its state file is one nobody may use.
        let meta = Meta::new(base, delta, staged.files(), quick, seconds);
        crate::files::write_json(&self.layout.of(key, "json"), &meta)?;
        self.touch(key)?;
        staged.commit().await?;
        Counters::update(&self.layout, |counters| {
            counters.builds += 1;
            counters.build_seconds += seconds;
        })?;
        Ok(room)
    }

    /// Room for `bytes`; waits while others use what would have to go.
    async fn reserve(&self, key: &str, bytes: u64) -> Result<Reservation, CacheError> {
        if bytes > self.limit {
            return Err(CacheError::TooLarge {
                needed: bytes,
                limit: self.limit,
            });
        }
        let began = Instant::now();
        loop {
            let (this, of_key) = (self.clone(), key.to_owned());
            let (room, used) = blocking(move || {
                let ledger = Ledger::open(&this.layout)?;
                let room = ledger.reserve(&of_key, bytes, this.limit, this.low_water_bytes())?;
                Ok((room, ledger.used()))
            })
            .await?;
            if let Some(room) = room {
                return Ok(room);
            }
            if self.cancel.is_cancelled() {
                return Err(sparse_delta::DeltaError::Cancelled.into());
            }
            if began.elapsed() >= self.patience {
                return Err(CacheError::Full {
                    needed: bytes,
                    used,
                    limit: self.limit,
                });
            }
            tokio::time::sleep(pause(began)).await;
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a size"
    )]
    fn low_water_bytes(&self) -> u64 {
        (self.limit as f64 * self.low_water) as u64
    }

    /// Notes that an entry was used now: in a file, since access times are not kept everywhere.
    fn touch(&self, key: &str) -> Result<(), CacheError> {
        let path = self.layout.of(key, "used");
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .during("touch", &path)?;
        file.set_times(FileTimes::new().set_modified(SystemTime::now()))
            .during("touch", &path)
    }

    /// The models in the cache, the latest used first.
    ///
    /// # Errors
    /// Lock files that cannot be opened.
    pub fn entries(&self) -> Result<Vec<CacheEntry>, CacheError> {
        let mut entries = Vec::new();
        for key in self.layout.keys("json") {
            let path = self.layout.model(&key);
            let meta: Option<Meta> = read_json(&self.layout.of(&key, "json"));
            let Some(meta) = meta.filter(|_| path.is_dir()) else {
                continue;
            };
            let lock = LockFile::open(&self.layout.of(&key, "lock"))?;
            entries.push((
                last_used(&self.layout, &key),
                CacheEntry {
                    path,
                    base: meta.base,
                    delta: meta.delta,
                    bytes: meta.bytes,
                    created: meta.created,
                    last_used: time(last_used(&self.layout, &key)),
                    seconds: meta.seconds,
                    pinned: self.layout.of(&key, "pin").exists(),
                    in_use: !lock.try_exclusive()?,
                    key,
                },
            ));
        }
        entries.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.key.cmp(&b.1.key)));
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    /// How the cache does: over all processes, since it was made.
    ///
    /// # Errors
    /// A cache folder that cannot be read.
    pub fn get_stats(&self) -> Result<CacheStats, CacheError> {
        let counters = Counters::read(&self.layout);
        let used = Ledger::open(&self.layout)?.used();
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let mean = counters.build_seconds / counters.builds.max(1) as f64;
        Ok(CacheStats {
            cache_hits: counters.hits,
            cache_misses: counters.misses,
            cache_waits: counters.waits,
            reconstructions: counters.builds,
            avg_reconstruction_time_s: mean,
            evictions: counters.evictions,
            quarantined: counters.quarantined,
            entries: self.entries()?.len() as u64,
            cache_size_bytes: used,
            cache_limit_bytes: self.limit,
            pending_jobs: jobs::list(&self.layout)
                .iter()
                .filter(|job| job.state.is_pending())
                .count() as u64,
        })
    }

    /// Evicts the models whose last use is longest ago until at most `bytes` are used (default: nine tenths of the limit). Damaged
    /// models go first; what is pinned or in use stays.
    ///
    /// # Errors
    /// Folders that cannot be removed.
    pub async fn gc(&self, bytes: Option<u64>) -> Result<Collected, CacheError> {
        let this = self.clone();
        blocking(move || {
            let goal = bytes.unwrap_or_else(|| this.low_water_bytes());
            Ledger::open(&this.layout)?.collect(goal, None)
        })
        .await
    }

    /// Keeps an entry from being evicted, or no longer. `name` is its key, the beginning of it, its path, or its delta.
    ///
    /// # Errors
    /// A name that means no entry, or several.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<CacheEntry, CacheError> {
        let mut entry = self.find(name)?;
        let path = self.layout.of(&entry.key, "pin");
        if pinned {
            std::fs::write(&path, b"").during("write", &path)?;
        } else {
            crate::files::remove_file(&path)?;
        }
        entry.pinned = pinned;
        Ok(entry)
    }

    /// The entry that a key, the beginning of one (at least 6 digits), a path or a delta means.
    ///
    /// # Errors
    /// A name that means none, or several.
    pub fn find(&self, name: &str) -> Result<CacheEntry, CacheError> {
        let absolute = crate::entry::absolute(name);
        let is_start = name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut matching = self.entries()?.into_iter().filter(|entry| {
            entry.key == name
                || (is_start && entry.key.starts_with(name))
                || entry.path == Path::new(&absolute)
                || entry.delta == absolute
        });
        match (matching.next(), matching.next()) {
            (Some(entry), None) => Ok(entry),
            (Some(_), Some(_)) => Err(CacheError::usage(format!(
                "{name} means several entries of the cache; give a longer part of the key"
            ))),
            _ => Err(CacheError::NotFound {
                what: format!("model {name}"),
                dir: self.layout.root.clone(),
                list: "sparse cache stats",
            }),
        }
    }

    /// Checks every byte of an entry, or of all. What is damaged is set aside, so that the next request rebuilds it; while others use
    /// it, it stays, and that is said.
    ///
    /// # Errors
    /// A name that means no entry.
    pub async fn verify(&self, name: Option<&str>) -> Result<Vec<Verified>, CacheError> {
        let keys: Vec<String> = match name {
            Some(name) => vec![self.find(name)?.key],
            None => self.layout.keys("json"),
        };
        let this = self.clone();
        blocking(move || {
            keys.iter()
                .filter(|key| is_key(key) && this.layout.model(key).is_dir())
                .map(|key| this.verify_one(key))
                .collect()
        })
        .await
    }

    fn verify_one(&self, key: &str) -> Result<Verified, CacheError> {
        let lock = LockFile::open(&self.layout.of(key, "lock"))?;
        let verdict = |problem: Option<String>| Verified {
            key: key.to_owned(),
            ok: problem.is_none(),
            problem,
        };
        if !lock.try_shared()? {
            // Being made, or being removed: there is nothing to check.
            return Ok(verdict(None));
        }
        let meta: Option<Meta> = read_json(&self.layout.of(key, "json"));
        let checked = match meta {
            Some(meta) => meta.check(&self.layout.model(key)),
            None => Ok(()),
        };
        let Err(problem) = checked else {
            return Ok(verdict(None));
        };
        lock.unlock()?;
        if !lock.try_exclusive()? {
            return Ok(verdict(Some(format!("{problem}; it is in use, and stays"))));
        }
        self.set_aside(key, &problem)?;
        Ok(verdict(Some(format!(
            "{problem}; set aside, the next request rebuilds it"
        ))))
    }
}

/// What a look at an entry came to.
enum Look {
    /// It is whole, and its lock is shared.
    Whole,
    /// It is for this process to make; its lock is held exclusively.
    Mine,
    /// Another process makes or removes it.
    Busy,
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, CacheError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| CacheError::Internal {
            message: error.to_string(),
        })?
}
