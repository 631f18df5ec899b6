//! `Compress`: a derivative dataset stored as the delta of its base.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sparse_codec::Effort;
use sparse_delta::support::{self, Occupant, Output};
use sparse_delta::{CancelToken, DeltaError, Progress, Status};
use sparse_store::{OpenOptions, Published, Replace, Staged};

use crate::DatasetError;
use crate::artifact;
use crate::carried::{self, Carried};
use crate::effort::limits;
use crate::error::During;
use crate::exact;
use crate::input::{Dataset, Format, Rows};
use crate::manifest::{
    DatasetManifest, FORMAT_VERSION, MANIFEST, PAYLOAD, Restores, SizeStats, SplitEntry,
};
use crate::output::{self, Writer};
use crate::pair::{self, Pair};
use crate::places::MetadataPlaces;
use crate::split;
use crate::table::LogicalHash;

/// A dataset, or a reference by which one is opened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A path, URL or Hub id.
    Reference(String),
    /// An open dataset.
    Open(Dataset),
}

impl Input {
    /// The dataset.
    pub(crate) async fn open(self, options: &OpenOptions) -> Result<Dataset, DatasetError> {
        match self {
            Self::Reference(reference) => Dataset::open(&reference, options).await,
            Self::Open(dataset) => Ok(dataset),
        }
    }
}

impl From<&str> for Input {
    fn from(reference: &str) -> Self {
        Self::Reference(reference.to_owned())
    }
}

impl From<String> for Input {
    fn from(reference: String) -> Self {
        Self::Reference(reference)
    }
}

impl From<Dataset> for Input {
    fn from(dataset: Dataset) -> Self {
        Self::Open(dataset)
    }
}

/// Stores a derivative dataset as the delta of its base.
#[must_use = "nothing happens until `stage` is awaited"]
pub struct Compress {
    base: Input,
    derivative: Input,
    output: Option<String>,
    splits: Vec<String>,
    effort: Effort,
    overwrite: bool,
    dry_run: bool,
    restore: Restore,
    threads: Option<usize>,
    memory: u64,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

/// What is to come back of Parquet files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restore {
    /// The files byte for byte where they are not large and that costs little, else their rows.
    #[default]
    Auto,
    /// The rows, in files written anew.
    Rows,
    /// The files byte for byte, whatever it costs.
    Bytes,
}

impl Restore {
    /// All names.
    pub const NAMES: [&str; 3] = ["auto", "rows", "bytes"];
}

impl std::fmt::Display for Restore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Rows => "rows",
            Self::Bytes => "bytes",
        })
    }
}

impl std::str::FromStr for Restore {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "rows" => Ok(Self::Rows),
            "bytes" => Ok(Self::Bytes),
            other => Err(format!("{other:?} is none of {}", Self::NAMES.join(", "))),
        }
    }
}

/// Bytes of memory an operation may use unless told otherwise.
pub(crate) const MEMORY: u64 = 1 << 30;
/// With less nothing gets done.
pub(crate) const MIN_MEMORY: u64 = 64 << 20;

/// What was made.
#[derive(Clone, Debug)]
pub struct CompressOutcome {
    /// Whether the artifact was written.
    pub status: Status,
    /// Where it is; nowhere after a dry run.
    pub path: Option<String>,
    /// What it is.
    pub manifest: DatasetManifest,
    /// How long it took.
    pub elapsed: Duration,
    /// How long of that rows were matched.
    pub matching: Duration,
}

impl Compress {
    /// The delta of `derivative` against `base`.
    pub fn new(base: impl Into<Input>, derivative: impl Into<Input>) -> Self {
        Self {
            base: base.into(),
            derivative: derivative.into(),
            output: None,
            splits: Vec::new(),
            effort: Effort::Default,
            overwrite: false,
            dry_run: false,
            restore: Restore::Auto,
            threads: None,
            memory: MEMORY,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The folder or object store URL the artifact goes to. Default: its key, in the delta store.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// The splits of the derivative to store. Default: all.
    pub fn splits(mut self, splits: Vec<String>) -> Self {
        self.splits = splits;
        self
    }

    /// How hard to try. New values are told by mixing, a megabyte or two a second both ways; in splits of more than 2^18 rows only
    /// at the effort max, or where they are few.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// Whether another dataset delta at the output may be replaced. Nothing but one ever is.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Whether to compute everything and write nothing.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// What is to come back of Parquet files. Default: their bytes where that costs little.
    pub fn restore(mut self, restore: Restore) -> Self {
        self.restore = restore;
        self
    }

    sparse_delta::operation_setters!();

    /// How many bytes of memory may be used, about; what is larger goes to temporary files. Default: 1 GiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes.max(MIN_MEMORY);
        self
    }

    /// Makes the artifact under a temporary name; nothing is visible until it is committed.
    ///
    /// # Errors
    /// Datasets that cannot be read, columns of types that cannot be stored, and an output that is taken.
    pub async fn stage(mut self) -> Result<StagedDelta, DatasetError> {
        let started = Instant::now();
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let output = self.output.as_deref().map(Output::parse).transpose()?;
        let (base, derivative) =
            futures::try_join!(self.base.open(&self.open), self.derivative.open(&self.open))?;
        let job = Job {
            splits: derivative.select(&self.splits)?,
            base,
            derivative,
            output,
            effort: self.effort,
            overwrite: self.overwrite,
            dry_run: self.dry_run,
            restore: self.restore,
            memory: self.memory,
            open: self.open,
            progress: self.progress,
            cancel: self.cancel,
            started,
        };
        let threads = self.threads;
        tokio::task::spawn_blocking(move || {
            let pool = support::pool(threads)?;
            // What panics below is a fault of ours or of a library fed hostile bytes: an error like any other.
            support::guarded(|| Ok(pool.install(|| job.run())))?
        })
        .await
        .map_err(|error| DatasetError::internal(error.to_string()))?
    }

    /// Makes the artifact and commits it.
    ///
    /// # Errors
    /// As [`Compress::stage`] and [`StagedDelta::commit`].
    pub async fn run(self) -> Result<CompressOutcome, DatasetError> {
        self.stage().await?.commit().await
    }
}

/// An artifact that is complete and not yet visible. Dropped, it leaves nothing.
pub struct StagedDelta {
    place: Place,
    outcome: CompressOutcome,
    open: OpenOptions,
    started: Instant,
}

enum Place {
    /// Nothing is to be made visible.
    Nowhere,
    Local(Staged, Replace),
    Remote(tempfile::TempDir, url::Url),
}

impl StagedDelta {
    /// What it will be.
    #[must_use]
    pub fn manifest(&self) -> &DatasetManifest {
        &self.outcome.manifest
    }

    /// Makes the artifact visible, in one step.
    ///
    /// # Errors
    /// An output that was taken in the meantime, or a disk that fails.
    pub async fn commit(mut self) -> Result<CompressOutcome, DatasetError> {
        match self.place {
            Place::Nowhere => {}
            Place::Local(staged, replace) => {
                let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                    .await
                    .map_err(|error| DatasetError::internal(error.to_string()))??;
                self.outcome.path = Some(committed.path.display().to_string());
            }
            Place::Remote(folder, url) => {
                let published = sparse_store::publish(folder.path(), &url, &self.open).await?;
                if let Published::Exists { manifest } = published {
                    let there: Option<DatasetManifest> = serde_json::from_slice(&manifest).ok();
                    if there.is_none_or(|there| there.key != self.outcome.manifest.key) {
                        return Err(DeltaError::Exists {
                            path: PathBuf::from(url.to_string()),
                            what: "it holds another artifact".to_owned(),
                        }
                        .into());
                    }
                    self.outcome.status = Status::Exists;
                }
            }
        }
        self.outcome.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}

struct Job {
    base: Dataset,
    derivative: Dataset,
    splits: Vec<(String, Arc<dyn Rows>)>,
    output: Option<Output>,
    effort: Effort,
    overwrite: bool,
    dry_run: bool,
    restore: Restore,
    memory: u64,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
    started: Instant,
}

impl Job {
    fn check(&self) -> Result<(), DatasetError> {
        if self.cancel.is_cancelled() {
            return Err(DeltaError::Cancelled.into());
        }
        Ok(())
    }

    fn tell(&self, message: &str, fraction: f64) {
        if let Some(progress) = &self.progress {
            progress(message, fraction);
        }
    }

    fn run(self) -> Result<StagedDelta, DatasetError> {
        if let Some(Output::Local(path)) = &self.output {
            let inputs: Vec<(&str, &Path)> = [
                ("base dataset", self.base.root()),
                ("derivative", self.derivative.root()),
            ]
            .into_iter()
            .filter_map(|(what, root)| Some((what, root?)))
            .collect();
            support::refuse_inputs(path, &inputs)?;
            if !self.overwrite {
                look(path)?;
            }
        }
        let scratch = pair::scratch();
        let room = pair::room(&scratch, self.memory);
        let mut payload = Vec::new();
        let mut entries = Vec::new();
        let mut sizes = SizeStats::default();
        let mut matching = Duration::ZERO;
        let count = self.splits.len() as f64;
        let mut used = std::collections::HashSet::new();
        for (at, (name, rows)) in self.splits.iter().enumerate() {
            self.check()?;
            self.tell(&format!("reading {name}"), at as f64 / count);
            let pair = Pair::load(&self.base, name, rows, &room, &|| self.check())
                .map_err(|error| named(error, &self.derivative, name))?;
            for (base_name, base_rows) in self.base.splits() {
                if pair.splits.contains(base_name) && used.insert(base_name.clone()) {
                    sizes.base_size_bytes += base_rows.bytes();
                }
            }
            matching += pair.matching;
            sizes.derivative_size_bytes += rows.bytes();
            self.tell(&format!("coding {name}"), (at as f64 + 0.2) / count);
            let coded = split::encode(&pair, limits(self.effort), self.memory, &|| self.check())?;
            let same_schema = crate::canonical::describe(&pair.base.schema)
                == crate::canonical::describe(&pair.derivative.schema);
            let schema = (!same_schema).then_some(&pair.derivative.schema);
            let plan = artifact::append(&mut payload, &coded, schema)?;
            let mut entry = self.entry(name, rows, &pair, &coded, plan, &scratch)?;
            drop(coded);
            let coded = payload.len() as u64 - entry.plan.offset;
            let offer = exact::Offer {
                restore: self.restore,
                memory: self.memory,
                coded,
            };
            let schema = &pair.derivative.schema;
            offer.make(&mut entry, (&self.derivative, rows), schema, &mut payload)?;
            entries.push(entry);
        }
        let carried = carried::append(&mut payload, &self.derivative.carried(&self.splits)?)?;
        let key = self.key(&entries, carried.as_ref().map(|c| (c, payload.as_slice())));
        let mut manifest = DatasetManifest::new(
            (&self.base, &self.derivative),
            self.effort,
            key,
            entries,
            sizes,
            blake3::hash(&payload),
        );
        manifest.carried = carried;
        let stored = manifest.sealed(payload.len() as u64)?;
        self.tell("writing", 0.99);
        self.place(manifest, matching, &stored, &payload)
    }

    fn entry(
        &self,
        name: &str,
        rows: &Arc<dyn Rows>,
        pair: &Pair,
        coded: &split::Coded,
        plan: sparse_delta::Blob,
        scratch: &Path,
    ) -> Result<SplitEntry, DatasetError> {
        let counts = coded.plan.row_counts();
        let total = pair.derivative.rows as u64;
        let mut files = rows.files()?;
        if let [(_, rows)] = files.as_mut_slice() {
            *rows = total;
        }
        let schema = &pair.derivative.schema;
        let mut restores = Restores::Rows;
        let format = match rows.format() {
            format @ (Format::Csv | Format::Jsonl) => {
                match survives(rows, pair, format, scratch)? {
                    Some(written) => {
                        // Without rows it depends on the reader whether there is a header.
                        if total > 0 && self.hash_of_only(&files).as_ref() == Some(&written) {
                            restores = Restores::Bytes(vec![written]);
                        }
                        format
                    }
                    None => Format::Parquet,
                }
            }
            format => format,
        };
        let format = match format {
            Format::Parquet if !output::parquet_keeps(schema) => Format::Arrow,
            format => format,
        };
        let format = match format {
            // A file of Arrow's holds one dictionary per column, a stream as many as are needed.
            Format::Arrow if output::has_dictionary(schema) => Format::ArrowStream,
            format => format,
        };
        let metadata = match (format, self.file_of(&files)) {
            (Format::Parquet, Some(path)) if rows.format() == Format::Parquet => {
                MetadataPlaces::of(&path)?
            }
            _ => MetadataPlaces::default(),
        };
        if format != rows.format() || files.is_empty() {
            files = vec![(format!("{name}.{}", format.ending()), total)];
        }
        Ok(SplitEntry {
            name: name.to_owned(),
            base: pair.base_splits(),
            rows: total,
            shared: counts.shared,
            edited: counts.edited,
            new: counts.new,
            removed: counts.removed,
            hash: pair.hash().to_owned(),
            format,
            restores,
            why: None,
            recipes: None,
            metadata,
            files,
            plan,
        })
    }

    /// The first of the derivative's files.
    fn file_of(&self, files: &[(String, u64)]) -> Option<PathBuf> {
        self.derivative.path_of(&files.first()?.0)
    }

    /// The BLAKE3 of the derivative's file, where a split has but one.
    fn hash_of_only(&self, files: &[(String, u64)]) -> Option<String> {
        let path = self.file_of(files).filter(|_| files.len() == 1)?;
        output::hash_of(&path).ok()
    }

    /// What the artifact is a function of.
    fn key(&self, entries: &[SplitEntry], carried: Option<(&Carried, &[u8])>) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("sparse 2026-11 key of a dataset delta");
        let mut text = |text: &str| {
            hasher
                .update(&(text.len() as u64).to_le_bytes())
                .update(text.as_bytes());
        };
        text(&FORMAT_VERSION.to_string());
        text(&self.effort.to_string());
        for entry in entries {
            text(&entry.name);
            for base in &entry.base {
                text(&base.name);
                text(&base.hash);
            }
            text(&entry.hash);
            for (path, rows) in &entry.files {
                text(path);
                text(&rows.to_string());
            }
            if let Restores::Bytes(hashes) = &entry.restores {
                hashes.iter().for_each(|hash| text(hash));
            }
            if !entry.metadata.is_both() {
                for keys in [&entry.metadata.file, &entry.metadata.schema] {
                    text(&keys.len().to_string());
                    keys.iter().for_each(|key| text(key));
                }
            }
        }
        if let Some((carried, payload)) = carried {
            for (path, bytes) in &carried.files {
                text(path);
                text(&bytes.to_string());
            }
            let start = usize::try_from(carried.blob.offset).unwrap_or(0);
            text(blake3::hash(&payload[start..]).to_hex().as_str());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn place(
        self,
        manifest: DatasetManifest,
        matching: Duration,
        stored: &[u8],
        payload: &[u8],
    ) -> Result<StagedDelta, DatasetError> {
        let mut outcome = CompressOutcome {
            status: Status::Created,
            path: None,
            manifest,
            elapsed: Duration::ZERO,
            matching,
        };
        let write = |folder: &Path| -> Result<(), DatasetError> {
            for (name, bytes) in [(PAYLOAD, payload), (MANIFEST, stored)] {
                let path = folder.join(name);
                std::fs::write(&path, bytes).during("write", &path)?;
            }
            Ok(())
        };
        let place = if self.dry_run {
            outcome.status = Status::DryRun;
            Place::Nowhere
        } else {
            match &self.output {
                Some(Output::Url(url)) => {
                    let folder =
                        tempfile::tempdir().during("create a folder in", std::env::temp_dir())?;
                    write(folder.path())?;
                    outcome.path = Some(url.to_string());
                    Place::Remote(folder, url.clone())
                }
                local => {
                    let path = match local {
                        Some(Output::Local(path)) => path.clone(),
                        _ => support::store_in(&self.open.cache()).join(&outcome.manifest.key),
                    };
                    outcome.path = Some(path.display().to_string());
                    if same_key(&path, &outcome.manifest.key) {
                        outcome.status = Status::Exists;
                        Place::Nowhere
                    } else {
                        let replace = if self.overwrite {
                            replaceable(&path)?
                        } else {
                            look(&path)?
                        };
                        let staged = Staged::dir(&path)?;
                        write(staged.path())?;
                        Place::Local(staged, replace)
                    }
                }
            }
        };
        Ok(StagedDelta {
            place,
            outcome,
            open: self.open,
            started: self.started,
        })
    }
}

/// Says which split an error is about.
pub(crate) fn named(error: DatasetError, dataset: &Dataset, split: &str) -> DatasetError {
    match error {
        DatasetError::Unsupported { ty } => DatasetError::usage(format!(
            "split {split:?} of {} has a column of type {ty}, which is not supported; cast it in a query first",
            dataset.id()
        )),
        error => error,
    }
}

/// Writes rows in a text format and reads them again: the BLAKE3 of the file, if they are the same.
fn survives(
    rows: &Arc<dyn Rows>,
    pair: &Pair,
    format: Format,
    scratch: &Path,
) -> Result<Option<String>, DatasetError> {
    let folder = tempfile::tempdir_in(scratch).during("create a folder in", scratch)?;
    let path = folder.path().join(format!("rows.{}", format.ending()));
    let mut writer = Writer::create(
        &path,
        format,
        &pair.derivative.schema,
        &MetadataPlaces::default(),
    )?;
    for batch in rows.read()? {
        writer.write(&batch?)?;
    }
    writer.finish(&path)?;
    let Ok((schema, batches)) = crate::input::open_file(&path, format) else {
        return Ok(None);
    };
    let mut hash = LogicalHash::new(&schema)?;
    for batch in batches {
        let Ok(batch) = batch else {
            return Ok(None);
        };
        hash.update(&batch)?;
    }
    let same = hash.finish() == pair.hash();
    same.then(|| output::hash_of(&path)).transpose()
}

/// Whether the artifact with this key is at a place, whole.
fn same_key(path: &Path, key: &str) -> bool {
    artifact::Artifact::open(path).is_ok_and(|artifact| artifact.manifest.key == key)
}

/// Refuses what is taken by anything but a dataset delta; how one may be replaced.
fn look(path: &Path) -> Result<Replace, DatasetError> {
    match support::occupant(path)? {
        Occupant::Nothing | Occupant::EmptyDir => Ok(Replace::Allow),
        Occupant::Dir if DatasetManifest::read(path).is_ok() => Ok(Replace::Never),
        Occupant::Dir | Occupant::File => Err(DeltaError::Refused {
            path: path.into(),
            why: "it holds something other than a dataset delta".to_owned(),
        }
        .into()),
    }
}

fn replaceable(path: &Path) -> Result<Replace, DatasetError> {
    look(path).map(|_| Replace::Allow)
}
