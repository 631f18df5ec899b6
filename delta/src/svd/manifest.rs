//! `manifest.json` of a low-rank approximation: what it is and how far off, per tensor and in total.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sparse_svd::Precision;

use crate::manifest::{
    Blob, CarriedEntry, Fingerprints, MAX_HEADER, PayloadEntry, check_blob, check_carried,
    check_hex, check_paths, check_payloads, round4,
};
use crate::{DeltaError, seal};

/// The version of this artifact format that is written, and the latest that is read.
pub(crate) const SVD_FORMAT: u32 = 1;
/// No matrix of a model has a larger rank.
pub(crate) const MAX_RANK: u64 = 1 << 20;
/// No artifact has more rows: tensors, each at every rank.
const MAX_ROWS: usize = 1 << 24;

/// The manifest of a low-rank approximation. The first thirteen fields are those of the API reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SvdDeltaManifest {
    /// Version of the manifest's public fields: "1.0".
    pub version: String,
    /// "svd_delta".
    pub delta_type: String,
    /// The base model as it was given.
    pub base_model_id: String,
    /// The fine-tuned model as it was given.
    pub finetune_model_id: String,
    /// When the artifact was made, ISO 8601, UTC.
    pub created_at: String,
    /// The largest rank of any matrix.
    pub rank: u64,
    /// Tensors of the fine-tune that are approximated.
    pub num_layers: u64,
    /// Parameters of the fine-tune.
    pub total_params: u64,
    /// Bytes of the fine-tune: weights and carried files.
    pub original_size_bytes: u64,
    /// Bytes of the artifact: everything but the adapters, which repeat its factors for other programs.
    pub compressed_size_bytes: u64,
    /// The former over the latter.
    pub compression_ratio: f64,
    /// The mean over the approximated tensors of the mean magnitude of what is left, at the largest rank.
    pub avg_reconstruction_error: f64,
    /// The largest magnitude of what is left of any approximated tensor, at the largest rank.
    pub max_reconstruction_error: f64,
    /// Version of the artifact format.
    pub format_version: u32,
    /// Version of the codec that kept the other tensors.
    pub codec_version: u32,
    /// What the artifact is a function of: BLAKE3 over base, fine-tune, options and format versions.
    pub key: String,
    /// The program version that wrote it.
    pub tool_version: String,
    /// What decided the ranks: "rank 16", "auto", "energy 0.9" or "bytes 50000000".
    pub rule: String,
    /// The ranks that can be rebuilt, ascending. One where each matrix has a rank of its own.
    pub ranks: Vec<u64>,
    /// How factors are stored: "f32", "f16", "bf16", "int8" or "int4".
    pub precision: String,
    /// Whether signs of what the factors leave are stored, with a magnitude for each row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signs: bool,
    /// Whether the fine-tune was a single file rather than a folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_file: bool,
    /// The base it was made against.
    pub base: Fingerprints,
    /// How far off all approximated tensors are together, for each of `ranks`.
    pub quality: Vec<Quality>,
    /// The largest singular value of any difference.
    pub sigma_1: f64,
    /// The share of the energy of all differences that rounding both models to their dtypes explains, estimated.
    pub noise_share: f64,
    /// The mean over the approximated tensors of their effective ranks.
    pub effective_rank: f64,
    /// The adapters for PEFT in the artifact.
    pub adapters: Vec<AdapterEntry>,
    /// The safetensors files, in order.
    pub files: Vec<SvdFile>,
    /// Every other file.
    pub carried: Vec<CarriedEntry>,
    /// The payload files, in order.
    pub payloads: Vec<PayloadEntry>,
    /// The verbatim safetensors headers of all files, one after another.
    pub headers: Blob,
    /// Every tensor, in the order of the files and of their headers.
    pub tensors: Vec<SvdTensor>,
    /// BLAKE3 (first 16 bytes) of this manifest without this field, as compact JSON.
    #[serde(default)]
    pub seal: String,
}

/// How far an approximation is from the difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The rank; the largest of several.
    pub rank: u64,
    /// The share of the difference's squared Frobenius norm that the approximation holds, factors as stored.
    pub captured_energy: f64,
    /// The Frobenius norm of what is left over that of the difference.
    pub relative_error: f64,
    /// The largest magnitude of what is left.
    pub max_abs_error: f64,
    /// The mean magnitude of what is left.
    pub mean_abs_error: f64,
    /// The smallest singular value that is kept.
    pub sigma_k: f64,
}

/// One adapter for PEFT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterEntry {
    /// Its folder in the artifact.
    pub folder: String,
    /// Its rank.
    pub rank: u64,
    /// "peft" or "vllm".
    pub profile: String,
    /// The bytes of its files.
    pub bytes: u64,
    /// BLAKE3 of `adapter_config.json` and of `adapter_model.safetensors`.
    pub blake3: [String; 2],
}

/// One safetensors file of the fine-tune.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvdFile {
    /// Relative path, `/` between components.
    pub path: String,
    /// Bytes of the whole file.
    pub size: u64,
    /// Bytes of the verbatim header: the 8-byte length and the JSON.
    pub header: u64,
    /// How many of the tensors are in it.
    pub tensors: u64,
}

/// What an artifact holds of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Factors of its difference from the base.
    LowRank,
    /// Its exact bytes, coded against the base where it has one.
    Exact,
    /// Nothing: it equals the base's.
    Same,
    /// Nothing: it equals an earlier tensor (tied weights).
    Twin,
}

impl Kept {
    /// "low_rank", "exact", "same" or "twin".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LowRank => "low_rank",
            Self::Exact => "exact",
            Self::Same => "same",
            Self::Twin => "twin",
        }
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SvdTensor {
    /// Its name.
    pub tensor: String,
    /// Its dtype as the file writes it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// What is kept of it.
    pub kept: Kept,
    /// Why it is kept exactly, or what is special about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The base's tensor, file and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<[String; 2]>,
    /// The number of the tensor it equals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// Its factors, matrix after matrix, or its coded bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Blob>,
    /// Signs of what the factors leave, matrix after matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signs: Option<Blob>,
    /// The rank of each of its matrices (several for experts in one tensor).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<u64>,
    /// How far off it is, for each of the artifact's ranks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quality: Vec<Quality>,
    /// BLAKE3 of its rebuilt bytes, for each of the artifact's ranks; of its bytes where they are exact.
    pub blake3: Vec<String>,
    /// The largest singular value of the difference.
    #[serde(default)]
    pub sigma_1: f64,
    /// The share of the difference's squared Frobenius norm that rounding both models to their dtypes explains, estimated.
    #[serde(default)]
    pub noise_share: f64,
    /// The number of equal singular values that would spread the difference's energy as far, at most.
    #[serde(default)]
    pub effective_rank: f64,
    /// Its bytes in the fine-tune.
    pub bytes: u64,
    /// Its bytes in the artifact.
    pub stored_bytes: u64,
}

/// A tensor at one of the artifact's ranks.
#[derive(Clone, Copy, Debug)]
pub struct SvdRow<'m> {
    /// The tensor.
    pub tensor: &'m SvdTensor,
    /// Its number in the manifest.
    pub number: usize,
    /// The rank of the artifact.
    pub at_rank: u64,
    /// How far off it is; nothing where it is exact.
    pub quality: Option<&'m Quality>,
    /// Its bytes in an artifact of that rank.
    pub stored_bytes: u64,
}

impl SvdTensor {
    /// Its elements.
    #[must_use]
    pub fn params(&self) -> u64 {
        self.shape.iter().fold(1, |n, d| n.saturating_mul(*d))
    }

    /// Its bytes in an artifact of a rank: all of them where there is no smaller one.
    fn stored_at(&self, rank: u64, precision: Option<Precision>) -> u64 {
        let component = self
            .matrices()
            .and_then(|[_, rows, cols]| precision?.component(rows, cols));
        let Some(component) = component.filter(|_| self.kept == Kept::LowRank) else {
            return self.stored_bytes;
        };
        let left_out: u64 = self.ranks.iter().map(|own| own.saturating_sub(rank)).sum();
        let left_out = left_out.saturating_mul(component as u64);
        self.stored_bytes.saturating_sub(left_out)
    }

    /// Matrices, rows and columns of an approximated tensor.
    pub(crate) fn matrices(&self) -> Option<[usize; 3]> {
        matrices(&self.shape)
    }
}

/// Whether so many ranks are too many for so many tensors: what is told of an artifact has a row for each of both.
pub(crate) fn too_many(ranks: usize, tensors: usize) -> bool {
    ranks.saturating_mul(tensors) > MAX_ROWS
}

/// Matrices, rows and columns of a shape: two dimensions, or three for experts.
pub(crate) fn matrices(shape: &[u64]) -> Option<[usize; 3]> {
    let sizes = match *shape {
        [rows, cols] => [1, rows, cols],
        [experts, rows, cols] => [experts, rows, cols],
        _ => return None,
    };
    let [count, rows, cols] = sizes.map(|n| usize::try_from(n).ok());
    Some([count?, rows?, cols?])
}

impl seal::Sealed for SvdDeltaManifest {
    fn count(&mut self, bytes: u64) {
        self.compressed_size_bytes = bytes;
        self.compression_ratio = round4(self.original_size_bytes as f64 / bytes.max(1) as f64);
    }

    fn seal(&mut self) -> &mut String {
        &mut self.seal
    }
}

impl SvdDeltaManifest {
    /// Reads and checks the manifest of an artifact folder, and nothing else of it.
    ///
    /// # Errors
    /// A folder without one, and a manifest that is damaged or of a later version.
    pub fn read(dir: &Path) -> Result<Self, DeltaError> {
        super::artifact::read_manifest(dir)
    }

    /// Reads and checks a manifest: version first, then the seal, then every number and path against the others.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DeltaError> {
        let value = seal::value(path, bytes)?;
        if value.get("delta_type").and_then(serde_json::Value::as_str) != Some("svd_delta") {
            return Err(DeltaError::usage(format!(
                "{} is not that of a low-rank approximation: use `sparse reconstruct` or sparse_reconstruct for a lossless delta",
                path.display()
            )));
        }
        let manifest: Self = seal::open(path, value, SVD_FORMAT)?;
        if manifest.codec_version > sparse_codec::FORMAT_VERSION {
            return Err(DeltaError::Version {
                path: path.into(),
                found: manifest.codec_version,
                supported: sparse_codec::FORMAT_VERSION,
            });
        }
        manifest
            .check()
            .map_err(|problem| DeltaError::corrupt(path, problem))?;
        Ok(manifest)
    }

    /// Every tensor at every rank of the artifact, ranks ascending.
    #[must_use]
    pub fn rows(&self) -> Vec<SvdRow<'_>> {
        let precision = Precision::parse(&self.precision);
        let at = |(place, rank): (usize, &u64)| {
            let rank = *rank;
            self.tensors
                .iter()
                .enumerate()
                .map(move |(number, tensor)| SvdRow {
                    tensor,
                    number,
                    at_rank: rank,
                    quality: tensor.quality.get(place),
                    stored_bytes: tensor.stored_at(rank, precision),
                })
        };
        self.ranks.iter().enumerate().flat_map(at).collect()
    }

    /// The safetensors file of a tensor, by its number.
    #[must_use]
    pub fn file_of(&self, tensor: usize) -> Option<&str> {
        let mut before = 0_u64;
        let holds = |file: &&SvdFile| {
            before = before.saturating_add(file.tensors);
            (tensor as u64) < before
        };
        self.files.iter().find(holds).map(|file| file.path.as_str())
    }

    fn check(&self) -> Result<(), String> {
        if self.format_version == 0 || self.codec_version == 0 {
            return Err("version 0 does not exist".into());
        }
        check_hex("key", &self.key)?;
        check_hex("base.fingerprint", &self.base.fingerprint)?;
        check_payloads(&self.payloads)?;
        check_paths(self.files.iter().map(|f| f.path.as_str()), &self.carried)?;
        let (mut headers, mut total) = (0_u64, check_carried(&self.carried, &self.payloads)?);
        for file in &self.files {
            if file.header < 8 || file.header > MAX_HEADER + 8 || file.header > file.size {
                return Err(format!(
                    "file {:?} has a header of {} bytes",
                    file.path, file.header
                ));
            }
            headers = headers.checked_add(file.header).ok_or("sizes overflow")?;
            total = total.checked_add(file.size).ok_or("sizes overflow")?;
        }
        if headers != self.headers.raw {
            return Err("the sizes of the headers do not add up".into());
        }
        if headers > 0 {
            check_blob(&self.payloads, "headers", &self.headers)?;
        }
        let tensors = self
            .files
            .iter()
            .try_fold(0_u64, |n, f| n.checked_add(f.tensors));
        if tensors != Some(self.tensors.len() as u64) {
            return Err("the tensors of the files do not add up".into());
        }
        if total != self.original_size_bytes || i64::try_from(total).is_err() {
            return Err("the sizes of the files do not add up".into());
        }
        if self.ranks.is_empty()
            || !self.ranks.is_sorted_by(|a, b| a < b)
            || self.ranks.iter().any(|rank| *rank > MAX_RANK)
        {
            return Err("the ranks are none, not in order or too large".into());
        }
        if too_many(self.ranks.len(), self.tensors.len()) {
            return Err("the ranks are too many".into());
        }
        if Precision::parse(&self.precision).is_none() {
            return Err(format!("factors of precision {:?}", self.precision));
        }
        for (number, tensor) in self.tensors.iter().enumerate() {
            self.check_tensor(number, tensor)
                .map_err(|problem| format!("tensor {:?}: {problem}", tensor.tensor))?;
        }
        Ok(())
    }

    fn check_tensor(&self, number: usize, tensor: &SvdTensor) -> Result<(), String> {
        for hash in &tensor.blake3 {
            check_hex("blake3", hash)?;
        }
        for blob in tensor.blob.iter().chain(&tensor.signs) {
            check_blob(&self.payloads, "its data", blob)?;
        }
        let hashes = match tensor.kept {
            Kept::LowRank => self.ranks.len(),
            Kept::Exact | Kept::Same => 1,
            Kept::Twin => 0,
        };
        if tensor.blake3.len() != hashes {
            return Err(format!(
                "it has {} hashes, not {hashes}",
                tensor.blake3.len()
            ));
        }
        match tensor.kept {
            Kept::LowRank => {
                let Some([count, _, _]) = tensor.matrices() else {
                    return Err("it is no matrix".into());
                };
                if tensor.ranks.len() != count
                    || tensor.ranks.iter().any(|rank| *rank > MAX_RANK)
                    || tensor.quality.len() != hashes
                    || tensor.base.is_none()
                    || tensor.signs.is_some() != self.signs
                {
                    return Err("its factors are not described completely".into());
                }
            }
            Kept::Exact if tensor.blob.is_none() && tensor.bytes > 0 => {
                return Err("it has no data".into());
            }
            Kept::Same if tensor.base.is_none() => return Err("it has no base".into()),
            Kept::Twin => {
                let of = tensor.of.and_then(|of| usize::try_from(of).ok());
                let twin = of
                    .filter(|of| *of < number)
                    .and_then(|of| self.tensors.get(of));
                let fits = twin.is_some_and(|twin| {
                    twin.kept != Kept::Twin
                        && twin.dtype == tensor.dtype
                        && twin.shape == tensor.shape
                });
                if !fits {
                    return Err("it is said to equal a tensor that it cannot equal".into());
                }
            }
            _ => {}
        }
        Ok(())
    }
}
