//! Folders and files that appear whole or not at all.
//!
//! Everything is written beside the target under a temporary name, `.<name>.sparse-tmp-<pid>-<random>`, made durable, and
//! moved to its name by one rename. The temporary is held by an advisory lock (flock) as long as its process lives, so
//! the next one can tell, and remove, what a killed process left.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{During, StoreError};
use crate::lock::try_exclusive;

/// The part of a temporary name that says whose it is.
const MARK: &str = ".sparse-tmp-";

/// Whether an existing target may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// An existing target is an error, and stays as it is.
    Never,
    /// An existing target is exchanged for the new one, then removed.
    Allow,
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Where the new file or folder is: the target, symbolic links resolved.
    pub path: PathBuf,
    /// Whether something was there before.
    pub replaced: bool,
}

/// A file or folder in the making. Dropping it removes every trace.
#[derive(Debug)]
pub struct Staged {
    temp: PathBuf,
    target: PathBuf,
    is_dir: bool,
    /// Keeps the lock on the temporary; dropped after it is gone.
    _held: Option<File>,
    /// Parent folders that were made for the target, outermost first.
    made: Vec<PathBuf>,
    done: bool,
}

impl Staged {
    /// Begins a folder that will be at `target`. Missing parents are created.
    pub fn dir(target: &Path) -> Result<Self, StoreError> {
        Self::begin(target, true)
    }

    /// Begins a file that will be at `target`. Missing parents are created.
    pub fn file(target: &Path) -> Result<Self, StoreError> {
        Self::begin(target, false)
    }

    /// Where to write: an empty folder, or an empty file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Where it will be: the target, symbolic links resolved.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    fn begin(target: &Path, is_dir: bool) -> Result<Self, StoreError> {
        let target = resolve(target)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            let error = std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "it has no name of its own",
            );
            return Err(StoreError::io("write to", target, error));
        };
        let made = create_parents(parent)?;
        // From here on, dropping `staged` removes the parents again.
        let mut staged = Self {
            temp: PathBuf::new(),
            target: target.clone(),
            is_dir,
            _held: None,
            made,
            done: false,
        };
        let stem = stem(name);
        remove_stale(parent, &stem);
        for _ in 0..100 {
            let temp = parent.join(temp_name(&stem));
            match create(&temp, is_dir) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(StoreError::io("create", temp, error)),
            }
            staged.temp.clone_from(&temp);
            // Between its creation and its lock, another writer may have taken it for a stale one: then try again.
            let held = match File::open(&temp) {
                Ok(held) => held,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("open", temp, error)),
            };
            // A file system without locks: stale temporaries stay there, for nobody can tell.
            let locked = try_exclusive(&held).unwrap_or(true);
            if locked && same_file(&held, &temp) {
                staged._held = Some(held);
                return Ok(staged);
            }
            staged.temp = PathBuf::new();
        }
        let error = std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "no free temporary name was found",
        );
        Err(StoreError::io(
            "create a temporary file beside",
            target,
            error,
        ))
    }

    /// Makes everything durable, then visible at the target in one step.
    ///
    /// A new target, and a replaced file, appear by one rename. A replaced folder is exchanged in one step where the
    /// file system can (`RENAME_EXCHANGE`: ext4, xfs, btrfs, tmpfs, overlayfs); elsewhere it is moved aside first, so
    /// for a moment nothing is there, and a crash in that moment leaves the old one under its temporary name.
    pub fn commit(mut self, replace: Replace) -> Result<Committed, StoreError> {
        sync_tree(&self.temp)?;
        let replaced = match replace {
            Replace::Never => {
                self.place_new()?;
                false
            }
            Replace::Allow => self.place_over()?,
        };
        self.done = true;
        self.made.clear();
        if let Some(parent) = self.target.parent() {
            sync_dir(parent)?;
        }
        if replaced {
            // What was exchanged out now has the temporary's name. If it cannot be removed, the next commit tries again.
            if let Err(error) = remove(&self.temp) {
                tracing::warn!(path = %self.temp.display(), %error, "the replaced output could not be removed");
            }
        }
        Ok(Committed {
            path: self.target.clone(),
            replaced,
        })
    }

    /// Renames to a name that must be free.
    fn place_new(&self) -> Result<(), StoreError> {
        let exists = || StoreError::Exists {
            path: self.target.clone(),
        };
        match renameat_with(CWD, &self.temp, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Err(exists()),
            Err(error) if flags_unsupported(error) => {
                if self.is_dir {
                    // Plain rename replaces nothing but an empty folder; the check makes that an error as well.
                    if self.target.symlink_metadata().is_ok() {
                        return Err(exists());
                    }
                    return self.rename_plainly();
                }
                // A hard link fails if the name is taken, without a gap.
                match std::fs::hard_link(&self.temp, &self.target) {
                    Ok(()) => remove(&self.temp).during("remove", &self.temp),
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        Err(exists())
                    }
                    Err(_) if self.target.symlink_metadata().is_ok() => Err(exists()),
                    Err(_) => self.rename_plainly(),
                }
            }
            Err(error) => Err(StoreError::io(
                "move the finished output to",
                &self.target,
                error,
            )),
        }
    }

    /// Renames over whatever is there. True if the old one now has the temporary's name.
    fn place_over(&self) -> Result<bool, StoreError> {
        // Two processes may replace the same target: each turn of the loop saw it come or go.
        for _ in 0..100 {
            let existing = match self.target.symlink_metadata() {
                Ok(meta) => meta,
                Err(_) => match self.place_new() {
                    Err(StoreError::Exists { .. }) => continue,
                    other => return other.map(|()| false),
                },
            };
            if !self.is_dir && existing.is_file() {
                return self.rename_plainly().map(|()| true);
            }
            match renameat_with(CWD, &self.temp, CWD, &self.target, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(true),
                Err(Errno::NOENT) => {}
                Err(error) if flags_unsupported(error) => {
                    return self.replace_aside().map(|()| true);
                }
                Err(error) => return Err(StoreError::io("replace", &self.target, error)),
            }
        }
        Err(StoreError::io("replace", &self.target, Errno::BUSY))
    }

    /// For file systems that cannot exchange: the old one aside, the new one in; back again if that fails.
    fn replace_aside(&self) -> Result<(), StoreError> {
        let mut aside = self.temp.clone().into_os_string();
        aside.push("-old");
        let aside = PathBuf::from(aside);
        std::fs::rename(&self.target, &aside).during("move aside", &self.target)?;
        if let Err(error) = std::fs::rename(&self.temp, &self.target) {
            if let Err(error) = std::fs::rename(&aside, &self.target) {
                tracing::error!(path = %aside.display(), %error, "the previous output could not be moved back");
            }
            return Err(StoreError::io(
                "move the finished output to",
                &self.target,
                error,
            ));
        }
        // So that the old one is found where an exchange would have left it.
        if let Err(error) = std::fs::rename(&aside, &self.temp) {
            tracing::warn!(path = %aside.display(), %error, "the replaced output could not be removed");
        }
        Ok(())
    }

    fn rename_plainly(&self) -> Result<(), StoreError> {
        std::fs::rename(&self.temp, &self.target)
            .during("move the finished output to", &self.target)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if !self.temp.as_os_str().is_empty()
            && let Err(error) = remove(&self.temp)
        {
            tracing::warn!(path = %self.temp.display(), %error, "a temporary could not be removed");
        }
        for parent in self.made.iter().rev() {
            // Not empty: somebody else uses it by now.
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// Whether a file name is that of a temporary of this module.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.contains(MARK)
}

/// Whether the error says that the file system (or kernel) cannot rename with flags, rather than that it will not.
fn flags_unsupported(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP)
}

/// The absolute path that a target means: if it is a symbolic link, what the link points to, existing or not.
fn resolve(target: &Path) -> Result<PathBuf, StoreError> {
    let mut path = std::path::absolute(target).during("find", target)?;
    for _ in 0..40 {
        match std::fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("/")).join(next),
            Err(_) => {
                // `..` and `.` at the end have no name to rename to: an existing target gets its real one.
                if path.file_name().is_none() || path.ends_with(".") {
                    return path.canonicalize().during("find", target);
                }
                return Ok(path);
            }
        }
    }
    Err(StoreError::io(
        "follow the symbolic links of",
        target,
        Errno::LOOP,
    ))
}

/// Creates the missing parents, and returns those it made.
fn create_parents(parent: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut at = parent;
    while !at.exists() {
        missing.push(at.to_path_buf());
        match at.parent() {
            Some(next) => at = next,
            None => break,
        }
    }
    missing.reverse();
    let mut made = Vec::new();
    for path in missing {
        match std::fs::create_dir(&path) {
            Ok(()) => made.push(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                for path in made.iter().rev() {
                    let _ = std::fs::remove_dir(path);
                }
                return Err(StoreError::io("create", path, error));
            }
        }
    }
    if !parent.is_dir() {
        return Err(StoreError::io("write into", parent, Errno::NOTDIR));
    }
    Ok(made)
}

/// `.<name>.sparse-tmp-`, with names shortened where the temporary's would be too long for the file system.
fn stem(name: &OsStr) -> OsString {
    let mut stem = OsString::from(".");
    if name.len() <= 180 {
        stem.push(name);
    } else {
        stem.push(&blake3::hash(name.as_bytes()).to_hex()[..32]);
    }
    stem.push(MARK);
    stem
}

fn temp_name(stem: &OsStr) -> OsString {
    use std::hash::{BuildHasher as _, RandomState};
    // The standard library's per-instance random keys: no need for more than rarely the same name twice.
    let random = RandomState::new().hash_one(std::time::SystemTime::now());
    let mut name = stem.to_os_string();
    name.push(format!("{}-{random:016x}", std::process::id()));
    name
}

fn create(path: &Path, is_dir: bool) -> std::io::Result<()> {
    if is_dir {
        std::fs::create_dir(path)
    } else {
        File::create_new(path).map(drop)
    }
}

/// Whether the open file is still the one at `path`.
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

/// Removes temporaries of the same target whose process is gone: their lock can be had.
fn remove_stale(parent: &Path, stem: &OsStr) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().as_bytes().starts_with(stem.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let Ok(held) = File::open(&path) else {
            continue;
        };
        if matches!(try_exclusive(&held), Ok(true)) && same_file(&held, &path) {
            match remove(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed what a stopped process left")
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a stale temporary could not be removed")
                }
            }
        }
    }
}

/// Removes a file or a folder with all it holds; links are removed, never followed. Nothing there is fine.
fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a file, or a folder with all it holds, durable.
fn sync_tree(path: &Path) -> Result<(), StoreError> {
    let meta = path.symlink_metadata().during("read", path)?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).during("list", path)? {
            sync_tree(&entry.during("list", path)?.path())?;
        }
        sync_dir(path)
    } else if meta.is_file() {
        File::open(path)
            .and_then(|file| file.sync_all())
            .during("write", path)
    } else {
        Ok(())
    }
}

/// Makes a folder's list of names durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    match synced {
        // Some network file systems cannot sync a folder; they keep its names themselves.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        other => other.during("write", path),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn stage_dir(target: &Path, content: &str) -> Staged {
        let staged = Staged::dir(target).unwrap();
        std::fs::create_dir(staged.path().join("sub")).unwrap();
        std::fs::write(staged.path().join("sub/x"), content).unwrap();
        staged
    }

    #[test]
    fn a_folder_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staged = stage_dir(&target, "1");
        assert!(!target.exists());
        let committed = staged.commit(Replace::Never).unwrap();
        assert_eq!(
            committed,
            Committed {
                path: target.clone(),
                replaced: false
            }
        );
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(std::fs::read_to_string(target.join("sub/x")).unwrap(), "1");
    }

    #[test]
    fn an_existing_target_stays_unless_replacing_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        stage_dir(&target, "1").commit(Replace::Never).unwrap();
        let error = stage_dir(&target, "2").commit(Replace::Never).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }));
        assert_eq!(std::fs::read_to_string(target.join("sub/x")).unwrap(), "1");
        assert_eq!(names(dir.path()), ["out"]);
        assert!(
            stage_dir(&target, "3")
                .commit(Replace::Allow)
                .unwrap()
                .replaced
        );
        assert_eq!(std::fs::read_to_string(target.join("sub/x")).unwrap(), "3");
        assert_eq!(names(dir.path()), ["out"]);
        // An empty folder is a target too.
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(matches!(
            stage_dir(&empty, "1").commit(Replace::Never),
            Err(StoreError::Exists { .. })
        ));
    }

    #[test]
    fn files_and_kinds_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let write = |text: &str| {
            let staged = Staged::file(&target).unwrap();
            std::fs::write(staged.path(), text).unwrap();
            staged
        };
        assert!(!write("1").commit(Replace::Allow).unwrap().replaced);
        assert!(matches!(
            write("2").commit(Replace::Never),
            Err(StoreError::Exists { .. })
        ));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "1");
        assert!(write("3").commit(Replace::Allow).unwrap().replaced);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "3");
        stage_dir(&target, "4").commit(Replace::Allow).unwrap();
        assert!(target.is_dir());
        write("5").commit(Replace::Allow).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "5");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn file_systems_without_rename_flags() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        stage_dir(&target, "1").commit(Replace::Never).unwrap();
        let mut staged = stage_dir(&target, "2");
        staged.replace_aside().unwrap();
        staged.done = true;
        assert_eq!(
            std::fs::read_to_string(staged.path().join("sub/x")).unwrap(),
            "1"
        );
        remove(staged.path()).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("sub/x")).unwrap(), "2");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn dropping_leaves_nothing_not_even_the_parents_it_made() {
        let dir = tempfile::tempdir().unwrap();
        drop(stage_dir(&dir.path().join("a/b/c"), "1"));
        assert!(names(dir.path()).is_empty());
        let kept = dir.path().join("a/b/c");
        stage_dir(&kept, "1").commit(Replace::Never).unwrap();
        drop(stage_dir(&dir.path().join("a/b/d"), "1"));
        assert_eq!(names(&dir.path().join("a/b")), ["c"]);
    }

    #[test]
    fn temporaries_of_dead_processes_go_and_of_living_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let dead = dir.path().join(".out.sparse-tmp-1-abc");
        std::fs::create_dir_all(dead.join("sub")).unwrap();
        let dead_file = dir.path().join(".out.sparse-tmp-2-abc");
        std::fs::write(&dead_file, b"x").unwrap();
        let other = dir.path().join(".out2.sparse-tmp-1-abc");
        std::fs::create_dir(&other).unwrap();
        let living = stage_dir(&target, "1");
        let second = stage_dir(&target, "2");
        assert!(!dead.exists() && !dead_file.exists());
        assert!(other.exists() && living.path().exists() && second.path().exists());
        living.commit(Replace::Never).unwrap();
        assert!(matches!(
            second.commit(Replace::Never),
            Err(StoreError::Exists { .. })
        ));
    }

    #[test]
    fn links_are_written_through_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("disk/out", &link).unwrap();
        let committed = stage_dir(&link, "1").commit(Replace::Never).unwrap();
        assert_eq!(committed.path, dir.path().join("disk/out"));
        assert!(link.symlink_metadata().unwrap().file_type().is_symlink());
        assert!(
            stage_dir(&link, "2")
                .commit(Replace::Allow)
                .unwrap()
                .replaced
        );
        assert_eq!(std::fs::read_to_string(link.join("sub/x")).unwrap(), "2");
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        assert!(
            Staged::dir(&dir.path().join("loop"))
                .unwrap_err()
                .to_string()
                .contains("symbolic links")
        );
    }

    #[test]
    fn refusals_are_named_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let error = Staged::dir(&file.join("below/out"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("file"), "{error}");
        assert!(Staged::dir(Path::new("/")).is_err());
        assert_eq!(names(dir.path()), ["file"]);
        if !rustix::process::geteuid().is_root() {
            let locked = dir.path().join("locked");
            std::fs::create_dir(&locked).unwrap();
            std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
            let error = Staged::dir(&locked.join("out")).unwrap_err().to_string();
            assert!(error.contains("permissions"), "{error}");
        }
    }

    #[test]
    fn long_names_and_dots() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x".repeat(255));
        stage_dir(&target, "1").commit(Replace::Never).unwrap();
        assert!(target.is_dir());
        let dots = dir.path().join("a").join("..").join("b");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        stage_dir(&dots, "1").commit(Replace::Never).unwrap();
        assert!(dir.path().join("b").is_dir());
        assert!(is_temporary(".x.sparse-tmp-1-2") && !is_temporary("x.sparse-tmp-1"));
    }

    #[test]
    fn many_at_once_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let wins: usize = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..8)
                .map(|i| {
                    let target = &target;
                    scope.spawn(move || {
                        stage_dir(target, &i.to_string())
                            .commit(Replace::Never)
                            .is_ok()
                    })
                })
                .collect();
            handles
                .into_iter()
                .map(|h| usize::from(h.join().unwrap()))
                .sum()
        });
        assert_eq!(wins, 1);
        std::thread::scope(|scope| {
            for i in 0..8 {
                let target = &target;
                scope.spawn(move || {
                    stage_dir(target, &i.to_string())
                        .commit(Replace::Allow)
                        .unwrap()
                });
            }
        });
        assert_eq!(names(dir.path()), ["out"]);
    }
}
