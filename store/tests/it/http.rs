//! Models on plain HTTP servers, through the object store path.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sparse_store::{ErrorKind, Model, OpenOptions, StoreError, fetch_prefix};
use url::Url;

use crate::server::{Request, Response, Server};
use crate::support::{noise, weights};

fn options(dir: &tempfile::TempDir) -> OpenOptions {
    let mut options = OpenOptions::empty();
    options.cache_dir = Some(dir.path().to_path_buf());
    options
}

fn serve(
    files: Vec<(&'static str, Vec<u8>)>,
) -> impl Fn(&Request) -> Response + Send + Sync + 'static {
    move |request| match files.iter().find(|(name, _)| request.path == *name) {
        Some((_, bytes)) => {
            let etag = format!("\"{}\"", sparse_store::hash::blake3_hex(bytes));
            Response::ok(bytes.clone())
                .with("ETag", etag)
                .ranged(request)
        }
        None => Response::status(404),
    }
}

#[tokio::test]
async fn a_single_file_in_ranges_fetched_once() {
    let file = weights("w", &noise(1, 20_000_000));
    let server = Server::start(serve(vec![("/m/model.safetensors", file.clone())]));
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{}/m/model.safetensors", server.url());
    let model = Model::open(&url, &options(&dir)).await.unwrap();
    assert!(model.is_single_file());
    assert_eq!(model.files()[0].bytes(), file);
    assert_eq!(model.id(), url);
    assert_eq!(server.count("GET", "model.safetensors"), 3);
    Model::open(&url, &options(&dir)).await.unwrap();
    assert_eq!(
        server.count("GET", "model.safetensors"),
        3,
        "the cache has it"
    );
}

#[tokio::test]
async fn a_folder_with_an_index_and_companions() {
    let index = br#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#.to_vec();
    let mut files = vec![
        ("/m/model.safetensors.index.json", index),
        ("/m/m-1.safetensors", weights("a", &noise(1, 10))),
        ("/m/m-2.safetensors", weights("b", &noise(2, 10))),
        ("/m/config.json", b"{}".to_vec()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(serve(files.clone()));
    let model = Model::open(&format!("{}/m", server.url()), &options(&dir))
        .await
        .unwrap();
    assert_eq!(model.files().len(), 2);
    let carried: Vec<_> = model
        .carried()
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(carried, ["config.json", "model.safetensors.index.json"]);
    files.remove(2);
    let server = Server::start(serve(files));
    let error = Model::open(&format!("{}/m/", server.url()), &options(&dir))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"m-2.safetensors\" is missing"), "{error}");
}

#[tokio::test]
async fn nothing_there_and_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Response::status(404));
    let error = Model::open(&format!("{}/m", server.url()), &options(&dir))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotAModel { .. }), "{error}");
    let error = Model::open(&format!("{}/x.safetensors", server.url()), &options(&dir))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    let server = Server::start(|_| Response::status(403));
    let error = Model::open(&format!("{}/x.safetensors", server.url()), &options(&dir))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Access, "{error}");
}

#[tokio::test]
async fn a_server_without_ranges_or_tags() {
    let file = weights("w", &noise(1, 9_000_000));
    let current = Arc::new(std::sync::Mutex::new(file.clone()));
    let served = Arc::clone(&current);
    let server = Server::start(move |_| Response::ok(served.lock().unwrap().clone()));
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{}/x.safetensors", server.url());
    let model = Model::open(&url, &options(&dir)).await.unwrap();
    assert_eq!(model.files()[0].bytes(), file);
    // Changed without a sign of it: seen all the same, and what is open stays as it was.
    let other = weights("w", &noise(2, 9_000_000));
    *current.lock().unwrap() = other.clone();
    assert_eq!(
        Model::open(&url, &options(&dir)).await.unwrap().files()[0].bytes(),
        other
    );
    assert_eq!(model.files()[0].bytes(), file);
}

#[tokio::test]
async fn pieces_that_break_are_asked_for_again() {
    let file = weights("w", &noise(1, 20_000_000));
    let (expected, asked) = (file.clone(), AtomicUsize::new(0));
    let answer = serve(vec![("/x.safetensors", file)]);
    let server = Server::start(move |request| {
        let answer = answer(request);
        let breaks = request.method == "GET" && asked.fetch_add(1, Ordering::SeqCst) % 2 == 0;
        if breaks {
            answer.cut_at(100_000)
        } else {
            answer
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(&format!("{}/x.safetensors", server.url()), &options(&dir))
        .await
        .unwrap();
    assert_eq!(model.files()[0].bytes(), expected);
}

#[tokio::test]
async fn a_file_that_is_always_cut_short_is_an_error_and_leaves_nothing() {
    let answer = serve(vec![("/x.safetensors", weights("w", &noise(1, 20_000)))]);
    let server = Server::start(move |request| answer(request).cut_at(100));
    let dir = tempfile::tempdir().unwrap();
    let error = Model::open(&format!("{}/x.safetensors", server.url()), &options(&dir))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("x.safetensors"), "{error}");
    assert_eq!(
        std::fs::read_dir(dir.path().join("objects/blobs"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn an_artifact_by_the_names_in_its_manifest() {
    let manifest =
        br#"{"payloads":[{"file":"payload-00000.bin"}],"index":{"file":"tensors.parquet"}}"#
            .to_vec();
    let files = vec![
        ("/d/manifest.json", manifest),
        ("/d/payload-00000.bin", noise(1, 1000)),
        ("/d/tensors.parquet", noise(2, 100)),
    ];
    let server = Server::start(serve(files.clone()));
    let dir = tempfile::tempdir().unwrap();
    let url = Url::parse(&format!("{}/d", server.url())).unwrap();
    let path = fetch_prefix(&url, &options(&dir)).await.unwrap();
    assert_eq!(
        std::fs::read(path.join("payload-00000.bin")).unwrap(),
        noise(1, 1000)
    );
    let mut offline = options(&dir);
    offline.offline = true;
    assert_eq!(fetch_prefix(&url, &offline).await.unwrap(), path);
    let missing = Server::start(serve(files[..2].to_vec()));
    let url = Url::parse(&format!("{}/d", missing.url())).unwrap();
    let error = fetch_prefix(&url, &options(&dir))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("tensors.parquet"), "{error}");
}

#[tokio::test]
async fn a_cancelled_download_leaves_nothing() {
    let answer = serve(vec![(
        "/x.safetensors",
        weights("w", &noise(1, 30_000_000)),
    )]);
    let started = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&started);
    let server = Server::start(move |request| {
        if request.method == "GET" {
            flag.store(true, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        answer(request)
    });
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{}/x.safetensors", server.url());
    let options = options(&dir);
    let open = Model::open(&url, &options);
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(150), open)
            .await
            .is_err()
    );
    assert!(started.load(Ordering::SeqCst));
    assert_eq!(
        std::fs::read_dir(dir.path().join("objects/blobs"))
            .unwrap()
            .count(),
        0
    );
}
