//! Whether an approximation still holds what it should, and, given its base, whether it still makes the same model.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use sparse_store::Model;

use super::artifact::SvdArtifact;
use super::reconstruct::{Rebuild, headers};
use crate::manifest::MANIFEST;
use crate::progress::{Stop, Ticker};
use crate::report::Check;
use crate::residency::Residency;
use crate::wrong_base::{blame_base, refuse_other_base};
use crate::{DeltaError, Progress, carried, pipeline, verify};

/// One row per thing checked, as [`crate::Verify`] gives them.
pub(crate) fn verify(
    dir: &Path,
    base: Option<&Arc<Model>>,
    threads: Option<usize>,
    progress: Option<Progress>,
    stop: &Stop,
) -> Result<Vec<Check>, DeltaError> {
    let artifact = match SvdArtifact::open(dir) {
        Ok(artifact) => artifact,
        Err(error) => return verify::unreadable(error),
    };
    let manifest = &artifact.manifest;
    let mut checks = vec![Check::new(
        MANIFEST,
        "manifest",
        Ok(format!("seal {}", manifest.seal)),
    )];
    verify::payloads(
        &artifact.payload,
        &manifest.payloads,
        progress.clone(),
        stop,
        &mut checks,
    )?;
    for (file, intact) in artifact.adapter_files() {
        let found = if intact {
            Ok("its hash is that of the manifest".to_owned())
        } else {
            Err("it is missing, or its content does not match its hash in the manifest".to_owned())
        };
        checks.push(Check::new(&file, "adapter", found));
    }
    if let Some(base) = base {
        rebuild(&artifact, base, threads, progress, stop, &mut checks)?;
    }
    Ok(checks)
}

/// Rebuilds every tensor at every rank into nothing but its hash.
fn rebuild(
    artifact: &SvdArtifact,
    base: &Arc<Model>,
    threads: Option<usize>,
    progress: Option<Progress>,
    stop: &Stop,
    checks: &mut Vec<Check>,
) -> Result<(), DeltaError> {
    let pool = pipeline::pool(threads)?;
    let manifest = &artifact.manifest;
    refuse_other_base(&manifest.base, &manifest.base_model_id, base, &pool)?;
    let _residency = Residency::watch(vec![Arc::clone(base)]);
    // A finding where the error is about one item; the error itself where the whole operation is off.
    let finding = |result: Result<String, DeltaError>| {
        let explained = result.map_err(|error| {
            blame_base(error, &manifest.base, &manifest.base_model_id, base, &pool)
        });
        match explained {
            Ok(detail) => Ok(Ok(detail)),
            Err(error @ (DeltaError::Corrupt { .. } | DeltaError::NotFound { .. })) => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error),
        }
    };
    let heads = match headers(artifact, base) {
        Ok(heads) => heads,
        Err(error) => {
            checks.push(Check::new("headers", "file", finding(Err(error))?));
            return Ok(());
        }
    };
    let ranks = manifest.ranks.len() as u64;
    let total = manifest.original_size_bytes.saturating_mul(ranks.max(1));
    let ticker = Ticker::new(progress, "rebuilding", total);
    for rank in &manifest.ranks {
        let rebuild = Rebuild {
            artifact,
            base,
            rank: *rank,
            stop,
        };
        let mut first = 0;
        for (file, (_, header)) in manifest.files.iter().zip(&heads) {
            let last = first + header.entries.len();
            let tensors = manifest.tensors.get(first..last).unwrap_or_default();
            let rebuilt: Result<(), DeltaError> = pool.install(|| {
                let all = tensors.par_iter().zip(&header.entries).enumerate();
                all.try_for_each(|(number, (tensor, place))| {
                    stop.check()?;
                    rebuild.check(tensor, place, file)?;
                    rebuild.tensor(first + number, tensor, None, 0)?;
                    ticker.add(tensor.bytes);
                    Ok(())
                })
            });
            let complete = rebuilt.and_then(|()| {
                if tensors.len() == header.entries.len() {
                    Ok(format!("rebuilt at rank {rank}, every tensor has its hash"))
                } else {
                    let problem = format!("tensors of {:?} are missing", file.path);
                    Err(DeltaError::corrupt(artifact.dir.join(MANIFEST), problem))
                }
            });
            checks.push(Check::new(&file.path, "file", finding(complete)?));
            first = last;
        }
    }
    for entry in &manifest.carried {
        stop.check()?;
        let restored = carried::restore(artifact.carrier(), base, entry, None, stop, &ticker)
            .map(|()| format!("sha256 {}", entry.sha256));
        checks.push(Check::new(&entry.path, "carried", finding(restored)?));
    }
    ticker.finish();
    Ok(())
}
