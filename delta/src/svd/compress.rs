//! `SvdCompress`: base and fine-tune in, a low-rank approximation out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use rayon::prelude::*;
use serde::Serialize;
use sparse_store::{LockGuard, Model, OpenOptions, Pair, Published, Replace, Staged};
use sparse_svd::{Measured, Precision, Rank, Svd};

use super::adapters::{self, Module, Profile, Wanted};
use super::artifact::{self, SvdArtifact};
use super::manifest::{
    self, AdapterEntry, Kept, MAX_RANK, SVD_FORMAT, SvdDeltaManifest, SvdFile, SvdTensor,
};
use super::plan::{Plan, Wishes};
use super::resume::Resume;
use super::units::{Decomposed, Done, Units, quality_of};
use crate::compress::{joined, timestamp, write_file};
use crate::identity::{self, Content};
use crate::manifest::{Blob, Fingerprints, MANIFEST};
use crate::modules::Modules;
use crate::paths::{self, Occupant, Output, root_of};
use crate::payload::PayloadWriter;
use crate::progress::{Stop, Ticker};
use crate::residency::Residency;
use crate::tensor::header_prefix;
use crate::{CancelToken, DeltaError, Progress, Status, blobs, carried, pipeline, seal, verify};

/// The largest rank that is looked for where a rule decides, unless another is given.
const MOST: usize = 256;
/// How many times the even share of a budget one matrix may get.
const GENEROUS: usize = 4;

/// What decides the ranks.
#[derive(Clone, Debug, PartialEq)]
pub enum SvdRank {
    /// These ranks, each of which can be rebuilt from the one artifact; the largest is what it holds.
    Fixed(Vec<usize>),
    /// All singular values that stand out of the rounding noise of both models' dtypes.
    Auto,
    /// As many as hold this share of each difference's energy.
    Energy(f64),
    /// As many as fit in so many bytes of factors, where they hold the most energy.
    Bytes(u64),
}

impl Default for SvdRank {
    fn default() -> Self {
        Self::Fixed(vec![16])
    }
}

impl SvdRank {
    /// The rule that a caller's options give: at most one of them.
    ///
    /// # Errors
    /// Several of them, and numbers that are none of theirs.
    pub fn choose(
        rank: Option<&str>,
        ranks: Option<Vec<u64>>,
        energy: Option<f64>,
        bytes: Option<f64>,
    ) -> Result<Self, DeltaError> {
        let given = [
            rank.is_some(),
            ranks.is_some(),
            energy.is_some(),
            bytes.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() > 1 {
            return Err(DeltaError::usage(
                "rank, ranks, energy and bytes each decide the ranks: give one of them",
            ));
        }
        if let Some(share) = energy {
            return Ok(Self::Energy(share));
        }
        if let Some(bytes) = bytes {
            if !(1.0..1e18).contains(&bytes) {
                return Err(DeltaError::usage(format!(
                    "{bytes} is no number of bytes: give, say, 50e6"
                )));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 1e18"
            )]
            return Ok(Self::Bytes(bytes as u64));
        }
        let ranks = match (rank, ranks) {
            (Some("auto"), _) => return Ok(Self::Auto),
            (Some(rank), _) => vec![rank.parse().map_err(|_| {
                DeltaError::usage(format!(
                    "{rank:?} is no rank: give a number, say 16, or auto"
                ))
            })?],
            (None, Some(ranks)) => ranks,
            (None, None) => return Ok(Self::default()),
        };
        let number = |rank: u64| usize::try_from(rank).unwrap_or(usize::MAX);
        Ok(Self::Fixed(ranks.into_iter().map(number).collect()))
    }
}

impl std::fmt::Display for SvdRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(ranks) => {
                let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                write!(f, "rank {}", ranks.join(", "))
            }
            Self::Auto => write!(f, "auto"),
            Self::Energy(share) => write!(f, "energy {share}"),
            Self::Bytes(bytes) => write!(f, "bytes {bytes}"),
        }
    }
}

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

    /// How many threads work. Default: as many as there are cores.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = (threads > 0).then_some(threads);
        self
    }

    /// How models are opened: caches, credentials.
    pub fn open_options(mut self, options: OpenOptions) -> Self {
        self.open = options;
        self
    }

    /// Told what is being done and how far it is.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Stops the operation from outside.
    pub fn cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
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

struct Job {
    base: Arc<Model>,
    finetune: Arc<Model>,
    output: Option<Output>,
    cache: PathBuf,
    stop: Stop,
    started: Instant,
    options: SvdCompress,
}

/// Which models, by content.
struct Identity {
    fingerprints: Fingerprints,
    key: String,
    resume: String,
}

/// What went into the payload, and what is known of it.
struct Made {
    tensors: Vec<SvdTensor>,
    modules: Vec<Module>,
    /// For each rank, all approximated tensors together.
    total: Vec<Measured>,
    /// The energy of all differences that rounding explains.
    noise: f64,
    factor_bytes: u64,
}

impl Job {
    fn run(self) -> Result<StagedSvd, DeltaError> {
        let pool = pipeline::pool(self.options.threads)?;
        let _residency = Residency::watch(vec![Arc::clone(&self.base), Arc::clone(&self.finetune)]);
        if let SvdRank::Fixed(ranks) = &self.options.rank
            && manifest::too_many(ranks.len(), self.finetune.tensors().count())
        {
            return Err(DeltaError::usage(format!(
                "{} ranks of every tensor of {} are too many to tell of: give fewer",
                ranks.len(),
                self.finetune.id()
            )));
        }
        if let Some(Output::Local(path)) = &self.output {
            paths::refuse_inputs(
                path,
                &[
                    ("base model", root_of(&self.base)),
                    ("fine-tuned model", root_of(&self.finetune)),
                ],
            )?;
        }
        let identity = self.identity(&pool)?;
        // Where it is written, and where it will be.
        let (place, path, url) = match &self.output {
            Some(Output::Local(path)) => (path.clone(), path.clone(), None),
            Some(Output::Url(url)) => (
                self.cache.join("uploads").join(&identity.key),
                PathBuf::from(url.as_str()),
                Some(url.clone()),
            ),
            None => {
                let path = paths::store_in(&self.cache).join(&identity.key);
                (path.clone(), path, None)
            }
        };
        let lock = if self.options.dry_run {
            None
        } else {
            let name = format!("delta {}", paths::resolved(&place)?.display());
            Some(sparse_store::lock(&name, &self.cache)?)
        };
        self.stop.check()?;
        // What is in an object store is found out when the manifest is put, which fails if there is one.
        let found = if url.is_some() {
            Found::Free
        } else {
            self.look(&path, &identity.key)?
        };
        let replace = match found {
            Found::Same(manifest) => return Ok(self.existing(&path, *manifest, lock)),
            Found::Free => Replace::Never,
            Found::Replaceable => Replace::Allow,
        };
        let staged = if self.options.dry_run {
            None
        } else {
            Some(Staged::dir(&place)?)
        };
        let resume = (!self.options.dry_run).then(|| Resume::new(&self.cache, &identity.resume));
        let (manifest, mut metrics) = self.make(
            &identity,
            staged.as_ref().map(Staged::path),
            resume.clone(),
            &pool,
        )?;
        if staged.is_some() {
            metrics.bytes_written = metrics.artifact_bytes + metrics.adapter_bytes;
        }
        let outcome = SvdOutcome {
            status: if staged.is_some() {
                Status::Created
            } else {
                Status::DryRun
            },
            path: path.display().to_string(),
            manifest,
            metrics,
        };
        Ok(StagedSvd {
            staged: staged.map(|staged| (staged, replace)),
            url,
            resume,
            outcome,
            started: self.started,
            open: OpenOptions::empty(),
            _lock: lock,
        })
    }

    /// Hashes both models.
    fn identity(&self, pool: &ThreadPool) -> Result<Identity, DeltaError> {
        let ticker = Ticker::new(
            self.options.progress.clone(),
            "hashing",
            self.finetune.weight_bytes(),
        );
        let (fingerprint, weights) = std::thread::scope(|scope| {
            let weights =
                scope.spawn(|| identity::hash_weights(&self.finetune, &self.stop, &ticker));
            (identity::fingerprint(&self.base, pool), joined(weights))
        });
        let (fingerprint, content) = (
            fingerprint?,
            Content {
                weights: weights?,
                carried: identity::hash_carried(&self.finetune, &self.stop)?,
            },
        );
        let options = &self.options;
        let versions = format!("{SVD_FORMAT} {}", sparse_codec::FORMAT_VERSION);
        let rule = options.rule();
        let mut wishes = vec![versions.as_str(), &rule, options.precision.name()];
        let key_of = |kind, wishes: &[&str]| {
            identity::key_of(kind, wishes, &fingerprint, &self.finetune, &content)
        };
        let resume = key_of("sparse 2026-11 decompositions for an svd delta", &wishes);
        for (wish, name) in [(options.signs, "signs"), (options.embeddings, "embeddings")] {
            wishes.extend(wish.then_some(name));
        }
        wishes.push(options.adapter.map_or("no adapter", Profile::name));
        let key = key_of("sparse 2026-11 key of an svd delta", &wishes);
        Ok(Identity {
            fingerprints: Fingerprints {
                fingerprint,
                quick_fingerprint: pool.install(|| self.base.quick_fingerprint())?,
            },
            key,
            resume,
        })
    }

    fn look(&self, path: &Path, key: &str) -> Result<Found, DeltaError> {
        match paths::occupant(path)? {
            Occupant::Nothing => return Ok(Found::Free),
            Occupant::EmptyDir => return Ok(Found::Replaceable),
            Occupant::File => {
                return Err(DeltaError::Refused {
                    path: path.into(),
                    why: "it is a file, and an approximation is a folder".into(),
                });
            }
            Occupant::Dir => {}
        }
        let manifest = match artifact::read_manifest(path) {
            Ok(manifest) => manifest,
            Err(DeltaError::Corrupt { .. } | DeltaError::Version { .. })
                if self.options.overwrite || self.output.is_none() =>
            {
                return Ok(Found::Replaceable);
            }
            Err(error @ (DeltaError::Corrupt { .. } | DeltaError::Version { .. })) => {
                return Err(DeltaError::Exists {
                    path: path.into(),
                    what: format!("it holds an approximation that cannot be read ({error})"),
                });
            }
            Err(_) => {
                return Err(DeltaError::Refused {
                    path: path.into(),
                    why: "it is a folder that holds something other than a low-rank approximation"
                        .into(),
                });
            }
        };
        if manifest.key == key {
            let intact = SvdArtifact::open(path).is_ok_and(|artifact| {
                verify::payloads_intact(&artifact.payload, &artifact.manifest.payloads, &self.stop)
                    && artifact.adapters_intact()
            });
            return Ok(if intact {
                Found::Same(Box::new(manifest))
            } else {
                Found::Replaceable
            });
        }
        if self.options.overwrite {
            return Ok(Found::Replaceable);
        }
        let named = [self.finetune.id(), self.base.id()];
        let how = [&self.options.rule(), self.options.precision.name()];
        Err(taken(path, &manifest, named, how))
    }

    fn existing(
        &self,
        path: &Path,
        manifest: SvdDeltaManifest,
        lock: Option<LockGuard>,
    ) -> StagedSvd {
        let metrics = metrics_of(&manifest);
        StagedSvd {
            staged: None,
            url: None,
            resume: None,
            open: OpenOptions::empty(),
            outcome: SvdOutcome {
                status: Status::Exists,
                path: path.display().to_string(),
                manifest,
                metrics,
            },
            started: self.started,
            _lock: lock,
        }
    }

    /// Writes all parts of the artifact into `dir`, or nowhere.
    fn make(
        &self,
        identity: &Identity,
        dir: Option<&Path>,
        resume: Option<Resume>,
        pool: &ThreadPool,
    ) -> Result<(SvdDeltaManifest, SvdMetrics), DeltaError> {
        let mut writer = PayloadWriter::new(dir);
        let carried = carried::store(&self.base, &self.finetune, &mut writer, &self.stop)?;
        let heads: Vec<u8> = self
            .finetune
            .files()
            .iter()
            .flat_map(|file| file.header_bytes().iter().copied())
            .collect();
        let headers = blobs::store(&mut writer, &heads, &header_prefix(&self.base))?;
        let modules = Modules::of(&self.base, &self.finetune);
        let ranks = match &self.options.rank {
            SvdRank::Fixed(ranks) => ranks.clone(),
            _ => Vec::new(),
        };
        let made = self.tensors(&modules, &ranks, &mut writer, resume, pool)?;
        let largest = made
            .tensors
            .iter()
            .flat_map(|t| t.ranks.iter().copied())
            .max()
            .unwrap_or(0);
        // Where a rule decides, there is one rank to rebuild: all of them.
        let ranks: Vec<u64> = if ranks.is_empty() {
            vec![largest]
        } else {
            ranks.iter().map(|rank| *rank as u64).collect()
        };
        let adapters = self.adapters(dir, &ranks, &modules, &made.modules)?;
        let approximated: Vec<&SvdTensor> = made
            .tensors
            .iter()
            .filter(|t| t.kept == Kept::LowRank)
            .collect();
        let last = || approximated.iter().filter_map(|t| t.quality.last());
        let quality = made
            .total
            .iter()
            .enumerate()
            .map(|(number, measured)| {
                let each = || approximated.iter().filter_map(|t| t.quality.get(number));
                let least = each().map(|q| q.sigma_k).fold(f64::INFINITY, f64::min);
                let rank = each().map(|q| q.rank).max().unwrap_or(0);
                let least = if least.is_finite() { least } else { 0.0 };
                quality_of(usize::try_from(rank).unwrap_or(0), measured, least)
            })
            .collect();
        let num_layers = approximated.len() as u64;
        let sigma_1 = approximated.iter().map(|t| t.sigma_1).fold(0.0, f64::max);
        let effective_rank =
            approximated.iter().map(|t| t.effective_rank).sum::<f64>() / num_layers.max(1) as f64;
        let energy = made.total.first().map_or(0.0, |m| m.energy);
        let noise_share = if energy > 0.0 {
            made.noise / energy
        } else {
            0.0
        };
        let payloads = writer.finish()?;
        let mut manifest = SvdDeltaManifest {
            version: "1.0".into(),
            delta_type: "svd_delta".into(),
            base_model_id: self.base.id().to_owned(),
            finetune_model_id: self.finetune.id().to_owned(),
            created_at: timestamp(),
            rank: largest,
            num_layers,
            total_params: self.finetune.params(),
            original_size_bytes: self.finetune.weight_bytes()
                + carried.iter().map(|c| c.size).sum::<u64>(),
            compressed_size_bytes: 0,
            compression_ratio: 0.0,
            avg_reconstruction_error: last().map(|q| q.mean_abs_error).sum::<f64>()
                / num_layers.max(1) as f64,
            max_reconstruction_error: last().map(|q| q.max_abs_error).fold(0.0, f64::max),
            format_version: SVD_FORMAT,
            codec_version: sparse_codec::FORMAT_VERSION,
            key: identity.key.clone(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            rule: self.options.rule(),
            ranks,
            precision: self.options.precision.name().to_owned(),
            signs: self.options.signs,
            single_file: self.finetune.is_single_file(),
            base: identity.fingerprints.clone(),
            quality,
            sigma_1,
            noise_share,
            effective_rank,
            adapters,
            files: self
                .finetune
                .files()
                .iter()
                .map(|file| SvdFile {
                    path: file.name.clone(),
                    size: file.size,
                    header: file.header_bytes().len() as u64,
                    tensors: file.header().entries.len() as u64,
                })
                .collect(),
            carried,
            headers,
            tensors: made.tensors,
            seal: String::new(),
            payloads,
        };
        let others = manifest.payloads.iter().map(|p| p.size).sum();
        let bytes = seal::settle(&mut manifest, others)?;
        if let Some(dir) = dir {
            write_file(&dir.join(MANIFEST), &bytes)?;
        }
        let metrics = SvdMetrics {
            factor_bytes: made.factor_bytes,
            threads: pool.current_num_threads(),
            ..metrics_of(&manifest)
        };
        Ok((manifest, metrics))
    }

    /// Works on all tensors, a few at a time, and writes what is kept of them, in order.
    fn tensors(
        &self,
        modules: &Modules,
        ranks: &[usize],
        writer: &mut PayloadWriter,
        resume: Option<Resume>,
        pool: &ThreadPool,
    ) -> Result<Made, DeltaError> {
        let options = &self.options;
        let pairs = pool.install(|| sparse_store::pair(&self.base, &self.finetune));
        let wishes = Wishes {
            modules,
            embeddings: options.embeddings,
            precision: options.precision,
            rank: ranks.last().copied(),
        };
        let plans: Vec<Plan> =
            pool.install(|| pairs.par_iter().map(|pair| wishes.plan(pair)).collect());
        self.stop.check()?;
        let units = Units {
            rank: self.rank_of_each(&plans, ranks),
            precision: options.precision,
            signs: options.signs,
            resume,
            stop: &self.stop,
        };
        let ticker = Ticker::new(
            options.progress.clone(),
            "decomposing",
            self.finetune.weight_bytes(),
        );
        let work = Work {
            pairs: &pairs,
            plans: &plans,
            units: &units,
            ticker: &ticker,
            pool,
        };
        let known = match options.rank {
            SvdRank::Bytes(budget) => Some(work.allocate(budget, options.precision)?),
            _ => None,
        };
        let mut known = known.map(Vec::into_iter);
        let mut made = Made {
            tensors: Vec::new(),
            modules: Vec::new(),
            total: vec![Measured::default(); ranks.len().max(1)],
            noise: 0.0,
            factor_bytes: 0,
        };
        let numbers: Vec<usize> = (0..pairs.len()).collect();
        for batch in numbers.chunks(work.batch()) {
            let svds: Vec<Option<Decomposed>> = batch
                .iter()
                .map(|_| known.as_mut().and_then(Iterator::next).flatten())
                .collect();
            let done = pool.install(|| {
                batch
                    .par_iter()
                    .zip(svds)
                    .map(|(number, svds)| work.unit(*number, svds, ranks))
                    .collect::<Result<Vec<Done>, DeltaError>>()
            })?;
            for done in done {
                self.keep(done, writer, &mut made)?;
            }
        }
        ticker.finish();
        Ok(made)
    }

    /// The rule for each matrix.
    fn rank_of_each(&self, plans: &[Plan], ranks: &[usize]) -> Rank {
        let max = self.options.max_rank;
        match &self.options.rank {
            SvdRank::Fixed(_) => Rank::Fixed(ranks.last().copied().unwrap_or(0)),
            SvdRank::Auto => Rank::Auto { max },
            SvdRank::Energy(share) => Rank::Energy { share: *share, max },
            SvdRank::Bytes(budget) => {
                let component: u64 = plans
                    .iter()
                    .filter_map(|plan| match plan {
                        Plan::LowRank(m) => self
                            .options
                            .precision
                            .component(m.rows, m.cols)
                            .map(|bytes| bytes as u64 * m.count as u64),
                        _ => None,
                    })
                    .sum();
                let even = usize::try_from(budget / component.max(1)).unwrap_or(usize::MAX);
                Rank::Fixed(
                    even.saturating_mul(GENEROUS)
                        .saturating_add(GENEROUS)
                        .min(max),
                )
            }
        }
    }

    fn keep(
        &self,
        done: Done,
        writer: &mut PayloadWriter,
        made: &mut Made,
    ) -> Result<(), DeltaError> {
        let mut tensor = done.tensor;
        let mut put = |bytes: &[u8]| -> Result<Option<Blob>, DeltaError> {
            if bytes.is_empty() {
                return Ok(None);
            }
            let (payload, offset) = writer.append(bytes)?;
            let size = bytes.len() as u64;
            Ok(Some(Blob {
                payload,
                offset,
                size,
                raw: size,
            }))
        };
        tensor.blob = put(&done.data)?;
        tensor.signs = put(&done.signs)?;
        for (sum, measured) in made.total.iter_mut().zip(&done.measured) {
            *sum = sum.and(measured);
        }
        if tensor.kept == Kept::LowRank {
            let energy = done.measured.first().map_or(0.0, |m| m.energy);
            made.noise += tensor.noise_share * energy;
            made.factor_bytes += tensor.stored_bytes;
        }
        if let (Some(_), Some(factors), Some(name)) = (
            self.options.adapter,
            done.factors,
            tensor.tensor.strip_suffix(".weight"),
        ) {
            made.modules.push(Module {
                name: name.to_owned(),
                factors,
            });
        }
        made.tensors.push(tensor);
        Ok(())
    }

    fn adapters(
        &self,
        dir: Option<&Path>,
        ranks: &[u64],
        kinds: &Modules,
        modules: &[Module],
    ) -> Result<Vec<AdapterEntry>, DeltaError> {
        let (Some(profile), Some(dir)) = (self.options.adapter, dir) else {
            return Ok(Vec::new());
        };
        let mut entries = Vec::new();
        for rank in ranks {
            let folder = if ranks.len() == 1 {
                "adapter".to_owned()
            } else {
                format!("adapter-r{rank}")
            };
            let wanted = Wanted {
                folder,
                rank: usize::try_from(*rank).unwrap_or(usize::MAX),
                profile,
                precision: self.options.precision,
                base: self.base.id(),
            };
            entries.extend(adapters::write(dir, wanted, kinds, modules)?);
        }
        Ok(entries)
    }
}

/// The tensors of a pair of models, and what is to become of them.
struct Work<'w> {
    pairs: &'w [Pair<'w>],
    plans: &'w [Plan],
    units: &'w Units<'w>,
    ticker: &'w Ticker,
    pool: &'w ThreadPool,
}

impl Work<'_> {
    /// How many tensors are worked on before the results are written.
    fn batch(&self) -> usize {
        self.pool.current_num_threads() * 2
    }

    /// One tensor, from its decompositions where they are known.
    fn unit(
        &self,
        number: usize,
        known: Option<Decomposed>,
        ranks: &[usize],
    ) -> Result<Done, DeltaError> {
        self.units.stop.check()?;
        let (Some(pair), Some(plan)) = (self.pairs.get(number), self.plans.get(number)) else {
            return Err(DeltaError::internal("no such tensor"));
        };
        let done = match *plan {
            Plan::LowRank(matrices) => {
                let svds = match known {
                    Some(svds) => svds,
                    None => self.units.decompose(number, pair, matrices)?,
                };
                match svds {
                    Some(svds) => {
                        let all = [usize::MAX];
                        let ranks = if ranks.is_empty() { &all } else { ranks };
                        self.units.store(pair, matrices, &svds, ranks)
                    }
                    None => self.units.exact(pair, *plan),
                }
            }
            plan => self.units.exact(pair, plan),
        };
        self.ticker.add(pair.target.entry.bytes());
        pair.target.release();
        done
    }

    /// The decompositions of all tensors, each of the rank that it gets of the budget.
    fn allocate(
        &self,
        budget: u64,
        precision: Precision,
    ) -> Result<Vec<Option<Decomposed>>, DeltaError> {
        let numbers: Vec<usize> = (0..self.pairs.len()).collect();
        let mut all: Vec<Option<Decomposed>> = Vec::new();
        for batch in numbers.chunks(self.batch()) {
            all.extend(self.pool.install(|| {
                batch
                    .par_iter()
                    .map(|number| match self.plans.get(*number) {
                        Some(Plan::LowRank(matrices)) => self
                            .units
                            .decompose(*number, &self.pairs[*number], *matrices)
                            .map(Some),
                        _ => Ok(None),
                    })
                    .collect::<Result<Vec<_>, DeltaError>>()
            })?);
        }
        let mut svds: Vec<&mut Svd> = all
            .iter_mut()
            .flatten()
            .flatten()
            .flat_map(|svds| svds.iter_mut())
            .collect();
        let costs: Vec<(Vec<f64>, u64)> = svds
            .iter()
            .map(|svd| {
                let (rows, cols) = svd.shape();
                let bytes = precision.component(rows, cols).unwrap_or(usize::MAX);
                (svd.sigmas().to_vec(), bytes as u64)
            })
            .collect();
        let costs: Vec<(&[f64], u64)> = costs
            .iter()
            .map(|(s, bytes)| (s.as_slice(), *bytes))
            .collect();
        for (svd, rank) in svds.iter_mut().zip(sparse_svd::allocate(&costs, budget)) {
            **svd = svd.truncated(rank);
        }
        Ok(all)
    }
}

fn occupied(path: &Path, there: &SvdDeltaManifest, wanted: &SvdDeltaManifest) -> DeltaError {
    let named = [&*wanted.finetune_model_id, &*wanted.base_model_id];
    taken(path, there, named, [&wanted.rule, &wanted.precision])
}

/// The output holds another approximation than that of fine-tune and base as `named`, made by a rule and in a precision.
fn taken(path: &Path, there: &SvdDeltaManifest, named: [&str; 2], how: [&str; 2]) -> DeltaError {
    let ([finetune, base], [rule, precision]) = (named, how);
    let what = format!(
        "it holds the approximation of {} on top of {} ({}, {}), not that of {finetune} on top of {base} ({rule}, {precision})",
        there.finetune_model_id, there.base_model_id, there.rule, there.precision,
    );
    DeltaError::Exists {
        path: path.into(),
        what,
    }
}

enum Found {
    Free,
    Replaceable,
    Same(Box<SvdDeltaManifest>),
}

fn metrics_of(manifest: &SvdDeltaManifest) -> SvdMetrics {
    SvdMetrics {
        original_bytes: manifest.original_size_bytes,
        artifact_bytes: manifest.compressed_size_bytes,
        adapter_bytes: manifest.adapters.iter().map(|a| a.bytes).sum(),
        factor_bytes: manifest
            .tensors
            .iter()
            .filter(|t| t.kept == Kept::LowRank)
            .map(|t| t.stored_bytes)
            .sum(),
        tensors: manifest.tensors.len() as u64,
        approximated: manifest.num_layers,
        ..SvdMetrics::default()
    }
}
