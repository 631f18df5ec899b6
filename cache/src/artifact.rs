//! A delta of any kind, as the model that it makes: a lossless one, an adapter merged into its base, a low-rank approximation.

use std::path::Path;
use std::sync::Arc;

use sparse_delta::{
    DeltaError, DeltaManifest, DeltaType, FileReport, MergeRule, Reconstruct, StagedApproximation,
    StagedModel, SvdDeltaManifest, SvdReconstruct,
};
use sparse_store::Model;

use crate::CacheError;
use crate::cache::{DeltaCache, blocking};

/// The version of entries: part of their keys.
const VERSION: u32 = 1;

/// What a delta artifact says of itself.
#[derive(Clone, Debug)]
pub(crate) enum Artifact {
    /// The fine-tune, or what its lossy delta keeps of it.
    Model(Box<DeltaManifest>),
    /// An adapter; the model is its base with it merged in, as PEFT's `merge_and_unload()` does: loaders want one model.
    Adapter(Box<DeltaManifest>),
    /// A low-rank approximation, at its largest rank.
    Approximation(Box<SvdDeltaManifest>),
}

impl Artifact {
    /// Reads and checks the manifest of an artifact's folder.
    pub(crate) fn read(dir: &Path) -> Result<Self, DeltaError> {
        if sparse_delta::support::delta_type(dir).as_deref() == Some("svd_delta") {
            return Ok(Self::Approximation(Box::new(SvdDeltaManifest::read(dir)?)));
        }
        let manifest = Box::new(DeltaManifest::read(dir)?);
        Ok(if manifest.delta_type == DeltaType::Adapter.name() {
            Self::Adapter(manifest)
        } else {
            Self::Model(manifest)
        })
    }

    /// The base that it names.
    pub(crate) fn base(&self) -> &str {
        match self {
            Self::Model(manifest) | Self::Adapter(manifest) => &manifest.base_model_id,
            Self::Approximation(manifest) => &manifest.base_model_id,
        }
    }

    /// What an entry is a function of: the base and what the delta makes of it (both in the delta's key), and the versions.
    pub(crate) fn key(&self) -> String {
        let (format, fingerprint, key) = match self {
            Self::Model(m) | Self::Adapter(m) => (m.format_version, &m.base.fingerprint, &m.key),
            Self::Approximation(m) => (m.format_version, &m.base.fingerprint, &m.key),
        };
        let mut hasher = blake3::Hasher::new_derive_key("sparse 2026-11 key of a cached model");
        let mut parts = vec![
            VERSION.to_string(),
            format.to_string(),
            fingerprint.clone(),
            key.clone(),
        ];
        match self {
            Self::Model(_) => {}
            Self::Adapter(_) => parts.push(format!("merged, {}", MergeRule::default().name())),
            Self::Approximation(m) => {
                let rank = m.ranks.last().copied().unwrap_or_default();
                parts.push(format!("approximation of rank {rank}"));
            }
        }
        for part in parts {
            hasher
                .update(&(part.len() as u64).to_le_bytes())
                .update(part.as_bytes());
        }
        // Content, not only the key that names it: a manifest may be made by hand.
        let mut file = |path: &str, content: &str| {
            hasher
                .update(path.as_bytes())
                .update(b"\0")
                .update(content.as_bytes());
        };
        match self {
            Self::Model(m) | Self::Adapter(m) => {
                m.files.iter().for_each(|f| file(&f.path, &f.sha256));
                m.carried.iter().for_each(|f| file(&f.path, &f.sha256));
            }
            // Its files' hashes are not known before they are rebuilt: the manifest as a whole stands for them.
            Self::Approximation(m) => file("manifest", &m.seal),
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The most bytes that the model may have. Of a merged one the base says it, which is opened for that.
    pub(crate) async fn room(&self, base: &str, cache: &DeltaCache) -> Result<u64, CacheError> {
        Ok(match self {
            Self::Model(manifest) => manifest.original_bytes,
            Self::Adapter(manifest) => {
                let base = Model::open(base, &cache.options).await?;
                let files = base.files().iter().map(|file| file.size);
                let others = base.carried().iter().map(|file| file.size);
                // Modules saved whole may be larger than those of the base, and a cast one twice as large.
                sum(files.chain(others)).saturating_add(manifest.original_bytes.saturating_mul(2))
            }
            Self::Approximation(manifest) => {
                let files = manifest.files.iter().map(|file| file.size);
                sum(files.chain(manifest.carried.iter().map(|file| file.size)))
            }
        })
    }

    /// Rebuilds the model, not yet visible.
    pub(crate) async fn stage(
        &self,
        base: &str,
        delta: &str,
        output: &Path,
        cache: &DeltaCache,
    ) -> Result<Rebuilt, CacheError> {
        let output = output.display().to_string();
        if let Self::Approximation(_) = self {
            let mut reconstruct = SvdReconstruct::new(base, delta)
                .output(output)
                .threads(cache.threads)
                .link_from(cache.options.hub_cache.clone())
                .open_options(cache.options.clone())
                .cancel(cache.cancel.clone());
            if let Some(progress) = &cache.progress {
                reconstruct = reconstruct.progress(Arc::clone(progress));
            }
            return Ok(Rebuilt::Approximation(reconstruct.stage().await?));
        }
        let mut reconstruct = Reconstruct::new(base, delta)
            .output(output)
            .threads(cache.threads)
            .link_from(cache.options.hub_cache.clone())
            .device(cache.device)
            .open_options(cache.options.clone())
            .cancel(cache.cancel.clone());
        if let Self::Adapter(_) = self {
            reconstruct = reconstruct.merge(MergeRule::default());
        }
        if let Some(progress) = &cache.progress {
            reconstruct = reconstruct.progress(Arc::clone(progress));
        }
        Ok(Rebuilt::Exact(reconstruct.stage().await?))
    }
}

/// A sum of sizes that a manifest may have made up.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// A model that is complete, and not yet visible.
pub(crate) enum Rebuilt {
    Exact(StagedModel),
    Approximation(StagedApproximation),
}

impl Rebuilt {
    /// Its files.
    pub(crate) fn files(&self) -> &[FileReport] {
        match self {
            Self::Exact(staged) => &staged.outcome().files,
            Self::Approximation(staged) => &staged.outcome().files,
        }
    }

    /// The quick fingerprint of its weights.
    pub(crate) async fn quick_fingerprint(&self) -> Result<String, CacheError> {
        let place = match self {
            Self::Exact(staged) => staged.path(),
            Self::Approximation(staged) => staged.path(),
        };
        let place = place
            .map(Path::to_path_buf)
            .ok_or_else(|| CacheError::Internal {
                message: "a model is there that this process was to make".to_owned(),
            })?;
        blocking(move || Ok(Model::open_local(&place)?.quick_fingerprint()?)).await
    }

    pub(crate) async fn commit(self) -> Result<(), CacheError> {
        match self {
            Self::Exact(staged) => staged.commit().await.map(drop)?,
            Self::Approximation(staged) => staged.commit().await.map(drop)?,
        }
        Ok(())
    }
}
