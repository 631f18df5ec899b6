//! `manifest.json`: what an artifact is, in a form people can read; written last.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sparse_codec::{Distortion, Granularity};

use crate::{DeltaError, seal};

/// The version of the artifact format this program writes, and the latest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The file names of an artifact.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const INDEX: &str = "tensors.parquet";
/// A manifest this large is not one of ours.
pub(crate) const MAX_MANIFEST: u64 = 256 << 20;
/// The longest header safetensors allows.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// The manifest of a lossless delta. The first nine fields are those of the API reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaManifest {
    /// Version of the manifest's public fields: "1.0".
    pub version: String,
    /// "model_delta" or "adapter"; "int8_delta" where it makes an approximation of the fine-tune.
    pub delta_type: String,
    /// The base model as it was given.
    pub base_model_id: String,
    /// The fine-tuned model as it was given.
    pub finetune_model_id: String,
    /// When the artifact was made, ISO 8601, UTC.
    pub created_at: String,
    /// Tensors of the fine-tune.
    pub num_layers: u64,
    /// Parameters of the fine-tune.
    pub total_params: u64,
    /// Parameters whose bits differ from the base's; all those of tensors that have no base.
    pub changed_params: u64,
    /// Bytes of the fine-tune (weights and carried files) over bytes of the artifact (everything, this file included).
    pub compression_ratio: f64,
    /// Version of the artifact format.
    pub format_version: u32,
    /// Version of the block format of the codec.
    pub codec_version: u32,
    /// What the artifact is a function of: BLAKE3 over base, fine-tune, options and format versions.
    pub key: String,
    /// The program version that wrote it.
    pub tool_version: String,
    /// "fast", "default" or "max".
    pub effort: String,
    /// What is lost, in a delta that makes an approximation. Absent: nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lossy: Option<Lossy>,
    /// Whether the fine-tune was a single file rather than a folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_file: bool,
    /// The base the delta was made against.
    pub base: Fingerprints,
    /// The quick fingerprint of the fine-tune.
    pub finetune_quick: String,
    /// The safetensors files, in order.
    pub files: Vec<FileEntry>,
    /// Every other file.
    pub carried: Vec<CarriedEntry>,
    /// The payload files, in order.
    pub payloads: Vec<PayloadEntry>,
    /// The index, `tensors.parquet`.
    pub index: IndexEntry,
    /// The verbatim safetensors headers of all files, one after another.
    pub headers: Blob,
    /// What the decoder needs for the whole model, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Blob>,
    /// What the decoder needs per tensor, in frames.
    pub frames: Vec<Blob>,
    /// Bytes of the fine-tune: weights and carried files.
    pub original_bytes: u64,
    /// Bytes of the artifact, this file included.
    pub artifact_bytes: u64,
    /// BLAKE3 (first 16 bytes) of this manifest without this field, as compact JSON.
    #[serde(default)]
    pub seal: String,
}

/// What a delta is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaType {
    /// A model.
    Model,
    /// An adapter of the base.
    Adapter,
    /// A model, of which an approximation is rebuilt.
    Int8,
}

impl DeltaType {
    /// As the manifest names it: "model_delta", "adapter" or "int8_delta".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model_delta",
            Self::Adapter => "adapter",
            Self::Int8 => "int8_delta",
        }
    }
}

/// How the rebuilt model is off the fine-tune.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lossy {
    /// "int8".
    pub method: String,
    /// What shares a scale: "tensor", "row" or "group" (of 128 in a row).
    pub granularity: String,
    /// Tensors that are quantised. The others are exact.
    pub tensors: u64,
    /// Their elements.
    pub params: u64,
    /// Elements of them that are rebuilt bit for bit all the same.
    pub exact_params: u64,
    /// The norm of the error of their differences from the base over that of the differences.
    pub relative_error: f64,
    /// The largest error of a difference.
    pub max_abs_error: f64,
    /// The mean error of a difference.
    pub mean_abs_error: f64,
}

impl Lossy {
    pub(crate) fn new(granularity: Granularity, tensors: u64, error: &Distortion) -> Self {
        Self {
            method: "int8".into(),
            granularity: granularity.name().into(),
            tensors,
            params: error.count,
            exact_params: error.exact,
            relative_error: error.relative(),
            max_abs_error: error.max_abs,
            mean_abs_error: error.mean_abs(),
        }
    }

    /// As it is told: "int8, a scale for each row".
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}, a scale for each {}", self.method, self.granularity)
    }

    fn check(&self) -> Result<(), String> {
        if self.method != "int8" {
            return Err(format!("it loses by {:?}, which is not known", self.method));
        }
        self.granularity.parse::<Granularity>().map(|_| ())
    }
}

/// How a base is told from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// BLAKE3 over the content of every weight file.
    pub fingerprint: String,
    /// BLAKE3 over names, dtypes, shapes and samples of the data.
    pub quick_fingerprint: String,
}

/// One safetensors file of the fine-tune.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative path, `/` between components.
    pub path: String,
    /// Bytes of the whole file.
    pub size: u64,
    /// SHA-256 of the whole file.
    pub sha256: String,
    /// Bytes of the verbatim header: the 8-byte length and the JSON.
    pub header: u64,
}

/// One file that is not weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedEntry {
    /// Relative path, `/` between components.
    pub path: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The base's file with the same bytes; nothing is stored then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// The base's file that serves as zstd prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Where the content is, compressed by zstd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Blob>,
}

/// One payload file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadEntry {
    /// `payload-00000.bin` and so on.
    pub file: String,
    /// Its bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub blake3: String,
}

/// The index file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// `tensors.parquet`.
    pub file: String,
    /// Its bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub blake3: String,
    /// Its rows.
    pub rows: u64,
}

/// A run of bytes in a payload file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Blob {
    /// Number of the payload file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub payload: u32,
    /// Where it begins.
    pub offset: u64,
    /// Its bytes as stored: one zstd frame, or the content itself where that is `raw` bytes too.
    pub size: u64,
    /// Its bytes when decompressed.
    pub raw: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// The name of payload file `number`.
pub(crate) fn payload_name(number: usize) -> String {
    format!("payload-{number:05}.bin")
}

impl DeltaManifest {
    /// Reads and checks the manifest of an artifact folder, and nothing else of it.
    ///
    /// # Errors
    /// A folder without one, and a manifest that is damaged or of a later version.
    pub fn read(dir: &Path) -> Result<Self, DeltaError> {
        crate::artifact::read_manifest(dir)
    }

    /// The manifest as stored: JSON with one space of indentation, sealed. Sets `artifact_bytes` and `compression_ratio` so
    /// that they count the manifest itself.
    pub(crate) fn sealed(&mut self, others: u64) -> Result<Vec<u8>, DeltaError> {
        seal::settle(self, others)
    }

    /// Reads and checks a manifest: version first, then the seal, then every number and path against the others. `path` is a name
    /// for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DeltaError> {
        let corrupt = |problem: String| DeltaError::corrupt(path, problem);
        let value = seal::value(path, bytes)?;
        if value.get("delta_type").and_then(serde_json::Value::as_str) == Some("svd_delta") {
            return Err(DeltaError::usage(format!(
                "{} is that of a low-rank approximation: use `sparse svd-reconstruct` or sparse_svd_reconstruct",
                path.display()
            )));
        }
        if value.get("delta_type").and_then(serde_json::Value::as_str) == Some("dataset_delta") {
            return Err(DeltaError::usage(format!(
                "{} is that of a dataset: use `sparse dataset-reconstruct` or sparse_dataset_reconstruct",
                path.display()
            )));
        }
        let manifest: Self = seal::open(path, value, FORMAT_VERSION)?;
        manifest.check().map_err(corrupt)?;
        if manifest.codec_version > sparse_codec::FORMAT_VERSION {
            return Err(DeltaError::Version {
                path: path.into(),
                found: manifest.codec_version,
                supported: sparse_codec::FORMAT_VERSION,
            });
        }
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let known = [DeltaType::Model, DeltaType::Adapter, DeltaType::Int8].map(DeltaType::name);
        if !known.contains(&self.delta_type.as_str()) {
            return Err(format!(
                "its type {:?} is none of {}",
                self.delta_type,
                known.join(", ")
            ));
        }
        if self.format_version == 0 || self.codec_version == 0 {
            return Err("version 0 does not exist".into());
        }
        // Lossy and lossless are never taken for one another.
        let is_int8 = self.delta_type == DeltaType::Int8.name();
        match &self.lossy {
            Some(lossy) if is_int8 => lossy.check()?,
            None if !is_int8 => {}
            _ => {
                return Err(format!(
                    "its delta_type {:?} does not fit the rest",
                    self.delta_type
                ));
            }
        }
        for (what, text) in [
            ("key", &self.key),
            ("base.fingerprint", &self.base.fingerprint),
        ] {
            check_hex(what, text)?;
        }
        check_payloads(&self.payloads)?;
        if self.index.file != INDEX {
            return Err(format!("the index is called {:?}", self.index.file));
        }
        check_hex("index blake3", &self.index.blake3)?;
        check_paths(self.files.iter().map(|f| f.path.as_str()), &self.carried)?;
        let mut headers = 0_u64;
        let mut total = 0_u64;
        for file in &self.files {
            check_hex("sha256", &file.sha256)?;
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
        let carried = check_carried(&self.carried, &self.payloads)?;
        total = total.checked_add(carried).ok_or("sizes overflow")?;
        for frame in self.frames.iter().chain(&self.tables) {
            check_blob(&self.payloads, "frame", frame)?;
        }
        if total != self.original_bytes {
            return Err("the sizes of the files do not add up".into());
        }
        if i64::try_from(total).is_err() {
            return Err("the files are larger than any disk".into());
        }
        Ok(())
    }
}

impl seal::Sealed for DeltaManifest {
    fn count(&mut self, bytes: u64) {
        self.artifact_bytes = bytes;
        self.compression_ratio = round4(self.original_bytes as f64 / bytes.max(1) as f64);
    }

    fn seal(&mut self) -> &mut String {
        &mut self.seal
    }
}

/// Payload files are called as we call them, and have hashes.
pub(crate) fn check_payloads(payloads: &[PayloadEntry]) -> Result<(), String> {
    for (number, payload) in payloads.iter().enumerate() {
        if payload.file != payload_name(number) {
            return Err(format!(
                "payload file {number} is called {:?}",
                payload.file
            ));
        }
        check_hex("payload blake3", &payload.blake3)?;
    }
    Ok(())
}

/// Carried files have one content each, inside the payload. Returns their bytes.
pub(crate) fn check_carried(
    all: &[CarriedEntry],
    payloads: &[PayloadEntry],
) -> Result<u64, String> {
    let mut total = 0_u64;
    for carried in all {
        check_hex("sha256", &carried.sha256)?;
        total = total.checked_add(carried.size).ok_or("sizes overflow")?;
        match (&carried.same_as, &carried.blob) {
            (Some(_), None) => {}
            (None, Some(blob)) if blob.raw == carried.size => {
                check_blob(payloads, &carried.path, blob)?;
            }
            (None, None) if carried.size == 0 => {}
            _ => return Err(format!("file {:?} has no content, or two", carried.path)),
        }
    }
    Ok(total)
}

/// Every path is relative and safe, none twice, none a folder of another.
pub(crate) fn check_paths<'a>(
    weights: impl Iterator<Item = &'a str>,
    carried: &'a [CarriedEntry],
) -> Result<(), String> {
    let mut files = HashSet::new();
    let mut folders = HashSet::new();
    for path in weights.chain(carried.iter().map(|c| c.path.as_str())) {
        sparse_store::check_relative(path).map_err(|error| error.to_string())?;
        if !files.insert(path) {
            return Err(format!("path {path:?} occurs twice"));
        }
        folders.extend(path.match_indices('/').map(|(end, _)| &path[..end]));
    }
    if let Some(both) = files.intersection(&folders).next() {
        return Err(format!("path {both:?} is a file and a folder"));
    }
    for path in carried
        .iter()
        .flat_map(|c| c.same_as.iter().chain(&c.prefix))
    {
        sparse_store::check_relative(path).map_err(|error| error.to_string())?;
    }
    Ok(())
}

pub(crate) fn check_blob(payloads: &[PayloadEntry], what: &str, blob: &Blob) -> Result<(), String> {
    let size = payloads.get(blob.payload as usize).map(|p| p.size);
    match (size, blob.offset.checked_add(blob.size)) {
        (Some(size), Some(end)) if end <= size && blob.size > 0 => Ok(()),
        _ => Err(format!("{what:?} lies outside its payload file")),
    }
}

pub(crate) fn check_hex(what: &str, text: &str) -> Result<(), String> {
    if text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Ok(());
    }
    Err(format!("{what} is not a hash"))
}

pub(crate) fn round4(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> DeltaManifest {
        let hash = "0".repeat(64);
        DeltaManifest {
            version: "1.0".into(),
            delta_type: "model_delta".into(),
            base_model_id: "base".into(),
            finetune_model_id: "ft".into(),
            created_at: "2026-01-01T00:00:00Z".into(),
            num_layers: 1,
            total_params: 10,
            changed_params: 3,
            compression_ratio: 0.0,
            format_version: FORMAT_VERSION,
            codec_version: 1,
            key: hash.clone(),
            tool_version: "0".into(),
            effort: "default".into(),
            lossy: None,
            single_file: false,
            base: Fingerprints {
                fingerprint: hash.clone(),
                quick_fingerprint: "q".into(),
            },
            finetune_quick: "q".into(),
            files: vec![FileEntry {
                path: "model.safetensors".into(),
                size: 1000,
                sha256: hash.clone(),
                header: 100,
            }],
            carried: vec![CarriedEntry {
                path: "sub/config.json".into(),
                size: 5,
                sha256: hash.clone(),
                same_as: Some("config.json".into()),
                prefix: None,
                blob: None,
            }],
            payloads: vec![PayloadEntry {
                file: payload_name(0),
                size: 50,
                blake3: hash.clone(),
            }],
            index: IndexEntry {
                file: INDEX.into(),
                size: 10,
                blake3: hash,
                rows: 1,
            },
            headers: Blob {
                payload: 0,
                offset: 0,
                size: 20,
                raw: 100,
            },
            tables: None,
            frames: vec![],
            original_bytes: 1005,
            artifact_bytes: 0,
            seal: String::new(),
        }
    }

    #[test]
    fn the_size_counts_the_manifest_itself_whatever_its_digits() {
        let mut manifest = sample();
        for others in 0..4000_u64 {
            manifest.original_bytes = 1_780_000 + others * 17;
            let bytes = manifest.sealed(100_000 + others).unwrap();
            assert_eq!(
                manifest.artifact_bytes,
                100_000 + others + bytes.len() as u64
            );
            let read: DeltaManifest = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(read, manifest);
        }
    }

    #[test]
    fn a_manifest_counts_itself_and_reads_back() {
        let mut manifest = sample();
        let bytes = manifest.sealed(60).unwrap();
        assert_eq!(manifest.artifact_bytes, 60 + bytes.len() as u64);
        let read = DeltaManifest::parse(Path::new("m"), &bytes).unwrap();
        assert_eq!(read, manifest);
    }

    #[test]
    fn reformatting_and_unknown_fields_keep_the_seal() {
        let mut manifest = sample();
        let bytes = manifest.sealed(60).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert!(DeltaManifest::parse(Path::new("m"), &serde_json::to_vec(&value).unwrap()).is_ok());
    }

    #[test]
    fn a_changed_digit_breaks_the_seal() {
        let mut manifest = sample();
        let text = String::from_utf8(manifest.sealed(60).unwrap()).unwrap();
        let changed = text.replace("\"total_params\": 10", "\"total_params\": 11");
        assert_ne!(text, changed);
        let error = DeltaManifest::parse(Path::new("m"), changed.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("seal"), "{error}");
    }

    #[test]
    fn hostile_fields_are_refused() {
        type Edit = fn(&mut DeltaManifest);
        let edits: &[(&str, Edit)] = &[
            ("path", |m| m.files[0].path = "../x".into()),
            ("path", |m| m.files[0].path = "/etc/x".into()),
            ("twice", |m| m.carried[0].path = "model.safetensors".into()),
            ("folder", |m| {
                m.carried[0].path = "model.safetensors/x".into()
            }),
            ("path", |m| m.carried[0].same_as = Some("../../x".into())),
            ("outside", |m| m.headers.offset = u64::MAX),
            ("outside", |m| m.headers.payload = 7),
            ("add up", |m| m.headers.raw = 5),
            ("header", |m| m.files[0].header = 2000),
            ("called", |m| {
                m.payloads[0].file = "../payload-00000.bin".into()
            }),
            ("called", |m| m.index.file = "x".into()),
            ("add up", |m| m.original_bytes = 1),
            ("overflow", |m| m.files[0].size = u64::MAX),
            ("hash", |m| m.files[0].sha256 = "zz".into()),
            ("content", |m| m.carried[0].same_as = None),
        ];
        for (expected, edit) in edits {
            let mut manifest = sample();
            edit(&mut manifest);
            let bytes = manifest.sealed(60).unwrap();
            let error = DeltaManifest::parse(Path::new("m"), &bytes).unwrap_err();
            assert!(
                matches!(error, DeltaError::Corrupt { .. }) && error.to_string().contains(expected),
                "{expected}: {error}"
            );
        }
        let mut manifest = sample();
        manifest.format_version = 99;
        let bytes = manifest.sealed(60).unwrap();
        assert!(matches!(
            DeltaManifest::parse(Path::new("m"), &bytes).unwrap_err(),
            DeltaError::Version { found: 99, .. }
        ));
        assert!(DeltaManifest::parse(Path::new("m"), b"{}").is_err());
        assert!(DeltaManifest::parse(Path::new("m"), b"").is_err());
    }
}
