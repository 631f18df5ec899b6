//! The Hub's own cache, as huggingface_hub lays it out, shared with every program that uses it:
//! `models--org--name/{blobs/<etag>, snapshots/<commit>/<path>, refs/<revision>}`, snapshots being links to blobs.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::hub::RepoKind;
use crate::error::{During, StoreError};
use crate::path::safe_join;
use crate::stage::{Replace, Staged};

/// The folder of one repository in the cache.
#[derive(Clone, Debug)]
pub(crate) struct RepoCache {
    root: PathBuf,
    folder: String,
}

impl RepoCache {
    /// The folder of the repository `repo` (`org/name`, checked before).
    pub(crate) fn new(root: &Path, kind: RepoKind, repo: &str) -> Self {
        Self {
            root: root.to_path_buf(),
            folder: format!("{}--{}", kind.plural(), repo.replace('/', "--")),
        }
    }

    fn repo(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// The folder of blobs, created.
    pub(crate) fn blobs(&self) -> Result<PathBuf, StoreError> {
        let blobs = self.repo().join("blobs");
        std::fs::create_dir_all(&blobs).during("create", &blobs)?;
        Ok(blobs)
    }

    /// The folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo().join("snapshots").join(commit)
    }

    /// The commit that a revision was, when it was last looked up.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let path = safe_join(&self.repo().join("refs"), revision).ok()?;
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit a revision is.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> Result<(), StoreError> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let staged = Staged::file(&safe_join(&self.repo().join("refs"), revision)?)?;
        std::fs::write(staged.path(), commit).during("write", staged.path())?;
        staged.commit(Replace::Allow).map(|_| ())
    }

    /// Makes `relative` of a commit a link to a blob, if it is not one already.
    pub(crate) fn link(&self, commit: &str, relative: &str, blob: &str) -> Result<(), StoreError> {
        let snapshot = self.snapshot(commit);
        std::fs::create_dir_all(&snapshot).during("create", &snapshot)?;
        crate::path::check_relative(relative)?;
        let pointer = snapshot.join(relative);
        let parent = pointer.parent().unwrap_or(&snapshot);
        std::fs::create_dir_all(parent).during("create", parent)?;
        // From the file's folder up to the repository's, then down to the blob.
        let up = "../".repeat(relative.split('/').count() + 1);
        let target = format!("{up}blobs/{blob}");
        if std::fs::read_link(&pointer).is_ok_and(|there| there == Path::new(&target)) {
            return Ok(());
        }
        // A link cannot be replaced in place: a new one is moved over it.
        let random = blake3::hash(
            format!(
                "{}{:?}{relative}",
                std::process::id(),
                std::time::Instant::now()
            )
            .as_bytes(),
        );
        let temp = parent.join(format!(".link.sparse-tmp-{}", &random.to_hex()[..16]));
        std::os::unix::fs::symlink(&target, &temp).during("create", &temp)?;
        std::fs::rename(&temp, &pointer).map_err(|error| {
            let _ = std::fs::remove_file(&temp);
            StoreError::io("create", &pointer, error)
        })
    }

    /// Waits for the lock that huggingface_hub takes, too, while it downloads a blob.
    pub(crate) fn lock(&self, blob: &str) -> Result<File, StoreError> {
        let folder = self.root.join(".locks").join(&self.folder);
        std::fs::create_dir_all(&folder).during("create", &folder)?;
        let path = folder.join(format!("{blob}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .during("open", &path)?;
        crate::lock::wait(&file).during("lock", &path)?;
        Ok(file)
    }
}

/// Whether this is a whole commit hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_layout_of_huggingface_hub() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), RepoKind::Model, "org/name");
        std::fs::write(cache.blobs().unwrap().join("abc"), "content").unwrap();
        cache.link(COMMIT, "sub/x.json", "abc").unwrap();
        cache.link(COMMIT, "sub/x.json", "abc").unwrap();
        cache.remember("refs/pr/1", COMMIT).unwrap();
        let repo = dir.path().join("models--org--name");
        let file = repo.join("snapshots").join(COMMIT).join("sub/x.json");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "content");
        assert_eq!(
            std::fs::read_link(&file).unwrap(),
            PathBuf::from("../../../blobs/abc")
        );
        assert_eq!(
            std::fs::read_to_string(repo.join("refs/refs/pr/1")).unwrap(),
            COMMIT
        );
        assert_eq!(cache.commit("refs/pr/1").unwrap(), COMMIT);
        assert_eq!(cache.commit("main"), None);
        assert_eq!(cache.commit(COMMIT).unwrap(), COMMIT);
        std::fs::write(repo.join("refs/bad"), "../../etc").unwrap();
        assert_eq!(cache.commit("bad"), None);
        drop(cache.lock("abc").unwrap());
        assert!(cache.link(COMMIT, "../x", "abc").is_err());
    }
}
