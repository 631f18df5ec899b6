//! Room: what is used, what is reserved, and what goes when more is needed.

use std::path::PathBuf;

use serde::Serialize;

use crate::CacheError;
use crate::entry::{Meta, last_used};
use crate::error::During;
use crate::files::{read_json, remove_dir, remove_file, remove_stale, size_of, write_json};
use crate::layout::Layout;
use crate::lock::LockFile;
use crate::stats::Counters;

/// Begins the name of a folder that is being removed.
const TRASH: &str = ".trash-";

/// The count of room, held by one process at a time.
pub(crate) struct Ledger<'l> {
    layout: &'l Layout,
    _lock: LockFile,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Keys of the models that were evicted.
    pub evicted: Vec<String>,
    /// Bytes that were freed, damaged models included.
    pub freed_bytes: u64,
    /// Bytes that are used now.
    pub used_bytes: u64,
}

impl<'l> Ledger<'l> {
    /// Waits for the count, and removes what killed processes left.
    pub(crate) fn open(layout: &'l Layout) -> Result<Self, CacheError> {
        let lock = LockFile::open(&layout.state.join("ledger.lock"))?;
        lock.wait_exclusive()?;
        let ledger = Self {
            layout,
            _lock: lock,
        };
        ledger.clean()?;
        Ok(ledger)
    }

    fn clean(&self) -> Result<(), CacheError> {
        remove_stale(&self.layout.state);
        remove_stale(&self.layout.jobs());
        let abandoned: Vec<String> = self
            .layout
            .keys("room")
            .into_iter()
            .map(|key| Ok((self.is_abandoned(&key)?, key)))
            .filter_map(|key: Result<_, CacheError>| match key {
                Ok((true, key)) => Some(Ok(key)),
                Ok((false, _)) => None,
                Err(error) => Some(Err(error)),
            })
            .collect::<Result<_, _>>()?;
        let root = &self.layout.root;
        for entry in std::fs::read_dir(root).during("list", root)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A model in the making: `.<key>.sparse-tmp-...`.
            let making = || {
                let (key, _) = name.strip_prefix('.')?.split_once(".sparse-tmp-")?;
                Some(abandoned.iter().any(|abandoned| abandoned == key))
            };
            // Folders are removed under this lock only: the remover of one that is still there was killed.
            if name.starts_with(TRASH) || making() == Some(true) {
                remove_dir(&entry.path())?;
            }
        }
        for key in abandoned {
            remove_file(&self.layout.of(&key, "room"))?;
        }
        Ok(())
    }

    /// Whether nobody makes this entry.
    fn is_abandoned(&self, key: &str) -> Result<bool, CacheError> {
        LockFile::open(&self.layout.of(key, "lock"))?.try_shared()
    }

    /// Bytes in use: whole entries, damaged ones, and what is reserved for those in the making.
    pub(crate) fn used(&self) -> u64 {
        // Room is given back after the model has appeared, and not under this lock: what is not reserved any more when it is read
        // is among the entries, which are read afterwards.
        let reserved: Vec<(String, u64)> = self
            .layout
            .keys("room")
            .into_iter()
            .filter_map(|key| Some((key.clone(), read_json(&self.layout.of(&key, "room"))?)))
            .collect();
        let whole = self
            .entries()
            .into_iter()
            .filter(|(key, _)| reserved.iter().all(|(reserved, _)| reserved != key))
            .map(|(_, meta)| meta.bytes);
        reserved
            .iter()
            .map(|(_, bytes)| *bytes)
            .chain(whole)
            .chain([size_of(&self.layout.damaged())])
            .fold(0, u64::saturating_add)
    }

    /// Entries that are there.
    fn entries(&self) -> Vec<(String, Meta)> {
        self.layout
            .keys("json")
            .into_iter()
            .filter(|key| self.layout.model(key).is_dir())
            .filter_map(|key| {
                let meta = read_json(&self.layout.of(&key, "json"))?;
                Some((key, meta))
            })
            .collect()
    }

    /// Reserves room for an entry whose lock the caller holds exclusively, evicting others if need be, down to `low` bytes. None where
    /// that would still exceed the limit.
    pub(crate) fn reserve(
        &self,
        key: &str,
        bytes: u64,
        limit: u64,
        low: u64,
    ) -> Result<Option<Reservation>, CacheError> {
        let mut used = self.used();
        if used.saturating_add(bytes) > limit {
            let goal = low.saturating_sub(bytes);
            used = self.collect(goal, Some(key))?.used_bytes;
        }
        if used.saturating_add(bytes) > limit {
            return Ok(None);
        }
        let path = self.layout.of(key, "room");
        write_json(&path, &bytes)?;
        Ok(Some(Reservation { path }))
    }

    /// Evicts until at most `goal` bytes are used: damaged models first, then those whose last use is longest ago. What is pinned or
    /// in use stays.
    pub(crate) fn collect(&self, goal: u64, spare: Option<&str>) -> Result<Collected, CacheError> {
        let mut used = self.used();
        let mut collected = Collected::default();
        if used > goal {
            let damaged = self.layout.damaged();
            let bytes = size_of(&damaged);
            if bytes > 0 {
                remove_dir(&damaged)?;
                std::fs::create_dir_all(&damaged).during("create", &damaged)?;
                collected.freed_bytes += bytes;
                used = used.saturating_sub(bytes);
            }
        }
        let mut entries = self.entries();
        entries.sort_by_key(|(key, _)| last_used(self.layout, key));
        for (key, meta) in entries {
            if used <= goal {
                break;
            }
            if spare == Some(key.as_str()) || !self.evict(&key)? {
                continue;
            }
            used = used.saturating_sub(meta.bytes);
            collected.freed_bytes += meta.bytes;
            collected.evicted.push(key);
        }
        collected.used_bytes = used;
        if !collected.evicted.is_empty() {
            let count = collected.evicted.len() as u64;
            Counters::update(self.layout, |counters| counters.evictions += count)?;
        }
        Ok(collected)
    }

    /// Removes one entry; false if it is pinned or in use.
    pub(crate) fn evict(&self, key: &str) -> Result<bool, CacheError> {
        let lock = LockFile::open(&self.layout.of(key, "lock"))?;
        let stays = |what| self.layout.of(key, what).exists();
        if stays("pin") || !lock.try_exclusive()? || stays("room") {
            return Ok(false);
        }
        let trash = self.layout.root.join(format!("{TRASH}{key}"));
        remove_dir(&trash)?;
        let model = self.layout.model(key);
        match std::fs::rename(&model, &trash) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.during("evict", &model)?,
        }
        remove_file(&self.layout.of(key, "json"))?;
        remove_file(&self.layout.of(key, "used"))?;
        remove_dir(&trash)?;
        Ok(true)
    }
}

/// Room for one entry, given back when dropped: by then the entry is counted itself, or is not there.
pub(crate) struct Reservation {
    path: PathBuf,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!(%error, "reserved room is given back later");
        }
    }
}
