//! `Verify`: whether an artifact still holds what it should, and, given its base, whether it still makes the fine-tune.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sparse_gpu::Choice;
use sparse_store::{Model, OpenOptions};

use crate::artifact::{self, Artifact};
use crate::index::{Source, checksum};
use crate::manifest::{INDEX, MANIFEST, PayloadEntry};
use crate::payload::PayloadReader;
use crate::progress::{Stop, Ticker};
use crate::rebuild::Rebuild;
use crate::reconstruct::each_file;
use crate::report::Check;
use crate::residency::Residency;
use crate::wrong_base::{explain, refuse_wrong_base};
use crate::{CancelToken, DeltaError, Progress, carried, paths, pipeline, svd};

/// Checks every hash of an artifact; with the base, every file it makes.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Verify {
    path: String,
    base: Option<String>,
    threads: Option<usize>,
    device: Choice,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Verify {
    /// The artifact at `path`: a folder, URL, Hub id, or key in the delta store.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            base: None,
            threads: None,
            device: Choice::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// Rebuild every file from this base, in bounded memory, and compare its SHA-256.
    pub fn base(mut self, base: impl Into<String>) -> Self {
        self.base = Some(base.into());
        self
    }

    crate::operation_setters!();

    /// Where files are rebuilt, as for [`Reconstruct`](crate::Reconstruct).
    pub fn device(mut self, device: Choice) -> Self {
        self.device = device;
        self
    }

    /// One row per thing checked. What is damaged is a row, not an error; an error says that nothing could be checked.
    pub async fn run(self) -> Result<Vec<Check>, DeltaError> {
        let dir = paths::artifact_dir(&self.path, &self.open).await?;
        let base = match &self.base {
            Some(base) => Some(Arc::new(Model::open(base, &self.open).await?)),
            None => None,
        };
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let (threads, device, progress) = (self.threads, self.device, self.progress);
        let checks = tokio::task::spawn_blocking(move || {
            pipeline::guarded(|| verify(dir, base, threads, device, progress, &stop))
        })
        .await
        .map_err(|error| DeltaError::internal(error.to_string()))?;
        drop(on_drop);
        checks
    }
}

fn verify(
    dir: PathBuf,
    base: Option<Arc<Model>>,
    threads: Option<usize>,
    device: Choice,
    progress: Option<Progress>,
    stop: &Stop,
) -> Result<Vec<Check>, DeltaError> {
    match artifact::is_svd(&dir) {
        Ok(false) => {}
        Ok(true) => return svd::verify(&dir, base.as_ref(), threads, progress, stop),
        Err(error) => return unreadable(error),
    }
    let artifact = match Artifact::open(&dir) {
        Ok(artifact) => artifact,
        Err(error) => return unreadable(error),
    };
    let manifest = &artifact.manifest;
    let index = &manifest.index;
    let mut checks = vec![
        Check::new(
            MANIFEST,
            "manifest",
            Ok(match &manifest.lossy {
                None => format!("seal {}", manifest.seal),
                Some(lossy) => format!("seal {}; lossy: {}", manifest.seal, lossy.describe()),
            }),
        ),
        Check::new(
            INDEX,
            "index",
            Ok(format!("{} rows, blake3 {}", index.rows, index.blake3)),
        ),
    ];
    let intact = payloads(
        &artifact.payload,
        &manifest.payloads,
        progress.clone(),
        stop,
        &mut checks,
    )?;
    if !intact {
        checks.extend(damaged_tensors(&artifact, stop)?);
    }
    if let Some(base) = base {
        rebuild_all(
            &artifact,
            &base,
            threads,
            device,
            progress,
            stop,
            &mut checks,
        )?;
    }
    Ok(checks)
}

/// Which of an artifact's files is damaged, as a row, where that keeps it from being opened.
pub(crate) fn unreadable(error: DeltaError) -> Result<Vec<Check>, DeltaError> {
    let DeltaError::Corrupt { path, problem } = error else {
        return Err(error);
    };
    let item = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let kind = match item.as_str() {
        MANIFEST => "manifest",
        INDEX => "index",
        _ => "payload",
    };
    Ok(vec![Check::new(&item, kind, Err(problem))])
}

/// A row for each payload file; whether all have their hashes.
pub(crate) fn payloads(
    payload: &PayloadReader,
    entries: &[PayloadEntry],
    progress: Option<Progress>,
    stop: &Stop,
    checks: &mut Vec<Check>,
) -> Result<bool, DeltaError> {
    let stored: u64 = entries.iter().map(|p| p.size).sum();
    let ticker = Ticker::new(progress, "checking payloads", stored);
    let mut all = true;
    for (number, entry) in entries.iter().enumerate() {
        let intact = payload_intact(payload, entries, number, stop)?;
        all &= intact;
        let found = if intact {
            Ok(format!("blake3 {}", entry.blake3))
        } else {
            Err("its content does not match its hash in the manifest".to_owned())
        };
        checks.push(Check::new(&entry.file, "payload", found));
        ticker.add(entry.size);
    }
    ticker.finish();
    Ok(all)
}

/// Whether a payload file has the hash its manifest gives it.
fn payload_intact(
    payload: &PayloadReader,
    entries: &[PayloadEntry],
    number: usize,
    stop: &Stop,
) -> Result<bool, DeltaError> {
    let Some(entry) = entries.get(number) else {
        return Ok(false);
    };
    let number =
        u32::try_from(number).map_err(|_| DeltaError::internal("too many payload files"))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < entry.size {
        stop.check()?;
        let length = (entry.size - at).min(4 << 20);
        payload.read(number, at, length, &mut buffer)?;
        hasher.update_rayon(&buffer);
        at += length;
    }
    Ok(hasher.finalize().to_hex().as_str() == entry.blake3)
}

/// Whether all payload files have their hashes; false where they cannot be read.
pub(crate) fn payloads_intact(
    payload: &PayloadReader,
    entries: &[PayloadEntry],
    stop: &Stop,
) -> bool {
    (0..entries.len())
        .all(|number| payload_intact(payload, entries, number, stop).is_ok_and(|ok| ok))
}

/// The tensors whose blocks do not have their checksums.
fn damaged_tensors(artifact: &Artifact, stop: &Stop) -> Result<Vec<Check>, DeltaError> {
    let mut checks = Vec::new();
    let mut buffer = Vec::new();
    for tensor in &artifact.tensors {
        let Source::Coded(blocks) = &tensor.source else {
            continue;
        };
        let mut bad = Vec::new();
        for (number, block) in blocks.iter().enumerate() {
            stop.check()?;
            artifact.payload.read(
                block.payload,
                block.offset,
                u64::from(block.length),
                &mut buffer,
            )?;
            if checksum(&buffer) != block.checksum {
                bad.push(number.to_string());
            }
        }
        if !bad.is_empty() {
            let detail = format!(
                "in {:?}: the checksum of block {} is wrong",
                &*tensor.file,
                bad.join(", ")
            );
            checks.push(Check {
                item: tensor.name.clone(),
                kind: "tensor".into(),
                ok: false,
                detail,
            });
        }
    }
    Ok(checks)
}

/// Rebuilds every file into nothing but its SHA-256.
fn rebuild_all(
    artifact: &Artifact,
    base: &Arc<Model>,
    threads: Option<usize>,
    device: Choice,
    progress: Option<Progress>,
    stop: &Stop,
    checks: &mut Vec<Check>,
) -> Result<(), DeltaError> {
    let pool = pipeline::pool(threads)?;
    refuse_wrong_base(artifact, base, &pool)?;
    let _residency = Residency::watch(vec![Arc::clone(base)]);
    let manifest = &artifact.manifest;
    let rebuild = match Rebuild::new(artifact, base) {
        Ok(rebuild) => rebuild.on(device)?,
        Err(error) => {
            checks.push(failed("headers", "file", error, artifact, base, &pool)?);
            return Ok(());
        }
    };
    let ticker = Ticker::new(progress, "rebuilding", manifest.original_bytes);
    let rebuilt: Mutex<Vec<(usize, Check)>> = Mutex::new(Vec::new());
    each_file(
        manifest.files.len(),
        pool.current_num_threads(),
        stop,
        |number| {
            let Some(entry) = manifest.files.get(number) else {
                return Ok(());
            };
            let check = match rebuild.file(number, None, &pool, stop, &ticker) {
                Ok(sha256) if sha256 == entry.sha256 => Check {
                    item: entry.path.clone(),
                    kind: "file".into(),
                    ok: true,
                    detail: format!("rebuilt, sha256 {sha256}"),
                },
                Ok(sha256) => {
                    let detail = format!(
                        "rebuilt with sha256 {sha256} where the manifest says {}",
                        entry.sha256
                    );
                    Check {
                        item: entry.path.clone(),
                        kind: "file".into(),
                        ok: false,
                        detail,
                    }
                }
                Err(error) => failed(&entry.path, "file", error, artifact, base, &pool)?,
            };
            rebuilt
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((number, check));
            Ok(())
        },
    )?;
    let mut rebuilt = rebuilt.into_inner().unwrap_or_else(PoisonError::into_inner);
    rebuilt.sort_by_key(|(number, _)| *number);
    checks.extend(rebuilt.into_iter().map(|(_, check)| check));
    for entry in &manifest.carried {
        stop.check()?;
        checks.push(
            match carried::restore(artifact.carrier(), base, entry, None, stop, &ticker) {
                Ok(()) => Check {
                    item: entry.path.clone(),
                    kind: "carried".into(),
                    ok: true,
                    detail: format!("sha256 {}", entry.sha256),
                },
                Err(error) => failed(&entry.path, "carried", error, artifact, base, &pool)?,
            },
        );
    }
    ticker.finish();
    Ok(())
}

/// A finding where the error is about this item; the error itself where the whole operation is off.
fn failed(
    item: &str,
    kind: &str,
    error: DeltaError,
    artifact: &Artifact,
    base: &Model,
    pool: &rayon::ThreadPool,
) -> Result<Check, DeltaError> {
    match explain(error, artifact, base, pool) {
        error @ (DeltaError::Corrupt { .. } | DeltaError::NotFound { .. }) => Ok(Check {
            item: item.into(),
            kind: kind.into(),
            ok: false,
            detail: error.to_string(),
        }),
        error => Err(error),
    }
}
