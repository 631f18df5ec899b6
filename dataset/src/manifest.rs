//! `manifest.json` of a dataset delta: what it is, in a form people can read; written last.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sparse_codec::Effort;
use sparse_delta::support;
use sparse_delta::support::seal::{self, Sealed};
use sparse_delta::{Blob, DeltaError};

use crate::DatasetError;
use crate::carried::Carried;
use crate::info::DELTA_TYPE;
use crate::input::{Dataset, Format};
use crate::places::MetadataPlaces;

/// The version of the artifact format this program writes, and the latest it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The files of an artifact.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const PAYLOAD: &str = "payload.bin";
/// A manifest this large is not one of ours.
const MAX_MANIFEST: u64 = 64 << 20;

/// The manifest of a dataset delta.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetManifest {
    /// Version of the manifest's public fields: "1.0".
    pub version: String,
    /// "dataset_delta".
    pub delta_type: String,
    /// The base dataset as it was given.
    pub base_dataset_id: String,
    /// The derivative as it was given.
    pub derivative_dataset_id: String,
    /// When the artifact was made, ISO 8601, UTC.
    pub created_at: String,
    /// Version of the artifact format.
    pub format_version: u32,
    /// What the artifact is a function of: BLAKE3 over the logical hashes of both sides, the effort and the version.
    pub key: String,
    /// The program version that wrote it.
    pub tool_version: String,
    /// "fast", "default" or "max".
    pub effort: String,
    /// Rows of all splits that the base has, edited or not.
    pub num_shared_samples: u64,
    /// Rows that it has not.
    pub num_new_samples: u64,
    /// Sizes.
    pub size_stats: SizeStats,
    /// Whether the derivative was a single file rather than a folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_file: bool,
    /// Files beside the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// The splits, in order.
    pub splits: Vec<SplitEntry>,
    /// BLAKE3 of `payload.bin`.
    pub payload: String,
    /// BLAKE3 (first 16 bytes) of this manifest without this field, as compact JSON.
    #[serde(default)]
    pub seal: String,
}

/// How large things are, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SizeStats {
    /// The base's files.
    pub base_size_bytes: u64,
    /// The derivative's files.
    pub derivative_size_bytes: u64,
    /// The artifact's files, the manifest included.
    pub delta_size_bytes: u64,
    /// What the artifact saves of the derivative, in percent.
    pub savings_pct: f64,
}

impl SizeStats {
    /// With the artifact's size known.
    pub(crate) fn with_delta(mut self, bytes: u64) -> Self {
        let share = bytes as f64 / self.derivative_size_bytes.max(1) as f64;
        self.delta_size_bytes = bytes;
        self.savings_pct = (1e4 * (1.0 - share)).round() / 100.0;
        self
    }
}

/// What comes back of the files of a split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restores {
    /// The schema and the rows, in files written anew: Parquet and Arrow files can be written in many ways.
    #[default]
    Rows,
    /// The files too, byte for byte; these are their BLAKE3.
    Bytes(#[serde(with = "one_or_more")] Vec<String>),
}

/// One hash as a string, several as a list.
mod one_or_more {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(hashes: &[String], to: S) -> Result<S::Ok, S::Error> {
        match hashes {
            [hash] => hash.serialize(to),
            hashes => hashes.serialize(to),
        }
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Hashes {
        One(String),
        More(Vec<String>),
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        Ok(match Hashes::deserialize(from)? {
            Hashes::One(hash) => vec![hash],
            Hashes::More(hashes) => hashes,
        })
    }
}

impl Restores {
    /// "rows" or "bytes".
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Bytes(_) => "bytes",
        }
    }

    fn is_rows(&self) -> bool {
        *self == Self::Rows
    }
}

/// Rows of all splits, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Rows of the base that the derivative has as they are.
    pub shared: u64,
    /// Those that it has with other values.
    pub edited: u64,
    /// Rows of its own.
    pub new: u64,
    /// Rows of the base that it has not.
    pub removed: u64,
}

/// One split of the derivative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitEntry {
    /// Its name.
    pub name: String,
    /// The base's splits it was made from, in the order in which their rows are counted.
    pub base: Vec<BaseSplit>,
    /// Its rows.
    pub rows: u64,
    /// Rows that are in the base as they are.
    pub shared: u64,
    /// Rows made from one of the base by changing values.
    pub edited: u64,
    /// Rows of their own.
    pub new: u64,
    /// Rows of the base that are not used.
    pub removed: u64,
    /// The logical hash of this split.
    pub hash: String,
    /// How its files store rows.
    pub format: Format,
    /// What of its files comes back.
    #[serde(default, skip_serializing_if = "Restores::is_rows")]
    pub restores: Restores,
    /// Why not its bytes, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Where the recipes of its Parquet files are in `payload.bin`, if their bytes come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipes: Option<Blob>,
    /// Where its Parquet files have the metadata of the schema.
    #[serde(default, skip_serializing_if = "MetadataPlaces::is_both")]
    pub metadata: MetadataPlaces,
    /// Its files in order: path below the dataset, and rows.
    pub files: Vec<(String, u64)>,
    /// Where its plan is in `payload.bin`: schema, programs, and the streams that follow it.
    pub plan: Blob,
}

impl SplitEntry {
    /// Rows of the base's splits together.
    #[must_use]
    pub fn base_rows(&self) -> u64 {
        self.base
            .iter()
            .fold(0, |rows, base| rows.saturating_add(base.rows))
    }

    /// Whether it has the rows of a split of the base. Then no more is stored than that, unless more is asked for.
    #[must_use]
    pub fn is_base(&self) -> bool {
        matches!(self.base.as_slice(), [base] if base.hash == self.hash)
    }

    /// The names of the base's splits; none for a split that was made from nothing.
    #[must_use]
    pub fn base_names(&self) -> Option<String> {
        let names: Vec<&str> = self.base.iter().map(|base| base.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// A split of the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseSplit {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Its logical hash.
    pub hash: String,
}

impl Sealed for DatasetManifest {
    fn count(&mut self, bytes: u64) {
        self.size_stats = self.size_stats.with_delta(bytes);
    }

    fn seal(&mut self) -> &mut String {
        &mut self.seal
    }
}

impl DatasetManifest {
    /// The rows of all splits together.
    #[must_use]
    pub fn row_counts(&self) -> RowCounts {
        let sum = |of: fn(&SplitEntry) -> u64| {
            self.splits
                .iter()
                .fold(0, |sum: u64, split| sum.saturating_add(of(split)))
        };
        RowCounts {
            shared: sum(|split| split.shared),
            edited: sum(|split| split.edited),
            new: sum(|split| split.new),
            removed: sum(|split| split.removed),
        }
    }

    /// The manifest of an artifact of these splits; `sides` are base and derivative.
    pub(crate) fn new(
        sides: (&Dataset, &Dataset),
        effort: Effort,
        key: String,
        splits: Vec<SplitEntry>,
        size_stats: SizeStats,
        payload: blake3::Hash,
    ) -> Self {
        let shared = |split: &SplitEntry| split.shared + split.edited;
        Self {
            version: "1.0".to_owned(),
            delta_type: DELTA_TYPE.to_owned(),
            base_dataset_id: sides.0.id().to_owned(),
            derivative_dataset_id: sides.1.id().to_owned(),
            created_at: support::timestamp(),
            format_version: FORMAT_VERSION,
            key,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            effort: effort.to_string(),
            num_shared_samples: splits.iter().map(shared).sum(),
            num_new_samples: splits.iter().map(|split| split.new).sum(),
            size_stats,
            single_file: sides.1.is_file(),
            carried: None,
            splits,
            payload: payload.to_hex().to_string(),
            seal: String::new(),
        }
    }

    /// The manifest as stored, sealed, with the sizes filled in.
    pub(crate) fn sealed(&mut self, payload: u64) -> Result<Vec<u8>, DatasetError> {
        Ok(seal::settle(self, payload)?)
    }

    /// Reads and checks the manifest of the artifact in a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self, DatasetError> {
        let path = folder.join(MANIFEST);
        let meta = std::fs::metadata(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                DeltaError::NotFound {
                    what: format!("a dataset delta at {}", folder.display()),
                    remedy: "give the folder that `sparse dataset-compress` wrote".to_owned(),
                }
            }
            _ => DeltaError::io("read", &path, error),
        })?;
        if meta.len() > MAX_MANIFEST {
            return Err(DeltaError::corrupt(&path, "it is too large for a manifest").into());
        }
        let bytes = std::fs::read(&path).map_err(|error| DeltaError::io("read", &path, error))?;
        Self::parse(&path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DatasetError> {
        let corrupt = |problem: String| DatasetError::from(DeltaError::corrupt(path, problem));
        let value = seal::value(path, bytes)?;
        match value.get("delta_type").and_then(serde_json::Value::as_str) {
            Some(DELTA_TYPE) => {}
            Some(other) => {
                return Err(DatasetError::usage(format!(
                    "{} is the manifest of a {other}, not of a dataset delta; use `sparse reconstruct`",
                    path.display()
                )));
            }
            None => return Err(corrupt("it is not the manifest of a delta".to_owned())),
        }
        let manifest: Self = seal::open(path, value, FORMAT_VERSION)?;
        manifest.check().map_err(corrupt)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = std::collections::HashSet::new();
        let mut paths = std::collections::HashSet::new();
        for split in &self.splits {
            if !names.insert(&split.name) {
                return Err(format!("split {:?} occurs twice", split.name));
            }
            let mut rows = 0_u64;
            for (path, count) in &split.files {
                sparse_store::check_relative(path).map_err(|error| error.to_string())?;
                if !paths.insert(path) {
                    return Err(format!("path {path:?} occurs twice"));
                }
                rows = rows.checked_add(*count).ok_or("sizes overflow")?;
            }
            if let Restores::Bytes(hashes) = &split.restores
                && hashes.len() != split.files.len()
            {
                return Err(format!(
                    "the hashes of split {:?} are not as many as its files",
                    split.name
                ));
            }
            if rows != split.rows || split.files.is_empty() {
                return Err(format!("the rows of split {:?} do not add up", split.name));
            }
        }
        for (path, _) in self.carried.iter().flat_map(|carried| &carried.files) {
            sparse_store::check_relative(path).map_err(|error| error.to_string())?;
            if !paths.insert(path) {
                return Err(format!("path {path:?} occurs twice"));
            }
        }
        if self.single_file && self.carried.is_some() {
            return Err("a single file has others beside it".to_owned());
        }
        if self.single_file && (self.splits.len() != 1 || self.splits[0].files.len() != 1) {
            return Err("a single file has several".to_owned());
        }
        Ok(())
    }
}
