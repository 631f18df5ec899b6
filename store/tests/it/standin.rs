//! A stand-in for the Hub that huggingface_hub's own client accepts: listing with filters and pages, a model's files, its tree, and
//! the files themselves.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sparse_store::{HubQuery, OpenOptions, Secret, StoreError, hash, list_hub_models};

use crate::server::{Request, Response, Server};
use crate::support::{noise, weights};

const TOKEN: &str = "hf_very_secret_token";

/// A model on the stand-in.
struct Hosted {
    id: String,
    /// The base, and how it comes from it.
    base: Option<(&'static str, &'static str)>,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Hosted {
    fn new(number: u64, base: Option<(&'static str, &'static str)>) -> Self {
        Self {
            id: format!("org/model-{number}"),
            base,
            files: vec![
                ("model.safetensors", weights("w", &noise(number, 3000))),
                ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
                ("sub/notes.txt", b"text".to_vec()),
            ],
        }
    }

    fn sha(&self) -> String {
        hash::sha256_hex(self.id.as_bytes())[..40].to_owned()
    }

    fn tags(&self) -> Vec<String> {
        let base = self.base.into_iter().flat_map(|(base, relation)| {
            [
                format!("base_model:{base}"),
                format!("base_model:{relation}:{base}"),
            ]
        });
        ["safetensors".to_owned()].into_iter().chain(base).collect()
    }

    fn listed(&self) -> Value {
        let mut card = json!({"license": "mit"});
        if let Some((base, _)) = self.base {
            card["base_model"] = json!([base]);
        }
        json!({
            "_id": "0", "id": self.id, "modelId": self.id, "sha": self.sha(), "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z", "private": false, "downloads": 1, "likes": 0, "tags": self.tags(),
            "cardData": card, "safetensors": {"parameters": {"U8": 3000}, "total": 3000},
            "config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        })
    }

    /// Everything of a file that the Hub says.
    fn file(name: &str, bytes: &[u8]) -> (Value, Value) {
        let id = hash::blake3_hex(bytes)[..40].to_owned();
        let mut sibling = json!({"rfilename": name, "size": bytes.len(), "blobId": id});
        let mut leaf = json!({"type": "file", "oid": id, "size": bytes.len(), "path": name});
        if name.ends_with(".safetensors") {
            let sha256 = hash::sha256_hex(bytes);
            sibling["lfs"] = json!({"sha256": sha256, "size": bytes.len(), "pointerSize": 135});
            leaf["lfs"] = json!({"oid": sha256, "size": bytes.len(), "pointerSize": 135});
        }
        (sibling, leaf)
    }
}

/// The stand-in: models, and how many are on a page.
struct StandIn {
    models: Vec<Hosted>,
    page: usize,
}

impl StandIn {
    fn new() -> Arc<Self> {
        let finetune = Some(("org/model-0", "finetune"));
        let mut models = vec![
            Hosted::new(0, None),
            Hosted::new(1, Some(("org/model-0", "adapter"))),
        ];
        models.extend((2..9).map(|number| Hosted::new(number, finetune)));
        Arc::new(Self { models, page: 3 })
    }

    fn start(self: &Arc<Self>) -> Server {
        let this = Arc::clone(self);
        Server::start(move |request| this.answer(request))
    }

    fn answer(&self, request: &Request) -> Response {
        let url = url::Url::parse("http://stand-in")
            .unwrap()
            .join(&request.path)
            .unwrap();
        let path: Vec<String> = url
            .path_segments()
            .unwrap()
            .map(|part| part.replace("%20", " "))
            .collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let json =
            |value: Value| Response::ok(value.to_string()).with("Content-Type", "application/json");
        match path.as_slice() {
            ["api", "models"] => self.list(&query, request),
            ["api", "models", org, name, rest @ ..] => match self.model(org, name) {
                None => missing("RepoNotFound"),
                Some(model) => match rest {
                    [] | ["revision", _] => {
                        let siblings: Vec<Value> = model
                            .files
                            .iter()
                            .map(|(name, bytes)| Hosted::file(name, bytes).0)
                            .collect();
                        let mut info = model.listed();
                        info["siblings"] = json!(siblings);
                        json(info)
                    }
                    ["tree", _] => json(
                        model
                            .files
                            .iter()
                            .map(|(name, bytes)| Hosted::file(name, bytes).1)
                            .collect(),
                    ),
                    _ => missing("EntryNotFound"),
                },
            },
            [org, name, "resolve", revision, file @ ..] => match self.model(org, name) {
                None => missing("RepoNotFound"),
                Some(model) if *revision != "main" && *revision != model.sha() => {
                    missing("RevisionNotFound")
                }
                Some(model) => match model.files.iter().find(|(name, _)| *name == file.join("/")) {
                    None => missing("EntryNotFound").with("X-Repo-Commit", model.sha()),
                    Some((name, bytes)) => {
                        let (sibling, _) = Hosted::file(name, bytes);
                        let lfs = sibling["lfs"]["sha256"].as_str();
                        let mut answer = Response::ok(bytes.clone())
                            .with("X-Repo-Commit", model.sha())
                            .with(
                                "ETag",
                                format!(
                                    "\"{}\"",
                                    lfs.unwrap_or(sibling["blobId"].as_str().unwrap())
                                ),
                            );
                        if let Some(sha256) = lfs {
                            answer = answer
                                .with("X-Linked-ETag", format!("\"{sha256}\""))
                                .with("X-Linked-Size", bytes.len().to_string());
                        }
                        answer.ranged(request)
                    }
                },
            },
            _ => missing("EntryNotFound"),
        }
    }

    fn model(&self, org: &str, name: &str) -> Option<&Hosted> {
        self.models
            .iter()
            .find(|model| model.id == format!("{org}/{name}"))
    }

    fn list(&self, query: &[(String, String)], request: &Request) -> Response {
        let filters: Vec<&String> = query
            .iter()
            .filter(|(name, _)| name == "filter")
            .map(|(_, value)| value)
            .collect();
        let of: HashMap<&str, &str> = query
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let matching: Vec<&Hosted> = self
            .models
            .iter()
            .filter(|model| filters.iter().all(|filter| model.tags().contains(filter)))
            .filter(|model| {
                of.get("author")
                    .is_none_or(|author| model.id.starts_with(&format!("{author}/")))
            })
            .filter(|model| {
                of.get("search")
                    .is_none_or(|search| model.id.contains(search))
            })
            .collect();
        let start: usize = of.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
        let limit = of
            .get("limit")
            .map_or(self.page, |limit| limit.parse().unwrap())
            .min(self.page);
        let page: Vec<Value> = matching
            .iter()
            .skip(start)
            .take(limit)
            .map(|model| model.listed())
            .collect();
        let mut answer =
            Response::ok(json!(page).to_string()).with("Content-Type", "application/json");
        if start + limit < matching.len() {
            let host = request.header("host").unwrap();
            let mut next = url::Url::parse(&format!("http://{host}/api/models")).unwrap();
            next.query_pairs_mut()
                .extend_pairs(query.iter().filter(|(name, _)| name != "cursor"))
                .append_pair("cursor", &(start + limit).to_string());
            answer = answer.with("Link", format!("<{next}>; rel=\"next\""));
        }
        answer
    }
}

fn missing(code: &str) -> Response {
    Response::status(404).with("X-Error-Code", code)
}

fn options(server: &Server) -> OpenOptions {
    let mut options = OpenOptions::empty();
    options.hub_endpoint = Some(server.url());
    options.hub_token = Some(Secret::new(TOKEN));
    options
}

fn query(filter: &[&str], limit: usize) -> HubQuery {
    HubQuery {
        filter: filter.iter().map(|tag| (*tag).to_owned()).collect(),
        limit,
        ..HubQuery::default()
    }
}

/// The Python that has huggingface_hub.
fn python() -> Option<String> {
    let python = std::env::var("SPARSE_TEST_PYTHON").ok();
    assert!(
        python.is_some() || std::env::var_os("SPARSE_REQUIRE_ORACLES").is_none(),
        "SPARSE_TEST_PYTHON is not set; tests/run.sh sets it"
    );
    python
}

/// Runs a program against a server, with a home of its own; it must succeed. Returns what it printed.
fn with_huggingface_hub(python: &str, program: &str, server: &Server, home: &Path) -> String {
    let output = std::process::Command::new(python)
        .args(["-c", program])
        .env("HF_ENDPOINT", server.url())
        .env("HF_HOME", home)
        .env("HF_TOKEN", TOKEN)
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What the client that everybody uses makes of the stand-in.
#[test]
fn huggingface_hub_accepts_the_stand_in() {
    let Some(python) = python() else { return };
    let stand_in = StandIn::new();
    let server = stand_in.start();
    let program = "
import os
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
api = HfApi()
names = [m.id for m in api.list_models(filter='base_model:finetune:org/model-0')]
assert names == [f'org/model-{n}' for n in range(2, 9)], names
assert [m.id for m in api.list_models(filter='base_model:adapter:org/model-0', expand=['sha', 'tags'])] == ['org/model-1']
assert len(list(api.list_models(author='org'))) == 9
info = api.model_info('org/model-2', files_metadata=True)
weights = next(s for s in info.siblings if s.rfilename == 'model.safetensors')
assert weights.lfs.sha256 and weights.size == weights.lfs.size, weights
tree = list(api.list_repo_tree('org/model-2', recursive=True))
assert sorted(f.path for f in tree) == ['config.json', 'model.safetensors', 'sub/notes.txt'], tree
path = hf_hub_download('org/model-2', 'model.safetensors')
assert os.path.getsize(path) == weights.size and os.path.basename(os.path.realpath(path)) == weights.lfs.sha256, path
assert open(hf_hub_download('org/model-2', 'sub/notes.txt')).read() == 'text'
for call, error in [(lambda: api.model_info('org/none'), RepositoryNotFoundError),
                    (lambda: hf_hub_download('org/model-2', 'none'), EntryNotFoundError)]:
    try:
        call()
        raise SystemExit('no error')
    except error:
        pass
print(path)
";
    let home = tempfile::tempdir().unwrap();
    with_huggingface_hub(&python, program, &server, home.path());
    // What Python has downloaded is what we open, without a request for a file.
    let mut ours = options(&server);
    ours.hub_cache = Some(home.path().join("hub"));
    ours.cache_dir = Some(home.path().join("cache"));
    let before = server.count("GET", "resolve");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let model = runtime
        .block_on(sparse_store::Model::open("hf://org/model-2", &ours))
        .unwrap();
    assert_eq!(model.files()[0].bytes(), stand_in.models[2].files[0].1);
    // The configuration alone was missing.
    assert_eq!(server.count("GET", "resolve"), before + 1);
}

/// A Hub that asks to slow down, breaks off, keeps a model to itself and sends a file from another host: its own client copes with
/// it, so the stand-in misbehaves as the Hub does.
#[test]
fn huggingface_hub_copes_with_what_ours_is_tested_against() {
    let Some(python) = python() else { return };
    let stand_in = StandIn::new();
    let elsewhere = stand_in.start();
    let (target, listed, sent) = (elsewhere.url(), AtomicUsize::new(0), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let answer = stand_in.answer(request);
        let path = request.path.as_str();
        let first = |count: &AtomicUsize| count.fetch_add(1, Ordering::SeqCst) == 0;
        if path.starts_with("/api/models?") && first(&listed) {
            return Response::status(429).with("Retry-After", "0");
        }
        if path.contains("org/model-3") {
            return Response::status(401).with("X-Error-Code", "GatedRepo");
        }
        if request.method == "GET" && path.contains("model-4/resolve") {
            return Response::status(302).with("Location", format!("{target}{path}"));
        }
        let breaks = request.method == "GET" && path.contains("model-2/resolve");
        if breaks && first(&sent) {
            return answer.cut_at(1000);
        }
        answer
    });
    let program = "
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import GatedRepoError
# What did not fill a piece is thrown away when the connection breaks; these files are small.
constants.DOWNLOAD_CHUNK_SIZE = 100
assert len(list(HfApi().list_models(filter='base_model:finetune:org/model-0'))) == 7
for call in (lambda: HfApi().model_info('org/model-3'), lambda: hf_hub_download('org/model-3', 'model.safetensors')):
    try:
        call()
        raise SystemExit('no error')
    except GatedRepoError as error:
        assert error.response.status_code == 401
for number in (2, 4):
    path = hf_hub_download(f'org/model-{number}', 'model.safetensors')
    assert hf_hub_download(f'org/model-{number}', 'model.safetensors') == path
    print(path)
";
    let home = tempfile::tempdir().unwrap();
    let said = with_huggingface_hub(&python, program, &server, home.path());
    let expected = StandIn::new();
    for (path, number) in said.lines().zip([2, 4]) {
        let (_, bytes) = &expected.models[number].files[0];
        assert!(std::fs::read(path).unwrap() == *bytes, "{path}");
    }
    // What broke was asked for again from where it broke, and what was there by its tag alone.
    let of = |part: &str, method: &str| -> Vec<Request> {
        let all = server.requests().into_iter();
        all.filter(|request| request.method == method && request.path.contains(part))
            .collect()
    };
    let gets = of("model-2/resolve", "GET");
    assert_eq!(gets.len(), 2, "{gets:?}");
    assert_eq!(gets[0].header("range"), None);
    assert_eq!(gets[1].header("range"), Some("bytes=1000-"));
    assert_eq!(of("model-2/resolve", "HEAD").len(), 2);
    // The token went to the host it is of, and to no other.
    let token = format!("Bearer {TOKEN}");
    assert!(
        gets.iter()
            .all(|get| get.header("authorization") == Some(&token))
    );
    assert_eq!(elsewhere.requests().len(), 1);
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn models_are_listed_page_by_page() {
    let stand_in = StandIn::new();
    let server = stand_in.start();
    let listed = list_hub_models(
        &query(&["base_model:finetune:org/model-0"], 1000),
        &options(&server),
    )
    .await
    .unwrap();
    let ids: Vec<&str> = listed.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "org/model-2",
            "org/model-3",
            "org/model-4",
            "org/model-5",
            "org/model-6",
            "org/model-7",
            "org/model-8"
        ]
    );
    assert_eq!(server.requests().len(), 3);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_some())
    );
    let model = &listed[0];
    assert_eq!(
        model.sha.as_deref(),
        Some(stand_in.models[2].sha().as_str())
    );
    assert_eq!(
        (model.base.as_slice(), model.params.as_slice()),
        (
            &["org/model-0".to_owned()][..],
            &[("U8".to_owned(), 3000)][..]
        )
    );
    assert_eq!(
        (model.architecture.as_deref(), model.model_type.as_deref()),
        (Some("LlamaForCausalLM"), Some("llama"))
    );
    // No more pages than are asked for.
    let before = server.requests().len();
    assert_eq!(
        list_hub_models(&query(&[], 4), &options(&server))
            .await
            .unwrap()
            .len(),
        4
    );
    assert_eq!(server.requests().len(), before + 2);
    let mut offline = options(&server);
    offline.offline = true;
    assert!(matches!(
        list_hub_models(&query(&[], 4), &offline).await,
        Err(StoreError::Offline { .. })
    ));
}

#[tokio::test]
async fn refusals_limits_and_damaged_answers() {
    for (status, kind) in [
        (401, sparse_store::ErrorKind::Access),
        (404, sparse_store::ErrorKind::NotFound),
        (500, sparse_store::ErrorKind::Remote),
    ] {
        let server = Server::start(move |request| Response {
            body: format!("{:?}", request.header("authorization")).into_bytes(),
            ..Response::status(status)
        });
        let error = list_hub_models(&query(&[], 9), &options(&server))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!format!("{error} {error:?}").contains(TOKEN), "{error:?}");
    }
    // Asked to slow down, it does, and goes on where it was.
    let (stand_in, asked) = (StandIn::new(), std::sync::atomic::AtomicUsize::new(0));
    let server = Server::start(move |request| {
        match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            1 => Response::status(429).with("Retry-After", "1"),
            _ => stand_in.answer(request),
        }
    });
    let began = std::time::Instant::now();
    assert_eq!(
        list_hub_models(&query(&[], 6), &options(&server))
            .await
            .unwrap()
            .len(),
        6
    );
    assert!(began.elapsed() >= std::time::Duration::from_secs(1));
    // Cut short for ever; no list; a name that would leave the cache.
    for body in ["[{\"id\": \"org/na", "{}", "[{\"id\": \"../../evil\"}]"] {
        let server = Server::start(move |_| Response::ok(body));
        let error = list_hub_models(&query(&[], 9), &options(&server))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), sparse_store::ErrorKind::Corrupt, "{error}");
    }
    let whole =
        Server::start(|_| Response::ok("[{\"id\": \"org/name\"}]                ").cut_at(12));
    assert!(
        list_hub_models(&query(&[], 9), &options(&whole))
            .await
            .is_err()
    );
    // The same page for ever.
    let server = Server::start(|request| {
        Response::ok("[{\"id\": \"org/name\"}]")
            .with("Link", format!("<{}>; rel=\"next\"", request.path))
    });
    assert_eq!(
        list_hub_models(&query(&[], 1000), &options(&server))
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn the_token_stays_on_its_host() {
    let stand_in = StandIn::new();
    let elsewhere = stand_in.start();
    // A redirect to another host is followed, without the token.
    let target = elsewhere.url();
    let server = Server::start(move |request| {
        Response::status(302).with("Location", format!("{target}{}", request.path))
    });
    let listed = list_hub_models(
        &query(&["base_model:adapter:org/model-0"], 9),
        &options(&server),
    )
    .await
    .unwrap();
    assert_eq!(listed.len(), 1);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_some())
    );
    assert!(
        elsewhere
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    // A next page on another host is not.
    let before = elsewhere.requests().len();
    let target = elsewhere.url();
    let server = Server::start(move |_| {
        Response::ok("[{\"id\": \"org/name\"}]")
            .with("Link", format!("<{target}/api/models>; rel=\"next\""))
    });
    let error = list_hub_models(&query(&[], 9), &options(&server))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another host"), "{error}");
    assert_eq!(elsewhere.requests().len(), before);
}
