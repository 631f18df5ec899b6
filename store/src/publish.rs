//! A finished folder, uploaded so that readers see all of it or nothing: its manifest goes last.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload, WriteMultipart};
use url::Url;

use crate::error::{During, StoreError};
use crate::fetch::{Bucket, Meter};
use crate::map::Map;
use crate::model::blocking;
use crate::options::OpenOptions;
use crate::scan::{Found, scan};

/// The file whose presence says that all others are there.
const MANIFEST: &str = "manifest.json";
/// Larger files go up in parts of this size.
const PART: usize = 8 << 20;
/// Parts under way.
const PARTS: usize = 4;

/// What [`publish`] found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// Everything was uploaded.
    Created {
        /// Files uploaded.
        files: u64,
        /// Bytes uploaded.
        bytes: u64,
    },
    /// A manifest was there already; nothing that it describes was changed. Compare it to tell whether it is the same.
    Exists {
        /// The manifest that is there.
        manifest: Vec<u8>,
    },
}

/// Uploads the folder `dir`, which holds a `manifest.json`, below `url`: every other file first, the manifest last and
/// only if none is there (put-if-absent; on WebDAV servers, which cannot, it is looked for just before).
///
/// Two publishers of different artifacts to one prefix at the same moment may mix their payloads, which the hashes in
/// the manifest tell at once; on one machine a lock prevents it. Give each artifact a prefix of its own.
pub async fn publish(
    dir: &Path,
    url: &Url,
    options: &OpenOptions,
) -> Result<Published, StoreError> {
    publish_to(dir, &Bucket::open(url, options)?, options).await
}

pub(crate) async fn publish_to(
    dir: &Path,
    bucket: &Bucket,
    options: &OpenOptions,
) -> Result<Published, StoreError> {
    let root = dir.to_path_buf();
    let files = blocking("listing", move || scan(&root)).await??;
    if !files.iter().any(|file| file.relative == MANIFEST) {
        return Err(StoreError::NotFound {
            what: dir.join(MANIFEST).display().to_string(),
            remedy: "give the folder of a finished artifact".to_owned(),
        });
    }
    let (name, cache) = (format!("publish {}", bucket.shown), options.cache());
    let _one_publisher = blocking("waiting for another upload", move || {
        crate::lock::lock(&name, &cache)
    })
    .await??;
    if let Some(manifest) = existing(bucket).await? {
        return Ok(Published::Exists { manifest });
    }
    let bytes = files.iter().map(|file| file.size).sum();
    let meter = Meter::new(options, bytes);
    for file in files.iter().filter(|file| file.relative != MANIFEST) {
        upload(file, bucket, &meter).await?;
    }
    let path = dir.join(MANIFEST);
    let manifest = std::fs::read(&path).during("read", &path)?;
    let location = bucket.location(MANIFEST);
    let put = |mode: PutMode| {
        let payload = PutPayload::from(manifest.clone());
        bucket.stall(bucket.store.put_opts(
            &location,
            payload,
            PutOptions {
                mode,
                ..PutOptions::default()
            },
        ))
    };
    let result = match put(PutMode::Create).await? {
        Err(
            object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
        ) => {
            if let Some(manifest) = existing(bucket).await? {
                return Ok(Published::Exists { manifest });
            }
            put(PutMode::Overwrite).await?
        }
        other => other,
    };
    match result {
        Ok(_) => Ok(Published::Created {
            files: files.len() as u64,
            bytes,
        }),
        Err(
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
        ) => match existing(bucket).await? {
            Some(manifest) => Ok(Published::Exists { manifest }),
            None => Err(StoreError::Remote {
                reference: bucket.name(Some(&location)),
                problem: "the manifest was there, then gone".to_owned(),
                remedy: "another program works on that prefix: run again later".to_owned(),
            }),
        },
        Err(error) => Err(bucket.error(Some(&location), error)),
    }
}

async fn existing(bucket: &Bucket) -> Result<Option<Vec<u8>>, StoreError> {
    match bucket.below(MANIFEST).await? {
        Some(object) => Ok(Some(bucket.read_small(&object).await?.to_vec())),
        None => Ok(None),
    }
}

async fn upload(file: &Found, bucket: &Bucket, meter: &Meter<'_>) -> Result<(), StoreError> {
    let location = bucket.location(&file.relative);
    let path = file.path.clone();
    let map = Arc::new(blocking("opening", move || Map::open(&path)).await??);
    let size = map.bytes().len();
    let failed = |error| bucket.error(Some(&location), error);
    if size <= PART {
        let payload = PutPayload::from(Bytes::copy_from_slice(map.bytes()));
        bucket
            .stall(bucket.store.put(&location, payload))
            .await?
            .map_err(failed)?;
        meter.add(&file.relative, size as u64);
        return Ok(());
    }
    let upload = match bucket.stall(bucket.store.put_multipart(&location)).await? {
        Ok(upload) => upload,
        // WebDAV takes files whole.
        Err(
            object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
        ) => {
            let whole = Bytes::from_owner(Mapped(Arc::clone(&map)));
            bucket
                .store
                .put(&location, PutPayload::from(whole))
                .await
                .map_err(failed)?;
            meter.add(&file.relative, size as u64);
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
    let mut start = 0_u64;
    for part in map.bytes().chunks(PART) {
        if let Err(error) = bucket.stall(writer.wait_for_capacity(PARTS)).await? {
            let _ = writer.abort().await;
            return Err(failed(error));
        }
        writer.put(Bytes::copy_from_slice(part));
        let end = start + part.len() as u64;
        map.release(start..end);
        meter.add(&file.relative, part.len() as u64);
        start = end;
    }
    writer.finish().await.map_err(failed)?;
    Ok(())
}

/// A map as the owner of bytes.
struct Mapped(Arc<Map>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}
