//! One file of a Hub repository: streamed, resumed, checked, and only then given its name in the cache.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use hf_hub::HFError;

use super::hub::{Hub, HubFile};
use super::hub_api::STALL;
use super::meter::Meter;
use crate::error::{During, StoreError};
use crate::hash::{Sha256, read_in_pieces};
use crate::model::blocking;

/// Bytes gathered before they are hashed and written.
const CHUNK: usize = 4 << 20;

/// A stream of bytes and, if the server said, how many.
pub(crate) struct Piece {
    pub(crate) length: Option<u64>,
    pub(crate) stream: Box<dyn Stream<Item = Result<Bytes, HFError>> + Send + Unpin>,
}

/// Brings a file into the cache and links it into the commit's snapshot.
pub(crate) async fn fetch_file(
    hub: &Hub<'_>,
    commit: &str,
    file: &HubFile,
    meter: &Meter<'_>,
) -> Result<(), StoreError> {
    let blobs = hub.cache.blobs()?;
    // Without a name of its own the blob is named by its content, once that is known.
    let pending = file.blob.clone().unwrap_or_else(|| {
        blake3::hash(format!("{}\0{commit}\0{}", hub.repo, file.path).as_bytes()).to_hex()[..40]
            .to_owned()
    });
    let (cache, name) = (hub.cache.clone(), pending.clone());
    let _one_downloader =
        blocking("waiting for another download", move || cache.lock(&name)).await??;
    let blob = match &file.blob {
        Some(name) if is_whole(&blobs.join(name), file) => {
            meter.add(&file.path, file.size.unwrap_or(0));
            name.clone()
        }
        _ => {
            let incomplete = blobs.join(format!("{pending}.incomplete"));
            let sha256 = hub
                .api
                .retry(|| download(hub, commit, file, &incomplete, meter))
                .await?;
            let name = file.blob.clone().unwrap_or(sha256);
            let (blob, incomplete) = (blobs.join(&name), incomplete.clone());
            blocking("storing", move || {
                std::fs::rename(&incomplete, &blob).during("store", &blob)?;
                crate::stage::sync_dir(&blobs)
            })
            .await??;
            name
        }
    };
    let (cache, commit, path) = (hub.cache.clone(), commit.to_owned(), file.path.clone());
    blocking("storing", move || cache.link(&commit, &path, &blob)).await?
}

fn is_whole(blob: &Path, file: &HubFile) -> bool {
    std::fs::metadata(blob)
        .is_ok_and(|meta| meta.is_file() && file.size.is_none_or(|size| size == meta.len()))
}

/// One attempt: from where the last one stopped to the end. The SHA-256 of the whole file.
async fn download(
    hub: &Hub<'_>,
    commit: &str,
    file: &HubFile,
    incomplete: &Path,
    meter: &Meter<'_>,
) -> Result<String, StoreError> {
    let (path, size) = (incomplete.to_path_buf(), file.size);
    let mut sink = blocking("resuming", move || Sink::resume(path, size)).await??;
    let resumed = sink.len;
    meter.add(&file.path, resumed);
    let result = fill(hub, commit, file, &mut sink, meter).await;
    let counted = sink.len;
    if let Err(error) = result {
        meter.take_back(counted);
        return Err(error);
    }
    if let Some(size) = file.size.filter(|&size| size != sink.len) {
        meter.take_back(counted);
        return Err(hub.damaged(&file.path, format!("{} of {size} bytes arrived", sink.len)));
    }
    let sha256 = blocking("storing", move || sink.finish()).await??;
    if let Some(expected) = file.sha256.as_ref().filter(|expected| **expected != sha256) {
        // Nothing of it can be trusted to resume from.
        let _ = std::fs::remove_file(incomplete);
        meter.take_back(counted);
        return Err(hub.damaged(
            &file.path,
            format!("its SHA-256 is {sha256} and the Hub lists {expected}"),
        ));
    }
    Ok(sha256)
}

async fn fill(
    hub: &Hub<'_>,
    commit: &str,
    file: &HubFile,
    sink: &mut Sink,
    meter: &Meter<'_>,
) -> Result<(), StoreError> {
    if file.size == Some(sink.len) {
        return Ok(());
    }
    let piece = hub.stream(commit, &file.path, sink.len, file.size).await?;
    // A server that ignores ranges sends everything again.
    if let (Some(size), Some(length)) = (file.size, piece.length)
        && length != size - sink.len
    {
        if length != size {
            return Err(hub.damaged(
                &file.path,
                format!("the server announces {length} bytes and the listing {size}"),
            ));
        }
        meter.take_back(sink.len);
        sink.restart()?;
    }
    let mut stream = piece.stream;
    let mut buffer = BytesMut::new();
    loop {
        let next = tokio::time::timeout(STALL, stream.next())
            .await
            .map_err(|_| {
                hub.damaged(
                    &file.path,
                    format!("the server was silent for {} s", STALL.as_secs()),
                )
            })?;
        match next {
            Some(Ok(bytes)) => {
                if let Some(size) = file.size
                    && sink.len + (buffer.len() + bytes.len()) as u64 > size
                {
                    let _ = std::fs::remove_file(&sink.path);
                    return Err(hub.damaged(&file.path, format!("more than {size} bytes arrived")));
                }
                buffer.extend_from_slice(&bytes);
                if buffer.len() >= CHUNK {
                    let count = buffer.len() as u64;
                    sink.write(buffer.split()).await?;
                    meter.add(&file.path, count);
                }
            }
            // What arrived is kept, so that the next attempt goes on from there.
            Some(Err(error)) => {
                let count = buffer.len() as u64;
                sink.write(buffer).await?;
                meter.add(&file.path, count);
                return match hub.hub_error(error, Some(&file.path)) {
                    StoreError::Remote { problem, .. } => {
                        Err(hub.damaged(&file.path, format!("the connection broke: {problem}")))
                    }
                    other => Err(other),
                };
            }
            None => {
                let count = buffer.len() as u64;
                sink.write(buffer).await?;
                meter.add(&file.path, count);
                return Ok(());
            }
        }
    }
}

/// The file being filled, and the hash of what is in it.
struct Sink {
    path: PathBuf,
    /// Lent to a writing thread and given back.
    state: Option<(File, Sha256)>,
    len: u64,
}

impl Sink {
    /// Opens the file, keeping what an earlier attempt left in it.
    fn resume(path: PathBuf, size: Option<u64>) -> Result<Self, StoreError> {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .during("open", &path)?;
        let mut len = file.metadata().during("read the size of", &path)?.len();
        let mut hash = Sha256::new();
        if size.is_none_or(|size| len > size) {
            file.set_len(0).during("empty", &path)?;
            len = 0;
        } else if len > 0 {
            len = read_in_pieces(&path, |piece| hash.update(piece))?;
        }
        file.seek(SeekFrom::Start(len)).during("seek in", &path)?;
        Ok(Self {
            path,
            state: Some((file, hash)),
            len,
        })
    }

    fn restart(&mut self) -> Result<(), StoreError> {
        if let Some((file, hash)) = &mut self.state {
            file.set_len(0).during("empty", &self.path)?;
            file.seek(SeekFrom::Start(0))
                .during("seek in", &self.path)?;
            *hash = Sha256::new();
        }
        self.len = 0;
        Ok(())
    }

    async fn write(&mut self, bytes: BytesMut) -> Result<(), StoreError> {
        let lost = || StoreError::Stopped {
            what: "a download".to_owned(),
        };
        let (mut file, mut hash) = self.state.take().ok_or_else(lost)?;
        let (count, path) = (bytes.len() as u64, self.path.clone());
        let state = blocking("writing", move || {
            file.write_all(&bytes).during("write", path)?;
            hash.update(&bytes);
            Ok::<_, StoreError>((file, hash))
        })
        .await??;
        self.state = Some(state);
        self.len += count;
        Ok(())
    }

    /// Makes the file durable. Its SHA-256.
    fn finish(self) -> Result<String, StoreError> {
        let lost = || StoreError::Stopped {
            what: "a download".to_owned(),
        };
        let (file, hash) = self.state.ok_or_else(lost)?;
        file.sync_all().during("write", &self.path)?;
        Ok(hash.finish_hex())
    }
}
