//! `Compress`: base and fine-tune in, a delta artifact out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rayon::ThreadPool;
use sparse_adapter::PeftAdapter;
use sparse_codec::{Effort, EncodeOptions, Granularity};
use sparse_store::{LockGuard, Model, OpenOptions, Published, Replace, Staged};

use crate::artifact::{self, Artifact};
use crate::error::During;
use crate::identity::{self, Content};
use crate::manifest::{
    CarriedEntry, DeltaType, FORMAT_VERSION, FileEntry, Fingerprints, INDEX, IndexEntry, MANIFEST,
};
use crate::paths::{self, Occupant, Output, root_of};
use crate::payload::PayloadWriter;
use crate::progress::{Stop, Ticker};
use crate::report::{CompressMetrics, CompressOutcome, Status, TensorReport};
use crate::residency::Residency;
use crate::tensor::header_prefix;
use crate::{
    CancelToken, DeltaError, DeltaManifest, Progress, blobs, carried, encode, index, merge,
    pipeline, verify,
};

/// What a delta keeps of a fine-tune.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Every byte.
    #[default]
    Lossless,
    /// Of large tensors an approximation: differences from the base as 8-bit codes and scales. Lossy, and labelled so
    /// wherever it is shown.
    Int8(Granularity),
}

impl Mode {
    /// The mode of a name ("lossless" or "int8"); `granularity` belongs to the latter.
    ///
    /// # Errors
    /// Another name, or a granularity for a lossless delta.
    pub fn parse(name: &str, granularity: Option<Granularity>) -> Result<Self, DeltaError> {
        match (name, granularity) {
            ("lossless", None) => Ok(Self::Lossless),
            ("lossless", Some(_)) => Err(DeltaError::usage(
                "a granularity belongs to mode int8: give that mode, or leave the granularity out",
            )),
            ("int8", granularity) => Ok(Self::Int8(granularity.unwrap_or_default())),
            _ => Err(DeltaError::usage(format!(
                "'{name}' is no mode: use lossless or int8"
            ))),
        }
    }

    /// The mode a manifest is of.
    pub(crate) fn of(manifest: &DeltaManifest) -> Self {
        manifest.lossy.as_ref().map_or(Self::Lossless, |lossy| {
            Self::Int8(lossy.granularity.parse().unwrap_or_default())
        })
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lossless => f.pad("lossless"),
            Self::Int8(granularity) => write!(f, "int8 by {granularity}"),
        }
    }
}

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

    /// How many threads encode. Default: as many as there are cores.
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

/// The blocking part.
struct Job {
    base: Arc<Model>,
    finetune: Arc<Model>,
    adapter: Option<PeftAdapter>,
    /// The fine-tune as an adapter, where it is one that is packed.
    packed: Option<PeftAdapter>,
    output: Option<Output>,
    effort: Effort,
    mode: Mode,
    overwrite: bool,
    dry_run: bool,
    threads: Option<usize>,
    cache: PathBuf,
    progress: Option<Progress>,
    stop: Stop,
    started: Instant,
}

/// What is known before anything is encoded.
struct Known {
    base_quick: String,
    finetune_quick: String,
    /// Where a full hash was needed early.
    hashed: Option<(String, Content)>,
}

impl Job {
    fn run(self) -> Result<StagedDelta, DeltaError> {
        let pool = pipeline::pool(self.threads)?;
        let _residency = Residency::watch(vec![Arc::clone(&self.base), Arc::clone(&self.finetune)]);
        if let Some(Output::Local(path)) = &self.output {
            paths::refuse_inputs(
                path,
                &[
                    ("base model", root_of(&self.base)),
                    ("fine-tuned model", root_of(&self.finetune)),
                ],
            )?;
        }
        if let Some(adapter) = &self.packed {
            merge::check(adapter, &self.base)?;
        }
        let (base_quick, finetune_quick) = pool.install(|| {
            (
                self.base.quick_fingerprint(),
                self.finetune.quick_fingerprint(),
            )
        });
        let mut known = Known {
            base_quick: base_quick?,
            finetune_quick: finetune_quick?,
            hashed: None,
        };
        let lock = if self.dry_run {
            None
        } else {
            Some(sparse_store::lock(&self.lock_name(&known)?, &self.cache)?)
        };
        self.stop.check()?;
        let replace = match self.look_at_output(&mut known, &pool)? {
            Found::Same { path, manifest } => {
                return self.existing(&path, *manifest, lock);
            }
            Found::Free => Replace::Never,
            Found::Replaceable => Replace::Allow,
        };
        self.make(known, replace, lock, &pool)
    }

    fn delta_type(&self) -> DeltaType {
        if self.packed.is_some() {
            DeltaType::Adapter
        } else {
            DeltaType::Model
        }
    }

    /// What the adapter adds to the key: SHA-256 of its configuration and of its factors.
    fn adapter_hash(&self) -> Result<Option<String>, DeltaError> {
        let Some(adapter) = &self.adapter else {
            return Ok(None);
        };
        let model = adapter.model();
        let quiet = Ticker::new(None, "", 0);
        let mut hashes = identity::hash_weights(model, &self.stop, &quiet)?;
        for file in model.carried() {
            if file.name == sparse_adapter::CONFIG {
                hashes.push(identity::hash_file(file.path(), &self.stop)?);
            }
        }
        Ok(Some(hashes.join(" ")))
    }

    /// Two runs that would write the same place wait for each other.
    fn lock_name(&self, known: &Known) -> Result<String, DeltaError> {
        Ok(match &self.output {
            Some(Output::Local(path)) => format!("delta {}", paths::resolved(path)?.display()),
            Some(Output::Url(url)) => format!("delta {url}"),
            None => format!(
                "delta {} {} {} {}",
                known.base_quick, known.finetune_quick, self.effort, self.mode
            ),
        })
    }

    /// What is at the output, and whether it may be replaced. Hashes both models only if it may be the same artifact.
    fn look_at_output(&self, known: &mut Known, pool: &ThreadPool) -> Result<Found, DeltaError> {
        match &self.output {
            None => {
                for (path, manifest) in self.stored_candidates(known) {
                    if manifest.key == self.key(known, pool)? && intact(&path, &self.stop) {
                        return Ok(Found::Same {
                            path,
                            manifest: Box::new(manifest),
                        });
                    }
                }
                // A damaged artifact of the same key is replaced by a sound one.
                Ok(Found::Replaceable)
            }
            // What is there is found out when the manifest is put, which fails if there is one.
            Some(Output::Url(_)) => Ok(Found::Free),
            Some(Output::Local(path)) => self.look_at_folder(path, known, pool),
        }
    }

    fn look_at_folder(
        &self,
        path: &Path,
        known: &mut Known,
        pool: &ThreadPool,
    ) -> Result<Found, DeltaError> {
        match paths::occupant(path)? {
            Occupant::Nothing => return Ok(Found::Free),
            Occupant::EmptyDir => return Ok(Found::Replaceable),
            Occupant::File => {
                return Err(DeltaError::Refused {
                    path: path.into(),
                    why: "it is a file, and an artifact is a folder".into(),
                });
            }
            Occupant::Dir => {}
        }
        if !artifact::is_artifact(path) {
            return Err(DeltaError::Refused {
                path: path.into(),
                why: "it is a folder that holds something other than a delta".into(),
            });
        }
        match artifact::read_manifest(path) {
            Ok(manifest) => {
                if self.may_be_same(&manifest, known) && manifest.key == self.key(known, pool)? {
                    if intact(path, &self.stop) {
                        return Ok(Found::Same {
                            path: path.into(),
                            manifest: Box::new(manifest),
                        });
                    }
                    return Ok(Found::Replaceable);
                }
                if self.overwrite {
                    Ok(Found::Replaceable)
                } else {
                    Err(occupied(path, &manifest, &self.wanted()))
                }
            }
            Err(_) if self.overwrite => Ok(Found::Replaceable),
            Err(error) => Err(DeltaError::Exists {
                path: path.into(),
                what: format!("it holds a delta that cannot be read ({error})"),
            }),
        }
    }

    /// What messages compare an existing artifact with.
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            base: self.base.id(),
            finetune: self.finetune.id(),
            how: how(&self.effort.to_string(), self.mode),
        }
    }

    fn may_be_same(&self, manifest: &DeltaManifest, known: &Known) -> bool {
        manifest.base.quick_fingerprint == known.base_quick
            && manifest.finetune_quick == known.finetune_quick
            && manifest.effort == self.effort.to_string()
            && (manifest.delta_type == DeltaType::Adapter.name()) == self.packed.is_some()
            && Mode::of(manifest) == self.mode
    }

    /// Artifacts of the delta store that may be the one asked for.
    fn stored_candidates(&self, known: &Known) -> Vec<(PathBuf, DeltaManifest)> {
        let Ok(entries) = std::fs::read_dir(paths::store_in(&self.cache)) else {
            return Vec::new();
        };
        let read = |path: PathBuf| {
            artifact::read_manifest(&path)
                .ok()
                .map(|manifest| (path, manifest))
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|e| read(e.path()))
            .filter(|(_, manifest)| self.may_be_same(manifest, known))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// The key, by hashing everything; once.
    fn key(&self, known: &mut Known, pool: &ThreadPool) -> Result<String, DeltaError> {
        if known.hashed.is_none() {
            let ticker = Ticker::new(
                self.progress.clone(),
                "comparing with the existing delta",
                self.finetune.weight_bytes(),
            );
            let (fingerprint, weights) = std::thread::scope(|scope| {
                let weights =
                    scope.spawn(|| identity::hash_weights(&self.finetune, &self.stop, &ticker));
                (identity::fingerprint(&self.base, pool), joined(weights))
            });
            let content = Content {
                weights: weights?,
                carried: identity::hash_carried(&self.finetune, &self.stop)?,
            };
            known.hashed = Some((fingerprint?, content));
        }
        let (fingerprint, content) = known
            .hashed
            .as_ref()
            .ok_or_else(|| DeltaError::internal("no hashes"))?;
        self.key_of(fingerprint, content)
    }

    fn key_of(&self, fingerprint: &str, content: &Content) -> Result<String, DeltaError> {
        let adapter = self.adapter_hash()?;
        Ok(identity::key(
            fingerprint,
            &self.finetune,
            content,
            self.effort,
            match self.delta_type() {
                DeltaType::Adapter => Some("an adapter"),
                DeltaType::Model | DeltaType::Int8 => adapter.as_deref(),
            },
            self.mode,
        ))
    }

    fn existing(
        self,
        path: &Path,
        manifest: DeltaManifest,
        lock: Option<LockGuard>,
    ) -> Result<StagedDelta, DeltaError> {
        let tensors = Artifact::open(path)?
            .tensors
            .iter()
            .map(TensorReport::new)
            .collect();
        let metrics = CompressMetrics {
            original_bytes: manifest.original_bytes,
            artifact_bytes: manifest.artifact_bytes,
            index_bytes: manifest.index.size,
            tensors: manifest.num_layers,
            elapsed: self.started.elapsed(),
            ..CompressMetrics::default()
        };
        let outcome = CompressOutcome {
            status: Status::Exists,
            path: path.display().to_string(),
            manifest,
            tensors,
            metrics,
        };
        Ok(StagedDelta {
            staged: None,
            replace: Replace::Never,
            url: None,
            outcome,
            started: self.started,
            open: OpenOptions::empty(),
            _lock: lock,
        })
    }

    fn make(
        self,
        known: Known,
        replace: Replace,
        lock: Option<LockGuard>,
        pool: &ThreadPool,
    ) -> Result<StagedDelta, DeltaError> {
        let staged = match (&self.output, self.dry_run) {
            (_, true) => None,
            (Some(Output::Local(path)), false) => Some(Staged::dir(path)?),
            (Some(Output::Url(_)), false) => Some(Staged::dir(
                &self.cache.join("uploads").join(&known.finetune_quick),
            )?),
            // The name is the key, which is known when all is hashed: staged under a name of the same folder until then.
            (None, false) => Some(Staged::dir(
                &paths::store_in(&self.cache).join(&known.finetune_quick),
            )?),
        };
        let mut made = self.write(&known, staged.as_ref().map(Staged::path), pool)?;
        let path = match &self.output {
            Some(Output::Local(path)) => path.clone(),
            Some(Output::Url(url)) => PathBuf::from(url.as_str()),
            None => paths::store_in(&self.cache).join(&made.manifest.key),
        };
        let staged = match (staged, &self.output) {
            (Some(staged), None) => Some(moved(&staged, &path)?),
            (staged, _) => staged,
        };
        made.metrics.bytes_written = if self.dry_run {
            0
        } else {
            made.manifest.artifact_bytes
        };
        made.metrics.elapsed = self.started.elapsed();
        let outcome = CompressOutcome {
            status: if self.dry_run {
                Status::DryRun
            } else {
                Status::Created
            },
            path: path.display().to_string(),
            manifest: made.manifest,
            tensors: made.tensors,
            metrics: made.metrics,
        };
        let url = match &self.output {
            Some(Output::Url(url)) => Some(url.clone()),
            _ => None,
        };
        Ok(StagedDelta {
            staged,
            replace,
            url,
            outcome,
            started: self.started,
            open: OpenOptions::empty(),
            _lock: lock,
        })
    }

    /// Writes all parts of the artifact into `dir`, or nowhere.
    fn write(
        &self,
        known: &Known,
        dir: Option<&Path>,
        pool: &ThreadPool,
    ) -> Result<Made, DeltaError> {
        let pairs = pool.install(|| sparse_store::pair(&self.base, &self.finetune));
        self.stop.check()?;
        let mut writer = PayloadWriter::new(dir);
        let options = EncodeOptions {
            effort: self.effort,
            ..EncodeOptions::default()
        };
        let quiet = Ticker::new(None, "", 0);
        // One thread hashes the fine-tune, one the base (on the pool), while the pool encodes.
        let (weights, fingerprint, encoded) = std::thread::scope(|scope| {
            let weights = scope.spawn(|| match &known.hashed {
                Some((_, content)) => Ok(content.weights.clone()),
                None => identity::hash_weights(&self.finetune, &self.stop, &quiet),
            });
            let fingerprint = scope.spawn(|| match &known.hashed {
                Some((fingerprint, _)) => Ok(fingerprint.clone()),
                None => identity::fingerprint(&self.base, pool),
            });
            let encoded = carried::store(&self.base, &self.finetune, &mut writer, &self.stop)
                .and_then(|carried| {
                    let headers = self.store_headers(&mut writer)?;
                    let before = writer.offset();
                    let encoded = encode::encode(
                        &self.base,
                        &self.finetune,
                        &pairs,
                        self.mode,
                        self.adapter.as_ref(),
                        &options,
                        &mut writer,
                        pool,
                        &self.stop,
                        &self.progress,
                    )?;
                    Ok((carried, headers, encoded, before))
                });
            if encoded.is_err() {
                self.stop.abandon();
            }
            (joined(weights), joined(fingerprint), encoded)
        });
        let (carried, headers, encoded, _) = encoded?;
        let content = Content {
            weights: weights?,
            carried: carried.iter().map(|c| c.sha256.clone()).collect(),
        };
        let fingerprint = fingerprint?;
        let payloads = writer.finish()?;
        let (index, rows) = index::write(&encoded.tensors)?;
        let tensors: Vec<TensorReport> = encoded.tensors.iter().map(TensorReport::new).collect();
        let key = self.key_of(&fingerprint, &content)?;
        let header_bytes: u64 = encoded
            .frames
            .iter()
            .chain(&encoded.tables)
            .map(|b| b.size)
            .sum();
        let carried_bytes = headers.size
            + carried
                .iter()
                .filter_map(|c| c.blob)
                .map(|b| b.size)
                .sum::<u64>();
        let mut manifest = DeltaManifest {
            version: "1.0".into(),
            delta_type: match encoded.lossy {
                Some(_) => DeltaType::Int8.name().to_owned(),
                None => self.delta_type().name().to_owned(),
            },
            base_model_id: self.base.id().to_owned(),
            finetune_model_id: self.finetune.id().to_owned(),
            created_at: timestamp(),
            num_layers: tensors.len() as u64,
            total_params: tensors.iter().map(|t| t.params).sum(),
            changed_params: tensors.iter().map(|t| t.changed).sum(),
            compression_ratio: 0.0,
            format_version: FORMAT_VERSION,
            codec_version: sparse_codec::FORMAT_VERSION,
            key,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            effort: self.effort.to_string(),
            lossy: encoded.lossy.as_ref().map(|(lossy, _)| lossy.clone()),
            single_file: self.finetune.is_single_file(),
            base: Fingerprints {
                fingerprint,
                quick_fingerprint: known.base_quick.clone(),
            },
            finetune_quick: known.finetune_quick.clone(),
            // The hashes of what is rebuilt.
            files: self.file_entries(match &encoded.lossy {
                Some((_, hashes)) => hashes,
                None => &content.weights,
            }),
            original_bytes: self.finetune.weight_bytes()
                + carried.iter().map(|c: &CarriedEntry| c.size).sum::<u64>(),
            carried,
            index: IndexEntry {
                file: INDEX.into(),
                size: index.len() as u64,
                blake3: blake3::hash(&index).to_hex().to_string(),
                rows,
            },
            headers,
            tables: encoded.tables,
            frames: encoded.frames,
            artifact_bytes: 0,
            seal: String::new(),
            payloads,
        };
        let payload_bytes: u64 = manifest.payloads.iter().map(|p| p.size).sum();
        let bytes = manifest.sealed(payload_bytes + index.len() as u64)?;
        if let Some(dir) = dir {
            write_file(&dir.join(INDEX), &index)?;
            write_file(&dir.join(MANIFEST), &bytes)?;
        }
        let metrics = CompressMetrics {
            bytes_read: self.base.weight_bytes() + manifest.original_bytes,
            original_bytes: manifest.original_bytes,
            artifact_bytes: manifest.artifact_bytes,
            block_bytes: encoded.block_bytes,
            header_bytes,
            carried_bytes,
            index_bytes: index.len() as u64,
            tensors: tensors.len() as u64,
            blocks: encoded.blocks,
            threads: pool.current_num_threads(),
            ..CompressMetrics::default()
        };
        Ok(Made {
            manifest,
            tensors,
            metrics,
        })
    }

    /// The verbatim headers of all weight files, compressed with those of the base.
    fn store_headers(
        &self,
        writer: &mut PayloadWriter,
    ) -> Result<crate::manifest::Blob, DeltaError> {
        let headers: Vec<u8> = self
            .finetune
            .files()
            .iter()
            .flat_map(|file| file.header_bytes().iter().copied())
            .collect();
        blobs::store(writer, &headers, &header_prefix(&self.base))
    }

    fn file_entries(&self, hashes: &[String]) -> Vec<FileEntry> {
        let entry = |(file, sha256): (&sparse_store::WeightFile, &String)| FileEntry {
            path: file.name.clone(),
            size: file.size,
            sha256: sha256.clone(),
            header: file.header_bytes().len() as u64,
        };
        self.finetune
            .files()
            .iter()
            .zip(hashes)
            .map(entry)
            .collect()
    }
}

/// The pair that was to be compressed.
struct Wanted<'w> {
    base: &'w str,
    finetune: &'w str,
    how: String,
}

/// Effort, and mode where it is not the usual one.
fn how(effort: &str, mode: Mode) -> String {
    match mode {
        Mode::Lossless => format!("effort {effort}"),
        mode => format!("{mode}, effort {effort}"),
    }
}

impl<'w> Wanted<'w> {
    fn of(manifest: &'w DeltaManifest) -> Self {
        Self {
            base: &manifest.base_model_id,
            finetune: &manifest.finetune_model_id,
            how: how(&manifest.effort, Mode::of(manifest)),
        }
    }
}

fn occupied(path: &Path, manifest: &DeltaManifest, wanted: &Wanted<'_>) -> DeltaError {
    let what = format!(
        "it holds the delta of {} against {} ({}, key {}), not that of {} against {} ({})",
        manifest.finetune_model_id,
        manifest.base_model_id,
        how(&manifest.effort, Mode::of(manifest)),
        manifest.key.get(..16).unwrap_or_default(),
        wanted.finetune,
        wanted.base,
        wanted.how,
    );
    DeltaError::Exists {
        path: path.into(),
        what,
    }
}

enum Found {
    Free,
    Replaceable,
    Same {
        path: PathBuf,
        manifest: Box<DeltaManifest>,
    },
}

struct Made {
    manifest: DeltaManifest,
    tensors: Vec<TensorReport>,
    metrics: CompressMetrics,
}

/// Whether every stored byte of an artifact is what its manifest says.
fn intact(path: &Path, stop: &Stop) -> bool {
    Artifact::open(path).is_ok_and(|artifact| {
        verify::payloads_intact(&artifact.payload, &artifact.manifest.payloads, stop)
    })
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
