//! Models and datasets of the Hugging Face Hub, into the Hub's own cache.
//!
//! One request lists a revision (its commit, files, sizes and SHA-256: `?blobs=true`, which hf-hub cannot ask for);
//! hf-hub streams the files, with its retries, redirects and Xet. The files are written here rather than by hf-hub,
//! because a name or ETag from a server must not choose a path, an error page must not become a blob, and every byte is
//! checked against the listed size and SHA-256 before another program can see it.

use std::path::Path;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use hf_hub::{HFClient, HFError};
use serde::Deserialize;

use super::hub_cache::{RepoCache, is_commit};
use super::hub_file::{Piece, fetch_file};
use super::meter::Meter;
use super::wanted::{is_data, is_wanted, is_weights};
use super::{Fetched, space};
use crate::error::StoreError;
use crate::model::blocking;
use crate::options::{OpenOptions, Secret};

const ENDPOINT: &str = "https://huggingface.co";
/// Files downloaded at once.
const FILES: usize = 4;
/// How often a request is made before giving up.
pub(crate) const ATTEMPTS: u32 = 4;
/// The longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may stay silent.
pub(crate) const STALL: Duration = Duration::from_secs(60);
/// The largest listing accepted.
const MAX_LISTING: usize = 100_000_000;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    /// Its name in the Hub's addresses and in the names of the cache.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    fn wants(self, path: &str) -> bool {
        match self {
            Self::Model => is_wanted(path),
            Self::Dataset => is_data(path),
        }
    }
}

/// A repository at a revision, and how to reach it.
pub(crate) struct Hub<'a> {
    kind: RepoKind,
    pub(crate) client: HFClient,
    http: reqwest::Client,
    endpoint: String,
    token: Option<&'a Secret>,
    pub(crate) repo: &'a str,
    revision: &'a str,
    pub(crate) cache: RepoCache,
}

/// The listing of a revision, as the Hub answers it.
#[derive(Deserialize)]
struct Listing {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// A file of a revision, its path checked.
#[derive(Clone, Debug)]
pub(crate) struct HubFile {
    pub(crate) path: String,
    /// None where the server does not say.
    pub(crate) size: Option<u64>,
    /// Known for files in large-file storage: the weights.
    pub(crate) sha256: Option<String>,
    /// The name of its blob: the SHA-256, or git's hash of it.
    pub(crate) blob: Option<String>,
}

/// Makes sure that a Hub repository is in the Hub's cache.
pub(crate) async fn repository(
    kind: RepoKind,
    repo: &str,
    revision: Option<&str>,
    options: &OpenOptions,
) -> Result<Fetched, StoreError> {
    let revision = revision.unwrap_or("main");
    let root = options
        .hub_cache
        .clone()
        .unwrap_or_else(|| options.cache().join("hub"));
    let cache = RepoCache::new(&root, kind, repo);
    let shown = format!("{repo}@{revision}");
    if options.offline {
        return local(kind, &cache, revision).ok_or_else(|| StoreError::Offline {
            reference: shown,
            cache: root.display().to_string(),
            remedy: "unset HF_HUB_OFFLINE once to download it, or give a local path".to_owned(),
        });
    }
    let hub = Hub::new(kind, repo, revision, cache, options)?;
    let (commit, files) = match hub.list().await {
        Ok(listing) => listing,
        Err(error @ StoreError::Remote { .. }) => {
            // As huggingface_hub does: no network, but a copy from the last time.
            if let Some(fetched) = local(kind, &hub.cache, revision) {
                tracing::warn!(%error, "the Hub cannot be reached; the copy in the cache is used");
                return Ok(fetched);
            }
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    hub.fetch(&commit, &files, options).await?;
    Ok(Fetched {
        path: hub.cache.snapshot(&commit),
        keep: keep(kind),
        resolved: Some(commit),
    })
}

/// Which files of a snapshot count.
fn keep(kind: RepoKind) -> Option<fn(&str) -> bool> {
    match kind {
        RepoKind::Model => Some(is_wanted),
        RepoKind::Dataset => Some(is_data),
    }
}

/// What the cache has of a revision.
fn local(kind: RepoKind, cache: &RepoCache, revision: &str) -> Option<Fetched> {
    let commit = cache.commit(revision)?;
    let path = cache.snapshot(&commit);
    path.is_dir().then_some(Fetched {
        path,
        keep: keep(kind),
        resolved: Some(commit),
    })
}

impl<'a> Hub<'a> {
    fn new(
        kind: RepoKind,
        repo: &'a str,
        revision: &'a str,
        cache: RepoCache,
        options: &'a OpenOptions,
    ) -> Result<Self, StoreError> {
        let endpoint = options
            .hub_endpoint
            .clone()
            .unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let bad = |problem: String| StoreError::Reference {
            reference: crate::location::redact(&endpoint),
            problem,
            remedy: "set HF_ENDPOINT to the Hub's address, as in https://huggingface.co".to_owned(),
        };
        let http = reqwest::Client::builder()
            .user_agent(concat!("sparse/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(STALL)
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let mut builder = HFClient::builder()
            .endpoint(&endpoint)
            .client(http.clone())
            .cache_enabled(false)
            .retry_max_attempts(2);
        if let Some(token) = &options.hub_token {
            builder = builder.token(token.expose());
        }
        let client = builder.build().map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            kind,
            client,
            http,
            endpoint,
            token: options.hub_token.as_ref(),
            repo,
            revision,
            cache,
        })
    }

    /// The commit of the revision, and the files that are needed.
    async fn list(&self) -> Result<(String, Vec<HubFile>), StoreError> {
        let body = self.retry(|| self.request_listing()).await?;
        let listing: Listing = serde_json::from_slice(&body)
            .map_err(|error| self.malformed(format!("its listing is not valid: {error}")))?;
        let commit = listing.sha.filter(|sha| is_commit(sha));
        let commit =
            commit.ok_or_else(|| self.malformed("its listing names no commit".to_owned()))?;
        let mut files = Vec::new();
        for sibling in listing.siblings {
            crate::path::check_relative(&sibling.rfilename)?;
            if self.kind.wants(&sibling.rfilename) {
                files.push(HubFile::new(sibling));
            }
        }
        if self.kind == RepoKind::Dataset && files.is_empty() {
            return Err(StoreError::NotFound {
                what: format!(
                    "a data file in the dataset {} (commit {commit})",
                    self.shown()
                ),
                remedy: "choose a revision with Parquet files, such as refs/convert/parquet"
                    .to_owned(),
            });
        }
        if self.kind == RepoKind::Model && !files.iter().any(|file| is_weights(&file.path)) {
            return Err(StoreError::NotAModel {
                path: format!("{} (commit {commit})", self.shown()),
                problem: "the repository has no *.safetensors file".to_owned(),
                remedy:
                    "choose a revision that has one, or convert the weights to safetensors first"
                        .to_owned(),
            });
        }
        Ok((commit, files))
    }

    async fn request_listing(&self) -> Result<Vec<u8>, StoreError> {
        let mut url =
            url::Url::parse(&self.endpoint).map_err(|error| self.malformed(error.to_string()))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .extend(["api", self.kind.plural()])
                .extend(self.repo.split('/'));
            segments.extend(["revision", self.revision]);
        }
        url.query_pairs_mut().append_pair("blobs", "true");
        let mut request = self.http.get(url);
        if let Some(token) = self.token {
            request = request.bearer_auth(token.expose());
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            let retry_after = response
                .headers()
                .get(reqwest::header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(self.refused(status.as_u16(), retry_after, None));
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream
            .try_next()
            .await
            .map_err(|error| self.unreachable(&error))?
        {
            if body.len() + bytes.len() > MAX_LISTING {
                return Err(
                    self.malformed(format!("its listing is larger than {MAX_LISTING} bytes"))
                );
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// Brings files into the cache, and notes the revision once all are there.
    async fn fetch(
        &self,
        commit: &str,
        files: &[HubFile],
        options: &OpenOptions,
    ) -> Result<(), StoreError> {
        let snapshot = self.cache.snapshot(commit);
        let missing: Vec<&HubFile> = files
            .iter()
            .filter(|file| !is_there(&snapshot, file))
            .collect();
        let total = missing.iter().filter_map(|file| file.size).sum();
        space::ensure_room(&self.cache.blobs()?, total)?;
        let meter = &Meter::new(options, total);
        // Boxed in a plain iterator: a closure over references inside the stream would leave this future not `Send` for all
        // lifetimes.
        let fetches: Vec<_> = missing
            .into_iter()
            .map(|file| fetch_file(self, commit, file, meter).boxed())
            .collect();
        futures::stream::iter(fetches)
            .buffer_unordered(FILES)
            .try_collect::<Vec<()>>()
            .await?;
        let (cache, revision, commit) = (
            self.cache.clone(),
            self.revision.to_owned(),
            commit.to_owned(),
        );
        blocking("storing", move || cache.remember(&revision, &commit)).await?
    }

    /// Asks again when the network or the server fails for now; waits as long as the server asks.
    pub(crate) async fn retry<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let wait = match ask().await {
                Err(StoreError::RateLimited { retry_after, .. }) if tries < ATTEMPTS => retry_after
                    .map_or(Duration::from_secs(1) * tries, Duration::from_secs)
                    .min(MAX_WAIT),
                // A host that cannot be reached at all is not worth the wait.
                Err(error @ StoreError::Remote { .. }) if tries < 2 => {
                    tracing::debug!(%error, "asking again");
                    Duration::from_millis(300)
                }
                Err(error @ StoreError::Damaged { .. }) if tries < ATTEMPTS => {
                    tracing::debug!(%error, "asking again");
                    Duration::from_millis(300) * tries
                }
                other => return other,
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Begins to stream a file, from `start` on.
    pub(crate) async fn stream(
        &self,
        commit: &str,
        path: &str,
        start: u64,
        size: Option<u64>,
    ) -> Result<Piece, StoreError> {
        let (owner, name) = hf_hub::split_id(self.repo);
        let range = size.filter(|_| start > 0).map(|size| start..size);
        // The two are different types with the same methods.
        macro_rules! begin {
            ($repo:expr) => {
                $repo
                    .download_file_stream()
                    .filename(path)
                    .revision(commit)
                    .maybe_range(range)
                    .send()
                    .await
                    .map_err(|error| self.hub_error(error, Some(path)))?
            };
        }
        let (length, stream) = match self.kind {
            RepoKind::Model => begin!(self.client.model(owner, name)),
            RepoKind::Dataset => begin!(self.client.dataset(owner, name)),
        };
        Ok(Piece { length, stream })
    }

    fn shown(&self) -> String {
        format!("{}@{}", self.repo, self.revision)
    }

    /// A message without the token and without the signatures of redirected URLs.
    fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if let Some(token) = self
            .token
            .map(Secret::expose)
            .filter(|token| !token.is_empty())
        {
            text = text.replace(token, "[redacted]");
        }
        let mut clean = String::with_capacity(text.len());
        let mut in_query = false;
        for c in text.chars() {
            if in_query && (c.is_whitespace() || matches!(c, ')' | '"' | '\'' | ',')) {
                in_query = false;
            }
            if !in_query {
                clean.push(c);
            }
            if c == '?' {
                in_query = true;
            }
        }
        clean
    }

    pub(crate) fn hub_error(&self, error: HFError, path: Option<&str>) -> StoreError {
        let text = self.clean(&error.to_string());
        match error {
            HFError::AuthRequired { .. } => self.refused(401, None, path),
            HFError::Forbidden { .. } => self.refused(403, None, path),
            HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. }
            | HFError::EntryNotFound { .. } => self.refused(404, None, path),
            HFError::RateLimited { retry_after, .. } => {
                self.refused(429, retry_after.map(|wait| wait.as_secs()), path)
            }
            HFError::Http { context } => self.refused(context.status.as_u16(), None, path),
            _ => self.remote(text, path),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> StoreError {
        use std::error::Error as _;
        // The outer message only says "error sending request"; the inner ones say why.
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        self.remote(self.clean(&text), None)
    }

    fn remote(&self, problem: String, path: Option<&str>) -> StoreError {
        StoreError::Remote {
            reference: self.name(path),
            problem: format!(
                "the Hub at {} failed: {problem}",
                crate::location::redact(&self.endpoint)
            ),
            remedy:
                "check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use the cache only"
                    .to_owned(),
        }
    }

    pub(crate) fn damaged(&self, path: &str, problem: String) -> StoreError {
        StoreError::Damaged {
            reference: self.name(Some(path)),
            problem,
        }
    }

    fn malformed(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            reference: self.shown(),
            problem,
        }
    }

    fn name(&self, path: Option<&str>) -> String {
        match path {
            Some(path) => format!("{path} of {}", self.shown()),
            None => self.shown(),
        }
    }

    fn refused(&self, status: u16, retry_after: Option<u64>, path: Option<&str>) -> StoreError {
        let reference = self.name(path);
        match status {
            401 | 403 => StoreError::Access {
                reference,
                problem: format!("HTTP {status}"),
                remedy: if self.token.is_some() {
                    "check that the token may read it, accept the model's terms on its page, and check the name".to_owned()
                } else {
                    "set HF_TOKEN if it is private or gated, and check the name: the Hub answers so for missing ones too".to_owned()
                },
            },
            404 => StoreError::NotFound {
                what: format!("{reference} on the Hub"),
                remedy: "check the name and the revision; a local path that looks like one is written ./org/name".to_owned(),
            },
            429 => StoreError::RateLimited { reference, retry_after },
            _ => self.remote(format!("HTTP {status}"), path),
        }
    }
}

impl HubFile {
    fn new(sibling: Sibling) -> Self {
        let hex = |text: &String, len: usize| {
            text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let lfs = sibling.lfs;
        let sha256 = lfs
            .as_ref()
            .and_then(|lfs| lfs.sha256.clone())
            .filter(|sha| hex(sha, 64))
            .map(|sha| sha.to_ascii_lowercase());
        let size = lfs.and_then(|lfs| lfs.size).or(sibling.size);
        let blob = sha256
            .clone()
            .or_else(|| sibling.blob_id.filter(|id| hex(id, 40)));
        Self {
            path: sibling.rfilename,
            size,
            sha256,
            blob,
        }
    }
}

/// Whether a snapshot has a file already, whole.
pub(crate) fn is_there(snapshot: &Path, file: &HubFile) -> bool {
    std::fs::metadata(snapshot.join(&file.path))
        .is_ok_and(|meta| meta.is_file() && file.size.is_none_or(|size| size == meta.len()))
}
