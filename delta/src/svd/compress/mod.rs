//! `SvdCompress`: base and fine-tune in, a low-rank approximation out.

mod existing;
mod job;
mod tensors;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sparse_gpu::Choice;
use sparse_store::{LockGuard, Model, OpenOptions, Published, Replace, Staged};
use sparse_svd::Precision;

use crate::paths::Output;
use crate::progress::Stop;
use crate::svd::adapters::Profile;
use crate::svd::manifest::{MAX_RANK, SvdDeltaManifest};
use crate::svd::rank::{MOST, SvdRank};
use crate::svd::resume::Resume;
use crate::{CancelToken, DeltaError, Progress, Status, pipeline};
use existing::occupied;
use job::Job;

/// Approximates a fine-tune by low-rank updates of its base; what no matrix holds is kept exactly.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_delta::DeltaError> {
/// use sparse_delta::{SvdCompress, SvdRank};
/// let (manifest, _) = SvdCompress::new("org/base", "./ft").rank(SvdRank::Auto).output("./approximation").run().await?;
/// println!("{:.1}x, {:.4} of the energy", manifest.compression_ratio, manifest.quality[0].captured_energy);
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` or `stage` is awaited"]
pub struct SvdCompress {
    base: String,
    finetune: String,
    output: Option<String>,
    rank: SvdRank,
    max_rank: usize,
    precision: Precision,
    signs: bool,
    embeddings: bool,
    adapter: Option<Profile>,
    overwrite: bool,
    dry_run: bool,
    threads: Option<usize>,
    device: Choice,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl SvdCompress {
    /// The approximation of `finetune` on top of `base`: each a path, an object store URL or a Hub id.
    pub fn new(base: impl Into<String>, finetune: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            finetune: finetune.into(),
            output: None,
            rank: SvdRank::default(),
            max_rank: MOST,
            precision: Precision::F16,
            signs: false,
            embeddings: false,
            adapter: Some(Profile::default()),
            overwrite: false,
            dry_run: false,
            threads: None,
            device: Choice::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// Where the artifact goes: a folder or an object store URL. Default: its key, in the delta store.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// What decides the ranks. Default: rank 16.
    pub fn rank(mut self, rank: SvdRank) -> Self {
        self.rank = rank;
        self
    }

    /// The largest rank that a rule may come to. Default: 256.
    pub fn max_rank(mut self, rank: usize) -> Self {
        self.max_rank = rank;
        self
    }

    /// How factors are stored. Default: f16.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Whether to store, beside the factors, the sign of what they leave of every element, with one magnitude a row.
    pub fn signs(mut self, signs: bool) -> Self {
        self.signs = signs;
        self
    }

    /// Whether embeddings are approximated too. Default: they are kept exactly.
    pub fn embeddings(mut self, embeddings: bool) -> Self {
        self.embeddings = embeddings;
        self
    }

    /// Which kind of adapter is written into the artifact; none for none.
    pub fn adapter(mut self, profile: Option<Profile>) -> Self {
        self.adapter = profile;
        self
    }

    /// Whether another approximation at the output may be replaced. Nothing but one ever is.
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

    /// Where differences are decomposed. A GPU's factors are as near to the difference as the CPU's, and not the same bits; the
    /// CPU measures how near they are, wherever they come from.
    pub fn device(mut self, device: Choice) -> Self {
        self.device = device;
        self
    }

    /// Makes the artifact and commits it.
    ///
    /// # Errors
    /// As [`Self::stage`] and [`StagedSvd::commit`].
    pub async fn run(self) -> Result<(SvdDeltaManifest, SvdMetrics), DeltaError> {
        let outcome = self.stage().await?.commit().await?;
        Ok((outcome.manifest, outcome.metrics))
    }

    /// Makes the artifact under a temporary name; nothing is visible until it is committed. Decompositions that are finished
    /// when the process is killed are taken up by the next run.
    ///
    /// # Errors
    /// Options that make no sense, models that cannot be opened, an output that is taken.
    pub async fn stage(mut self) -> Result<StagedSvd, DeltaError> {
        let started = Instant::now();
        self.check()?;
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let output = self.output.as_deref().map(Output::parse).transpose()?;
        let open = self.open.clone();
        let (base, finetune) = futures::try_join!(
            Model::open(&self.base, &self.open),
            Model::open(&self.finetune, &self.open)
        )?;
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let job = Job {
            base: Arc::new(base),
            finetune: Arc::new(finetune),
            output,
            cache: self.open.cache(),
            stop,
            started,
            options: self,
        };
        let staged = tokio::task::spawn_blocking(move || pipeline::guarded(|| job.run()))
            .await
            .map_err(|error| DeltaError::internal(error.to_string()))?;
        drop(on_drop);
        staged.map(|staged| StagedSvd { open, ..staged })
    }

    fn check(&mut self) -> Result<(), DeltaError> {
        match &mut self.rank {
            SvdRank::Fixed(ranks) => {
                ranks.sort_unstable();
                ranks.dedup();
                if ranks.is_empty() || ranks.contains(&0) {
                    return Err(DeltaError::usage(
                        "a rank is a number from 1 on: give, say, 16",
                    ));
                }
                if let Some(rank) = ranks.iter().find(|rank| **rank as u64 > MAX_RANK) {
                    return Err(DeltaError::usage(format!(
                        "no matrix has a rank of {rank}: give one of {MAX_RANK} at most"
                    )));
                }
                if self.signs && ranks.len() > 1 {
                    return Err(DeltaError::usage(
                        "signs are of what one rank leaves: give one rank with them",
                    ));
                }
            }
            SvdRank::Energy(share) if !(*share > 0.0 && *share <= 1.0) => {
                return Err(DeltaError::usage(format!(
                    "energy is a share above 0 and up to 1, not {share}: give, say, 0.9"
                )));
            }
            SvdRank::Bytes(0) => {
                return Err(DeltaError::usage(
                    "0 bytes hold no factors: give, say, 50e6",
                ));
            }
            _ => {}
        }
        if self.max_rank == 0 {
            return Err(DeltaError::usage("the largest rank is a number from 1 on"));
        }
        Ok(())
    }

    /// What the decompositions depend on, beside the models.
    fn rule(&self) -> String {
        match &self.rank {
            SvdRank::Fixed(_) => self.rank.to_string(),
            rule => format!("{rule}, at most {}", self.max_rank),
        }
    }
}

/// What `svd-compress` measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SvdMetrics {
    /// Bytes of the fine-tune: weights and carried files.
    pub original_bytes: u64,
    /// Bytes of the artifact without adapters.
    pub artifact_bytes: u64,
    /// Bytes of the adapters in it.
    pub adapter_bytes: u64,
    /// Bytes of factors and signs in it.
    pub factor_bytes: u64,
    /// Bytes written; none where the artifact existed or in a dry run.
    pub bytes_written: u64,
    /// Tensors of the fine-tune.
    pub tensors: u64,
    /// Tensors that are approximated.
    pub approximated: u64,
    /// Matrices that a GPU decomposed.
    pub device_matrices: u64,
    /// Threads that worked.
    pub threads: usize,
    /// Wall time from open to commit.
    pub elapsed: Duration,
}

/// What `svd-compress` did.
#[derive(Clone, Debug)]
pub struct SvdOutcome {
    /// What became of the output.
    pub status: Status,
    /// Where the artifact is; in a dry run, where it would be.
    pub path: String,
    /// Its manifest, tensors and all.
    pub manifest: SvdDeltaManifest,
    /// What was measured.
    pub metrics: SvdMetrics,
}

/// An approximation that is complete, and not yet visible. Dropped, it leaves nothing but finished decompositions.
pub struct StagedSvd {
    staged: Option<(Staged, Replace)>,
    url: Option<url::Url>,
    resume: Option<Resume>,
    outcome: SvdOutcome,
    started: Instant,
    open: OpenOptions,
    _lock: Option<LockGuard>,
}

impl StagedSvd {
    /// What the artifact is and where it will be.
    #[must_use]
    pub fn outcome(&self) -> &SvdOutcome {
        &self.outcome
    }

    /// Makes the artifact visible, in one step.
    ///
    /// # Errors
    /// An output that was taken in the meantime, or a disk that fails.
    pub async fn commit(mut self) -> Result<SvdOutcome, DeltaError> {
        if let Some((staged, replace)) = self.staged.take() {
            if let Some(url) = &self.url {
                // The staged folder is only a stop on the way: dropped, it leaves nothing behind.
                if let Published::Exists { manifest } =
                    sparse_store::publish(staged.path(), url, &self.open).await?
                {
                    let place = PathBuf::from(url.as_str());
                    let there = SvdDeltaManifest::parse(&place, &manifest)?;
                    if there.key != self.outcome.manifest.key {
                        return Err(occupied(&place, &there, &self.outcome.manifest));
                    }
                    self.outcome.status = Status::Exists;
                    self.outcome.manifest = there;
                    self.outcome.metrics.bytes_written = 0;
                }
            } else {
                let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                    .await
                    .map_err(|error| DeltaError::internal(error.to_string()))??;
                self.outcome.path = committed.path.display().to_string();
            }
            if let Some(resume) = self.resume.take() {
                tokio::task::spawn_blocking(move || resume.done())
                    .await
                    .map_err(|error| DeltaError::internal(error.to_string()))?;
            }
        }
        self.outcome.metrics.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}
