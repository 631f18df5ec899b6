//! `SvdReconstruct`: base and approximation in, the approximate model out.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use rayon::prelude::*;
use sparse_store::{Header, LockGuard, Model, OpenOptions, Replace, Staged};

use super::artifact::SvdArtifact;
use super::manifest::{Kept, SvdDeltaManifest, SvdTensor};
use crate::error::During;
use crate::identity::hash_file;
use crate::manifest::MANIFEST;
use crate::paths::{self, Output, root_of};
use crate::place::{Place, Settling, enough_space, look_at_model};
use crate::progress::{Stop, Ticker};
use crate::rebuild::Target;
use crate::report::FileReport;
use crate::residency::Residency;
use crate::tensor::header_prefix;
use crate::wrong_base::{blame_base, refuse_other_base};
use crate::{CancelToken, DeltaError, Progress, Status, blobs, carried, pipeline};

/// Makes the approximate model of a base and an approximation: every tensor the same bits on every machine, by its hash.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_delta::DeltaError> {
/// use sparse_delta::SvdReconstruct;
/// let outcome = SvdReconstruct::new("org/base", "./approximation").output("./model").run().await?;
/// println!("{} files in {:?}", outcome.files.len(), outcome.elapsed);
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` or `stage` is awaited"]
pub struct SvdReconstruct {
    base: String,
    delta: String,
    output: Option<String>,
    rank: Option<u64>,
    overwrite: bool,
    dry_run: bool,
    link_from: Option<PathBuf>,
    threads: Option<usize>,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

/// What `svd-reconstruct` did.
#[derive(Clone, Debug)]
pub struct SvdReconstructOutcome {
    /// What became of the output.
    pub status: Status,
    /// Where the model is.
    pub path: String,
    /// The rank it was rebuilt at.
    pub rank: u64,
    /// Its files, weights first.
    pub files: Vec<FileReport>,
    /// The manifest of the approximation.
    pub manifest: SvdDeltaManifest,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Wall time from open to commit.
    pub elapsed: Duration,
}

impl SvdReconstruct {
    /// The model that the approximation `delta` (a folder, URL, or key in the delta store) makes of `base`.
    pub fn new(base: impl Into<String>, delta: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            delta: delta.into(),
            output: None,
            rank: None,
            overwrite: false,
            dry_run: false,
            link_from: None,
            threads: None,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The folder the model goes to. Default: the cache's `reconstructed` folder, by key and rank.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Which of the artifact's ranks. Default: its largest.
    pub fn rank(mut self, rank: u64) -> Self {
        self.rank = Some(rank);
        self
    }

    /// Whether another model at the output may be replaced, where it has no file that this one has not.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Rebuilds and checks everything and writes nothing.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// As [`Reconstruct::link_from`](crate::Reconstruct::link_from).
    pub fn link_from(mut self, folder: Option<PathBuf>) -> Self {
        self.link_from = folder;
        self
    }

    crate::operation_setters!();

    /// Rebuilds the model and commits it.
    ///
    /// # Errors
    /// As [`Self::stage`] and [`StagedApproximation::commit`].
    pub async fn run(self) -> Result<SvdReconstructOutcome, DeltaError> {
        self.stage().await?.commit().await
    }

    /// Rebuilds the model under a temporary name; nothing is visible until it is committed.
    ///
    /// # Errors
    /// An artifact or base that cannot be opened or is another one, a rank that the artifact does not have, an output that is
    /// taken.
    pub async fn stage(mut self) -> Result<StagedApproximation, DeltaError> {
        let started = Instant::now();
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let output = match self.output.as_deref().map(Output::parse).transpose()? {
            Some(Output::Url(url)) => {
                return Err(DeltaError::usage(format!(
                    "{url}: a model is rebuilt into a folder; give one, then upload it"
                )));
            }
            Some(Output::Local(path)) => Some(path),
            None => None,
        };
        let dir = paths::artifact_dir(&self.delta, &self.open).await?;
        let base = Model::open(&self.base, &self.open).await?;
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let job = Job {
            base: Arc::new(base),
            dir,
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
        staged
    }
}

/// An approximate model that is complete, checked, and not yet visible. Dropped, it leaves nothing.
pub struct StagedApproximation {
    staged: Option<(Staged, Replace)>,
    outcome: SvdReconstructOutcome,
    started: Instant,
    _lock: Option<LockGuard>,
}

impl StagedApproximation {
    /// What was rebuilt and where it will be.
    #[must_use]
    pub fn outcome(&self) -> &SvdReconstructOutcome {
        &self.outcome
    }

    /// Where it is until it is committed; nowhere if there is nothing to commit.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.staged.as_ref().map(|(staged, _)| staged.path())
    }

    /// Makes the model visible, in one step.
    ///
    /// # Errors
    /// An output that was taken in the meantime, or a disk that fails.
    pub async fn commit(mut self) -> Result<SvdReconstructOutcome, DeltaError> {
        if let Some((staged, replace)) = self.staged.take() {
            let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                .await
                .map_err(|error| DeltaError::internal(error.to_string()))??;
            self.outcome.path = committed.path.display().to_string();
        }
        self.outcome.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}

struct Job {
    base: Arc<Model>,
    dir: PathBuf,
    output: Option<PathBuf>,
    cache: PathBuf,
    stop: Stop,
    started: Instant,
    options: SvdReconstruct,
}

impl Job {
    fn run(self) -> Result<StagedApproximation, DeltaError> {
        let artifact = SvdArtifact::open(&self.dir)?;
        let manifest = &artifact.manifest;
        let pool = pipeline::pool(self.options.threads)?;
        refuse_other_base(&manifest.base, &manifest.base_model_id, &self.base, &pool)?;
        let rank = artifact.rank(self.options.rank)?;
        let output = match &self.output {
            Some(path) => path.clone(),
            None => paths::rebuilt_in(&self.cache).join(format!("{}-r{rank}", manifest.key)),
        };
        if self.output.is_some() {
            paths::refuse_inputs(
                &output,
                &[
                    ("base model", root_of(&self.base)),
                    ("approximation", &self.dir),
                ],
            )?;
        }
        let lock = if self.options.dry_run {
            None
        } else {
            let name = format!("model {}", paths::resolved(&output)?.display());
            Some(sparse_store::lock(&name, &self.cache)?)
        };
        let weights = manifest.files.iter().map(|f| f.path.as_str());
        let all = weights.chain(manifest.carried.iter().map(|c| c.path.as_str()));
        let occupant = look_at_model(all, &output)?;
        let _residency = Residency::watch(vec![Arc::clone(&self.base)]);
        let staged = if self.options.dry_run {
            None
        } else {
            Some(Staged::dir(&output)?)
        };
        let place = staged.as_ref().map(|staged| Place {
            root: staged.path(),
            shown: &output,
            as_file: false,
            link_from: self.options.link_from.as_deref(),
        });
        if let Some(place) = &place {
            enough_space(place.root, &output, manifest.original_size_bytes)?;
        }
        let files = self
            .rebuild(&artifact, place.as_ref(), rank, &pool)
            .map_err(|error| {
                blame_base(
                    error,
                    &manifest.base,
                    &manifest.base_model_id,
                    &self.base,
                    &pool,
                )
            })?;
        let settling = Settling {
            files: &files,
            output: &output,
            occupant: &occupant,
            replace: self.options.overwrite || self.output.is_none(),
            what: format!(
                "the approximation of {} at rank {rank}",
                manifest.finetune_model_id
            ),
        };
        let (status, kept) = settling.settle(staged, &self.stop)?;
        let outcome = SvdReconstructOutcome {
            status,
            path: output.display().to_string(),
            rank,
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
            elapsed: self.started.elapsed(),
            manifest: artifact.manifest,
        };
        Ok(StagedApproximation {
            staged: kept.map(|staged| (staged, Replace::Allow)),
            outcome,
            started: self.started,
            _lock: lock,
        })
    }

    fn rebuild(
        &self,
        artifact: &SvdArtifact,
        place: Option<&Place<'_>>,
        rank: u64,
        pool: &ThreadPool,
    ) -> Result<Vec<FileReport>, DeltaError> {
        let manifest = &artifact.manifest;
        let heads = headers(artifact, &self.base)?;
        let ticker = Ticker::new(
            self.options.progress.clone(),
            "reconstructing",
            manifest.original_size_bytes,
        );
        let mut reports = Vec::new();
        let mut rest = manifest.tensors.as_slice();
        let mut first = 0;
        for (entry, (head, header)) in manifest.files.iter().zip(&heads) {
            let (tensors, others) =
                rest.split_at_checked(header.entries.len()).ok_or_else(|| {
                    DeltaError::corrupt(
                        artifact.dir.join(MANIFEST),
                        "it lacks tensors of the files",
                    )
                })?;
            rest = others;
            let opened = place
                .map(|place| place.create(&entry.path, entry.size))
                .transpose()?;
            let target = opened.as_ref().map(|(file, shown)| Target { file, shown });
            if let Some(target) = &target {
                target
                    .file
                    .write_all_at(head, 0)
                    .during("write", target.shown)?;
            }
            ticker.add(head.len() as u64);
            let rebuild = Rebuild {
                artifact,
                base: &self.base,
                rank,
                stop: &self.stop,
            };
            pool.install(|| {
                tensors
                    .par_iter()
                    .zip(&header.entries)
                    .enumerate()
                    .try_for_each(|(number, (tensor, place))| {
                        self.stop.check()?;
                        let start = place.range.start;
                        rebuild.check(tensor, place, entry)?;
                        rebuild.tensor(first + number, tensor, target.as_ref(), start)?;
                        ticker.add(tensor.bytes);
                        Ok::<_, DeltaError>(())
                    })
            })?;
            first += tensors.len();
            let sha256 = match place {
                Some(place) => hash_file(&place.root.join(&entry.path), &self.stop)?,
                None => String::new(),
            };
            reports.push(FileReport {
                file: entry.path.clone(),
                bytes: entry.size,
                sha256,
                status: "approximated".into(),
            });
        }
        if !rest.is_empty() || heads.len() != manifest.files.len() {
            return Err(DeltaError::corrupt(
                artifact.dir.join(MANIFEST),
                "it has tensors that no file has",
            ));
        }
        for entry in &manifest.carried {
            self.stop.check()?;
            carried::restore(
                artifact.carrier(),
                &self.base,
                entry,
                place,
                &self.stop,
                &ticker,
            )?;
            let status = if entry.same_as.is_some() {
                "copied"
            } else {
                "carried"
            };
            reports.push(FileReport {
                file: entry.path.clone(),
                bytes: entry.size,
                sha256: entry.sha256.clone(),
                status: status.into(),
            });
        }
        ticker.finish();
        Ok(reports)
    }
}

/// The verbatim header of each file, and what it says.
pub(super) fn headers(
    artifact: &SvdArtifact,
    base: &Model,
) -> Result<Vec<(Vec<u8>, Header)>, DeltaError> {
    let manifest = &artifact.manifest;
    let corrupt = |problem: String| {
        DeltaError::corrupt(artifact.payload.path(manifest.headers.payload), problem)
    };
    let all = if manifest.headers.raw > 0 {
        blobs::unpack(&artifact.payload, &manifest.headers, &header_prefix(base))?
    } else {
        Vec::new()
    };
    let mut all = all.as_slice();
    let mut found = Vec::new();
    for file in &manifest.files {
        let size = usize::try_from(file.header).unwrap_or(usize::MAX);
        let (head, rest) = all
            .split_at_checked(size)
            .ok_or_else(|| corrupt("the headers of the files are incomplete".into()))?;
        all = rest;
        let header = Header::parse(&file.path, head, file.size)
            .map_err(|error| corrupt(error.to_string()))?;
        if header.data_start != file.header {
            return Err(corrupt(format!(
                "the header of {:?} has another size",
                file.path
            )));
        }
        found.push((head.to_vec(), header));
    }
    Ok(found)
}

/// Rebuilds tensors at one rank.
pub(super) struct Rebuild<'r> {
    pub(super) artifact: &'r SvdArtifact,
    pub(super) base: &'r Model,
    pub(super) rank: u64,
    pub(super) stop: &'r Stop,
}

impl Rebuild<'_> {
    /// A tensor of the manifest is the one of the header.
    pub(super) fn check(
        &self,
        tensor: &SvdTensor,
        place: &sparse_store::TensorEntry,
        file: &super::manifest::SvdFile,
    ) -> Result<(), DeltaError> {
        let fits = tensor.tensor == place.name
            && tensor.dtype == place.dtype
            && tensor.shape == place.shape
            && tensor.bytes == place.bytes();
        if fits {
            Ok(())
        } else {
            Err(self.artifact.corrupt(
                tensor,
                format!("it is not the one that {:?} has in its place", file.path),
            ))
        }
    }

    /// Writes one tensor from byte `start` of a file on, and holds it to its hash.
    pub(super) fn tensor(
        &self,
        number: usize,
        tensor: &SvdTensor,
        target: Option<&Target<'_>>,
        start: u64,
    ) -> Result<(), DeltaError> {
        // A twin is made as the tensor it equals, which the manifest's check found to be an earlier one.
        let source = match (tensor.kept, tensor.of) {
            (Kept::Twin, Some(of)) => usize::try_from(of)
                .ok()
                .filter(|of| *of < number)
                .and_then(|of| self.artifact.manifest.tensors.get(of))
                .ok_or_else(|| self.artifact.corrupt(tensor, "it equals no tensor"))?,
            _ => tensor,
        };
        let mut hash = blake3::Hasher::new();
        let mut at = start;
        let mut each = |bytes: &[u8]| -> Result<(), DeltaError> {
            self.stop.check()?;
            hash.update(bytes);
            if let Some(target) = target {
                target
                    .file
                    .write_all_at(bytes, at)
                    .during("write", target.shown)?;
            }
            at += bytes.len() as u64;
            Ok(())
        };
        let expected = match source.kept {
            Kept::LowRank => {
                for matrix in self.artifact.approximations(source, self.base, self.rank)? {
                    matrix.each(&mut each)?;
                }
                let ranks = &self.artifact.manifest.ranks;
                let number = ranks.iter().position(|rank| *rank == self.rank);
                number.and_then(|number| source.blake3.get(number))
            }
            Kept::Same => {
                if let Some(base) = self.artifact.base(source, self.base)? {
                    for piece in base.data().chunks(1 << 20) {
                        each(piece)?;
                    }
                    base.release();
                }
                source.blake3.first()
            }
            Kept::Exact | Kept::Twin => {
                each(&self.artifact.exact(source, self.base)?)?;
                source.blake3.first()
            }
        };
        if at != start + tensor.bytes {
            return Err(self
                .artifact
                .corrupt(tensor, "its bytes are too many or too few"));
        }
        if expected.is_some_and(|expected| hash.finalize().to_hex().as_str() == expected) {
            Ok(())
        } else {
            Err(self
                .artifact
                .corrupt(tensor, "its rebuilt bytes do not have their hash"))
        }
    }
}
