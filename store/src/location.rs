//! Model references: a path, a URL or a Hub id.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

use crate::error::StoreError;

/// URL schemes that name an object store.
const SCHEMES: &[&str] = &[
    "s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "http", "https",
];

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or folder on this machine.
    Local(PathBuf),
    /// An object, or a prefix, in an object store or on an HTTP server.
    Url(Url),
    /// A repository of the Hugging Face Hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit; `main` if none.
        revision: Option<String>,
    },
}

impl Location {
    /// Reads a reference. A path that exists wins; `./x`, `/x` and `~/x` are always paths; `s3://`, `gs://`, `az://`,
    /// `http(s)://` and `file://` are URLs; what is left and looks like `org/name[@revision]` is a Hub id (as is
    /// `hf://org/name[@revision]`, always).
    pub fn parse(reference: &str) -> Result<Self, StoreError> {
        Self::parse_with(
            reference,
            std::env::var_os("HOME").map(PathBuf::from).as_deref(),
            Path::exists,
        )
    }

    fn parse_with(
        reference: &str,
        home: Option<&Path>,
        exists: impl Fn(&Path) -> bool,
    ) -> Result<Self, StoreError> {
        let bad = |problem: &str, remedy: &str| {
            Err(StoreError::Reference {
                reference: redact(reference),
                problem: problem.to_owned(),
                remedy: remedy.to_owned(),
            })
        };
        const FORMS: &str = "give a path, a URL (s3://, gs://, az://, http(s)://, file://) or a Hub id (org/name[@revision])";
        if reference.trim().is_empty() {
            return bad("it is empty", FORMS);
        }
        if reference.contains('\0') {
            return bad("it holds a NUL byte", FORMS);
        }
        if let Some((scheme, rest)) = reference.split_once("://") {
            if scheme.eq_ignore_ascii_case("hf") {
                return match hub_id(rest) {
                    Some(hub) => Ok(hub),
                    None => bad(
                        "it is not hf://org/name[@revision]",
                        "check the repository's name",
                    ),
                };
            }
            let Ok(url) = Url::parse(reference) else {
                return bad("it is not a valid URL", FORMS);
            };
            if url.scheme() == "file" {
                return match url.to_file_path() {
                    Ok(path) => Ok(Self::Local(path)),
                    Err(()) => bad(
                        "a file:// URL needs an absolute path of this machine",
                        "write file:///path",
                    ),
                };
            }
            if !SCHEMES.contains(&url.scheme()) {
                return bad(
                    &format!("the scheme {:?} is not known", url.scheme()),
                    FORMS,
                );
            }
            if url.host_str().is_none_or(str::is_empty) {
                return bad("it names no bucket or host", "write scheme://bucket/path");
            }
            if url.query().is_some() || url.fragment().is_some() {
                let remedy =
                    "download the file first, or give credentials by environment variables";
                return bad(
                    "URLs with a query or fragment (signed links) are not supported",
                    remedy,
                );
            }
            return Ok(Self::Url(url));
        }
        if let Some(rest) = reference.strip_prefix('~')
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return match home {
                Some(home) => Ok(Self::Local(home.join(rest.trim_start_matches('/')))),
                None => bad("HOME is not set", "write the whole path"),
            };
        }
        let path = Path::new(reference);
        let explicit =
            path.is_absolute() || matches!(reference.split('/').next(), Some("." | ".."));
        if explicit || exists(path) {
            return Ok(Self::Local(path.to_path_buf()));
        }
        Ok(hub_id(reference).unwrap_or_else(|| Self::Local(path.to_path_buf())))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(&redact_url(url)),
            Self::Hub {
                repo,
                revision: None,
            } => f.write_str(repo),
            Self::Hub {
                repo,
                revision: Some(revision),
            } => write!(f, "{repo}@{revision}"),
        }
    }
}

/// Reads `org/name[@revision]`, by the Hub's own rules for names.
fn hub_id(text: &str) -> Option<Location> {
    let (repo, revision) = match text.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (text, None),
    };
    let (org, name) = repo.split_once('/')?;
    // A file name is a path that does not exist, not a repository.
    let is_file = [".safetensors", ".json", ".parquet"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    if !hub_name(org) || !hub_name(name) || is_file || !revision.is_none_or(is_revision) {
        return None;
    }
    Some(Location::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
    })
}

/// Whether this is the name of a repository, with or without an owner: safe as a part of a path.
pub(crate) fn is_hub_id(id: &str) -> bool {
    let mut parts = id.splitn(2, '/');
    parts.all(hub_name)
}

fn hub_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !name.contains("..")
        && !name.contains("--")
}

/// A git revision that is safe as a part of a path, too: `main`, `v1.0`, `refs/pr/3`, a commit.
pub(crate) fn is_revision(revision: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.ends_with(".lock")
            && !part.contains("..")
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'))
    };
    revision.len() <= 200 && revision.split('/').all(part)
}

/// A URL as it may be shown: without user, password and query.
#[must_use]
pub fn redact_url(url: &Url) -> String {
    let mut url = url.clone();
    // In `abfss://container@account.host` the user is the container, and no secret.
    if url.password().is_some() || url.scheme().starts_with("http") {
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    if url.query().is_some() {
        url.set_query(Some("..."));
    }
    url.to_string()
}

/// A reference as it may be shown.
pub(crate) fn redact(reference: &str) -> String {
    match Url::parse(reference) {
        Ok(url) if reference.contains("://") => redact_url(&url),
        _ => reference.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    fn parse(reference: &str) -> Result<Location, StoreError> {
        Location::parse_with(reference, Some(Path::new("/home/me")), |path| {
            path == Path::new("org/here")
        })
    }

    fn hub(repo: &str, revision: Option<&str>) -> Location {
        Location::Hub {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
        }
    }

    #[test]
    fn paths() {
        for path in [
            "/a/b",
            "./a/b",
            "../a",
            ".",
            "..",
            "a",
            "a/b/c",
            "org/here",
            "org/x.safetensors",
            "a b/c",
        ] {
            assert_eq!(parse(path).unwrap(), Location::Local(path.into()), "{path}");
        }
        assert_eq!(parse("~/m").unwrap(), Location::Local("/home/me/m".into()));
        assert_eq!(
            parse("file:///a/b%20c").unwrap(),
            Location::Local("/a/b c".into())
        );
        assert_eq!(parse("~user/m").unwrap(), Location::Local("~user/m".into()));
    }

    #[test]
    fn hub_ids() {
        assert_eq!(parse("org/name").unwrap(), hub("org/name", None));
        assert_eq!(
            parse("org/name-1.5_x@v1.0").unwrap(),
            hub("org/name-1.5_x", Some("v1.0"))
        );
        assert_eq!(
            parse("org/name@refs/pr/3").unwrap(),
            hub("org/name", Some("refs/pr/3"))
        );
        assert_eq!(
            parse("hf://org/here@main").unwrap(),
            hub("org/here", Some("main"))
        );
        for not in [
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/-x",
            "-org/x",
            "org/a--b",
            "org/a..b",
            "org/a b",
        ] {
            assert!(matches!(parse(not).unwrap(), Location::Local(_)), "{not}");
        }
        assert!(parse("hf://org").is_err());
        assert_eq!(hub("a/b", Some("c")).to_string(), "a/b@c");
    }

    #[test]
    fn urls() {
        for url in [
            "s3://b/p",
            "gs://b/p/q",
            "az://c/p",
            "https://h/p/model.safetensors",
            "abfss://c@a.dfs.core.windows.net/p",
        ] {
            assert!(matches!(parse(url).unwrap(), Location::Url(_)), "{url}");
        }
        for url in [
            "ftp://h/x",
            "s3:///x",
            "http://",
            "https://h/x?sig=secret",
            "file://host/x",
            "",
            "  ",
            "a\0b",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://me:pw@host/x?sig=abc").unwrap();
        assert_eq!(redact_url(&url), "https://host/x?...");
        assert!(
            !parse("ftp://me:pw@host/x")
                .unwrap_err()
                .to_string()
                .contains("pw")
        );
        let azure = Url::parse("abfss://container@account.host/x").unwrap();
        assert_eq!(redact_url(&azure), azure.as_str());
    }
}
