//! What a model on this machine says of itself.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use crate::card::{self, MAX_CARD};
use crate::entry::{DeclaredIn, ModelEntry};
use crate::weights::Weights;

/// The largest configuration read.
const MAX_CONFIG: u64 = 16 << 20;

#[derive(Default, Deserialize)]
struct Config {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    #[serde(rename = "_name_or_path")]
    name_or_path: Option<String>,
    /// Of `model_index.json`, which describes a pipeline.
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct AdapterConfig {
    base_model_name_or_path: Option<String>,
    peft_type: Option<String>,
}

/// Fills `entry` with what the model at `path` (a folder or a safetensors file) says. What cannot be read is its `problem`.
pub(crate) fn describe(entry: &mut ModelEntry, path: &Path, headers: bool) {
    if path.is_dir() {
        let config: Config = json(&path.join("config.json"))
            .or_else(|| json(&path.join("model_index.json")))
            .unwrap_or_default();
        let adapter: Option<AdapterConfig> = json(&path.join("adapter_config.json"));
        entry.model_type = config.model_type.or(entry.model_type.take());
        entry.architecture = config
            .architectures
            .and_then(|names| names.into_iter().next())
            .or(config.class_name)
            .or(entry.architecture.take());
        let readme = text(&path.join("README.md"), MAX_CARD).unwrap_or_default();
        let card = card::parse(&readme);
        if let Some(adapter) = &adapter {
            entry.architecture = adapter.peft_type.clone().or(entry.architecture.take());
        }
        let named = adapter
            .as_ref()
            .and_then(|adapter| adapter.base_model_name_or_path.clone())
            .filter(|base| !base.is_empty());
        if entry.base.is_some() {
            // The catalog itself has said it.
        } else if let Some(base) = card.base {
            entry.relation = card.relation;
            entry.base = Some(base);
            entry.declared_in = Some(DeclaredIn::Readme);
        } else if let Some(base) = named {
            entry.base = Some(base);
            entry.declared_in = Some(DeclaredIn::AdapterConfig);
        } else if let Some(base) = config
            .name_or_path
            .filter(|base| !base.is_empty() && !entry.is_called(base) && Path::new(base) != path)
        {
            entry.base = Some(base);
            entry.declared_in = Some(DeclaredIn::Config);
        }
        if adapter.is_some() && entry.relation.is_none() {
            entry.relation = Some("adapter".to_owned());
        }
    }
    if headers {
        match Weights::open(path) {
            Ok(weights) => count(entry, &weights),
            Err(error) => entry.problem = Some(error.to_string()),
        }
    }
    entry.path = Some(path.to_path_buf());
}

fn count(entry: &mut ModelEntry, weights: &Weights) {
    let mut by_dtype: BTreeMap<&str, u64> = BTreeMap::new();
    let mut params = 0_u64;
    for tensor in &weights.tensors {
        params = params.saturating_add(tensor.params());
        let of_dtype = by_dtype.entry(&tensor.dtype).or_default();
        *of_dtype = of_dtype.saturating_add(tensor.params());
    }
    entry.params = Some(params);
    entry.tensors = Some(weights.tensors.len() as u64);
    entry.bytes = Some(weights.bytes);
    entry.dtype = by_dtype
        .into_iter()
        .max_by_key(|(_, params)| *params)
        .map(|(dtype, _)| dtype.to_owned());
}

/// A JSON file; none if it is not there, too large or not valid.
fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let text = text(path, MAX_CONFIG)?;
    match serde_json::from_str(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not valid");
            None
        }
    }
}

/// Up to `limit` bytes of a text file.
fn text(path: &Path, limit: u64) -> Option<String> {
    let file = std::fs::File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
