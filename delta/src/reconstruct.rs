//! `Reconstruct`: base and delta in, the fine-tune's files out, byte for byte.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rayon::ThreadPool;
use sparse_adapter::{AdapterError, PeftAdapter};
use sparse_gpu::Choice;
use sparse_store::{LockGuard, Model, OpenOptions, Replace, Staged};

use crate::artifact::Artifact;
use crate::identity::hash_file;
use crate::manifest::DeltaType;
use crate::merge::{MergeRule, Merging};
use crate::paths::{self, Occupant, Output, root_of};
use crate::place::{Place, Settling, enough_space, look_at_model};
use crate::progress::{Stop, Ticker};
use crate::rebuild::{Rebuild, Target};
use crate::report::{FileReport, ReconstructMetrics, ReconstructOutcome, Status};
use crate::residency::Residency;
use crate::wrong_base::{explain, refuse_wrong_base};
use crate::{CancelToken, DeltaError, Progress, carried, pipeline};

/// Rebuilds a fine-tune from its base and its delta.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_delta::DeltaError> {
/// let (outcome, metrics) = sparse_delta::Reconstruct::new("org/base", "./my-delta").output("./rebuilt").run().await?;
/// println!("{} files in {:?}", outcome.files.len(), metrics.elapsed);
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` or `stage` is awaited"]
pub struct Reconstruct {
    base: String,
    delta: String,
    output: Option<String>,
    merge: Option<MergeRule>,
    overwrite: bool,
    dry_run: bool,
    link_from: Option<PathBuf>,
    threads: Option<usize>,
    device: Choice,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Reconstruct {
    /// The fine-tune that `delta` (a folder, URL, Hub id, or key in the delta store) makes of `base`.
    pub fn new(base: impl Into<String>, delta: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            delta: delta.into(),
            output: None,
            merge: None,
            overwrite: false,
            dry_run: false,
            link_from: None,
            threads: None,
            device: Choice::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// Where the model goes: a folder, or a file (`x.safetensors`) if the fine-tune was one. Default: the cache's
    /// `reconstructed` folder, by key.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Of an adapter's delta: the base with the adapter merged into it, rather than the adapter's folder. The weights are those
    /// of PEFT's `merge_and_unload`, bit for bit; the other files are the base's, with the adapter's tokenizer where it has one.
    pub fn merge(mut self, rule: MergeRule) -> Self {
        self.merge = Some(rule);
        self
    }

    /// Whether another state of the same model at the output may be replaced. A folder that holds anything the delta does
    /// not know is never replaced.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Rebuilds and checks everything and writes nothing.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Files that the model has unchanged from the base become second names of the base's (hard links) where those lie below this
    /// folder, whose files must never be changed in place: the Hub's cache, say. Where the file system can clone files, they are
    /// cloned, wherever they lie. Everything is checked all the same.
    pub fn link_from(mut self, folder: Option<PathBuf>) -> Self {
        self.link_from = folder;
        self
    }

    crate::operation_setters!();

    /// Where blocks are decoded: to the same bytes. A GPU decodes those of BF16, F16 and F32 tensors that are coded against such a
    /// base; the CPU does the rest, and merges adapters.
    pub fn device(mut self, device: Choice) -> Self {
        self.device = device;
        self
    }

    /// Rebuilds the model and commits it.
    pub async fn run(self) -> Result<(ReconstructOutcome, ReconstructMetrics), DeltaError> {
        let outcome = self.stage().await?.commit().await?;
        let metrics = outcome.metrics.clone();
        Ok((outcome, metrics))
    }

    /// Rebuilds the model under a temporary name; nothing is visible until it is committed.
    pub async fn stage(mut self) -> Result<StagedModel, DeltaError> {
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
            merge: self.merge,
            overwrite: self.overwrite,
            dry_run: self.dry_run,
            link_from: self.link_from,
            threads: self.threads,
            device: self.device,
            cache: self.open.cache(),
            progress: self.progress,
            stop,
            started,
        };
        let staged = tokio::task::spawn_blocking(move || pipeline::guarded(|| job.run()))
            .await
            .map_err(|error| DeltaError::internal(error.to_string()))?;
        drop(on_drop);
        staged
    }
}

/// A rebuilt model that is complete, checked, and not yet visible. Dropped, it leaves nothing.
pub struct StagedModel {
    staged: Option<Staged>,
    replace: Replace,
    outcome: ReconstructOutcome,
    started: Instant,
    _lock: Option<LockGuard>,
}

impl StagedModel {
    /// What was rebuilt and where it will be.
    #[must_use]
    pub fn outcome(&self) -> &ReconstructOutcome {
        &self.outcome
    }

    /// Where it is until it is committed; nowhere if there is nothing to commit.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.staged.as_ref().map(Staged::path)
    }

    /// Makes the model visible, in one step.
    pub async fn commit(mut self) -> Result<ReconstructOutcome, DeltaError> {
        if let Some(staged) = self.staged.take() {
            let replace = self.replace;
            let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                .await
                .map_err(|error| DeltaError::internal(error.to_string()))??;
            self.outcome.path = committed.path.display().to_string();
        }
        self.outcome.metrics.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}

struct Job {
    base: Arc<Model>,
    dir: PathBuf,
    output: Option<PathBuf>,
    merge: Option<MergeRule>,
    overwrite: bool,
    dry_run: bool,
    link_from: Option<PathBuf>,
    threads: Option<usize>,
    device: Choice,
    cache: PathBuf,
    progress: Option<Progress>,
    stop: Stop,
    started: Instant,
}

impl Job {
    fn run(self) -> Result<StagedModel, DeltaError> {
        let artifact = Artifact::open(&self.dir)?;
        let pool = pipeline::pool(self.threads)?;
        refuse_wrong_base(&artifact, &self.base, &pool)?;
        if let Some(rule) = self.merge {
            return self.merged(artifact, rule, &pool);
        }
        let output = match &self.output {
            Some(path) => path.clone(),
            None => paths::rebuilt_in(&self.cache).join(&artifact.manifest.key),
        };
        let as_file = is_file_output(&artifact, &output);
        if self.output.is_some() {
            paths::refuse_inputs(
                &output,
                &[("base model", root_of(&self.base)), ("delta", &self.dir)],
            )?;
        }
        let lock = if self.dry_run {
            None
        } else {
            Some(sparse_store::lock(
                &format!("model {}", paths::resolved(&output)?.display()),
                &self.cache,
            )?)
        };
        let replace = match self.look_at_output(&artifact, &output, as_file)? {
            Found::Same => return Ok(self.existing(&artifact, &output, lock)),
            Found::Free => Replace::Never,
            Found::Replaceable => Replace::Allow,
        };
        let rebuild = Rebuild::new(&artifact, &self.base)
            .map_err(|error| explain(error, &artifact, &self.base, &pool))?
            .on(self.device)?;
        let _residency = Residency::watch(vec![Arc::clone(&self.base)]);
        let staged = match (self.dry_run, as_file) {
            (true, _) => None,
            (false, true) => Some(Staged::file(&output)?),
            (false, false) => Some(Staged::dir(&output)?),
        };
        if let Some(staged) = &staged {
            enough_space(staged.path(), &output, artifact.manifest.original_bytes)?;
        }
        let place = staged.as_ref().map(|staged| Place {
            root: staged.path(),
            shown: &output,
            as_file,
            link_from: self.link_from.as_deref(),
        });
        let files = self
            .rebuild(&artifact, &rebuild, place.as_ref(), &pool)
            .map_err(|error| explain(error, &artifact, &self.base, &pool))?;
        let device_blocks = rebuild.device_blocks();
        drop(rebuild);
        let bytes = artifact.manifest.original_bytes;
        let metrics = ReconstructMetrics {
            artifact_bytes: artifact.manifest.artifact_bytes,
            bytes,
            bytes_written: if self.dry_run { 0 } else { bytes },
            files: files.len() as u64,
            threads: pool.current_num_threads(),
            device_blocks,
            decode: self.started.elapsed(),
            elapsed: self.started.elapsed(),
        };
        let outcome = ReconstructOutcome {
            status: if self.dry_run {
                Status::DryRun
            } else {
                Status::Created
            },
            path: output.display().to_string(),
            files,
            manifest: artifact.manifest,
            metrics,
        };
        Ok(StagedModel {
            staged,
            replace,
            outcome,
            started: self.started,
            _lock: lock,
        })
    }

    /// The base with the adapter merged into it: the adapter is rebuilt and checked in a folder that goes away.
    fn merged(
        self,
        artifact: Artifact,
        rule: MergeRule,
        pool: &ThreadPool,
    ) -> Result<StagedModel, DeltaError> {
        let manifest = &artifact.manifest;
        if manifest.delta_type != DeltaType::Adapter.name() {
            return Err(DeltaError::usage(format!(
                "{} is the delta of a model, and only an adapter's can be merged: leave the merge out",
                self.dir.display()
            )));
        }
        let output = match &self.output {
            Some(path) => path.clone(),
            None => paths::rebuilt_in(&self.cache).join(format!(
                "{}-merged-{}",
                manifest.key,
                rule.name()
            )),
        };
        if self.output.is_some() {
            paths::refuse_inputs(
                &output,
                &[("base model", root_of(&self.base)), ("delta", &self.dir)],
            )?;
        }
        let lock = if self.dry_run {
            None
        } else {
            let name = format!("model {}", paths::resolved(&output)?.display());
            Some(sparse_store::lock(&name, &self.cache)?)
        };
        let scratch = Staged::dir(&self.cache.join("adapters").join(&manifest.key))?;
        let place = Place {
            root: scratch.path(),
            shown: &self.dir,
            as_file: false,
            link_from: None,
        };
        Rebuild::new(&artifact, &self.base)
            .and_then(|rebuild| self.rebuild(&artifact, &rebuild, Some(&place), pool))
            .map_err(|error| explain(error, &artifact, &self.base, pool))?;
        let named = |error| named_as(error, &self.dir);
        let adapter = Model::open_local(scratch.path())
            .map_err(DeltaError::from)
            .and_then(|model| Ok(PeftAdapter::new(model)?))
            .map_err(named)?;
        let merging = Merging::new(&self.base, &adapter, rule).map_err(named)?;
        let occupant = look_at_model(merging.paths(), &output)?;
        let _residency = Residency::watch(vec![Arc::clone(&self.base)]);
        let staged = if self.dry_run {
            None
        } else {
            Some(Staged::dir(&output)?)
        };
        if let Some(staged) = &staged {
            enough_space(staged.path(), &output, merging.bytes())?;
        }
        let place = staged.as_ref().map(|staged| Place {
            root: staged.path(),
            shown: &output,
            as_file: false,
            link_from: self.link_from.as_deref(),
        });
        let ticker = Ticker::new(self.progress.clone(), "merging", merging.bytes());
        let files = merging
            .files(place.as_ref(), pool, &self.stop, &ticker)
            .map_err(named)?;
        ticker.finish();
        let settling = Settling {
            files: &files,
            output: &output,
            occupant: &occupant,
            replace: self.overwrite || self.output.is_none(),
            what: format!("the merge of {}", manifest.finetune_model_id),
        };
        let (status, staged) = settling.settle(staged, &self.stop)?;
        let bytes = files.iter().map(|file| file.bytes).sum();
        let metrics = ReconstructMetrics {
            artifact_bytes: manifest.artifact_bytes,
            bytes,
            bytes_written: if status == Status::Created { bytes } else { 0 },
            files: files.len() as u64,
            threads: pool.current_num_threads(),
            device_blocks: 0,
            decode: self.started.elapsed(),
            elapsed: self.started.elapsed(),
        };
        Ok(StagedModel {
            staged,
            replace: Replace::Allow,
            outcome: ReconstructOutcome {
                status,
                path: output.display().to_string(),
                files,
                manifest: artifact.manifest,
                metrics,
            },
            started: self.started,
            _lock: lock,
        })
    }

    fn look_at_output(
        &self,
        artifact: &Artifact,
        output: &Path,
        as_file: bool,
    ) -> Result<Found, DeltaError> {
        let occupant = paths::occupant(output)?;
        match (&occupant, as_file) {
            (Occupant::Nothing, _) => return Ok(Found::Free),
            (Occupant::EmptyDir, false) => return Ok(Found::Replaceable),
            (Occupant::File, false) => {
                return Err(DeltaError::Refused {
                    path: output.into(),
                    why: "it is a file, and the model is a folder".into(),
                });
            }
            (Occupant::Dir | Occupant::EmptyDir, true) => {
                return Err(DeltaError::Refused {
                    path: output.into(),
                    why: "it is a folder, and the output is a file".into(),
                });
            }
            _ => {}
        }
        if same_content(artifact, output, as_file, &self.stop)? {
            return Ok(Found::Same);
        }
        if !as_file && let Some(stranger) = stranger(artifact, output)? {
            let why = format!("it holds files that do not belong to the model ({stranger})");
            return Err(DeltaError::Refused {
                path: output.into(),
                why,
            });
        }
        // The default output is ours: what is damaged there is made anew.
        if self.overwrite || self.output.is_none() {
            return Ok(Found::Replaceable);
        }
        let what = format!(
            "it differs from {}, which the delta makes",
            artifact.manifest.finetune_model_id
        );
        Err(DeltaError::Exists {
            path: output.into(),
            what,
        })
    }

    fn existing(self, artifact: &Artifact, output: &Path, lock: Option<LockGuard>) -> StagedModel {
        let manifest = &artifact.manifest;
        let weights = manifest.files.iter().map(|f| (&f.path, f.size, &f.sha256));
        let files: Vec<FileReport> = weights
            .chain(
                manifest
                    .carried
                    .iter()
                    .map(|c| (&c.path, c.size, &c.sha256)),
            )
            .map(|(path, bytes, sha256)| FileReport {
                file: path.clone(),
                bytes,
                sha256: sha256.clone(),
                status: "exists".into(),
            })
            .collect();
        let metrics = ReconstructMetrics {
            artifact_bytes: manifest.artifact_bytes,
            bytes: manifest.original_bytes,
            files: files.len() as u64,
            elapsed: self.started.elapsed(),
            ..ReconstructMetrics::default()
        };
        let outcome = ReconstructOutcome {
            status: Status::Exists,
            path: output.display().to_string(),
            files,
            manifest: manifest.clone(),
            metrics,
        };
        StagedModel {
            staged: None,
            replace: Replace::Never,
            outcome,
            started: self.started,
            _lock: lock,
        }
    }

    fn rebuild(
        &self,
        artifact: &Artifact,
        rebuild: &Rebuild<'_>,
        place: Option<&Place<'_>>,
        pool: &ThreadPool,
    ) -> Result<Vec<FileReport>, DeltaError> {
        let manifest = &artifact.manifest;
        let ticker = Ticker::new(
            self.progress.clone(),
            "reconstructing",
            manifest.original_bytes,
        );
        let mut reports = Vec::new();
        each_file(
            manifest.files.len(),
            pool.current_num_threads(),
            &self.stop,
            |number| {
                let Some(entry) = manifest.files.get(number) else {
                    return Ok(());
                };
                let opened =
                    Place::open(place, &entry.path, entry.size, rebuild.unchanged(number))?;
                let target = opened.as_ref().map(|(file, shown)| Target { file, shown });
                let sha256 = rebuild.file(number, target.as_ref(), pool, &self.stop, &ticker)?;
                if sha256 != entry.sha256 {
                    // A device that computes wrongly says nothing of it.
                    let device = match rebuild.device_blocks() {
                        0 => "",
                        _ => " (a GPU took part: try the device cpu)",
                    };
                    let problem = format!(
                        "rebuilt from it, {:?} has SHA-256 {sha256} where the fine-tune's was {}{device}",
                        entry.path, entry.sha256
                    );
                    return Err(DeltaError::corrupt(&artifact.dir, problem));
                }
                Ok(())
            },
        )?;
        for entry in &manifest.files {
            let status = match manifest.lossy {
                Some(_) => "approximated".into(),
                None => "rebuilt".into(),
            };
            reports.push(FileReport {
                file: entry.path.clone(),
                bytes: entry.size,
                sha256: entry.sha256.clone(),
                status,
            });
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
            }
            .into();
            reports.push(FileReport {
                file: entry.path.clone(),
                bytes: entry.size,
                sha256: entry.sha256.clone(),
                status,
            });
        }
        ticker.finish();
        Ok(reports)
    }
}

enum Found {
    Free,
    Replaceable,
    Same,
}

/// An error about an adapter, named as what it came out of.
fn named_as(error: DeltaError, dir: &Path) -> DeltaError {
    let named = dir.display().to_string();
    match error {
        DeltaError::Adapter(AdapterError::Unusable { what, .. }) => {
            DeltaError::Adapter(AdapterError::Unusable {
                adapter: named,
                what,
            })
        }
        DeltaError::Adapter(AdapterError::Codec { module, source, .. }) => {
            DeltaError::Adapter(AdapterError::Codec {
                adapter: named,
                module,
                source,
            })
        }
        error => error,
    }
}

/// A fine-tune that was one file becomes one where the output is called like one.
fn is_file_output(artifact: &Artifact, output: &Path) -> bool {
    let manifest = &artifact.manifest;
    let named = output
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
        && !output.is_dir();
    named && manifest.single_file && manifest.files.len() == 1 && manifest.carried.is_empty()
}

/// Runs `each` for every file, several at once on machines with many cores (SHA-256 is serial within a file).
pub(crate) fn each_file(
    count: usize,
    threads: usize,
    stop: &Stop,
    each: impl Fn(usize) -> Result<(), DeltaError> + Sync,
) -> Result<(), DeltaError> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<DeltaError>> = Mutex::new(None);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count
                || failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_some()
            {
                return;
            }
            if let Err(error) = stop
                .check()
                .and_then(|()| pipeline::guarded(|| each(number)))
            {
                failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
                return;
            }
        }
    };
    let at_once = count.min(1 + threads / 4);
    std::thread::scope(|scope| {
        for _ in 1..at_once {
            scope.spawn(work);
        }
        work();
    });
    failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

/// Whether the output holds exactly what the delta makes.
fn same_content(
    artifact: &Artifact,
    output: &Path,
    as_file: bool,
    stop: &Stop,
) -> Result<bool, DeltaError> {
    let manifest = &artifact.manifest;
    let weights = manifest.files.iter().map(|f| (&f.path, f.size, &f.sha256));
    let all: Vec<_> = weights
        .chain(
            manifest
                .carried
                .iter()
                .map(|c| (&c.path, c.size, &c.sha256)),
        )
        .collect();
    let path_of = |relative: &str| {
        if as_file {
            Ok(output.to_path_buf())
        } else {
            sparse_store::safe_join(output, relative)
        }
    };
    for (relative, size, _) in &all {
        let Ok(meta) = std::fs::metadata(path_of(relative)?) else {
            return Ok(false);
        };
        if !meta.is_file() || meta.len() != *size {
            return Ok(false);
        }
    }
    for (relative, _, sha256) in &all {
        if hash_file(&path_of(relative)?, stop)? != **sha256 {
            return Ok(false);
        }
    }
    Ok(as_file || stranger(artifact, output)?.is_none())
}

/// A file below `output` that the delta does not know.
fn stranger(artifact: &Artifact, output: &Path) -> Result<Option<String>, DeltaError> {
    let manifest = &artifact.manifest;
    let weights = manifest.files.iter().map(|f| f.path.as_str());
    paths::stranger(
        weights.chain(manifest.carried.iter().map(|c| c.path.as_str())),
        output,
    )
}
