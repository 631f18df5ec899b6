//! Relative paths from manifests, indexes and servers, joined to a folder without ever leaving it.

use std::path::{Component, Path, PathBuf};

use crate::error::StoreError;

/// Checks that `relative` names something below a folder: plain components separated by `/`, nothing else.
pub fn check_relative(relative: &str) -> Result<(), StoreError> {
    let refuse = |problem: &str| {
        Err(StoreError::UnsafePath {
            path: relative.to_owned(),
            problem: problem.to_owned(),
        })
    };
    if relative.is_empty() {
        return refuse("it is empty");
    }
    if relative.len() > 4096 {
        return refuse("it is longer than 4096 bytes");
    }
    if relative.contains('\0') {
        return refuse("it holds a NUL byte");
    }
    if relative.contains('\\') {
        return refuse("it holds a backslash, which some systems read as a folder separator");
    }
    if relative.chars().any(char::is_control) {
        return refuse("it holds control characters");
    }
    if relative.starts_with('/') {
        return refuse("it is absolute; only paths inside the folder are allowed");
    }
    for component in relative.split('/') {
        match component {
            "" => return refuse("it has an empty component"),
            "." | ".." => {
                return refuse("it has a `.` or `..` component and could leave its folder");
            }
            long if long.len() > 255 => return refuse("a component is longer than 255 bytes"),
            _ => {}
        }
    }
    // `C:` and the like, on the systems where they mean something.
    if Path::new(relative)
        .components()
        .any(|component| !matches!(component, Component::Normal(_)))
    {
        return refuse("it is not a plain relative path");
    }
    Ok(())
}

/// Joins `relative` to `root`. Refuses absolute paths, `..`, empty components, NUL and backslashes, and any component
/// that is a symbolic link leading out of `root`.
pub fn safe_join(root: &Path, relative: &str) -> Result<PathBuf, StoreError> {
    check_relative(relative)?;
    let mut path = root.to_path_buf();
    for component in relative.split('/') {
        path.push(component);
        let is_link =
            std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_symlink());
        if is_link && !stays_inside(root, &path) {
            return Err(StoreError::UnsafePath {
                path: relative.to_owned(),
                problem: format!(
                    "{} is a symbolic link that leads out of {}",
                    path.display(),
                    root.display()
                ),
            });
        }
    }
    Ok(path)
}

/// Whether `path`, links resolved, lies in `root`. What cannot be resolved does not.
fn stays_inside(root: &Path, path: &Path) -> bool {
    match (root.canonicalize(), path.canonicalize()) {
        (Ok(root), Ok(path)) => path.starts_with(root),
        _ => false,
    }
}

/// Whether the last component of `relative` ends with `suffix`, in any case.
pub(crate) fn has_suffix(relative: &str, suffix: &str) -> bool {
    let start = relative.len().checked_sub(suffix.len());
    start
        .and_then(|start| relative.get(start..))
        .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_join() {
        let root = Path::new("/models/x");
        for good in [
            "a",
            "a/b.json",
            "a b/c",
            "..a",
            "a..",
            ".gitattributes",
            "ü/ß",
        ] {
            assert_eq!(safe_join(root, good).unwrap(), root.join(good));
        }
    }

    #[test]
    fn escapes_are_refused() {
        let root = Path::new("/models/x");
        let long = "a".repeat(256);
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a/",
            "a\\b",
            "a\0b",
            "a\nb",
            ".",
            &long,
        ] {
            let error = safe_join(root, bad).unwrap_err();
            assert!(matches!(error, StoreError::UnsafePath { .. }), "{bad:?}");
        }
    }

    #[test]
    fn links_that_leave_are_refused_and_links_that_stay_pass() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        std::os::unix::fs::symlink("sub", root.join("in")).unwrap();
        assert!(safe_join(&root, "out/passwd").is_err());
        assert!(safe_join(&root, "dangling").is_err());
        assert!(safe_join(&root, "in/file").is_ok());
    }

    #[test]
    fn suffixes_in_any_case() {
        assert!(has_suffix("a/B.SafeTensors", ".safetensors"));
        assert!(!has_suffix("x", ".safetensors"));
        assert!(!has_suffix("ü", "x"));
    }
}
