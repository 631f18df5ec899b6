//! What a model folder holds: every regular file below it, links checked.

use std::path::{Path, PathBuf};

use crate::error::{During, StoreError};
use crate::path::check_relative;
use crate::stage::is_temporary;

/// The deepest folder looked into.
const MAX_DEPTH: usize = 32;

/// A file found below a folder.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Path from the folder, components separated by `/`.
    pub(crate) relative: String,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Size in bytes.
    pub(crate) size: u64,
}

/// Every regular file below `root`, sorted by path. Not looked at: `.git`, `.cache`, and temporaries of this product.
///
/// A symbolic link to a file is followed if it stays in the folder, or, in a snapshot of the Hub's cache, leads to that
/// repository's `blobs`. Any other link is an error: a model folder from elsewhere must not make us copy a file of this
/// machine into an artifact, and leaving a file out silently would not be lossless.
pub(crate) fn scan(root: &Path) -> Result<Vec<Found>, StoreError> {
    let real = root.canonicalize().during("open", root)?;
    let mut found = Vec::new();
    walk(root, &Allowed::of(real), "", 0, &mut found)?;
    found.sort_by(|a, b| a.relative.cmp(&b.relative));
    Ok(found)
}

/// Where links may lead.
struct Allowed {
    root: PathBuf,
    blobs: Option<PathBuf>,
}

impl Allowed {
    fn of(root: PathBuf) -> Self {
        // models--org--name/snapshots/<commit> with models--org--name/blobs beside.
        let snapshots = root
            .parent()
            .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
        let repo = snapshots.and_then(Path::parent);
        let named = repo
            .and_then(|repo| repo.file_name()?.to_str())
            .is_some_and(|name| name.contains("--"));
        let blobs = repo.filter(|_| named).map(|repo| repo.join("blobs"));
        Self { root, blobs }
    }

    fn contains(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
            || self
                .blobs
                .as_ref()
                .is_some_and(|blobs| path.starts_with(blobs))
    }
}

fn walk(
    dir: &Path,
    allowed: &Allowed,
    prefix: &str,
    depth: usize,
    found: &mut Vec<Found>,
) -> Result<(), StoreError> {
    if depth > MAX_DEPTH {
        let error = std::io::Error::other(format!("it is more than {MAX_DEPTH} folders deep"));
        return Err(StoreError::io("look into", dir, error));
    }
    for entry in std::fs::read_dir(dir).during("list", dir)? {
        let entry = entry.during("list", dir)?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(StoreError::UnsafePath {
                path: path.display().to_string(),
                problem: "its name is not UTF-8; rename it".to_owned(),
            });
        };
        if matches!(name.as_str(), ".git" | ".cache") || is_temporary(&name) {
            continue;
        }
        let relative = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let kind = entry.file_type().during("read", &path)?;
        if kind.is_dir() {
            walk(&path, allowed, &relative, depth + 1, found)?;
            continue;
        }
        if kind.is_symlink() {
            check_link(&path, allowed)?;
        }
        let meta = std::fs::metadata(&path).during("read", &path)?;
        if meta.is_file() {
            check_relative(&relative)?;
            found.push(Found {
                relative,
                path,
                size: meta.len(),
            });
        }
    }
    Ok(())
}

fn check_link(path: &Path, allowed: &Allowed) -> Result<(), StoreError> {
    let refuse = |problem: String| {
        Err(StoreError::Link {
            path: path.to_path_buf(),
            problem,
        })
    };
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(error) => return refuse(format!("the symbolic link leads nowhere ({error})")),
    };
    if !allowed.contains(&target) {
        return refuse(format!(
            "the symbolic link leads out of the model's folder, to {}",
            target.display()
        ));
    }
    if target.is_dir() {
        return refuse("it is a symbolic link to a folder".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        scan(root)
            .unwrap()
            .into_iter()
            .map(|found| found.relative)
            .collect()
    }

    #[test]
    fn every_file_but_the_hidden_machinery() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "b/c.txt",
            "a",
            ".gitattributes",
            ".git/HEAD",
            ".cache/x",
            ".o.sparse-tmp-1-2/x",
            "b/.cache/y",
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        symlink("b/c.txt", dir.path().join("link")).unwrap();
        assert_eq!(
            names(dir.path()),
            [".gitattributes", "a", "b/c.txt", "link"]
        );
    }

    #[test]
    fn snapshots_of_the_hub_cache() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--org--name");
        let snapshot = repo.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(repo.join("blobs")).unwrap();
        std::fs::write(repo.join("blobs/123"), "x").unwrap();
        symlink("../../blobs/123", snapshot.join("config.json")).unwrap();
        assert_eq!(names(&snapshot), ["config.json"]);
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../../../secret", snapshot.join("y")).unwrap();
        assert!(
            scan(&snapshot)
                .unwrap_err()
                .to_string()
                .contains("leads out")
        );
    }

    #[test]
    fn other_links_are_refused() {
        for (target, expected) in [
            ("/etc/passwd", "leads out"),
            ("nowhere", "nowhere"),
            ("sub", "to a folder"),
            ("me", "nowhere"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("sub")).unwrap();
            symlink(target, dir.path().join("me")).unwrap();
            let error = scan(dir.path()).unwrap_err().to_string();
            assert!(error.contains("/me") && error.contains(expected), "{error}");
        }
    }
}
