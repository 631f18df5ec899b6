//! Models and datasets of the Hugging Face Hub, into the Hub's own cache.
//!
//! One request lists a revision (its commit, files, sizes and SHA-256: `?blobs=true`, which hf-hub cannot ask for);
//! hf-hub streams the files, with its retries, redirects and Xet. The files are written here rather than by hf-hub,
//! because a name or ETag from a server must not choose a path, an error page must not become a blob, and every byte is
//! checked against the listed size and SHA-256 before another program can see it.

use std::path::Path;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use hf_hub::{HFClient, HFError};
use serde::Deserialize;

use super::hub_api::{Api, bad_endpoint};
use super::hub_cache::{RepoCache, is_commit};
use super::hub_file::{Piece, fetch_file};
use super::meter::Meter;
use super::wanted::{is_data, is_wanted, is_weights};
use super::{Fetched, space};
use crate::error::StoreError;
use crate::model::blocking;
use crate::options::OpenOptions;

/// Files downloaded at once.
const FILES: usize = 4;

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
    pub(crate) api: Api<'a>,
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
        let api = Api::new(options, format!("{repo}@{revision}"))?;
        let bad = |error: HFError| bad_endpoint(&api.endpoint, error.to_string());
        let mut builder = HFClient::builder()
            .endpoint(&api.endpoint)
            .client(api.http.clone())
            .cache_enabled(false)
            .retry_max_attempts(2);
        if let Some(token) = &options.hub_token {
            builder = builder.token(token.expose());
        }
        let client = builder.build().map_err(bad)?;
        Ok(Self {
            kind,
            client,
            api,
            repo,
            revision,
            cache,
        })
    }

    /// The commit of the revision, and the files that are needed.
    async fn list(&self) -> Result<(String, Vec<HubFile>), StoreError> {
        let body = self.api.retry(|| self.request_listing()).await?;
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| {
            self.api
                .malformed(format!("its listing is not valid: {error}"))
        })?;
        let commit = listing.sha.filter(|sha| is_commit(sha));
        let commit =
            commit.ok_or_else(|| self.api.malformed("its listing names no commit".to_owned()))?;
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
        let head = ["api", self.kind.plural()];
        let tail = ["revision", self.revision];
        let path = head.into_iter().chain(self.repo.split('/')).chain(tail);
        let mut url = self.api.url(path)?;
        url.query_pairs_mut().append_pair("blobs", "true");
        let (_, body) = self.api.get(url).await?;
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

    pub(crate) fn hub_error(&self, error: HFError, path: Option<&str>) -> StoreError {
        let text = self.api.clean(&error.to_string());
        match error {
            HFError::AuthRequired { .. } => self.api.refused(401, None, path),
            HFError::Forbidden { .. } => self.api.refused(403, None, path),
            HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. }
            | HFError::EntryNotFound { .. } => self.api.refused(404, None, path),
            HFError::RateLimited { retry_after, .. } => {
                self.api
                    .refused(429, retry_after.map(|wait| wait.as_secs()), path)
            }
            HFError::Http { context } => self.api.refused(context.status.as_u16(), None, path),
            _ => self.api.remote(text, path),
        }
    }

    pub(crate) fn damaged(&self, path: &str, problem: String) -> StoreError {
        StoreError::Damaged {
            reference: self.api.name(Some(path)),
            problem,
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
