//! `Compress`: base and fine-tune in, a delta artifact out.

mod existing;
mod job;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use sparse_adapter::PeftAdapter;
use sparse_codec::Effort;
use sparse_gpu::Choice;
use sparse_store::{LockGuard, Model, OpenOptions, Published, Replace, Staged};

use crate::error::During;
use crate::mode::Mode;
use crate::paths::Output;
use crate::progress::Stop;
use crate::report::{CompressMetrics, CompressOutcome, Status};
use crate::{CancelToken, DeltaError, DeltaManifest, Progress, pipeline};
use existing::{Wanted, occupied};
use job::Job;

/// Makes the delta of a fine-tune against its base: lossless, unless another [`Mode`] is asked for.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_delta::DeltaError> {
/// let (manifest, metrics) = sparse_delta::Compress::new("org/base", "./my-finetune").output("./my-delta").run().await?;
/// println!("{:.2}x, {} bytes", manifest.compression_ratio, metrics.artifact_bytes);
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` or `stage` is awaited"]
pub struct Compress {
    base: String,
    finetune: String,
    output: Option<String>,
    effort: Effort,
    mode: Mode,
    adapter: Option<String>,
    of_adapter: bool,
    overwrite: bool,
    dry_run: bool,
    threads: Option<usize>,
    device: Choice,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Compress {
    /// The delta of `finetune` against `base`: each a path, an object store URL or a Hub id.
    pub fn new(base: impl Into<String>, finetune: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            finetune: finetune.into(),
            output: None,
            effort: Effort::default(),
            mode: Mode::default(),
            adapter: None,
            of_adapter: false,
            overwrite: false,
            dry_run: false,
            threads: None,
            device: Choice::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The delta of a PEFT adapter's folder, of type "adapter": its files come back byte for byte, and
    /// [`Reconstruct::merge`](crate::Reconstruct::merge) merges it into the base. Keys, shapes and configuration are held
    /// against `base` first.
    pub fn of_adapter(base: impl Into<String>, adapter: impl Into<String>) -> Self {
        Self {
            of_adapter: true,
            ..Self::new(base, adapter)
        }
    }

    /// Where the artifact goes: a folder or an object store URL. Default: its key, in the delta store.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// How hard the codec tries.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// What is kept of the fine-tune.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// A PEFT adapter (a path, URL or Hub id) that was merged into the base to make the fine-tune: its updates are tried as
    /// predictions, and kept in the artifact where they pay.
    pub fn adapter(mut self, adapter: impl Into<String>) -> Self {
        self.adapter = Some(adapter.into());
        self
    }

    /// Whether another artifact at the output may be replaced. Nothing but an artifact ever is.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Computes everything and writes nothing.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    crate::operation_setters!();

    /// Where INT8's scales are found and blocks are encoded, to the same bytes: blocks of BF16, F16 and F32 tensors that have a base
    /// of the same dtype. The CPU does the rest, and decodes again what a GPU encoded.
    pub fn device(mut self, device: Choice) -> Self {
        self.device = device;
        self
    }

    /// Makes the artifact and commits it.
    pub async fn run(self) -> Result<(DeltaManifest, CompressMetrics), DeltaError> {
        let outcome = self.stage().await?.commit().await?;
        Ok((outcome.manifest, outcome.metrics))
    }

    /// Makes the artifact under a temporary name; nothing is visible until it is committed.
    pub async fn stage(mut self) -> Result<StagedDelta, DeltaError> {
        let started = Instant::now();
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let output = self.output.as_deref().map(Output::parse).transpose()?;
        let (base, finetune) = futures::try_join!(
            Model::open(&self.base, &self.open),
            Model::open(&self.finetune, &self.open)
        )?;
        let adapter = match &self.adapter {
            Some(adapter) => {
                let adapter = PeftAdapter::open(adapter, &self.open).await?;
                adapter.check_mergeable()?;
                Some(adapter)
            }
            None => None,
        };
        let packed = if self.of_adapter {
            Some(PeftAdapter::open(&self.finetune, &self.open).await?)
        } else {
            None
        };
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let job = Job {
            adapter,
            packed,
            base: Arc::new(base),
            finetune: Arc::new(finetune),
            output,
            effort: self.effort,
            mode: self.mode,
            overwrite: self.overwrite,
            dry_run: self.dry_run,
            threads: self.threads,
            device: self.device,
            cache: self.open.cache(),
            progress: self.progress,
            stop,
            started,
        };
        let open = self.open;
        let staged = tokio::task::spawn_blocking(move || pipeline::guarded(|| job.run()))
            .await
            .map_err(|error| DeltaError::internal(error.to_string()))?;
        drop(on_drop);
        staged.map(|staged| StagedDelta { open, ..staged })
    }
}

/// An artifact that is complete, and not yet visible. Dropped, it leaves nothing.
pub struct StagedDelta {
    staged: Option<Staged>,
    replace: Replace,
    url: Option<url::Url>,
    outcome: CompressOutcome,
    started: Instant,
    open: OpenOptions,
    _lock: Option<LockGuard>,
}

impl StagedDelta {
    /// What the artifact is and where it will be.
    #[must_use]
    pub fn outcome(&self) -> &CompressOutcome {
        &self.outcome
    }

    /// Makes the artifact visible, in one step.
    pub async fn commit(mut self) -> Result<CompressOutcome, DeltaError> {
        if let Some(staged) = self.staged.take() {
            if let Some(url) = &self.url {
                // The staged folder is only a stop on the way: dropped, it leaves nothing behind.
                if let Published::Exists { manifest } =
                    sparse_store::publish(staged.path(), url, &self.open).await?
                {
                    let place = PathBuf::from(url.as_str());
                    let there = DeltaManifest::parse(&place, &manifest)?;
                    if there.key != self.outcome.manifest.key {
                        return Err(occupied(
                            &place,
                            &there,
                            &Wanted::of(&self.outcome.manifest),
                        ));
                    }
                    self.outcome.status = Status::Exists;
                    self.outcome.manifest = there;
                    self.outcome.metrics.bytes_written = 0;
                }
            } else {
                let replace = self.replace;
                let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                    .await
                    .map_err(|error| DeltaError::internal(error.to_string()))??;
                self.outcome.path = committed.path.display().to_string();
            }
        }
        self.outcome.metrics.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}

/// A staged folder for `target` with the files of another in it.
pub(crate) fn moved(from: &Staged, target: &Path) -> Result<Staged, DeltaError> {
    let to = Staged::dir(target)?;
    for entry in std::fs::read_dir(from.path()).during("read", from.path())? {
        let entry = entry.during("read", from.path())?;
        std::fs::rename(entry.path(), to.path().join(entry.file_name()))
            .during("move", entry.path())?;
    }
    Ok(to)
}

pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DeltaError> {
    std::fs::write(path, bytes).map_err(|error| DeltaError::io("write", path, error))
}

pub(crate) fn joined<T>(
    handle: std::thread::ScopedJoinHandle<'_, Result<T, DeltaError>>,
) -> Result<T, DeltaError> {
    handle
        .join()
        .unwrap_or_else(|_| Err(DeltaError::internal("a hashing thread panicked")))
}

/// Now, or the moment that `SOURCE_DATE_EPOCH` asks for (reproducible builds).
#[must_use]
pub fn timestamp() -> String {
    let fixed = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok())
        .and_then(|s| chrono::DateTime::from_timestamp(s, 0));
    fixed
        .unwrap_or_else(chrono::Utc::now)
        .format("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
