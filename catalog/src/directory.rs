//! The models below a folder, and those of the Hub's local cache.

use std::path::{Path, PathBuf};

use sparse_store::StoreError;

use crate::entry::{ModelEntry, Source};
use crate::weights::{is_weights, list};

/// The deepest folder looked into.
const MAX_DEPTH: usize = 12;

/// The models below `root`, sorted by path. A folder is a model if it has a `config.json`, `model_index.json`, `adapter_config.json`
/// or shard index beside its weights, or one weight file; where it has several weight files and none of those, each is a model.
/// A model's own folders are not looked into. Hidden folders and links to folders are passed over.
pub(crate) fn scan(root: &Path) -> Result<Vec<ModelEntry>, StoreError> {
    if root.is_file() {
        let mut entry = ModelEntry::new(root.display().to_string(), Source::Directory);
        entry.path = Some(root.to_path_buf());
        return Ok(vec![entry]);
    }
    let mut models = Vec::new();
    walk(root, 0, &mut models)?;
    Ok(models)
}

fn walk(folder: &Path, depth: usize, models: &mut Vec<ModelEntry>) -> Result<(), StoreError> {
    let entries = match list(folder) {
        Ok(entries) => entries,
        // Somebody else's folder, or one that has just gone: the rest is still a catalog.
        Err(error) if depth > 0 => {
            tracing::warn!(%error, "a folder is passed over");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let has = |wanted: &str| entries.iter().any(|(name, _, dir)| !dir && name == wanted);
    let weights: Vec<&PathBuf> = entries
        .iter()
        .filter(|(name, _, dir)| !dir && is_weights(name))
        .map(|(_, path, _)| path)
        .collect();
    let described = ["config.json", "model_index.json", "adapter_config.json"]
        .into_iter()
        .any(has);
    let indexed = entries
        .iter()
        .any(|(name, _, dir)| !dir && name.ends_with(".safetensors.index.json"));
    if described || indexed || weights.len() == 1 {
        models.push(local(folder));
        return Ok(());
    }
    models.extend(weights.into_iter().map(|file| local(file)));
    if depth >= MAX_DEPTH {
        return Ok(());
    }
    for (name, path, is_dir) in entries {
        if !is_dir {
            continue;
        }
        match cached_repo(&name) {
            Some(repo) => models.extend(snapshot(&path, &repo)),
            None => walk(&path, depth + 1, models)?,
        }
    }
    Ok(())
}

fn local(path: &Path) -> ModelEntry {
    let mut entry = ModelEntry::new(path.display().to_string(), Source::Directory);
    entry.path = Some(path.to_path_buf());
    entry
}

/// `org/name` of the cache's folder `models--org--name`.
fn cached_repo(folder: &str) -> Option<String> {
    Some(folder.strip_prefix("models--")?.replacen("--", "/", 1))
}

/// The repository's snapshot that `main` is, or the latest one.
fn snapshot(folder: &Path, repo: &str) -> Option<ModelEntry> {
    let snapshots = folder.join("snapshots");
    let main = std::fs::read_to_string(folder.join("refs/main"))
        .ok()
        .map(|commit| commit.trim().to_owned())
        .filter(|commit| commit.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .filter(|commit| !commit.is_empty() && snapshots.join(commit).is_dir());
    let (commit, is_main) = match main {
        Some(commit) => (commit, true),
        None => {
            let latest = list(&snapshots)
                .ok()?
                .into_iter()
                .filter(|(_, _, is_dir)| *is_dir)
                .max_by_key(|(_, path, _)| path.metadata().and_then(|meta| meta.modified()).ok())?;
            (latest.0, false)
        }
    };
    let reference = if is_main {
        repo.to_owned()
    } else {
        format!("{repo}@{commit}")
    };
    let mut entry = ModelEntry::new(reference, Source::HfCache);
    entry.path = Some(snapshots.join(&commit));
    entry.revision = Some(commit);
    Some(entry)
}

/// Where the Hub's cache has a commit of a repository, if it does.
pub(crate) fn cached(root: &Path, repo: &str, commit: &str) -> Option<PathBuf> {
    let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let folder = root.join(format!("models--{}", repo.replace('/', "--")));
    let path = folder.join("snapshots").join(commit);
    (is_commit && path.is_dir()).then_some(path)
}

/// The models of the Hub's cache, sorted by name.
pub(crate) fn hub_cache(root: &Path) -> Result<Vec<ModelEntry>, StoreError> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    Ok(list(root)?
        .into_iter()
        .filter(|(_, _, is_dir)| *is_dir)
        .filter_map(|(name, path, _)| snapshot(&path, &cached_repo(&name)?))
        .collect())
}
