//! The models that the Hub lists.

use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use serde_json::Value;

use super::hub_api::Api;
use crate::error::StoreError;
use crate::location::is_hub_id;
use crate::options::OpenOptions;

/// Models of one page.
const PAGE: usize = 100;
/// What is asked for beyond the name.
const EXPAND: [&str; 6] = [
    "sha",
    "lastModified",
    "tags",
    "cardData",
    "safetensors",
    "config",
];

/// Which models to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubQuery {
    /// Those with each of these tags, such as `base_model:finetune:org/name`.
    pub filter: Vec<String>,
    /// Those of this user or organisation.
    pub author: Option<String>,
    /// Those whose names hold this.
    pub search: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// A model as the Hub lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`.
    pub id: String,
    /// The commit of its main branch.
    pub sha: Option<String>,
    /// When it was changed last, ISO 8601.
    pub last_modified: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The bases its card names.
    pub base: Vec<String>,
    /// How its card says that it comes from them.
    pub relation: Option<String>,
    /// Its parameters, by dtype as safetensors names it.
    pub params: Vec<(String, u64)>,
    /// The class of the model.
    pub architecture: Option<String>,
    /// `model_type` of its configuration.
    pub model_type: Option<String>,
}

/// A model in an answer. What has an unexpected form is left out rather than refused: the Hub's cards are written by people.
#[derive(Deserialize)]
struct Listed {
    id: String,
    sha: Option<String>,
    #[serde(rename = "lastModified")]
    last_modified: Option<String>,
    #[serde(default)]
    tags: Value,
    #[serde(rename = "cardData", default)]
    card: Value,
    #[serde(default)]
    safetensors: Value,
    #[serde(default)]
    config: Value,
}

/// Lists models of the Hub, page by page.
///
/// # Errors
/// Offline mode, a Hub that cannot be reached or refuses, an answer that is not a list of models.
pub async fn list_hub_models(
    query: &HubQuery,
    options: &OpenOptions,
) -> Result<Vec<HubModel>, StoreError> {
    let shown = "the Hub's list of models".to_owned();
    if options.offline {
        return Err(StoreError::Offline {
            reference: shown,
            cache: "hf-cache".to_owned(),
            remedy: "list hf-cache instead, or unset HF_HUB_OFFLINE".to_owned(),
        });
    }
    let api = Api::new(options, shown)?;
    let mut url = api.url(["api", "models"])?;
    {
        let mut pairs = url.query_pairs_mut();
        for tag in &query.filter {
            pairs.append_pair("filter", tag);
        }
        for (name, value) in [("author", &query.author), ("search", &query.search)] {
            if let Some(value) = value {
                pairs.append_pair(name, value);
            }
        }
        for field in EXPAND {
            pairs.append_pair("expand", field);
        }
        pairs.append_pair("limit", &PAGE.min(query.limit).to_string());
    }
    let home = url.origin();
    let mut models = Vec::new();
    let mut next = Some(url);
    while let Some(url) = next.take()
        && models.len() < query.limit
    {
        let (headers, body) = api.retry(|| api.get(url.clone())).await?;
        let page: Vec<Listed> = serde_json::from_slice(&body)
            .map_err(|error| api.malformed(format!("it is not a list of models: {error}")))?;
        let empty = page.is_empty();
        for listed in page {
            if !is_hub_id(&listed.id) {
                return Err(api.malformed(format!("it names a model {:?}", listed.id)));
            }
            models.push(HubModel::from(listed));
        }
        options.report(&format!("listing models, {} so far", models.len()), 0.0);
        next = match next_page(&headers, &url) {
            // The token is for this host alone.
            Some(page) if page.origin() != home => {
                let problem = format!(
                    "its next page is on another host, {}",
                    crate::redact_url(&page)
                );
                return Err(api.malformed(problem));
            }
            // A server that gives the same page for ever.
            Some(page) if page != url && !empty => Some(page),
            _ => None,
        };
    }
    models.truncate(query.limit);
    Ok(models)
}

/// The address in `Link: <...>; rel="next"`.
fn next_page(headers: &HeaderMap, current: &url::Url) -> Option<url::Url> {
    let links = headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok());
    links.flat_map(|links| links.split(",")).find_map(|link| {
        let (address, parameters) = link.split_once(';')?;
        let is_next = parameters
            .split(';')
            .any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        let address = address.trim().strip_prefix('<')?.strip_suffix('>')?;
        is_next.then(|| current.join(address).ok()).flatten()
    })
}

impl From<Listed> for HubModel {
    fn from(listed: Listed) -> Self {
        let texts = |value: &Value| -> Vec<String> {
            match value {
                Value::String(text) => vec![text.clone()],
                Value::Array(items) => items
                    .iter()
                    .filter_map(|item| item.as_str().map(str::to_owned))
                    .collect(),
                _ => Vec::new(),
            }
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let parameters = listed
            .safetensors
            .get("parameters")
            .and_then(Value::as_object);
        Self {
            base: listed.card.get("base_model").map(texts).unwrap_or_default(),
            relation: text(listed.card.get("base_model_relation")),
            params: parameters
                .into_iter()
                .flatten()
                .filter_map(|(dtype, count)| Some((dtype.clone(), count.as_u64()?)))
                .collect(),
            architecture: text(listed.config.pointer("/architectures/0")),
            model_type: text(listed.config.get("model_type")),
            tags: texts(&listed.tags),
            id: listed.id,
            sha: listed.sha,
            last_modified: listed.last_modified,
        }
    }
}
