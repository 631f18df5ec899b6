//! Remote catalogs against servers on this machine.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "../../../store/tests/it/server.rs"]
#[expect(
    dead_code,
    reason = "shared with the store's tests, which use more of it"
)]
mod server;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use server::{Request, Response, Server};
use sparse_catalog::{Catalog, CatalogError, ListOptions, ModelEntry, Source};
use sparse_store::{OpenOptions, Secret};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn options() -> ListOptions {
    ListOptions {
        open: OpenOptions::empty(),
        headers: true,
    }
}

async fn list(catalog: &str, options: &ListOptions) -> Result<Vec<ModelEntry>, CatalogError> {
    Catalog::parse(catalog)?.list(options).await
}

/// MLflow's answers, as its REST documentation gives them: two pages.
fn registry(request: &Request) -> Response {
    if !request
        .path
        .starts_with("/api/2.0/mlflow/registered-models/search?max_results=100")
    {
        return Response::status(404);
    }
    let page = if request.path.contains("page_token=second") {
        json!({"registered_models": [{"name": "empty", "creation_timestamp": 1, "last_updated_timestamp": 1}]})
    } else {
        json!({
            "registered_models": [{
                "name": "chat", "creation_timestamp": 1, "last_updated_timestamp": 2,
                "tags": [{"key": "base_model", "value": "org/old-base"}],
                "latest_versions": [
                    {"name": "chat", "version": "10", "source": "s3://bucket/chat/10", "status": "READY", "current_stage": "None",
                     "tags": [{"key": "base_model", "value": "org/base"}, {"key": "base_model_relation", "value": "finetune"}]},
                    {"name": "chat", "version": "9", "source": "s3://bucket/chat/9", "status": "READY"},
                ],
            }],
            "next_page_token": "second",
        })
    };
    Response::ok(page.to_string()).with("Content-Type", "application/json")
}

#[tokio::test]
async fn mlflow_is_listed_page_by_page() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        1 => Response::status(429).with("Retry-After", "0"),
        _ => registry(request),
    });
    let entries = list(&format!("mlflow:{}/", server.url()), &options())
        .await
        .unwrap();
    let [chat, empty] = entries.as_slice() else {
        unreachable!("{entries:?}")
    };
    assert_eq!(
        (chat.model.as_str(), chat.source),
        ("s3://bucket/chat/10", Source::Mlflow)
    );
    assert_eq!(
        (chat.base.as_deref(), chat.relation.as_deref()),
        (Some("org/base"), Some("finetune"))
    );
    assert_eq!(chat.revision.as_deref(), Some("chat version 10"));
    assert_eq!(empty.model, "models:/empty");
    assert!(empty.problem.is_some());
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn mlflow_refuses_and_breaks() {
    for (status, code, needle) in [
        (401, 1, "MLFLOW_TRACKING_TOKEN"),
        (404, 6, "check the address"),
        (500, 1, "HTTP 500"),
    ] {
        let server = Server::start(move |_| Response::status(status));
        let error = list(&format!("mlflow:{}", server.url()), &options())
            .await
            .unwrap_err();
        assert!(
            error.exit_code() == code && error.to_string().contains(needle),
            "{error}"
        );
    }
    let server = Server::start(|_| Response::status(429).with("Retry-After", "0"));
    let error = list(&format!("mlflow:{}", server.url()), &options())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("limits the rate"), "{error}");
    assert_eq!(server.requests().len(), 4);
    for body in ["no json", "{\"registered_models\": 3}"] {
        let server = Server::start(move |_| Response::ok(body));
        let error = list(&format!("mlflow:{}", server.url()), &options())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("not a page"), "{error}");
    }
    for address in ["", "ftp://x", "http://user:secret@x"] {
        let error = Catalog::parse(&format!("mlflow:{address}")).unwrap_err();
        assert!(
            error.exit_code() == 2 && !error.to_string().contains("secret"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn the_hub_is_a_catalog_and_its_local_cache_another() {
    let server = Server::start(|request| {
        assert!(
            request
                .path
                .contains("filter=base_model%3Afinetune%3Aorg%2Fbase"),
            "{}",
            request.path
        );
        let models = json!([
            {"id": "org/here", "sha": COMMIT, "tags": ["base_model:org/base", "base_model:finetune:org/base"],
             "cardData": {"base_model": "org/base"}, "safetensors": {"parameters": {"F32": 10, "BF16": 1000}}},
            {"id": "org/there", "sha": COMMIT, "tags": 3, "cardData": null},
        ]);
        Response::ok(models.to_string())
    });
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--org--here/snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(dir.path().join("models--org--here/refs")).unwrap();
    std::fs::write(dir.path().join("models--org--here/refs/main"), COMMIT).unwrap();
    std::fs::write(snapshot.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let mut options = options();
    options.open.hub_endpoint = Some(server.url());
    options.open.hub_token = Some(Secret::new("hf_secret"));
    options.open.hub_cache = Some(dir.path().to_path_buf());
    options.headers = false;
    let entries = list("hub:org/base?relation=finetune&limit=10", &options)
        .await
        .unwrap();
    let [here, there] = entries.as_slice() else {
        unreachable!("{entries:?}")
    };
    assert_eq!(
        (here.base.as_deref(), here.relation.as_deref()),
        (Some("org/base"), Some("finetune"))
    );
    assert_eq!(
        (here.params, here.dtype.as_deref(), &here.path),
        (Some(1010), Some("BF16"), &Some(snapshot))
    );
    assert_eq!(
        (&there.base, &there.path, there.source),
        (&None, &None, Source::Hub)
    );
    for catalog in [
        "hf-cache".to_owned(),
        format!("hf-cache:{}", dir.path().display()),
        dir.path().display().to_string(),
    ] {
        let cached = list(&catalog, &options).await.unwrap();
        assert_eq!(
            (cached.len(), cached[0].model.as_str(), cached[0].source),
            (1, "org/here", Source::HfCache),
            "{catalog}"
        );
        assert_eq!(
            (
                cached[0].model_type.as_deref(),
                cached[0].revision.as_deref()
            ),
            (Some("llama"), Some(COMMIT))
        );
    }
}
