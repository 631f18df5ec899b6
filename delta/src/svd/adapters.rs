//! The factors as adapters that PEFT and vLLM load.

use std::path::Path;

use sparse_adapter::{FactorType, Layout, Learned};
use sparse_svd::{Factors, Precision};

use super::manifest::AdapterEntry;
use crate::DeltaError;
use crate::error::During;
use crate::modules::Modules;

/// Which program an adapter is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// PEFT: every approximated module, each with its rank.
    #[default]
    Peft,
    /// vLLM: linear layers only, all of one rank (smaller ones are filled up with zeros).
    Vllm,
}

impl Profile {
    /// "peft" or "vllm".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Vllm => "vllm",
        }
    }

    /// The profile of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Peft, Self::Vllm]
            .into_iter()
            .find(|p| p.name() == name)
    }

    fn takes(self, module: &str, layout: Layout) -> bool {
        // vLLM treats the head as an embedding, not as a linear layer.
        self == Self::Peft || layout == Layout::Linear && !module.ends_with("lm_head")
    }
}

/// Factors of one module.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) factors: Factors,
}

/// Where an adapter goes in an artifact, and which.
pub(crate) struct Wanted<'w> {
    pub(crate) folder: String,
    pub(crate) rank: usize,
    pub(crate) profile: Profile,
    pub(crate) precision: Precision,
    pub(crate) base: &'w str,
}

/// Writes an adapter into `folder` of `dir`; none where no module is left for it.
pub(crate) fn write(
    dir: &Path,
    wanted: Wanted<'_>,
    kinds: &Modules,
    modules: &[Module],
) -> Result<Option<AdapterEntry>, DeltaError> {
    let mut learned: Vec<Learned> = modules
        .iter()
        .filter_map(|module| {
            let layout = kinds.layout(&module.name);
            let factors = module.factors.truncated(wanted.rank);
            let taken = wanted.profile.takes(&module.name, layout) && factors.rank > 0;
            taken.then(|| Learned {
                module: module.name.clone(),
                layout,
                rank: factors.rank,
                left: factors.left,
                right: factors.right,
            })
        })
        .collect();
    let rank = learned.iter().map(|l| l.rank).max().unwrap_or(0);
    if rank == 0 {
        return Ok(None);
    }
    if wanted.profile == Profile::Vllm {
        for module in &mut learned {
            fill_up(module, rank);
        }
    }
    let folder = dir.join(&wanted.folder);
    std::fs::create_dir_all(&folder).during("create", &folder)?;
    let factors = match wanted.precision {
        Precision::F16 => FactorType::F16,
        Precision::BF16 => FactorType::BF16,
        // Integers times scales take more digits than halves have.
        Precision::F32 | Precision::Int8 | Precision::Int4 => FactorType::F32,
    };
    sparse_adapter::write_as(factors, &folder, wanted.base, kinds.task(), &learned)?;
    let mut bytes = 0;
    let mut hashes = [String::new(), String::new()];
    for (hash, name) in hashes.iter_mut().zip(sparse_adapter::FILES) {
        let path = folder.join(name);
        let content = std::fs::read(&path).during("read", &path)?;
        bytes += content.len() as u64;
        *hash = blake3::hash(&content).to_hex().to_string();
    }
    Ok(Some(AdapterEntry {
        folder: wanted.folder,
        rank: rank as u64,
        profile: wanted.profile.name().to_owned(),
        bytes,
        blake3: hashes,
    }))
}

/// Zeros up to a rank.
fn fill_up(module: &mut Learned, rank: usize) {
    let (old, cols) = (module.rank, module.right.len() / module.rank.max(1));
    module.left = module
        .left
        .chunks_exact(old.max(1))
        .flat_map(|row| {
            row.iter()
                .copied()
                .chain(std::iter::repeat_n(0.0, rank - old))
        })
        .collect();
    module.right.resize(rank * cols, 0.0);
    module.rank = rank;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_up_changes_no_product() {
        let mut module = Learned {
            module: "m".into(),
            layout: Layout::Linear,
            rank: 1,
            left: vec![1.0, 2.0],
            right: vec![3.0, 4.0, 5.0],
        };
        fill_up(&mut module, 3);
        assert_eq!(module.left, [1.0, 0.0, 0.0, 2.0, 0.0, 0.0]);
        assert_eq!(module.right, [3.0, 4.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
