//! `Reconstruct`: a derivative dataset made again from its base and its delta.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sparse_delta::support::{self, Occupant, Output};
use sparse_delta::{CancelToken, DeltaError, Progress, Status};
use sparse_store::{OpenOptions, Replace, Staged, safe_join};

use crate::DatasetError;
use crate::artifact::Artifact;
use crate::carried;
use crate::compress::{Input, MEMORY, MIN_MEMORY};
use crate::exact;
use crate::input::{Dataset, Rows};
use crate::manifest::{DatasetManifest, Restores, SplitEntry};
use crate::output::{self, Writer};
use crate::pair;
use crate::split;
use crate::table::{LogicalHash, plain_types};

/// Makes a derivative dataset again.
#[must_use = "nothing happens until `stage` is awaited"]
pub struct Reconstruct {
    delta: String,
    base: Option<Input>,
    output: Option<String>,
    overwrite: bool,
    dry_run: bool,
    rows_only: bool,
    threads: Option<usize>,
    memory: u64,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct ReconstructOutcome {
    /// Whether it was written.
    pub status: Status,
    /// Where it is; nowhere after a dry run.
    pub path: Option<String>,
    /// What the artifact says.
    pub manifest: DatasetManifest,
    /// How long it took.
    pub elapsed: Duration,
}

impl Reconstruct {
    /// The derivative that the artifact at `delta` holds.
    pub fn new(delta: impl Into<String>) -> Self {
        Self {
            delta: delta.into(),
            base: None,
            output: None,
            overwrite: false,
            dry_run: false,
            rows_only: false,
            threads: None,
            memory: MEMORY,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The base dataset. Default: the one the artifact names.
    pub fn base(mut self, base: impl Into<Input>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Where the dataset goes: a folder, or a file for a dataset that was one. Default: the cache, by key.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Whether another state of the dataset at the output may be replaced.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Whether to rebuild and check everything and write nothing.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Whether files are written anew even where they could come back byte for byte.
    pub fn rows_only(mut self, rows_only: bool) -> Self {
        self.rows_only = rows_only;
        self
    }

    sparse_delta::operation_setters!();

    /// How many bytes of memory may be used, about; what is larger goes to temporary files. Default: 1 GiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes.max(MIN_MEMORY);
        self
    }

    /// Makes the dataset under a temporary name; nothing is visible until it is committed.
    ///
    /// # Errors
    /// An artifact that is damaged, a base that is not the one it was made against, and an output that is taken.
    pub async fn stage(mut self) -> Result<StagedDataset, DatasetError> {
        let started = Instant::now();
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let output = match self.output.as_deref().map(Output::parse).transpose()? {
            Some(Output::Url(url)) => {
                return Err(DatasetError::usage(format!(
                    "{url}: a dataset is rebuilt on this machine; give a folder, then upload it"
                )));
            }
            Some(Output::Local(path)) => Some(path),
            None => None,
        };
        let folder = support::artifact_dir(&self.delta, &self.open).await?;
        let manifest = {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || DatasetManifest::read(&folder))
                .await
                .map_err(|error| DatasetError::internal(error.to_string()))??
        };
        let base = match self.base.take() {
            Some(given) => given.open(&self.open).await?,
            None => Input::Reference(manifest.base_dataset_id.clone())
                .open(&self.open)
                .await
                .map_err(|error| not_found(error, &manifest.base_dataset_id))?,
        };
        let job = Job {
            folder,
            base,
            output,
            overwrite: self.overwrite,
            dry_run: self.dry_run,
            rows_only: self.rows_only,
            memory: self.memory,
            open: self.open,
            progress: self.progress,
            cancel: self.cancel,
            started,
        };
        let threads = self.threads;
        tokio::task::spawn_blocking(move || {
            let pool = support::pool(threads)?;
            support::guarded(|| Ok(pool.install(|| job.run())))?
        })
        .await
        .map_err(|error| DatasetError::internal(error.to_string()))?
    }

    /// Makes the dataset and commits it.
    ///
    /// # Errors
    /// As [`Reconstruct::stage`] and [`StagedDataset::commit`].
    pub async fn run(self) -> Result<ReconstructOutcome, DatasetError> {
        self.stage().await?.commit().await
    }
}

/// A dataset that is complete and not yet visible. Dropped, it leaves nothing.
pub struct StagedDataset {
    staged: Option<(Staged, Replace)>,
    outcome: ReconstructOutcome,
    started: Instant,
}

impl StagedDataset {
    /// Makes the dataset visible, in one step.
    ///
    /// # Errors
    /// An output that was taken in the meantime, or a disk that fails.
    pub async fn commit(mut self) -> Result<ReconstructOutcome, DatasetError> {
        if let Some((staged, replace)) = self.staged.take() {
            let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                .await
                .map_err(|error| DatasetError::internal(error.to_string()))??;
            self.outcome.path = Some(committed.path.display().to_string());
        }
        self.outcome.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}

struct Job {
    folder: PathBuf,
    base: Dataset,
    output: Option<PathBuf>,
    overwrite: bool,
    dry_run: bool,
    rows_only: bool,
    memory: u64,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
    started: Instant,
}

impl Job {
    fn run(self) -> Result<StagedDataset, DatasetError> {
        let artifact = Artifact::open(&self.folder)?;
        let mut manifest = artifact.manifest.clone();
        if self.rows_only {
            for split in &mut manifest.splits {
                (split.restores, split.recipes) = (Restores::Rows, None);
            }
        }
        let target = match &self.output {
            Some(path) => path.clone(),
            None => {
                let name = match (manifest.single_file, manifest.splits.first()) {
                    (true, Some(split)) => format!("{}.{}", manifest.key, split.format.ending()),
                    _ => manifest.key.clone(),
                };
                support::rebuilt_in(&self.open.cache()).join(name)
            }
        };
        let mut outcome = ReconstructOutcome {
            status: Status::Created,
            path: Some(target.display().to_string()),
            manifest,
            elapsed: Duration::ZERO,
        };
        let mut inputs = vec![("delta", self.folder.as_path())];
        inputs.extend(self.base.root().map(|root| ("base dataset", root)));
        support::refuse_inputs(&target, &inputs)?;
        let beside = artifact.carried()?;
        let mut staged = None;
        if self.dry_run {
            outcome.status = Status::DryRun;
            outcome.path = None;
        } else {
            match self.look(&target, &outcome.manifest, &beside)? {
                None => outcome.status = Status::Exists,
                Some(replace) => {
                    let place = if outcome.manifest.single_file {
                        Staged::file(&target)?
                    } else {
                        Staged::dir(&target)?
                    };
                    staged = Some((place, replace));
                }
            }
        }
        if outcome.status != Status::Exists {
            let count = outcome.manifest.splits.len() as f64;
            for (at, entry) in outcome.manifest.splits.iter().enumerate() {
                if let Some(progress) = &self.progress {
                    progress(&format!("rebuilding {}", entry.name), at as f64 / count);
                }
                let place = staged.as_ref().map(|(staged, _)| staged.path());
                self.split(&artifact, entry, place, outcome.manifest.single_file)?;
            }
            if let Some((staged, _)) = &staged {
                carried::write(staged.path(), &beside)?;
            }
        }
        Ok(StagedDataset {
            staged,
            outcome,
            started: self.started,
        })
    }

    /// The base's split of a name; the only one may have another name by now.
    fn base_split(
        &self,
        name: &str,
        entry: &SplitEntry,
    ) -> Result<&(String, Arc<dyn Rows>), DatasetError> {
        let splits = self.base.splits();
        splits
            .iter()
            .find(|(own, _)| own == name)
            .or_else(|| {
                splits
                    .first()
                    .filter(|_| splits.len() == 1 && entry.base.len() == 1)
            })
            .ok_or_else(|| {
                DeltaError::NotFound {
                    what: format!("split {name:?} of {}", self.base.id()),
                    remedy: "give the base the delta was made against".to_owned(),
                }
                .into()
            })
    }

    /// Rebuilds one split into files below `place`, or only in memory.
    fn split(
        &self,
        artifact: &Artifact,
        entry: &SplitEntry,
        place: Option<&Path>,
        single_file: bool,
    ) -> Result<(), DatasetError> {
        let (plan, schema, streams) = artifact.split(entry)?;
        let splits: Vec<&(String, Arc<dyn Rows>)> = entry
            .base
            .iter()
            .map(|wanted| self.base_split(&wanted.name, entry))
            .collect::<Result<_, _>>()?;
        let schema = match (schema, splits.first()) {
            (Some(schema), _) => schema,
            (None, Some((_, rows))) => rows.schema()?,
            (None, None) => return Err(DatasetError::damaged("a split has no schema")),
        };
        let scratch = pair::scratch();
        let base = pair::load_splits(
            &splits,
            &plan.pairs,
            &plain_types(&schema)?,
            &pair::room(&scratch, self.memory),
        )?;
        for (wanted, found) in entry.base.iter().zip(&base.parts) {
            if wanted.hash != found.hash {
                return Err(DatasetError::WrongBase {
                    base: self.base.id().to_owned(),
                    base_id: artifact.manifest.base_dataset_id.clone(),
                    split: wanted.name.clone(),
                    expected: wanted.hash.clone(),
                    found: found.hash.clone(),
                });
            }
        }
        let decoded = split::decode(&plan, &streams, &base, &schema, self.memory)?;
        if decoded.rows() as u64 != entry.rows {
            return Err(DatasetError::damaged("the numbers of rows do not add up"));
        }
        let recipes = artifact.recipes(entry, &schema)?;
        let mut in_recipes = 0;
        let mut hash = LogicalHash::new(&schema)?;
        let mut start = 0;
        for (at, (path, rows)) in entry.files.iter().enumerate() {
            let end = start + usize::try_from(*rows).unwrap_or(0);
            if end > decoded.rows() {
                return Err(DatasetError::damaged(
                    "the files have more rows than there are",
                ));
            }
            let file = match place {
                Some(place) if single_file => Some(place.to_path_buf()),
                Some(place) => Some(safe_join(place, path)?),
                None => None,
            };
            let expected = match &entry.restores {
                Restores::Bytes(hashes) => hashes.get(at),
                Restores::Rows => None,
            };
            if let Some(recipes) = &recipes {
                let mut from = start;
                let mut supply = |rows: usize| {
                    if rows > end - from {
                        return Err(DatasetError::damaged(
                            "a recipe has more rows than its file",
                        ));
                    }
                    let mut batches = Vec::new();
                    for (first, last) in split::pieces(rows) {
                        if self.cancel.is_cancelled() {
                            return Err(DeltaError::Cancelled.into());
                        }
                        for batch in decoded.batches(from + first, from + last)? {
                            hash.update(&batch)?;
                            batches.push(batch);
                        }
                    }
                    from += rows;
                    Ok(batches)
                };
                let found = output::make(file.as_deref(), |out| {
                    let shown = Path::new(path);
                    exact::make(recipes, &mut in_recipes, &schema, &mut supply, (shown, out))
                })?;
                if from != end {
                    return Err(DatasetError::damaged(
                        "a recipe has not all rows of its file",
                    ));
                }
                if expected != Some(&found) {
                    return Err(other_bytes(entry));
                }
                start = end;
                continue;
            }
            let mut writer = match &file {
                Some(file) => Some(Writer::create(
                    file,
                    entry.format,
                    &schema,
                    &entry.metadata,
                )?),
                None => None,
            };
            for (from, to) in split::pieces(end - start) {
                if self.cancel.is_cancelled() {
                    return Err(DeltaError::Cancelled.into());
                }
                for batch in decoded.batches(start + from, start + to)? {
                    hash.update(&batch)?;
                    if let Some(writer) = &mut writer {
                        writer.write(&batch)?;
                    }
                }
            }
            if let (Some(writer), Some(file)) = (writer, &file) {
                writer.finish(file)?;
                if let Some(expected) = expected
                    && output::hash_of(file)? != *expected
                {
                    return Err(other_bytes(entry));
                }
            }
            start = end;
        }
        let found = hash.finish();
        if found != entry.hash {
            return Err(DatasetError::damaged(format!(
                "the rebuilt rows of split {:?} have the hash {found}, the manifest says {}",
                entry.name, entry.hash
            )));
        }
        Ok(())
    }

    /// What is at the output: `None` if it is the dataset already, else how it may be replaced.
    fn look(
        &self,
        target: &Path,
        manifest: &DatasetManifest,
        beside: &[(String, Vec<u8>)],
    ) -> Result<Option<Replace>, DatasetError> {
        match support::occupant(target)? {
            Occupant::Nothing | Occupant::EmptyDir => return Ok(Some(Replace::Allow)),
            Occupant::File if !manifest.single_file => {
                return Err(refused(target, "it is a file, and the dataset is a folder"));
            }
            Occupant::Dir if manifest.single_file => {
                return Err(refused(target, "it is a folder, and the dataset is a file"));
            }
            Occupant::File | Occupant::Dir => {}
        }
        if is_there(target, manifest) && carried::are_there(target, beside) {
            return Ok(None);
        }
        if !manifest.single_file && !only_holds(target, manifest) {
            return Err(refused(
                target,
                "it holds files that the dataset does not have",
            ));
        }
        if !self.overwrite {
            return Err(DeltaError::Exists {
                path: target.into(),
                what: "it holds something else than this dataset".to_owned(),
            }
            .into());
        }
        Ok(Some(Replace::Allow))
    }
}

/// Where the base an artifact names is gone, or was a table: what to do.
fn not_found(error: DatasetError, base: &str) -> DatasetError {
    match error {
        DatasetError::Artifact(DeltaError::NotFound { .. }) => DeltaError::NotFound {
            what: format!("the base that the delta names, {base},"),
            remedy: "give the base: --base, or base => in SQL".to_owned(),
        }
        .into(),
        error => error,
    }
}

/// The rows are right, or else their own hash tells; a later version of a library may write them otherwise.
fn other_bytes(entry: &SplitEntry) -> DatasetError {
    DatasetError::damaged(format!(
        "a rebuilt file of split {:?} has other bytes than the manifest says; its rows can be had in a file written anew \
         (--rows-only, or rows_only => true in SQL)",
        entry.name
    ))
}

fn refused(path: &Path, why: &str) -> DatasetError {
    DeltaError::Refused {
        path: path.into(),
        why: why.to_owned(),
    }
    .into()
}

/// Whether the rows at a place are those of the manifest, in its files; and the bytes, where these come back too.
fn is_there(target: &Path, manifest: &DatasetManifest) -> bool {
    manifest.splits.iter().all(|split| {
        let mut hash: Option<LogicalHash> = None;
        for (at, (path, _)) in split.files.iter().enumerate() {
            let file = if manifest.single_file {
                target.to_path_buf()
            } else {
                match safe_join(target, path) {
                    Ok(file) => file,
                    Err(_) => return false,
                }
            };
            if let Restores::Bytes(expected) = &split.restores
                && !output::hash_of(&file).is_ok_and(|found| expected.get(at) == Some(&found))
            {
                return false;
            }
            let Ok((schema, batches)) = crate::input::open_file(&file, split.format) else {
                return false;
            };
            if hash.is_none() {
                hash = LogicalHash::new(&schema).ok();
            }
            for batch in batches {
                let updated = match (&mut hash, batch) {
                    (Some(hash), Ok(batch)) => hash.update(&batch).is_ok(),
                    _ => false,
                };
                if !updated {
                    return false;
                }
            }
        }
        hash.is_some_and(|hash| hash.finish() == split.hash)
    })
}

/// Whether a folder holds no file but those of the dataset. What cannot be listed, and a link to a folder, may be anything.
fn only_holds(target: &Path, manifest: &DatasetManifest) -> bool {
    let known: std::collections::HashSet<&str> = carried::paths(manifest).collect();
    let mut folders = vec![(target.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            return false;
        };
        for entry in entries {
            let Ok(entry) = entry else {
                return false;
            };
            let (Ok(name), Ok(kind)) = (entry.file_name().into_string(), entry.file_type()) else {
                return false;
            };
            let relative = format!("{prefix}{name}");
            if kind.is_dir() {
                folders.push((entry.path(), relative + "/"));
            } else if !known.contains(relative.as_str()) {
                return false;
            }
        }
    }
    true
}
