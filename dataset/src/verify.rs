//! `Verify`: whether an artifact still holds what it should, and, given its base, whether it still makes the derivative.

use std::path::{Path, PathBuf};

use sparse_delta::support;
use sparse_delta::{CancelToken, Check, DeltaError, Progress};
use sparse_store::OpenOptions;

use crate::artifact::Artifact;
use crate::compress::Input;
use crate::manifest::{DatasetManifest, MANIFEST, PAYLOAD};
use crate::{DatasetError, Reconstruct};

/// Checks every hash of a dataset delta; with the base, every split it makes.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Verify {
    path: String,
    base: Option<Input>,
    threads: Option<usize>,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Verify {
    /// The artifact at `path`: a folder, URL, or key in the delta store.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            base: None,
            threads: None,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// Rebuild every split from this base, without writing it, and compare its logical hash.
    pub fn base(mut self, base: impl Into<Input>) -> Self {
        self.base = Some(base.into());
        self
    }

    sparse_delta::operation_setters!();

    /// One row per thing checked. What is damaged is a row, not an error; an error says that nothing could be checked.
    ///
    /// # Errors
    /// An artifact that is not there, a base that cannot be read or is another one, and an interruption.
    pub async fn run(self) -> Result<Vec<Check>, DatasetError> {
        let folder = support::artifact_dir(&self.path, &self.open).await?;
        let (checks, manifest) = {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || support::guarded(|| Ok(stored(&folder))))
                .await
                .map_err(|error| DatasetError::internal(error.to_string()))???
        };
        let Some(base) = self.base else {
            return Ok(checks);
        };
        let Some(manifest) = manifest.filter(|_| checks.iter().all(|check| check.ok)) else {
            return Ok(checks);
        };
        let mut rebuild = Reconstruct::new(folder.display().to_string())
            .base(base)
            .dry_run(true)
            .open_options(self.open)
            .cancel(self.cancel)
            .threads(self.threads.unwrap_or(0));
        if let Some(progress) = self.progress {
            rebuild = rebuild.progress(progress);
        }
        rebuilt(checks, &manifest, rebuild.run().await.err())
    }
}

/// The checks of a rebuilding that ended, well or with an error.
fn rebuilt(
    mut checks: Vec<Check>,
    manifest: &DatasetManifest,
    error: Option<DatasetError>,
) -> Result<Vec<Check>, DatasetError> {
    match error {
        None => checks.extend(manifest.splits.iter().map(|split| {
            let detail = format!("{} rows, logical hash {}", split.rows, split.hash);
            check(&split.name, "split", true, detail)
        })),
        Some(
            error @ (DatasetError::Damaged { .. }
            | DatasetError::Artifact(DeltaError::Corrupt { .. })),
        ) => checks.push(check("splits", "split", false, error.to_string())),
        Some(error) => return Err(error),
    }
    Ok(checks)
}

fn check(item: &str, kind: &str, ok: bool, detail: String) -> Check {
    Check {
        item: item.to_owned(),
        kind: kind.to_owned(),
        ok,
        detail,
    }
}

/// What can be checked without the base: the manifest's seal, the payload's hash, every plan.
fn stored(folder: &Path) -> Result<(Vec<Check>, Option<DatasetManifest>), DatasetError> {
    let corrupt = |error: DatasetError| match error {
        DatasetError::Artifact(DeltaError::Corrupt { path, problem }) => Ok((path, problem)),
        DatasetError::Damaged { problem } => Ok((PathBuf::from(MANIFEST), problem)),
        error => Err(error),
    };
    let manifest = match DatasetManifest::read(folder) {
        Ok(manifest) => manifest,
        Err(error) => {
            let (_, problem) = corrupt(error)?;
            return Ok((vec![check(MANIFEST, "manifest", false, problem)], None));
        }
    };
    let mut checks = vec![check(
        MANIFEST,
        "manifest",
        true,
        format!("seal {}", manifest.seal),
    )];
    let artifact = match Artifact::open(folder) {
        Ok(artifact) => artifact,
        Err(error) => {
            let (_, problem) = corrupt(error)?;
            checks.push(check(PAYLOAD, "payload", false, problem));
            return Ok((checks, Some(manifest)));
        }
    };
    checks.push(check(
        PAYLOAD,
        "payload",
        true,
        format!("blake3 {}", manifest.payload),
    ));
    for split in &manifest.splits {
        checks.push(match artifact.split(split) {
            Ok(_) => check(
                &split.name,
                "plan",
                true,
                format!("{} rows from {} of the base", split.rows, split.base_rows()),
            ),
            Err(error) => check(&split.name, "plan", false, corrupt(error)?.1),
        });
    }
    Ok((checks, Some(manifest)))
}
