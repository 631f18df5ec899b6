//! How models are opened: caches, credentials, progress.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Told what is being done and how far it is, from 0 to 1.
pub type Progress = Arc<dyn Fn(&str, f64) + Send + Sync>;

/// A token or key that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, to be sent and not shown.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// How models are opened. [`Default`] reads the environment.
#[derive(Clone)]
pub struct OpenOptions {
    /// Where fetched objects and locks are kept: `SPARSE_CACHE`, or `~/.cache/sparse`. None: that default.
    pub cache_dir: Option<PathBuf>,
    /// Use caches only, never the network: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// The Hub's address: `HF_ENDPOINT`.
    pub hub_endpoint: Option<String>,
    /// The Hub's token: `HF_TOKEN`, or the file that `hf auth login` writes. Sent to the endpoint's host only.
    pub hub_token: Option<Secret>,
    /// The Hub's own cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or `~/.cache/huggingface/hub`.
    pub hub_cache: Option<PathBuf>,
    /// Object store options as `(name, value)`: every `AWS_*`, `GOOGLE_*` and `AZURE_*` variable.
    pub store_options: Vec<(String, Secret)>,
    /// Told about downloads and hashing.
    pub progress: Option<Progress>,
}

impl OpenOptions {
    /// Options with no cache, token or credentials of the environment: for tests and embedding programs.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            cache_dir: None,
            offline: false,
            hub_endpoint: None,
            hub_token: None,
            hub_cache: None,
            store_options: Vec::new(),
            progress: None,
        }
    }

    /// The cache folder in use.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.cache_dir
            .clone()
            .unwrap_or_else(crate::cache::cache_dir)
    }

    pub(crate) fn report(&self, message: &str, fraction: f64) {
        if let Some(progress) = &self.progress {
            progress(message, fraction.clamp(0.0, 1.0));
        }
    }

    fn from_vars(
        vars: impl Fn(&str) -> Option<String>,
        all: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let set = |name: &str| vars(name).filter(|value| !value.trim().is_empty());
        let home = || set("HOME").map(PathBuf::from);
        let hf_home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface")))
            .or_else(|| home().map(|home| home.join(".cache").join("huggingface")));
        let hub_cache = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")));
        let implicit = !set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
        let token_file = || {
            let path = set("HF_TOKEN_PATH")
                .map(PathBuf::from)
                .or_else(|| hf_home.as_ref().map(|home| home.join("token")));
            path.and_then(|path| std::fs::read_to_string(path).ok())
        };
        let token = if implicit {
            set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(token_file)
        } else {
            None
        };
        let stores = ["AWS_", "GOOGLE_", "AZURE_"];
        Self {
            cache_dir: set("SPARSE_CACHE").map(PathBuf::from),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            hub_endpoint: set("HF_ENDPOINT")
                .map(|value| value.trim().trim_end_matches('/').to_owned()),
            hub_token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty())
                .map(Secret::new),
            hub_cache,
            store_options: all
                .filter(|(name, _)| stores.iter().any(|prefix| name.starts_with(prefix)))
                .map(|(name, value)| (name.to_ascii_lowercase(), Secret::new(value)))
                .collect(),
            progress: None,
        }
    }
}

/// As in huggingface_hub.
fn is_true(value: &str) -> bool {
    matches!(
        value.trim().to_ascii_uppercase().as_str(),
        "1" | "ON" | "YES" | "TRUE"
    )
}

impl Default for OpenOptions {
    fn default() -> Self {
        // Variables that are not UTF-8 are none of ours.
        let all = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::from_vars(|name| std::env::var(name).ok(), all)
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("hub_endpoint", &self.hub_endpoint)
            .field("hub_token", &self.hub_token)
            .field("hub_cache", &self.hub_cache)
            .field("store_options", &self.store_options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> OpenOptions {
        let get = |name: &str| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        OpenOptions::from_vars(
            get,
            vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        )
    }

    #[test]
    fn secrets_stay_secret() {
        let options = options(&[
            ("HF_TOKEN", "hf_secret"),
            ("AWS_SECRET_ACCESS_KEY", "aws_secret"),
            ("HOME", "/h"),
        ]);
        assert_eq!(options.hub_token.as_ref().unwrap().expose(), "hf_secret");
        let shown = format!(
            "{options:?} {} {:?}",
            Secret::new("hf_secret"),
            Secret::new("hf_secret")
        );
        assert!(
            !shown.contains("_secret\"") && !shown.contains("hf_secret"),
            "{shown}"
        );
        assert_eq!(options.store_options[0].0, "aws_secret_access_key");
    }

    #[test]
    fn the_hub_environment() {
        assert_eq!(
            options(&[("HOME", "/h")]).hub_cache.unwrap(),
            PathBuf::from("/h/.cache/huggingface/hub")
        );
        assert_eq!(
            options(&[("HF_HOME", "/hf")]).hub_cache.unwrap(),
            PathBuf::from("/hf/hub")
        );
        assert_eq!(
            options(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")])
                .hub_cache
                .unwrap(),
            PathBuf::from("/c")
        );
        assert!(options(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(
            options(&[("HF_ENDPOINT", "http://x/")])
                .hub_endpoint
                .unwrap(),
            "http://x"
        );
        assert!(
            options(&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")])
                .hub_token
                .is_none()
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let from_file = options(&[("HF_HOME", dir.path().to_str().unwrap())]);
        assert_eq!(from_file.hub_token.unwrap().expose(), "from-file");
    }
}
