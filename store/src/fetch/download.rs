//! One object into one file of the cache: in ranges, several at a time, whole or not at all.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use super::bucket::{Bucket, Object};
use super::meter::Meter;
use crate::error::{During, StoreError};
use crate::model::blocking;
use crate::stage::{Replace, Staged};

/// Bytes of one request.
const CHUNK: u64 = 8 << 20;
/// Requests under way, over all files: with [`CHUNK`], the most memory in use.
pub(crate) const REQUESTS: usize = 8;
/// How often a piece is asked for before giving up.
const ATTEMPTS: u32 = 3;

/// An object in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) path: PathBuf,
    /// Changes when the object's bytes do.
    pub(crate) key: String,
}

/// Brings an object into `folder`, unless it is there already.
pub(crate) async fn blob(
    bucket: &Bucket,
    object: &Object,
    folder: &Path,
    cache: &Path,
    requests: &Semaphore,
    meter: &Meter<'_>,
) -> Result<Blob, StoreError> {
    let identity = format!(
        "{}\0{}\0{}",
        bucket.name(Some(&object.location)),
        object.size,
        object.stamp.as_deref().unwrap_or("")
    );
    let key = blake3::hash(identity.as_bytes()).to_hex()[..40].to_owned();
    let path = folder.join(&key);
    let complete =
        |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.len() == object.size);
    if object.stamp.is_some() && complete(&path) {
        meter.add(&object.relative, object.size);
        return Ok(Blob { path, key });
    }
    let (name, cache) = (format!("object {key}"), cache.to_path_buf());
    let _one_downloader = blocking("waiting for another download", move || {
        crate::lock::lock(&name, &cache)
    })
    .await??;
    if object.stamp.is_some() && complete(&path) {
        meter.add(&object.relative, object.size);
        return Ok(Blob { path, key });
    }
    let staged = Staged::file(&path)?;
    let file = Arc::new(
        File::options()
            .write(true)
            .open(staged.path())
            .during("write", staged.path())?,
    );
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut start = 0;
    while start < object.size {
        let end = (start + CHUNK).min(object.size);
        pieces.push(start..end);
        start = end;
    }
    let single = pieces.len() <= 1;
    let target = Target {
        bucket,
        object,
        file: &file,
        path: staged.path(),
        requests,
        meter,
    };
    let ranged = if single {
        target.whole().await.map(|()| true)
    } else {
        futures::stream::iter(pieces)
            .map(|piece| target.piece(piece))
            .buffer_unordered(REQUESTS)
            .try_fold(true, |all, done| async move { Ok(all && done) })
            .await
    };
    if !ranged? {
        // The server does not do ranges.
        target.whole().await?;
    }
    // The server says nothing by which a change could be seen: the bytes themselves do.
    let (path, key) = if object.stamp.is_some() {
        (path, key)
    } else {
        let temp = staged.path().to_path_buf();
        let hash = blocking("hashing", move || crate::hash::blake3_file(&temp)).await??;
        let key = hash[..40].to_owned();
        let renamed = folder.join(&key);
        let temp = staged.path().to_path_buf();
        let by_content = Staged::file(&renamed)?;
        std::fs::rename(&temp, by_content.path()).during("move", &temp)?;
        blocking("storing", move || by_content.commit(Replace::Allow)).await??;
        return Ok(Blob { path: renamed, key });
    };
    blocking("storing", move || staged.commit(Replace::Allow)).await??;
    Ok(Blob { path, key })
}

/// What pieces are written to.
struct Target<'a> {
    bucket: &'a Bucket,
    object: &'a Object,
    file: &'a Arc<File>,
    path: &'a Path,
    requests: &'a Semaphore,
    meter: &'a Meter<'a>,
}

impl Target<'_> {
    /// One range, tried again when the network fails. False if the server does not do ranges.
    async fn piece(&self, range: Range<u64>) -> Result<bool, StoreError> {
        self.retry(|| self.attempt(Some(range.clone()))).await
    }

    /// The object in one request, tried again when the network fails.
    async fn whole(&self) -> Result<(), StoreError> {
        self.retry(|| self.attempt(None)).await.map(|_| ())
    }

    async fn retry<F: Future<Output = Result<bool, StoreError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<bool, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match attempt().await {
                Err(error)
                    if tries < ATTEMPTS
                        && matches!(
                            error,
                            StoreError::Remote { .. } | StoreError::Damaged { .. }
                        ) =>
                {
                    tracing::debug!(%error, tries, "asking again");
                    tokio::time::sleep(std::time::Duration::from_millis(200) * tries).await;
                }
                other => return other,
            }
        }
    }

    async fn attempt(&self, range: Option<Range<u64>>) -> Result<bool, StoreError> {
        let stopped = |_| StoreError::Stopped {
            what: format!("fetching {}", self.object.relative),
        };
        let _request = self.requests.acquire().await.map_err(stopped)?;
        let whole = 0..self.object.size;
        let expected = range.clone().unwrap_or(whole);
        let got = match self.bucket.try_get(self.object, range.clone()).await? {
            Ok(got) => got,
            Err(object_store::Error::NotSupported { .. }) if range.is_some() => return Ok(false),
            Err(error) => return Err(self.bucket.error(Some(&self.object.location), error)),
        };
        let mut stream = got.into_stream();
        let mut at = expected.start;
        let mut buffer = BytesMut::new();
        let result = loop {
            match self.bucket.stall(stream.next()).await {
                Ok(Some(Ok(bytes))) => {
                    if at + (buffer.len() + bytes.len()) as u64 > expected.end {
                        break Err(self.damaged(format!(
                            "more than {} bytes arrived",
                            expected.end - expected.start
                        )));
                    }
                    buffer.extend_from_slice(&bytes);
                    if buffer.len() as u64 >= CHUNK {
                        at = match self.write(at, buffer.split()).await {
                            Ok(at) => at,
                            Err(error) => break Err(error),
                        };
                    }
                }
                Ok(Some(Err(error))) => {
                    break Err(self.bucket.error(Some(&self.object.location), error));
                }
                Ok(None) => break self.write(at, buffer).await,
                Err(error) => break Err(error),
            }
        };
        match result {
            Ok(end) if end == expected.end => Ok(true),
            Ok(end) => {
                let arrived = end - expected.start;
                self.meter.take_back(arrived);
                Err(self.damaged(format!(
                    "{arrived} of {} bytes arrived",
                    expected.end - expected.start
                )))
            }
            Err(error) => {
                self.meter.take_back(at - expected.start);
                Err(error)
            }
        }
    }

    /// Writes a piece off the async threads, and says where the next one goes.
    async fn write(&self, at: u64, bytes: BytesMut) -> Result<u64, StoreError> {
        let len = bytes.len() as u64;
        if len > 0 {
            let (file, path) = (Arc::clone(self.file), self.path.to_path_buf());
            blocking("writing", move || {
                file.write_all_at(&bytes, at).during("write", path)
            })
            .await??;
            self.meter.add(&self.object.relative, len);
        }
        Ok(at + len)
    }

    fn damaged(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            reference: self.bucket.name(Some(&self.object.location)),
            problem,
        }
    }
}
