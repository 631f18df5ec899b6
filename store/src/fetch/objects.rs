//! Models and artifacts of object stores and HTTP servers, as folders of the cache.
//!
//! `objects/blobs/` holds each object once, by URL and ETag; `objects/<key>/` is a folder as it was at one time, made of
//! hard links to blobs; `objects/latest/` remembers the last folder of each URL for offline use.

use std::path::{Path, PathBuf};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;
use url::Url;

use super::bucket::{Bucket, Object};
use super::download::{Blob, REQUESTS, blob};
use super::meter::Meter;
use super::wanted::{is_wanted, is_weights};
use crate::error::{During, StoreError};
use crate::index::ShardIndex;
use crate::model::blocking;
use crate::options::OpenOptions;
use crate::stage::{Replace, Staged};

/// The files looked for beside the weights on an HTTP server, which cannot list.
const HTTP_COMPANIONS: &[&str] = &[
    "README.md",
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Brings the model at `url` into the cache: a safetensors file, or a folder. The path of the file or folder.
pub(crate) async fn model(url: &Url, options: &OpenOptions) -> Result<PathBuf, StoreError> {
    if options.offline {
        return offline(url, "model", options);
    }
    let bucket = Bucket::open(url, options)?;
    model_in(&bucket, options).await
}

pub(crate) async fn model_in(
    bucket: &Bucket,
    options: &OpenOptions,
) -> Result<PathBuf, StoreError> {
    let cache = options.cache();
    if bucket.prefix.filename().is_some_and(is_weights) {
        let missing = || StoreError::NotFound {
            what: bucket.shown.clone(),
            remedy: "check the URL".to_owned(),
        };
        let object = bucket.this().await?.ok_or_else(missing)?;
        let name = object.relative.clone();
        let folder = bring(bucket, &[object], &cache, options).await?;
        remember(bucket, "model", &folder, Some(&name), &cache)?;
        return Ok(folder.join(name));
    }
    let mut objects = if bucket.lists {
        bucket.list().await?
    } else {
        http_model(bucket).await?
    };
    if objects.is_empty() {
        return Err(StoreError::NotFound {
            what: bucket.shown.clone(),
            remedy: "nothing is below that prefix: check the URL and the bucket's region"
                .to_owned(),
        });
    }
    let names: Vec<String> = objects
        .iter()
        .map(|object| object.relative.clone())
        .take(5)
        .collect();
    if !objects.iter().any(|object| is_weights(&object.relative)) {
        return Err(StoreError::NotAModel {
            path: bucket.shown.clone(),
            problem: format!(
                "no *.safetensors object is below it, only {}",
                names.join(", ")
            ),
            remedy: "give the prefix that holds the weights, converted to safetensors".to_owned(),
        });
    }
    objects.retain(|object| is_wanted(&object.relative));
    let folder = bring(bucket, &objects, &cache, options).await?;
    remember(bucket, "model", &folder, None, &cache)?;
    Ok(folder)
}

/// What of a model is on an HTTP server: the shards that its index names, or `model.safetensors`, or an adapter.
async fn http_model(bucket: &Bucket) -> Result<Vec<Object>, StoreError> {
    let mut objects = Vec::new();
    if let Some(index) = bucket.below("model.safetensors.index.json").await? {
        let json = bucket.read_small(&index).await?;
        let name = bucket.name(Some(&index.location));
        for shard in ShardIndex::parse(&name, &json)?.shards() {
            let Some(object) = bucket.below(shard).await? else {
                return Err(StoreError::Index {
                    file: name,
                    problem: format!("shard {shard:?} is missing on the server"),
                    remedy: "ask the publisher".to_owned(),
                });
            };
            objects.push(object);
        }
        objects.push(index);
    } else {
        for name in ["model.safetensors", "adapter_model.safetensors"] {
            objects.extend(bucket.below(name).await?);
        }
    }
    if objects.is_empty() {
        return Err(StoreError::NotAModel {
            path: bucket.shown.clone(),
            problem:
                "the server has neither model.safetensors nor model.safetensors.index.json below it"
                    .to_owned(),
            remedy: "give the URL of the safetensors file itself, or of the folder that holds it"
                .to_owned(),
        });
    }
    for name in HTTP_COMPANIONS {
        objects.extend(bucket.below(name).await?);
    }
    objects.sort_by(|a, b| a.relative.cmp(&b.relative));
    Ok(objects)
}

/// Brings an artifact, or any folder with a `manifest.json`, into the cache. The path of the folder.
///
/// On HTTP servers, which cannot list, the files are those that the manifest names in `"file"` fields.
pub async fn fetch_prefix(url: &Url, options: &OpenOptions) -> Result<PathBuf, StoreError> {
    if url.scheme() == "file" {
        let bad = |()| StoreError::Reference {
            reference: crate::location::redact_url(url),
            problem: "a file:// URL needs an absolute path of this machine".to_owned(),
            remedy: "write file:///path".to_owned(),
        };
        return url.to_file_path().map_err(bad);
    }
    if options.offline {
        return offline(url, "artifact", options);
    }
    fetch_prefix_in(&Bucket::open(url, options)?, options).await
}

pub(crate) async fn fetch_prefix_in(
    bucket: &Bucket,
    options: &OpenOptions,
) -> Result<PathBuf, StoreError> {
    let cache = options.cache();
    // The manifest is written last: without it there is nothing, or nothing yet.
    let Some(manifest) = bucket.below("manifest.json").await? else {
        return Err(StoreError::NotFound {
            what: format!("{}/manifest.json", bucket.shown.trim_end_matches('/')),
            remedy: "check the URL: an artifact's prefix holds a manifest.json".to_owned(),
        });
    };
    let objects = if bucket.lists {
        bucket.list().await?
    } else {
        let json = bucket.read_small(&manifest).await?;
        let mut objects = vec![manifest];
        for name in files_of_manifest(&bucket.shown, &json)? {
            let missing = || StoreError::NotFound {
                what: format!("{}/{name}", bucket.shown.trim_end_matches('/')),
                remedy: "the artifact's manifest names it: ask the publisher".to_owned(),
            };
            objects.push(bucket.below(&name).await?.ok_or_else(missing)?);
        }
        objects
    };
    let folder = bring(bucket, &objects, &cache, options).await?;
    remember(bucket, "artifact", &folder, None, &cache)?;
    Ok(folder)
}

/// Every string in a field called `file`, wherever in the manifest: the format itself is not this crate's business.
fn files_of_manifest(shown: &str, json: &[u8]) -> Result<Vec<String>, StoreError> {
    fn walk(value: &serde_json::Value, names: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        serde_json::Value::String(name) if key == "file" => {
                            names.push(name.clone())
                        }
                        other => walk(other, names),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| walk(value, names)),
            _ => {}
        }
    }
    let value: serde_json::Value =
        serde_json::from_slice(json).map_err(|error| StoreError::Damaged {
            reference: format!("{shown}/manifest.json"),
            problem: format!("it is not valid JSON: {error}"),
        })?;
    let mut names = Vec::new();
    walk(&value, &mut names);
    names.sort();
    names.dedup();
    names.retain(|name| name != "manifest.json");
    names
        .iter()
        .try_for_each(|name| crate::path::check_relative(name))?;
    Ok(names)
}

/// Brings objects into the cache and puts them together as a folder.
async fn bring(
    bucket: &Bucket,
    objects: &[Object],
    cache: &Path,
    options: &OpenOptions,
) -> Result<PathBuf, StoreError> {
    let blobs = cache.join("objects").join("blobs");
    std::fs::create_dir_all(&blobs).during("create", &blobs)?;
    let total = objects.iter().map(|object| object.size).sum();
    super::space::ensure_room(&blobs, total)?;
    let meter = Meter::new(options, total);
    let requests = Semaphore::new(REQUESTS);
    let (blobs, requests, meter) = (blobs.as_path(), &requests, &meter);
    // Boxed in a plain iterator: a closure over references inside the stream would leave this future not `Send` for all
    // lifetimes.
    let fetches: Vec<_> = objects
        .iter()
        .map(|object| {
            async move {
                Ok::<_, StoreError>((
                    object.relative.clone(),
                    blob(bucket, object, blobs, cache, requests, meter).await?,
                ))
            }
            .boxed()
        })
        .collect();
    let mut fetched: Vec<(String, Blob)> = futures::stream::iter(fetches)
        .buffer_unordered(4)
        .try_collect()
        .await?;
    fetched.sort_by(|a, b| a.0.cmp(&b.0));
    let folder = cache
        .join("objects")
        .join(&folder_key(&bucket.shown, &fetched)[..40]);
    let result = folder.clone();
    blocking("storing", move || assemble(&folder, &fetched)).await??;
    Ok(result)
}

fn folder_key(shown: &str, files: &[(String, Blob)]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("sparse 2026-11 cached folder");
    for text in std::iter::once(shown).chain(
        files
            .iter()
            .flat_map(|(name, blob)| [name.as_str(), blob.key.as_str()]),
    ) {
        hasher
            .update(&(text.len() as u64).to_le_bytes())
            .update(text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// A folder of hard links to blobs; the one there already, if it is complete.
fn assemble(folder: &Path, files: &[(String, Blob)]) -> Result<(), StoreError> {
    let size = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.len());
    let complete = files.iter().all(|(name, blob)| {
        size(&folder.join(name)).is_some_and(|there| Some(there) == size(&blob.path))
    });
    if complete && folder.is_dir() {
        return Ok(());
    }
    let staged = Staged::dir(folder)?;
    for (name, blob) in files {
        let path = crate::path::safe_join(staged.path(), name)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).during("create", parent)?;
        }
        if std::fs::hard_link(&blob.path, &path).is_err() {
            std::fs::copy(&blob.path, &path).during("copy", &blob.path)?;
        }
    }
    staged.commit(Replace::Allow).map(|_| ())
}

fn latest(shown: &str, what: &str, cache: &Path) -> PathBuf {
    let key = blake3::hash(format!("{what}\0{shown}").as_bytes()).to_hex();
    cache.join("objects").join("latest").join(&key[..40])
}

/// Notes the folder (and the file in it) as the last one of this URL.
fn remember(
    bucket: &Bucket,
    what: &str,
    folder: &Path,
    file: Option<&str>,
    cache: &Path,
) -> Result<(), StoreError> {
    let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    let staged = Staged::file(&latest(&bucket.shown, what, cache))?;
    let text = format!("{name}\n{}\n{}\n", file.unwrap_or(""), bucket.shown);
    std::fs::write(staged.path(), text).during("write", staged.path())?;
    staged.commit(Replace::Allow).map(|_| ())
}

/// The last folder (or file) of this URL.
fn offline(url: &Url, what: &str, options: &OpenOptions) -> Result<PathBuf, StoreError> {
    let (shown, cache) = (crate::location::redact_url(url), options.cache());
    let missing = || StoreError::Offline {
        reference: shown.clone(),
        cache: cache.display().to_string(),
        remedy: "unset HF_HUB_OFFLINE once to fetch it, or give a local path".to_owned(),
    };
    let note = std::fs::read_to_string(latest(&shown, what, &cache)).map_err(|_| missing())?;
    let mut lines = note.lines();
    let folder = lines.next().unwrap_or("");
    let file = lines.next().unwrap_or("");
    let path = crate::path::safe_join(&cache.join("objects"), folder)?;
    let path = if file.is_empty() {
        path
    } else {
        crate::path::safe_join(&path, file)?
    };
    if path.exists() {
        Ok(path)
    } else {
        Err(missing())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};

    use super::*;
    use crate::model::Model;
    use crate::publish::{Published, publish_to};
    use crate::testing::{noise, safetensors, write};

    struct World {
        store: Arc<dyn ObjectStore>,
        dir: tempfile::TempDir,
        options: OpenOptions,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut options = OpenOptions::empty();
            options.cache_dir = Some(dir.path().join("cache"));
            Self {
                store: Arc::new(InMemory::new()),
                dir,
                options,
            }
        }

        async fn put(&self, path: &str, bytes: Vec<u8>) {
            self.store
                .put(&path.into(), PutPayload::from(bytes))
                .await
                .unwrap();
        }

        fn bucket(&self, prefix: &str) -> Bucket {
            Bucket::of(
                Arc::clone(&self.store),
                prefix,
                &format!("s3://bucket/{prefix}"),
            )
        }

        async fn model(&self, prefix: &str) -> Result<PathBuf, StoreError> {
            model_in(&self.bucket(prefix), &self.options).await
        }
    }

    #[tokio::test]
    async fn a_prefix_becomes_a_folder_and_is_fetched_once() {
        let world = World::new();
        // Larger than two pieces, so that ranges are put together.
        let weights = safetensors(&[("w", "U8", &[20_000_000], noise(1, 20_000_000))]);
        world.put("m/model.safetensors", weights.clone()).await;
        world.put("m/sub/config.json", b"{}".to_vec()).await;
        world.put("m/pytorch_model.bin", vec![0; 10]).await;
        world.put("other/x.json", vec![0; 10]).await;
        let path = world.model("m").await.unwrap();
        let model = Model::open_local(&path).unwrap();
        assert_eq!(model.files()[0].bytes(), weights);
        let carried: Vec<_> = model
            .carried()
            .iter()
            .map(|file| file.name.as_str())
            .collect();
        assert_eq!(carried, ["sub/config.json"]);
        let inode = std::fs::metadata(path.join("model.safetensors"))
            .unwrap()
            .ino();
        assert_eq!(world.model("m").await.unwrap(), path);
        // A new README: another folder, the same weights.
        world.put("m/README.md", b"hello".to_vec()).await;
        let next = world.model("m").await.unwrap();
        assert_ne!(next, path);
        assert_eq!(
            std::fs::metadata(next.join("model.safetensors"))
                .unwrap()
                .ino(),
            inode
        );
        assert!(
            path.exists(),
            "the earlier folder stays for whoever has it open"
        );
    }

    #[tokio::test]
    async fn a_single_file_and_what_is_not_there() {
        let world = World::new();
        world
            .put(
                "m/x.safetensors",
                safetensors(&[("w", "U8", &[3], vec![1, 2, 3])]),
            )
            .await;
        let path = world.model("m/x.safetensors").await.unwrap();
        assert!(Model::open_local(&path).unwrap().is_single_file());
        for (prefix, expected) in [
            ("m/y.safetensors", "does not exist"),
            ("nothing", "does not exist"),
        ] {
            let error = world.model(prefix).await.unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.contains("s3://bucket/"),
                "{error}"
            );
        }
        world.put("bin/pytorch_model.bin", vec![0; 10]).await;
        let error = world.model("bin").await.unwrap_err().to_string();
        assert!(
            error.contains("pytorch_model.bin") && error.contains("converted"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn offline_uses_the_last_folder_or_says_so() {
        let mut world = World::new();
        world
            .put(
                "m/x.safetensors",
                safetensors(&[("w", "U8", &[3], vec![1, 2, 3])]),
            )
            .await;
        let folder = world.model("m").await.unwrap();
        let file = world.model("m/x.safetensors").await.unwrap();
        world.options.offline = true;
        let open = |url: &str| {
            let url = Url::parse(url).unwrap();
            let options = &world.options;
            async move { model(&url, options).await }
        };
        assert_eq!(open("s3://bucket/m").await.unwrap(), folder);
        assert_eq!(open("s3://bucket/m/x.safetensors").await.unwrap(), file);
        let error = open("s3://bucket/other").await.unwrap_err();
        assert!(
            matches!(error, StoreError::Offline { .. })
                && error.to_string().contains("HF_HUB_OFFLINE"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn artifacts_go_up_manifest_last_and_come_down_the_same() {
        let world = World::new();
        let artifact = world.dir.path().join("artifact");
        write(
            &artifact.join("sub/payload-00000.bin"),
            &[("w", "U8", &[9_000_000], noise(1, 9_000_000))],
        )
        .unwrap();
        std::fs::write(artifact.join("tensors.parquet"), b"PAR1").unwrap();
        let bucket = world.bucket("deltas/one");
        let error = publish_to(&artifact, &bucket, &world.options)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("manifest.json"), "{error}");
        std::fs::write(artifact.join("manifest.json"), b"{\"key\":1}").unwrap();
        let error = fetch_prefix_in(&bucket, &world.options)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("manifest.json does not exist"), "{error}");
        let published = publish_to(&artifact, &bucket, &world.options)
            .await
            .unwrap();
        assert!(matches!(published, Published::Created { files: 3, bytes } if bytes > 9_000_000));
        // Again, with other content: nothing is touched.
        std::fs::write(artifact.join("manifest.json"), b"{\"key\":2}").unwrap();
        std::fs::write(artifact.join("tensors.parquet"), b"other").unwrap();
        let again = publish_to(&artifact, &bucket, &world.options)
            .await
            .unwrap();
        assert_eq!(
            again,
            Published::Exists {
                manifest: b"{\"key\":1}".to_vec()
            }
        );
        let path = fetch_prefix_in(&bucket, &world.options).await.unwrap();
        for (name, source) in [
            ("sub/payload-00000.bin", true),
            ("manifest.json", false),
            ("tensors.parquet", false),
        ] {
            let same = std::fs::read(path.join(name)).unwrap()
                == std::fs::read(artifact.join(name)).unwrap();
            assert_eq!(same, source, "{name}");
        }
        assert_eq!(
            std::fs::read(path.join("tensors.parquet")).unwrap(),
            b"PAR1"
        );
    }

    #[tokio::test]
    async fn publishing_to_a_local_folder_by_url() {
        let world = World::new();
        let artifact = world.dir.path().join("artifact");
        std::fs::create_dir(&artifact).unwrap();
        std::fs::write(artifact.join("manifest.json"), b"{}").unwrap();
        let url = Url::from_file_path(world.dir.path().join("published/here")).unwrap();
        let created = crate::publish::publish(&artifact, &url, &world.options)
            .await
            .unwrap();
        assert_eq!(created, Published::Created { files: 1, bytes: 2 });
        assert!(matches!(
            crate::publish::publish(&artifact, &url, &world.options)
                .await
                .unwrap(),
            Published::Exists { .. }
        ));
        let path = fetch_prefix(&url, &world.options).await.unwrap();
        assert_eq!(path, world.dir.path().join("published/here"));
    }

    #[test]
    fn the_files_that_a_manifest_names() {
        let json = br#"{"payloads":[{"file":"b.bin","size":1},{"file":"a.bin"}],"index":{"file":"i.parquet"},"file":"b.bin"}"#;
        assert_eq!(
            files_of_manifest("u", json).unwrap(),
            ["a.bin", "b.bin", "i.parquet"]
        );
        assert!(files_of_manifest("u", br#"{"file":"../x"}"#).is_err());
        assert!(files_of_manifest("u", b"[").is_err());
    }

    #[tokio::test]
    async fn many_at_once_fetch_once() {
        let world = World::new();
        world
            .put(
                "m/x.safetensors",
                safetensors(&[("w", "U8", &[1000], noise(1, 1000))]),
            )
            .await;
        let all = futures::future::join_all((0..8).map(|_| world.model("m"))).await;
        let first = all[0].as_ref().unwrap();
        assert!(all.iter().all(|path| path.as_ref().unwrap() == first));
        assert_eq!(
            std::fs::read_dir(world.dir.path().join("cache/objects/blobs"))
                .unwrap()
                .count(),
            1
        );
    }
}
