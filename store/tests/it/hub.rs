//! A stand-in for the Hub, answering as it does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sparse_store::{ErrorKind, Model, OpenOptions, Secret, StoreError, hash};

use crate::server::{Request, Response, Server};
use crate::support::{noise, weights};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_very_secret_token";

#[derive(Clone)]
struct Files(Arc<Vec<(&'static str, Vec<u8>)>>);

impl Files {
    fn model() -> Self {
        Self(Arc::new(vec![
            ("model.safetensors", weights("w", &noise(1, 6_000_000))),
            ("config.json", b"{\"model_type\":\"llama\"}".to_vec()),
            ("sub/extra file.txt", b"text".to_vec()),
            ("pytorch_model.bin", vec![0; 100]),
        ]))
    }

    fn listing(&self) -> String {
        let siblings: Vec<_> = self
            .0
            .iter()
            .map(|(name, bytes)| {
                let mut sibling = serde_json::json!({
                    "rfilename": name, "size": bytes.len(), "blobId": &hash::blake3_hex(bytes)[..40],
                });
                if name.ends_with(".safetensors") {
                    sibling["lfs"] = serde_json::json!({
                        "sha256": hash::sha256_hex(bytes), "size": bytes.len(), "pointerSize": 135,
                    });
                }
                sibling
            })
            .collect();
        serde_json::json!({"id": "org/name", "sha": COMMIT, "siblings": siblings}).to_string()
    }

    fn file(&self, request: &Request) -> Option<Response> {
        let path = request
            .path
            .strip_prefix(&format!("/org/name/resolve/{COMMIT}/"))?
            .replace("%20", " ");
        let (_, bytes) = self.0.iter().find(|(name, _)| *name == path)?;
        Some(
            Response::ok(bytes.clone())
                .with("ETag", "\"x\"")
                .with("X-Repo-Commit", COMMIT)
                .ranged(request),
        )
    }

    fn answer(&self, request: &Request) -> Response {
        if request
            .path
            .starts_with("/api/models/org/name/revision/main?blobs=true")
        {
            return Response::ok(self.listing()).with("Content-Type", "application/json");
        }
        self.file(request)
            .unwrap_or_else(|| Response::status(404).with("X-Error-Code", "EntryNotFound"))
    }
}

struct World {
    dir: tempfile::TempDir,
    options: OpenOptions,
}

impl World {
    fn new(endpoint: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = OpenOptions::empty();
        options.cache_dir = Some(dir.path().join("cache"));
        options.hub_cache = Some(dir.path().join("hub"));
        options.hub_endpoint = Some(endpoint);
        options.hub_token = Some(Secret::new(TOKEN));
        Self { dir, options }
    }

    async fn open(&self) -> Result<Model, StoreError> {
        Model::open("hf://org/name", &self.options).await
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--name")
    }
}

fn leftovers(repo: &Path) -> Vec<String> {
    let blobs = std::fs::read_dir(repo.join("blobs"))
        .into_iter()
        .flatten()
        .flatten();
    blobs
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.contains('.'))
        .collect()
}

#[tokio::test]
async fn a_model_is_listed_downloaded_and_kept_as_huggingface_hub_keeps_it() {
    let files = Files::model();
    let answers = files.clone();
    let server = Server::start(move |request| answers.answer(request));
    let mut world = World::new(server.url());
    let model = world.open().await.unwrap();
    assert_eq!(model.id(), "hf://org/name");
    assert_eq!(model.resolved(), Some(COMMIT));
    assert_eq!(model.files()[0].bytes(), files.0[0].1);
    let carried: Vec<_> = model
        .carried()
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(carried, ["config.json", "sub/extra file.txt"]);
    assert_eq!(
        server.count("GET", "pytorch_model.bin"),
        0,
        "weights in another format stay there"
    );
    let sha = hash::sha256_hex(&files.0[0].1);
    let link = std::fs::read_link(
        world
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join("model.safetensors"),
    )
    .unwrap();
    assert_eq!(link, PathBuf::from(format!("../../blobs/{sha}")));
    assert_eq!(
        std::fs::read_to_string(world.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(leftovers(&world.repo()).is_empty());
    // Again: the listing only.
    let before = server.requests().len();
    world.open().await.unwrap();
    assert_eq!(server.requests().len(), before + 1);
    // The server is gone, or is not to be asked: the same model.
    world.options.hub_endpoint = Some("http://127.0.0.1:1".to_owned());
    assert_eq!(world.open().await.unwrap().resolved(), Some(COMMIT));
    world.options.offline = true;
    assert_eq!(world.open().await.unwrap().carried().len(), 2);
    // A file that another program put into the snapshot is not the model's.
    std::fs::write(
        world
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join("tf_model.h5"),
        b"x",
    )
    .unwrap();
    assert_eq!(world.open().await.unwrap().carried().len(), 2);
}

#[tokio::test]
async fn offline_without_a_copy_says_what_to_do() {
    let mut world = World::new("http://127.0.0.1:1".to_owned());
    let error = world.open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    world.options.offline = true;
    let error = world.open().await.unwrap_err().to_string();
    assert!(
        error.contains("org/name@main") && error.contains("HF_HUB_OFFLINE"),
        "{error}"
    );
}

#[tokio::test]
async fn refusals_are_told_apart_and_never_show_the_token() {
    for (status, kind) in [
        (401, ErrorKind::Access),
        (403, ErrorKind::Access),
        (404, ErrorKind::NotFound),
        (500, ErrorKind::Remote),
    ] {
        let server = Server::start(move |request| {
            // A careless server that repeats what it was sent.
            Response {
                body: format!("{:?}", request.header("authorization")).into_bytes(),
                ..Response::status(status)
            }
        });
        let world = World::new(server.url());
        let error = world.open().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
        assert_eq!(
            server.requests()[0].header("authorization"),
            Some(&*format!("Bearer {TOKEN}"))
        );
        assert!(!world.repo().join("refs").exists());
    }
}

#[tokio::test]
async fn a_file_that_is_refused_leaves_no_snapshot_that_looks_whole() {
    for status in [401, 404, 500] {
        let files = Files::model();
        let server =
            Server::start(
                move |request| match request.path.contains("model.safetensors") {
                    true => Response {
                        body: format!("{:?}", request.header("authorization")).into_bytes(),
                        ..Response::status(status)
                    },
                    false => files.answer(request),
                },
            );
        let mut world = World::new(server.url());
        let error = world.open().await.unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
        world.options.offline = true;
        assert!(matches!(
            world.open().await,
            Err(StoreError::Offline { .. })
        ));
    }
}

#[tokio::test]
async fn a_rate_limit_is_waited_for() {
    let (files, asked) = (Files::model(), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        if request.path.starts_with("/api") && asked.fetch_add(1, Ordering::SeqCst) < 2 {
            return Response::status(429).with("Retry-After", "0");
        }
        files.answer(request)
    });
    World::new(server.url()).open().await.unwrap();
    let server = Server::start(|_| Response::status(429).with("Retry-After", "0"));
    let error = World::new(server.url()).open().await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::RateLimited {
                retry_after: Some(0),
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_connection_that_breaks_is_resumed_where_it_broke() {
    let (files, asked) = (Files::model(), AtomicUsize::new(0));
    let expected = files.0[0].1.clone();
    let server = Server::start(move |request| {
        let answer = files.answer(request);
        let breaks = request.method == "GET" && request.path.contains("model.safetensors");
        if breaks && asked.fetch_add(1, Ordering::SeqCst) < 2 {
            answer.cut_at(2_500_000)
        } else {
            answer
        }
    });
    let world = World::new(server.url());
    let model = world.open().await.unwrap();
    assert_eq!(model.files()[0].bytes(), expected);
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains("model.safetensors"))
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges.len(), 3);
    assert!(
        ranges[0].is_none() && ranges[1].is_some() && ranges[2].is_some(),
        "{ranges:?}"
    );
    assert!(leftovers(&world.repo()).is_empty());
}

#[tokio::test]
async fn what_arrives_damaged_is_never_kept_as_whole() {
    // Always cut short; or other bytes of the right length; or a page instead of the file.
    type Damage = fn(Response) -> Response;
    let damages: [(Damage, &str); 3] = [
        (|answer| answer.cut_at(1000), "model.safetensors"),
        (
            |mut answer| {
                let last = answer.body.len() - 1;
                answer.body[last] ^= 1;
                answer
            },
            "SHA-256",
        ),
        (
            |_| {
                Response::ok("<html>please log in</html>")
                    .with("ETag", "\"x\"")
                    .with("X-Repo-Commit", COMMIT)
            },
            "listing",
        ),
    ];
    for (damage, expected) in damages {
        let files = Files::model();
        let server = Server::start(move |request| {
            let answer = files.answer(request);
            if request.method == "GET" && request.path.contains("model.safetensors") {
                damage(answer)
            } else {
                answer
            }
        });
        let world = World::new(server.url());
        let error = world.open().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        let snapshot = world
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join("model.safetensors");
        assert!(!snapshot.exists());
    }
}

#[tokio::test]
async fn the_token_does_not_follow_a_redirect_to_another_host() {
    let files = Files::model();
    let elsewhere_files = files.clone();
    let elsewhere = Server::start(move |request| elsewhere_files.answer(request));
    let target = elsewhere.url();
    let server = Server::start(move |request| {
        if request.path.contains("/resolve/") {
            return Response::status(302)
                .with("Location", format!("{target}{}", request.path))
                .with("X-Repo-Commit", COMMIT);
        }
        files.answer(request)
    });
    World::new(server.url()).open().await.unwrap();
    assert!(elsewhere.count("GET", "model.safetensors") > 0);
    for request in elsewhere.requests() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
    for request in server.requests() {
        assert!(request.header("authorization").is_some(), "{request:?}");
    }
}

#[tokio::test]
async fn names_and_commits_from_a_hostile_server() {
    let listing = |sha: &str, name: &str| {
        let sha = sha.to_owned();
        let name = name.to_owned();
        Server::start(move |_| {
            let files = serde_json::json!([{"rfilename": name, "size": 1}, {"rfilename": "m.safetensors", "size": 1}]);
            Response::ok(serde_json::json!({"sha": sha, "siblings": files}).to_string())
        })
    };
    for (sha, name) in [
        (COMMIT, "../../../evil"),
        (COMMIT, "/etc/evil"),
        (COMMIT, "a\\b"),
        ("../../evil", "config.json"),
        ("", "x"),
    ] {
        let world = World::new(listing(sha, name).url());
        assert!(world.open().await.is_err(), "{sha} {name}");
        assert!(!world.dir.path().join("evil").exists());
    }
    let garbage = World::new(Server::start(|_| Response::ok("not json")).url());
    assert_eq!(garbage.open().await.unwrap_err().kind(), ErrorKind::Corrupt);
    let empty = World::new(
        Server::start(|_| Response::ok(format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[]}}"))).url(),
    );
    assert!(matches!(
        empty.open().await,
        Err(StoreError::NotAModel { .. })
    ));
}

#[tokio::test]
async fn a_server_that_lists_no_sizes_and_ignores_ranges() {
    let files = Files::model();
    let server = Server::start(move |request| {
        if request.path.starts_with("/api") {
            let names: Vec<_> = files
                .0
                .iter()
                .map(|(name, _)| serde_json::json!({"rfilename": name}))
                .collect();
            return Response::ok(serde_json::json!({"sha": COMMIT, "siblings": names}).to_string());
        }
        let path = request.path.rsplit('/').next().unwrap().replace("%20", " ");
        let (_, bytes) = files
            .0
            .iter()
            .find(|(name, _)| name.ends_with(&path))
            .unwrap();
        Response::ok(bytes.clone())
            .with("ETag", "\"x\"")
            .with("X-Repo-Commit", COMMIT)
    });
    let world = World::new(server.url());
    let model = world.open().await.unwrap();
    let target = std::fs::read_link(
        world
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join("model.safetensors"),
    )
    .unwrap();
    assert!(target.ends_with(hash::sha256_hex(model.files()[0].bytes())));
}
