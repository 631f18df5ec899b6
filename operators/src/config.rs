//! The session's options: `SET sparse.effort = 'max'`, `SHOW sparse.device`. They apply where a call does not say otherwise.

use std::any::Any;
use std::path::PathBuf;

use datafusion::common::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::common::{DataFusionError, Result};
use sparse_codec::Effort;
pub use sparse_gpu::Choice as Device;
use sparse_store::OpenOptions;

/// Options of a session. Credentials are no options: they come from the environment and are never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseConfig {
    /// `sparse.effort`: how hard `sparse_compress` tries: fast, default or max.
    pub effort: Effort,
    /// `sparse.device`: where what a GPU can do runs: auto, cpu or cuda.
    pub device: Device,
    /// `sparse.cache_dir`: where fetched models and locks are kept.
    pub cache_dir: Option<PathBuf>,
    /// `sparse.offline`: use caches only, never the network. Unset: as `HF_HUB_OFFLINE` says.
    pub offline: Option<bool>,
    /// `sparse.memory`: bytes of memory an operation on datasets may use, about.
    pub memory: u64,
    /// `sparse.threads`: CPU threads one operation may use; 0 for all.
    pub threads: usize,
}

impl Default for SparseConfig {
    fn default() -> Self {
        Self {
            effort: Effort::Default,
            device: Device::Auto,
            cache_dir: None,
            offline: None,
            memory: 1 << 30,
            threads: 0,
        }
    }
}

/// A number of bytes: `1048576`, `512MB`, `1.5GiB`.
///
/// # Errors
/// What is no such number, with what may be written.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refused = || format!("'{text}' is no size; write bytes, or a unit: 512MB, 2GiB");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        "t" | "tb" => 1_000_000_000_000,
        "tib" => 1 << 40,
        _ => return Err(refused()),
    };
    if let Ok(number) = number.parse::<u64>() {
        return number
            .checked_mul(unit)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(refused);
    }
    let number: f64 = number.parse().map_err(|_| refused())?;
    let bytes = number * unit as f64;
    if !(1.0..1e18).contains(&bytes) {
        return Err(refused());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 10^18"
    )]
    let bytes = bytes as u64;
    Ok(bytes)
}

const EFFORT: &str = "How hard sparse_compress tries: fast, default or max";
const DEVICE: &str = "Where what a GPU can do runs (blocks of sparse_compress, sparse_reconstruct, sparse_verify, sparse_benchmark \
                      and the cache; INT8 of sparse_compress and sparse_validate_int8; the decompositions of \
                      sparse_svd_compress, with cuBLAS; sparse_diff): auto, cpu or cuda";
const CACHE_DIR: &str =
    "Where fetched models and locks are kept; unset: SPARSE_CACHE, or ~/.cache/sparse";
const OFFLINE: &str = "Use caches only, never the network; unset: as HF_HUB_OFFLINE says";
const MEMORY: &str = "Bytes of memory an operation on datasets may use, about; what is larger goes to temporary files (512MB, 2GiB)";
const THREADS: &str = "CPU threads one operation may use; 0 for all";

impl SparseConfig {
    /// The options in a session's configuration; defaults where it has none.
    pub fn of(config: &ConfigOptions) -> Self {
        config.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// How models are opened.
    pub fn open_options(&self) -> OpenOptions {
        let mut options = OpenOptions::default();
        if let Some(dir) = &self.cache_dir {
            options.cache_dir = Some(dir.clone());
        }
        if let Some(offline) = self.offline {
            options.offline = offline;
        }
        options
    }

    /// Every option as (name, value, description).
    pub fn documented(&self) -> [(&'static str, Option<String>, &'static str); 6] {
        [
            (
                "sparse.cache_dir",
                self.cache_dir.as_ref().map(|dir| dir.display().to_string()),
                CACHE_DIR,
            ),
            ("sparse.device", Some(self.device.to_string()), DEVICE),
            ("sparse.effort", Some(self.effort.to_string()), EFFORT),
            ("sparse.memory", Some(self.memory.to_string()), MEMORY),
            (
                "sparse.offline",
                self.offline.map(|offline| offline.to_string()),
                OFFLINE,
            ),
            ("sparse.threads", Some(self.threads.to_string()), THREADS),
        ]
    }
}

impl ConfigExtension for SparseConfig {
    const PREFIX: &'static str = "sparse";
}

impl ExtensionOptions for SparseConfig {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let refuse = |message: String| Err(DataFusionError::Configuration(message));
        match key {
            "effort" => match value.parse() {
                Ok(effort) => self.effort = effort,
                Err(error) => return refuse(format!("sparse.effort: {error}")),
            },
            "device" => match value.parse() {
                // Said here rather than by the first statement that would use it.
                Ok(Device::Cuda) => match sparse_gpu::probe() {
                    Ok(_) => self.device = Device::Cuda,
                    Err(absent) => {
                        let error = sparse_gpu::GpuError::from(absent);
                        return refuse(format!("sparse.device: {error}"));
                    }
                },
                Ok(device) => self.device = device,
                Err(error) => return refuse(format!("sparse.device: {error}")),
            },
            "cache_dir" => {
                self.cache_dir = (!value.is_empty()).then(|| PathBuf::from(value));
            }
            "offline" => match value.parse() {
                Ok(offline) => self.offline = Some(offline),
                Err(_) => return refuse(format!("sparse.offline: '{value}' is not true or false")),
            },
            "memory" => match parse_bytes(value) {
                Ok(memory) => self.memory = memory,
                Err(error) => return refuse(format!("sparse.memory: {error}")),
            },
            "threads" => match value.parse() {
                Ok(threads) => self.threads = threads,
                Err(_) => {
                    return refuse(format!(
                        "sparse.threads: '{value}' is not a number; 0 means all"
                    ));
                }
            },
            _ => {
                return refuse(format!(
                    "there is no option sparse.{key}; options are sparse.cache_dir, sparse.device, sparse.effort, \
                     sparse.memory, sparse.offline and sparse.threads"
                ));
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        self.documented()
            .into_iter()
            .map(|(key, value, description)| ConfigEntry {
                key: key.to_owned(),
                value,
                description,
            })
            .collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_when_they_are_set() {
        let mut config = SparseConfig::default();
        config.set("effort", "max").unwrap();
        assert_eq!(config.effort, Effort::Max);
        let cuda = config.set("device", "cuda");
        match sparse_gpu::probe() {
            Ok(_) => assert_eq!(config.device, Device::Cuda),
            Err(_) => assert!(cuda.unwrap_err().to_string().contains("no GPU")),
        }
        assert!(
            config
                .set("device", "tpu")
                .unwrap_err()
                .to_string()
                .contains("'tpu'")
        );
        assert!(
            config
                .set("rank", "3")
                .unwrap_err()
                .to_string()
                .contains("sparse.effort")
        );
        assert!(config.set("threads", "many").is_err());
        config.set("memory", "1.5GiB").unwrap();
        assert_eq!(config.memory, 3 << 29);
        for (text, bytes) in [
            ("7", 7),
            ("512MB", 512_000_000),
            ("2 gib", 2 << 30),
            ("1k", 1000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "GB",
            "0",
            "-1",
            "1e99",
            "5 parsecs",
            "99999999999TiB",
            "1.2.3MB",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
