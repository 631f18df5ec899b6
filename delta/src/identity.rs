//! Which base, which fine-tune: fingerprints, SHA-256 of files, and the key of an artifact.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use rayon::ThreadPool;
use sparse_codec::Effort;
use sparse_store::hash::Sha256;
use sparse_store::{CarriedFile, Model};

use crate::error::During;
use crate::manifest::FORMAT_VERSION;
use crate::mode::Mode;
use crate::progress::{Stop, Ticker};
use crate::{DeltaError, Progress, residency};

/// Bytes hashed between two looks at the wish to stop.
const PIECE: usize = 1 << 20;
/// Bytes after which hashed pages are let go.
const RELEASE: usize = 16 << 20;

/// SHA-256 of every file of a fine-tune, by relative path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) weights: Vec<String>,
    pub(crate) carried: Vec<String>,
}

/// SHA-256 of the weight files, in order.
pub(crate) fn hash_weights(
    model: &Model,
    stop: &Stop,
    ticker: &Ticker,
) -> Result<Vec<String>, DeltaError> {
    let mut hashes = Vec::new();
    for file in model.files() {
        let mut sha = Sha256::new();
        let mut start = 0_u64;
        for window in file.bytes().chunks(RELEASE) {
            let end = start + window.len() as u64;
            file.prefetch(end..end + RELEASE as u64);
            for piece in window.chunks(PIECE) {
                stop.check()?;
                sha.update(piece);
                ticker.add(piece.len() as u64);
            }
            start = end;
        }
        hashes.push(sha.finish_hex());
    }
    Ok(hashes)
}

/// SHA-256 of the carried files, in order.
pub(crate) fn hash_carried(model: &Model, stop: &Stop) -> Result<Vec<String>, DeltaError> {
    model
        .carried()
        .iter()
        .map(|file| hash_file(file.path(), stop))
        .collect()
}

/// SHA-256 of one file.
pub(crate) fn hash_file(path: &Path, stop: &Stop) -> Result<String, DeltaError> {
    let mut file = std::fs::File::open(path).during("open", path)?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0_u8; PIECE];
    loop {
        stop.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(sha.finish_hex()),
            Ok(count) => sha.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DeltaError::io("read", path, error)),
        }
    }
}

/// The full fingerprint of a model, on the threads of `pool`.
pub(crate) fn fingerprint(model: &Model, pool: &ThreadPool) -> Result<String, DeltaError> {
    let relieve: Progress = Arc::new(|_, _| residency::relieve());
    Ok(pool.install(|| model.fingerprint(Some(&relieve)))?)
}

/// Carried files of the base by size and content, hashed only when a size matches.
pub(crate) struct BaseFiles<'a> {
    files: &'a [CarriedFile],
    hashes: HashMap<usize, String>,
}

impl<'a> BaseFiles<'a> {
    pub(crate) fn new(base: &'a Model) -> Self {
        Self {
            files: base.carried(),
            hashes: HashMap::new(),
        }
    }

    /// The base's file with this content; the one of the same path first.
    pub(crate) fn same(
        &mut self,
        name: &str,
        size: u64,
        sha256: &str,
        stop: &Stop,
    ) -> Result<Option<&'a CarriedFile>, DeltaError> {
        let files = self.files;
        let mut candidates: Vec<usize> = (0..files.len())
            .filter(|&i| files[i].size == size)
            .collect();
        candidates.sort_by_key(|&i| files[i].name != name);
        for index in candidates {
            let hash = match self.hashes.entry(index) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(hash_file(files[index].path(), stop)?),
            };
            if hash == sha256 {
                return Ok(files.get(index));
            }
        }
        Ok(None)
    }

    /// The base's file of the same path.
    pub(crate) fn named(&self, name: &str) -> Option<&'a CarriedFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// What an artifact is a function of. Equal keys: the same delta, whoever made it and whenever.
pub(crate) fn key(
    base: &str,
    finetune: &Model,
    content: &Content,
    effort: Effort,
    adapter: Option<&str>,
    mode: Mode,
) -> String {
    let versions = format!("{FORMAT_VERSION} {}", sparse_codec::FORMAT_VERSION);
    let (effort, mode) = (effort.to_string(), mode.to_string());
    let mut options = vec![versions.as_str(), &effort, adapter.unwrap_or("")];
    if mode != Mode::Lossless.to_string() {
        options.push(&mode);
    }
    key_of(
        "sparse 2026-11 key of a delta artifact",
        &options,
        base,
        finetune,
        content,
    )
}

/// The key of a kind of artifact for versions and options, the fingerprint of a base, and a fine-tune.
pub(crate) fn key_of(
    kind: &'static str,
    options: &[&str],
    base: &str,
    finetune: &Model,
    content: &Content,
) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(kind);
    let mut text = |text: &str| {
        hasher
            .update(&(text.len() as u64).to_le_bytes())
            .update(text.as_bytes());
    };
    for option in options {
        text(option);
    }
    text(base);
    text(if finetune.is_single_file() {
        "file"
    } else {
        "folder"
    });
    for (file, sha256) in finetune.files().iter().zip(&content.weights) {
        text("weights");
        text(&file.name);
        text(sha256);
    }
    for (file, sha256) in finetune.carried().iter().zip(&content.carried) {
        text("carried");
        text(&file.name);
        text(sha256);
    }
    hasher.finalize().to_hex().to_string()
}
