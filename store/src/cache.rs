//! Where fetched models are kept.

use std::path::PathBuf;

/// The cache folder: `SPARSE_CACHE`, or `sparse` in `XDG_CACHE_HOME`, or `~/.cache/sparse`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    resolve(|name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

fn resolve(var: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    if let Some(path) = var("SPARSE_CACHE") {
        return path;
    }
    // XDG says that relative paths are to be ignored.
    if let Some(path) = var("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return path.join("sparse");
    }
    match var("HOME") {
        Some(home) => home.join(".cache").join("sparse"),
        None => std::env::temp_dir().join("sparse-cache"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_environment() {
        let with = |pairs: &'static [(&'static str, &'static str)]| {
            resolve(|name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(
            with(&[("SPARSE_CACHE", "/c"), ("HOME", "/h")]),
            PathBuf::from("/c")
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]),
            PathBuf::from("/x/sparse")
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]),
            PathBuf::from("/h/.cache/sparse")
        );
        assert!(with(&[]).is_absolute());
    }
}
