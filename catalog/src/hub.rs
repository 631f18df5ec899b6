//! The models that the Hub lists.

use std::path::Path;

use sparse_store::{HubModel, HubQuery, OpenOptions};

use crate::CatalogError;
use crate::card::relation_of_tag;
use crate::directory::cached;
use crate::entry::{DeclaredIn, ModelEntry, Source};

/// Models listed where no limit is given.
const LIMIT: usize = 1000;

/// Reads what follows `hub:`: `org/base` (what says it descends from it), `org` (all of an owner), and after `?` the options
/// relation, author, search, filter and limit, as in a URL.
pub(crate) fn parse(text: &str) -> Result<HubQuery, CatalogError> {
    let (what, options) = text.split_once('?').unwrap_or((text, ""));
    let mut query = HubQuery {
        limit: LIMIT,
        ..HubQuery::default()
    };
    let mut relation = None;
    for (name, value) in url::form_urlencoded::parse(options.as_bytes()) {
        match name.as_ref() {
            "relation" => relation = Some(value.into_owned()),
            "author" => query.author = Some(value.into_owned()),
            "search" => query.search = Some(value.into_owned()),
            "filter" => query.filter.push(value.into_owned()),
            "limit" => {
                query.limit = value.parse().map_err(|_| {
                    CatalogError::usage(format!("hub:{text}: limit={value} is not a number"))
                })?;
            }
            _ => {
                return Err(CatalogError::usage(format!(
                    "hub:{text}: there is no option {name}; options are relation, author, search, filter and limit"
                )));
            }
        }
    }
    match (what.contains('/'), relation) {
        (true, Some(relation)) => query.filter.push(format!("base_model:{relation}:{what}")),
        (true, None) => query.filter.push(format!("base_model:{what}")),
        (false, Some(_)) => {
            return Err(CatalogError::usage(format!(
                "hub:{text}: a relation needs a base, as in hub:org/base?relation=finetune"
            )));
        }
        (false, None) if !what.is_empty() => query.author = Some(what.to_owned()),
        (false, None) => {}
    }
    Ok(query)
}

/// Lists models of the Hub. Those in its local cache have a path too.
pub(crate) async fn list(
    query: &HubQuery,
    options: &OpenOptions,
    cache: &Path,
) -> Result<Vec<ModelEntry>, CatalogError> {
    let models = sparse_store::list_hub_models(query, options).await?;
    Ok(models
        .into_iter()
        .map(|model| entry(model, cache))
        .collect())
}

fn entry(model: HubModel, cache: &Path) -> ModelEntry {
    let mut entry = ModelEntry::new(model.id, Source::Hub);
    entry.path = model
        .sha
        .as_deref()
        .and_then(|sha| cached(cache, &entry.model, sha));
    entry.revision = model.sha;
    entry.architecture = model.architecture;
    entry.model_type = model.model_type;
    entry.relation = match (model.relation, model.base.len()) {
        (Some(relation), _) => Some(relation),
        (None, 2..) => Some("merge".to_owned()),
        (None, 1) => model.tags.iter().find_map(|tag| relation_of_tag(tag)),
        (None, _) => None,
    };
    if !model.base.is_empty() {
        entry.base = Some(model.base.join(","));
        entry.declared_in = Some(DeclaredIn::Readme);
    }
    if !model.params.is_empty() {
        entry.params = Some(
            model
                .params
                .iter()
                .fold(0, |sum, (_, count)| sum.saturating_add(*count)),
        );
        let most = model.params.into_iter().max_by_key(|(_, count)| *count);
        entry.dtype = most.map(|(dtype, _)| dtype);
    }
    entry
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let query = parse("org/base").unwrap();
        assert_eq!(
            (query.filter, query.limit),
            (vec!["base_model:org/base".to_owned()], LIMIT)
        );
        let query = parse("org/base?relation=finetune&limit=5&search=a%20b").unwrap();
        assert_eq!(query.filter, ["base_model:finetune:org/base"]);
        assert_eq!((query.limit, query.search.as_deref()), (5, Some("a b")));
        assert_eq!(parse("org").unwrap().author.as_deref(), Some("org"));
        for bad in ["org?relation=finetune", "org/base?limit=x", "?other=1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
