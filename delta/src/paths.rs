//! Where artifacts and rebuilt models go, and which places are never written to.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use sparse_store::{Location, Model, OpenOptions};

use crate::DeltaError;
use crate::error::During;

/// The delta store, where artifacts go that were given no output: `deltas` in the cache folder (`~/.cache/sparse/deltas`).
#[must_use]
pub fn delta_store_dir() -> PathBuf {
    store_in(&sparse_store::cache_dir())
}

/// The delta store of a cache folder.
#[must_use]
pub fn store_in(cache: &Path) -> PathBuf {
    cache.join("deltas")
}

/// Where rebuilt models go that were given no output.
#[must_use]
pub fn rebuilt_in(cache: &Path) -> PathBuf {
    cache.join("reconstructed")
}

/// Where an operation writes.
#[derive(Clone, Debug)]
pub enum Output {
    /// A folder or file on this machine.
    Local(PathBuf),
    /// A place in an object store.
    Url(url::Url),
}

impl Output {
    /// Reads an output reference: a URL of an object store, or else a path. An output is never a Hub id.
    ///
    /// # Errors
    /// A reference that names no place to write to.
    pub fn parse(reference: &str) -> Result<Self, DeltaError> {
        let text = reference.trim();
        if text.is_empty() {
            return Err(DeltaError::usage(
                "the output is empty; give a folder or an object store URL",
            ));
        }
        if !text.contains("://") && !text.starts_with('~') {
            if text.contains('\0') {
                return Err(DeltaError::usage(
                    "the output holds a NUL byte; give a folder or an object store URL",
                ));
            }
            return Ok(Self::Local(PathBuf::from(reference)));
        }
        match Location::parse(text)? {
            Location::Local(path) => Ok(Self::Local(path)),
            Location::Url(url) => Ok(Self::Url(url)),
            Location::Hub { .. } => Err(DeltaError::usage(format!(
                "{reference} is a Hub repository; write to a folder, then upload it"
            ))),
        }
    }
}

/// The absolute path with links resolved as far as it exists.
pub(crate) fn resolved(path: &Path) -> Result<PathBuf, DeltaError> {
    let absolute = std::path::absolute(path).during("find", path)?;
    let mut rest = Vec::new();
    let mut at = absolute.as_path();
    loop {
        if let Ok(real) = at.canonicalize() {
            return Ok(rest.iter().rev().fold(real, |path, part| path.join(part)));
        }
        match (at.parent(), at.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_owned());
                at = parent;
            }
            _ => return Ok(absolute),
        }
    }
}

/// Refuses an output that is one of the inputs, or lies inside one.
///
/// # Errors
/// Such an output, and paths that cannot be looked at.
pub fn refuse_inputs(output: &Path, inputs: &[(&str, &Path)]) -> Result<(), DeltaError> {
    let out = resolved(output)?;
    for (what, input) in inputs {
        let real = resolved(input)?;
        let why = if out == real {
            format!("it is the {what} itself")
        } else if out.starts_with(&real) {
            format!("it lies inside the {what} ({})", input.display())
        } else if real.starts_with(&out) {
            format!("it holds the {what} ({})", input.display())
        } else {
            continue;
        };
        return Err(DeltaError::Refused {
            path: output.into(),
            why,
        });
    }
    Ok(())
}

/// What is at an output.
#[derive(Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nothing,
    /// An empty folder.
    EmptyDir,
    /// A folder with something in it.
    Dir,
    /// A file.
    File,
}

/// What is at `path`.
///
/// # Errors
/// A path that cannot be looked at.
pub fn occupant(path: &Path) -> Result<Occupant, DeltaError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let mut entries = std::fs::read_dir(path).during("read", path)?;
            Ok(if entries.next().is_none() {
                Occupant::EmptyDir
            } else {
                Occupant::Dir
            })
        }
        Ok(_) => Ok(Occupant::File),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Occupant::Nothing),
        Err(error) => Err(DeltaError::io("look at", path, error)),
    }
}

/// A file below `output` that is not one of `files`.
pub(crate) fn stranger<'a>(
    files: impl Iterator<Item = &'a str>,
    output: &Path,
) -> Result<Option<String>, DeltaError> {
    let known: HashSet<PathBuf> = files.map(|path| output.join(path)).collect();
    let mut folders = vec![output.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).during("read", &folder)? {
            let entry = entry.during("read", &folder)?;
            let path = entry.path();
            if entry.file_type().during("look at", &path)?.is_dir() {
                folders.push(path);
            } else if !known.contains(&path) {
                return Ok(Some(
                    path.strip_prefix(output)
                        .unwrap_or(&path)
                        .display()
                        .to_string(),
                ));
            }
        }
    }
    Ok(None)
}

/// The folder of an artifact reference: a path, a key of the delta store, or a remote place that is fetched first.
///
/// # Errors
/// A reference that names nothing, and remote places that cannot be reached.
pub async fn artifact_dir(reference: &str, options: &OpenOptions) -> Result<PathBuf, DeltaError> {
    if is_key(reference) && !Path::new(reference).exists() {
        let stored = store_in(&options.cache()).join(reference);
        if stored.exists() {
            return Ok(stored);
        }
    }
    match Location::parse(reference)? {
        Location::Local(path) => {
            // The manifest's own path is as good as its folder's.
            let is_manifest = path
                .file_name()
                .is_some_and(|name| name == crate::manifest::MANIFEST);
            Ok(if is_manifest {
                path.parent().map(Path::to_path_buf).unwrap_or_default()
            } else {
                path
            })
        }
        Location::Url(url) => Ok(sparse_store::fetch_prefix(&url, options).await?),
        Location::Hub { repo, .. } => Err(DeltaError::NotFound {
            what: format!("the delta {reference}"),
            remedy: format!("if it is the Hub repository {repo}, download it and give its folder"),
        }),
    }
}

fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The root folder of a model, for messages and for comparing with outputs.
pub(crate) fn root_of(model: &Model) -> &Path {
    model.path()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_paths_or_object_stores() {
        assert!(matches!(
            Output::parse("org/name").unwrap(),
            Output::Local(_)
        ));
        assert!(matches!(Output::parse("./x").unwrap(), Output::Local(_)));
        assert!(matches!(
            Output::parse("s3://bucket/x").unwrap(),
            Output::Url(_)
        ));
        assert!(matches!(
            Output::parse("file:///tmp/x").unwrap(),
            Output::Local(_)
        ));
        for bad in ["", " ", "hf://org/name", "ftp://x/y"] {
            assert!(Output::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn inputs_are_never_outputs() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::create_dir(&base).unwrap();
        std::os::unix::fs::symlink(&base, dir.path().join("link")).unwrap();
        let inputs = [("base model", base.as_path())];
        for bad in [
            base.clone(),
            dir.path().join("link"),
            base.join("out"),
            dir.path().join("base/../base"),
            dir.path().to_path_buf(),
        ] {
            assert!(
                matches!(
                    refuse_inputs(&bad, &inputs),
                    Err(DeltaError::Refused { .. })
                ),
                "{}",
                bad.display()
            );
        }
        refuse_inputs(&dir.path().join("base2"), &inputs).unwrap();
        refuse_inputs(&dir.path().join("new/deep"), &inputs).unwrap();
    }
}
