//! An adapter's folder, written so that PEFT loads it.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::layout::transposed;
use crate::{AdapterError, Layout};

/// The files that [`write()`] makes.
pub const FILES: [&str; 2] = [crate::CONFIG, crate::WEIGHTS];

/// The learned update of one module: `left x right` is added to its weight.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The module's name in the base model.
    pub module: String,
    /// How PEFT's factors lie to the weight.
    pub layout: Layout,
    /// The rank.
    pub rank: usize,
    /// `rows x rank` of the weight's rows, row after row.
    pub left: Vec<f32>,
    /// `rank x columns`, row after row.
    pub right: Vec<f32>,
}

/// The dtype of an adapter's factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FactorType {
    /// IEEE single.
    #[default]
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
}

impl FactorType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        let each = values.iter();
        match self {
            Self::F32 => each.flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => each.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Self::BF16 => each
                .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                .collect(),
        }
    }
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` into a folder: F32 factors, alpha equal to the rank.
///
/// # Errors
/// A file that cannot be written.
pub fn write(
    folder: &Path,
    base: &str,
    task: Option<&str>,
    modules: &[Learned],
) -> Result<(), AdapterError> {
    write_as(FactorType::F32, folder, base, task, modules)
}

/// As [`write()`], with factors of another dtype.
///
/// # Errors
/// As [`write()`].
pub fn write_as(
    factors: FactorType,
    folder: &Path,
    base: &str,
    task: Option<&str>,
    modules: &[Learned],
) -> Result<(), AdapterError> {
    let failed = |what: String| AdapterError::Unusable {
        adapter: folder.display().to_string(),
        what,
    };
    let mut tensors: BTreeMap<String, ([usize; 2], Vec<u8>)> = BTreeMap::new();
    for module in modules {
        let rank = module.rank.max(1);
        let (rows, cols) = (module.left.len() / rank, module.right.len() / rank);
        let [a, b] = module.layout.keys();
        let key = |suffix| format!("base_model.model.{}{suffix}", module.module);
        let (left, right) = (factors.bytes(&module.left), factors.bytes(&module.right));
        if module.layout.is_transposed() {
            tensors.insert(
                key(a),
                ([rank, rows], transposed(&left, rank, factors.size())),
            );
            tensors.insert(
                key(b),
                ([cols, rank], transposed(&right, cols, factors.size())),
            );
        } else {
            tensors.insert(key(a), ([rank, cols], right));
            tensors.insert(key(b), ([rows, rank], left));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, (shape, data))| {
            TensorView::new(factors.dtype(), shape.to_vec(), data)
                .map(|view| (name, view))
                .map_err(|error| failed(error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let file =
        safetensors::serialize(views, Some(metadata)).map_err(|error| failed(error.to_string()))?;
    let config = serde_json::to_vec_pretty(&config(base, task, modules))
        .map_err(|error| failed(error.to_string()))?;
    for (name, bytes) in [(crate::WEIGHTS, file), (crate::CONFIG, config)] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| AdapterError::Write { path, source })?;
    }
    Ok(())
}

/// PEFT fills in what is not there.
fn config(base: &str, task: Option<&str>, modules: &[Learned]) -> Value {
    let rank = modules.iter().map(|m| m.rank).max().unwrap_or(1);
    let others: BTreeMap<&str, usize> = modules
        .iter()
        .filter(|m| m.rank != rank)
        .map(|m| (m.module.as_str(), m.rank))
        .collect();
    // Names are patterns: their dots are no wildcards.
    let pattern: BTreeMap<String, usize> = others
        .iter()
        .map(|(name, rank)| (regex::escape(name), *rank))
        .collect();
    let mut targets: Vec<&str> = modules.iter().map(|m| m.module.as_str()).collect();
    targets.sort_unstable();
    json!({
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": modules.iter().any(|m| m.layout == Layout::Transposed),
        "target_modules": targets,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": false,
    })
}
