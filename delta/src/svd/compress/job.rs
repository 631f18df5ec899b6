//! The blocking part: from two open models to a staged artifact.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rayon::ThreadPool;
use rayon::prelude::*;
use sparse_gpu::SvdStreamed;
use sparse_store::{Model, OpenOptions, Replace, Staged};
use sparse_svd::{Measured, Rank};

use super::existing::{Found, metrics_of};
use super::tensors::Work;
use super::{StagedSvd, SvdCompress, SvdMetrics, SvdOutcome};
use crate::compress::{joined, timestamp, write_file};
use crate::identity::{self, Content};
use crate::manifest::{Blob, Fingerprints, MANIFEST};
use crate::modules::Modules;
use crate::paths::{self, Output, root_of};
use crate::payload::PayloadWriter;
use crate::progress::{Stop, Ticker};
use crate::residency::Residency;
use crate::svd::adapters::{self, Module, Profile, Wanted};
use crate::svd::manifest::{
    self, AdapterEntry, Kept, SVD_FORMAT, SvdDeltaManifest, SvdFile, SvdTensor,
};
use crate::svd::plan::{Plan, Wishes};
use crate::svd::rank::{GENEROUS, SvdRank};
use crate::svd::resume::Resume;
use crate::svd::units::{Decomposed, Done, Units, quality_of};
use crate::tensor::header_prefix;
use crate::{DeltaError, Status, blobs, carried, pipeline, seal};

pub(super) struct Job {
    pub(super) base: Arc<Model>,
    pub(super) finetune: Arc<Model>,
    pub(super) output: Option<Output>,
    pub(super) cache: PathBuf,
    pub(super) stop: Stop,
    pub(super) started: Instant,
    pub(super) options: SvdCompress,
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
    /// Matrices that a GPU decomposed.
    device_matrices: u64,
}

impl Job {
    pub(super) fn run(self) -> Result<StagedSvd, DeltaError> {
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
        // A device that must be there and is not is told before any work.
        let device = SvdStreamed::open(self.options.device)?;
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
            &device,
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

    /// Writes all parts of the artifact into `dir`, or nowhere.
    fn make(
        &self,
        identity: &Identity,
        dir: Option<&Path>,
        resume: Option<Resume>,
        device: &SvdStreamed,
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
        let made = self.tensors(&modules, &ranks, &mut writer, resume, device, pool)?;
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
            device_matrices: made.device_matrices,
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
        device: &SvdStreamed,
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
            device,
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
            device_matrices: 0,
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
        made.device_matrices = device.done();
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
