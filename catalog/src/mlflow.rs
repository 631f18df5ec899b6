//! MLflow's model registry, by its REST interface: `GET /api/2.0/mlflow/registered-models/search`, page by page.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use serde::Deserialize;
use sparse_store::{OpenOptions, StoreError};
use url::Url;

use crate::CatalogError;
use crate::entry::{DeclaredIn, ModelEntry, Source};

/// Models of one page.
const PAGE: &str = "100";
/// The most pages read: of a server that never ends.
const MAX_PAGES: usize = 1000;
/// The largest answer accepted.
const MAX_ANSWER: usize = 64 << 20;
/// How often a page is asked for while the server asks to slow down.
const ATTEMPTS: u32 = 4;
/// The longest wait that a server may ask for.
const MAX_WAIT: u64 = 60;

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    registered_models: Vec<Registered>,
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Registered {
    name: String,
    #[serde(default)]
    latest_versions: Vec<Version>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    source: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

/// Reads what follows `mlflow:`: the server's address.
pub(crate) fn parse(address: &str) -> Result<String, CatalogError> {
    let wrong = |problem: String| {
        CatalogError::usage(format!(
            "mlflow:{address}: {problem}; give the address of an MLflow server, as in mlflow:http://localhost:5000"
        ))
    };
    let url = Url::parse(address).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.password().is_some() {
        return Err(CatalogError::usage(
            "mlflow: the address begins with http:// or https://; credentials come from MLFLOW_TRACKING_TOKEN, or \
             MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ));
    }
    Ok(address.trim_end_matches('/').to_owned())
}

/// Who asks, as MLflow's own client reads it from the environment.
struct Credentials {
    token: Option<String>,
    user: Option<(String, String)>,
}

impl Credentials {
    fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let user = var("MLFLOW_TRACKING_USERNAME");
        Self {
            token: var("MLFLOW_TRACKING_TOKEN"),
            user: user.map(|user| (user, var("MLFLOW_TRACKING_PASSWORD").unwrap_or_default())),
        }
    }
}

/// The registered models in their latest version. The reference of each is where its files are (`source`); a tag `base_model`, of the
/// version or the model, names its base.
pub(crate) async fn list(
    address: &str,
    options: &OpenOptions,
) -> Result<Vec<ModelEntry>, CatalogError> {
    if options.offline {
        return Err(CatalogError::usage(format!(
            "mlflow:{address}: offline mode is on; unset HF_HUB_OFFLINE, or list another catalog"
        )));
    }
    let client = reqwest::Client::builder()
        .user_agent(concat!("sparse/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60))
        .build()
        .map_err(|error| failed(address, error.to_string()))?;
    let credentials = Credentials::from_env();
    let mut entries = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let mut url = Url::parse(&format!(
            "{address}/api/2.0/mlflow/registered-models/search"
        ))
        .map_err(|error| failed(address, error.to_string()))?;
        url.query_pairs_mut().append_pair("max_results", PAGE);
        if let Some(token) = &token {
            url.query_pairs_mut().append_pair("page_token", token);
        }
        let body = get(&client, &credentials, address, url).await?;
        let page: Page = serde_json::from_slice(&body).map_err(|error| {
            failed(
                address,
                format!("its answer is not a page of registered models: {error}"),
            )
        })?;
        entries.extend(page.registered_models.into_iter().map(entry));
        let next = page.next_page_token.filter(|next| !next.is_empty());
        if next.is_none() || next == token {
            return Ok(entries);
        }
        token = next;
    }
    Err(failed(address, format!("its list has more than {MAX_PAGES} pages")).into())
}

async fn get(
    client: &reqwest::Client,
    credentials: &Credentials,
    address: &str,
    url: Url,
) -> Result<Vec<u8>, StoreError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut request = client.get(url.clone());
        if let Some(token) = &credentials.token {
            request = request.bearer_auth(token);
        } else if let Some((user, password)) = &credentials.user {
            request = request.basic_auth(user, Some(password));
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| failed(address, error.without_url().to_string()))?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match status {
            200 => {
                let mut body = Vec::new();
                while let Some(bytes) = response
                    .chunk()
                    .await
                    .map_err(|error| failed(address, error.without_url().to_string()))?
                {
                    if body.len() + bytes.len() > MAX_ANSWER {
                        return Err(failed(
                            address,
                            format!("its answer is larger than {MAX_ANSWER} bytes"),
                        ));
                    }
                    body.extend_from_slice(&bytes);
                }
                return Ok(body);
            }
            429 if attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_secs(wait.unwrap_or(1).min(MAX_WAIT))).await;
            }
            429 => {
                return Err(StoreError::RateLimited {
                    reference: address.to_owned(),
                    retry_after: wait,
                });
            }
            401 | 403 => {
                return Err(StoreError::Access {
                    reference: address.to_owned(),
                    problem: format!("HTTP {status}"),
                    remedy: "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD".to_owned(),
                });
            }
            404 => {
                return Err(StoreError::NotFound {
                    what: format!("MLflow's model registry at {address}"),
                    remedy: "check the address: it is the one of MLFLOW_TRACKING_URI".to_owned(),
                });
            }
            _ => return Err(failed(address, format!("HTTP {status}"))),
        }
    }
}

fn failed(address: &str, problem: String) -> StoreError {
    StoreError::Remote {
        reference: address.to_owned(),
        problem: format!("MLflow failed: {problem}"),
        remedy: "check the address and the network".to_owned(),
    }
}

fn entry(model: Registered) -> ModelEntry {
    // Versions count up; which of them come first is the server's affair.
    let latest = model
        .latest_versions
        .iter()
        .max_by_key(|version| version.version.parse::<u64>().unwrap_or(0));
    let source = latest.and_then(|latest| latest.source.clone());
    let reference = source
        .clone()
        .unwrap_or_else(|| format!("models:/{}", model.name));
    let mut entry = ModelEntry::new(reference, Source::Mlflow);
    entry.path = source.as_deref().and_then(local);
    entry.revision = Some(match latest {
        Some(latest) => format!("{} version {}", model.name, latest.version),
        None => model.name.clone(),
    });
    let tag = |key: &str| {
        let own = latest.map(|latest| &latest.tags);
        let all = own.into_iter().flatten().chain(&model.tags);
        all.filter(|tag| tag.key == key && !tag.value.is_empty())
            .map(|tag| tag.value.clone())
            .next()
    };
    entry.base = tag("base_model");
    entry.relation = tag("base_model_relation");
    entry.declared_in = entry.base.is_some().then_some(DeclaredIn::Catalog);
    if source.is_none() {
        entry.problem = Some("no version of it says where its files are".to_owned());
    }
    entry
}

/// Where a source is, if that is on this machine.
fn local(source: &str) -> Option<PathBuf> {
    let path = match Url::parse(source) {
        Ok(url) if url.scheme() == "file" => url.to_file_path().ok()?,
        Ok(_) => return None,
        Err(_) => Path::new(source).to_path_buf(),
    };
    path.exists().then_some(path)
}
