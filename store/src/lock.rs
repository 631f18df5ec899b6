//! Locks between processes, kept in the cache folder: nothing appears beside the user's files.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{During, StoreError};

/// Holds a lock until dropped; the system lets go of it if the process dies.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
}

/// Waits for the lock called `name`, then holds it. The name may be anything, a path or URL too.
///
/// The lock files stay where they are: removing one while another process waits for it would split the lock in two.
pub fn lock(name: &str, cache_dir: &Path) -> Result<LockGuard, StoreError> {
    let (path, file) = open(name, cache_dir)?;
    wait(&file).during("lock", &path)?;
    Ok(LockGuard { _file: file })
}

/// Takes the lock called `name` if nobody holds it.
pub fn try_lock(name: &str, cache_dir: &Path) -> Result<Option<LockGuard>, StoreError> {
    let (path, file) = open(name, cache_dir)?;
    Ok(try_exclusive(&file)
        .during("lock", &path)?
        .then_some(LockGuard { _file: file }))
}

/// Waits for an exclusive lock on an open file, signals or not.
pub(crate) fn wait(file: &File) -> Result<(), Errno> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Takes an exclusive lock on an open file; false if another holds it.
pub(crate) fn try_exclusive(file: &File) -> Result<bool, Errno> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

fn open(name: &str, cache_dir: &Path) -> Result<(std::path::PathBuf, File), StoreError> {
    let folder = cache_dir.join("locks");
    std::fs::create_dir_all(&folder).during("create", &folder)?;
    // A readable part for people, a hash so that two names never share a lock.
    let readable: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') {
                c
            } else {
                '_'
            }
        })
        .take(60)
        .collect();
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let path = folder.join(format!("{readable}-{}.lock", &hash[..16]));
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .during("open", &path)?;
    Ok((path, file))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let guard = lock("a/b c", dir.path()).unwrap();
        assert!(try_lock("a/b c", dir.path()).unwrap().is_none());
        assert!(
            try_lock("a/b_c", dir.path()).unwrap().is_some(),
            "another name, though it looks the same"
        );
        drop(guard);
        assert!(try_lock("a/b c", dir.path()).unwrap().is_some());
    }

    #[test]
    fn waiters_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _guard = lock("x", dir.path()).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
    }

    #[test]
    fn an_unusable_cache_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(
            lock("x", &file)
                .unwrap_err()
                .to_string()
                .contains("file/locks")
        );
    }
}
