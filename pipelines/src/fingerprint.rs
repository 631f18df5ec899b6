//! Whether what a path names is what it was: by cheap identity (names, sizes, times, inodes) first, by content where that
//! differs.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sparse_store::Location;

/// Files one reference may name; more are not looked at one by one.
const MAX_FILES: usize = 200_000;

/// How deep folders may nest.
const MAX_DEPTH: usize = 64;

/// A file changed more recently than this may change again within the clock's tick, unseen: its identity is not kept.
const RACY: i64 = 2_000_000_000;

/// What a reference names now.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// Files on this machine.
    Local(Local),
    /// Not on this machine; `pinned` where the reference names a commit, which never changes.
    Remote {
        /// Whether it can never change.
        pinned: bool,
    },
    /// A path that is not there.
    Missing,
}

/// Files on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// Hash of names, sizes, times and inodes.
    pub(crate) identity: String,
    /// Their sizes together.
    pub(crate) bytes: u64,
    /// Whether a file changed so recently that its identity says nothing about later.
    pub(crate) racy: bool,
    files: Vec<(String, PathBuf)>,
}

/// Looks at what `reference` names, without reading contents.
pub(crate) fn look(reference: &str) -> Seen {
    let path = match Location::parse(reference) {
        Ok(Location::Local(path)) => path,
        Ok(Location::Hub { revision, .. }) => {
            let pinned = revision.is_some_and(|revision| {
                revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
            });
            return Seen::Remote { pinned };
        }
        Ok(Location::Url(_)) => return Seen::Remote { pinned: false },
        Err(_) => PathBuf::from(reference),
    };
    look_at(&path).map_or(Seen::Missing, Seen::Local)
}

/// Looks at a file or folder.
pub(crate) fn look_at(path: &Path) -> Option<Local> {
    let mut local = Local {
        identity: String::new(),
        bytes: 0,
        racy: false,
        files: Vec::new(),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
    let mut found = Vec::new();
    walk(path, String::new(), 0, &mut found)?;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = blake3::Hasher::new();
    for (name, at, meta) in found {
        let changed = meta
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(meta.mtime_nsec());
        let status = meta
            .ctime()
            .saturating_mul(1_000_000_000)
            .saturating_add(meta.ctime_nsec());
        hash.update(name.as_bytes());
        hash.update(&[0]);
        for number in [meta.len(), meta.ino(), meta.dev()] {
            hash.update(&number.to_le_bytes());
        }
        for time in [changed, status] {
            hash.update(&time.to_le_bytes());
        }
        local.racy |= now.saturating_sub(changed.max(status)) < RACY;
        local.bytes = local.bytes.saturating_add(meta.len());
        local.files.push((name, at));
    }
    local.identity = hash.finalize().to_hex().to_string();
    Some(local)
}

fn walk(
    path: &Path,
    name: String,
    depth: usize,
    found: &mut Vec<(String, PathBuf, Metadata)>,
) -> Option<()> {
    // Links are followed: the snapshots of a Hub cache are made of them.
    let meta = std::fs::metadata(path).ok()?;
    if !meta.is_dir() {
        found.push((name, path.to_owned(), meta));
        return Some(());
    }
    if depth >= MAX_DEPTH {
        return Some(());
    }
    for entry in std::fs::read_dir(path).ok()?.flatten() {
        if found.len() >= MAX_FILES {
            break;
        }
        let file = entry.file_name();
        let file = file.to_string_lossy();
        // What is in the making, and the history itself, are no inputs.
        if file.contains(".sparse-tmp-") || file == ".sparse" {
            continue;
        }
        let below = match name.is_empty() {
            true => file.into_owned(),
            false => format!("{name}/{file}"),
        };
        // A link to nowhere, or a file that has just gone.
        let _ = walk(&entry.path(), below, depth + 1, found);
    }
    Some(())
}

impl Local {
    /// Hash of names and bytes. Reads everything.
    pub(crate) fn content(&self) -> Result<String, sparse_store::StoreError> {
        let mut hash = blake3::Hasher::new();
        for (name, path) in &self.files {
            hash.update(name.as_bytes());
            hash.update(&[0]);
            hash.update(sparse_store::hash::blake3_file(path)?.as_bytes());
        }
        Ok(hash.finalize().to_hex().to_string())
    }
}

/// Hash of a text.
pub(crate) fn text(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
