//! The blocking part: from open models to a staged artifact.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rayon::ThreadPool;
use sparse_adapter::PeftAdapter;
use sparse_codec::{Effort, EncodeOptions};
use sparse_gpu::{Blocks, Choice, Compute, Encoding, Int8Streamed};
use sparse_store::{LockGuard, Model, OpenOptions, Replace, Staged};

use super::existing::Found;
use super::{StagedDelta, joined, moved, timestamp, write_file};
use crate::identity::{self, Content};
use crate::manifest::{
    CarriedEntry, DeltaType, FORMAT_VERSION, FileEntry, Fingerprints, INDEX, IndexEntry, MANIFEST,
};
use crate::mode::Mode;
use crate::paths::{self, Output, root_of};
use crate::payload::PayloadWriter;
use crate::progress::{Stop, Ticker};
use crate::report::{CompressMetrics, CompressOutcome, Status, TensorReport};
use crate::residency::Residency;
use crate::tensor::header_prefix;
use crate::{DeltaError, DeltaManifest, Progress, blobs, carried, encode, index, merge, pipeline};

/// The blocking part.
pub(super) struct Job {
    pub(super) base: Arc<Model>,
    pub(super) finetune: Arc<Model>,
    pub(super) adapter: Option<PeftAdapter>,
    /// The fine-tune as an adapter, where it is one that is packed.
    pub(super) packed: Option<PeftAdapter>,
    pub(super) output: Option<Output>,
    pub(super) effort: Effort,
    pub(super) mode: Mode,
    pub(super) overwrite: bool,
    pub(super) dry_run: bool,
    pub(super) threads: Option<usize>,
    pub(super) device: Choice,
    pub(super) cache: PathBuf,
    pub(super) progress: Option<Progress>,
    pub(super) stop: Stop,
    pub(super) started: Instant,
}

/// What is known before anything is encoded.
pub(super) struct Known {
    pub(super) base_quick: String,
    pub(super) finetune_quick: String,
    /// Where a full hash was needed early.
    pub(super) hashed: Option<(String, Content)>,
}

impl Job {
    pub(super) fn run(self) -> Result<StagedDelta, DeltaError> {
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

    pub(super) fn delta_type(&self) -> DeltaType {
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

    /// The key, by hashing everything; once.
    pub(super) fn key(&self, known: &mut Known, pool: &ThreadPool) -> Result<String, DeltaError> {
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
        let compute = Arc::new(Compute::open(self.device)?);
        let device = encode::Elsewhere {
            int8: Int8Streamed::on(&compute)?,
            blocks: Blocks::on(&compute)?,
            encoding: Encoding::on(&compute)?,
        };
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
                        &device,
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
            device_blocks: device.encoding.done() + device.blocks.done().device,
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

struct Made {
    manifest: DeltaManifest,
    tensors: Vec<TensorReport>,
    metrics: CompressMetrics,
}
