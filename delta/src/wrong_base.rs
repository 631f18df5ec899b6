//! Bases that are not the one a delta was made against: refused before the work, and blamed for what fails in it.

use rayon::ThreadPool;
use sparse_store::Model;

use crate::artifact::Artifact;
use crate::manifest::Fingerprints;
use crate::{DeltaError, identity};

/// Refuses a base that is not the one the delta was made against: cheaply, and before any work.
pub(crate) fn refuse_wrong_base(
    artifact: &Artifact,
    base: &Model,
    pool: &ThreadPool,
) -> Result<(), DeltaError> {
    let manifest = &artifact.manifest;
    refuse_other_base(&manifest.base, &manifest.base_model_id, base, pool)
}

/// Refuses a base of other fingerprints than an artifact names.
pub(crate) fn refuse_other_base(
    wanted: &Fingerprints,
    wanted_id: &str,
    base: &Model,
    pool: &ThreadPool,
) -> Result<(), DeltaError> {
    let quick = pool.install(|| base.quick_fingerprint())?;
    if quick == wanted.quick_fingerprint {
        return Ok(());
    }
    let found = identity::fingerprint(base, pool)?;
    Err(wrong_base(wanted, wanted_id, base, found))
}

fn wrong_base(wanted: &Fingerprints, wanted_id: &str, base: &Model, found: String) -> DeltaError {
    DeltaError::WrongBase {
        base: base.id().to_owned(),
        base_id: wanted_id.to_owned(),
        expected: wanted.fingerprint.clone(),
        found,
    }
}

/// What does not decode may be the base's fault: a base that passes for the right one by a glance, and is not.
pub(crate) fn explain(
    error: DeltaError,
    artifact: &Artifact,
    base: &Model,
    pool: &ThreadPool,
) -> DeltaError {
    let manifest = &artifact.manifest;
    blame_base(error, &manifest.base, &manifest.base_model_id, base, pool)
}

/// As [`explain`], for any kind of artifact.
pub(crate) fn blame_base(
    error: DeltaError,
    wanted: &Fingerprints,
    wanted_id: &str,
    base: &Model,
    pool: &ThreadPool,
) -> DeltaError {
    if !matches!(error, DeltaError::Corrupt { .. }) {
        return error;
    }
    match identity::fingerprint(base, pool) {
        Ok(found) if found != wanted.fingerprint => wrong_base(wanted, wanted_id, base, found),
        _ => error,
    }
}
